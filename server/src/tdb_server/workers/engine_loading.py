"""Loading the model, and everything that a worker says about it, wherever the worker runs."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.requests import AttentionComponent, DebugSubRequest, MlpComponent
from tdb_server.errors import ModelError
from tdb_server.model.dictionaries.sources import dictionary_folder
from tdb_server.model.load_failures import load_failures
from tdb_server.workers.free_memory import room_bytes
from tdb_server.workers.idle_memory import return_free_memory
from tdb_server.workers.messages import Configuration, Ready

if TYPE_CHECKING:
    from tdb_server.engine.engine import Engine
    from tdb_server.model.dictionaries.stored import StoredLayer
    from tdb_server.model.progress import Progress

_log = logging.getLogger(__name__)
AUTO = "auto"
"""Leaves the choice of the device, or of the type of the weights, to what is there."""


def load_engine(
    configuration: Configuration, progress: Progress, shared_file: int | None = None
) -> tuple[Engine, Ready]:
    """Loads what is configured and runs a first call.

    Args:
        configuration: what to load, and where.
        progress: told how far it is.
        shared_file: descriptor of the file in memory in which workers of one machine share weights.

    Returns:
        The engine, and what the front needs to know of it.

    Raises:
        TdbError: the model cannot be loaded, for whatever reason.
    """
    with load_failures(configuration.model_name):
        # Imported here, as this takes seconds: a worker process has sent heartbeats before.
        import torch

        from tdb_server.engine.engine import Engine
        from tdb_server.model.autoencoder_loading import fit_dictionaries, read_dictionaries
        from tdb_server.model.dictionaries.digest import with_dictionaries
        from tdb_server.model.model_loading import load_model
        from tdb_server.model.weights import read_decoder_config

        torch.set_num_threads(configuration.n_threads)
        device = device_of(configuration)
        dtype = None if configuration.dtype == AUTO else getattr(torch, configuration.dtype)
        stored: dict[Site, list[StoredLayer]] = {}

        def check(model_folder: Path) -> None:
            """Reads first what takes seconds: the configuration, and the dictionaries that must fit it."""
            config = read_decoder_config(model_folder)
            with load_failures(of_dictionaries):
                folders = [dictionary_folder(one, progress) for one in configuration.autoencoders]
                stored.update(read_dictionaries(folders, config))

        of_dictionaries = ", ".join(map(str, configuration.autoencoders))
        model, decoder = load_model(configuration.model, device, dtype, progress, shared_file, check)
        with load_failures(of_dictionaries):
            autoencoders = fit_dictionaries(stored, decoder)
        digest = with_dictionaries(decoder.digest, stored)
        stored.clear()  # what was converted of them is all that is used
        engine = Engine(decoder, autoencoders, ranking=configuration.ranking)
        for kernel in engine.kernels:
            _log.info("%s", kernel)
        info = model_info(model.name, digest, str(decoder.dtype).removeprefix("torch."), engine)
        _warm_up(engine, progress)
        return_free_memory()  # what was needed to load only
        gc.freeze()  # what is left stays: the garbage collector need not look through it again and again
        room = room_bytes(device, configuration.n_alike, is_dealt_out=configuration.device == AUTO)
        _log.info("calls may take %d MiB beside the model on %s, unless told otherwise", room >> 20, device)
        return engine, Ready(model.tokenizer_path, info, device, room)


def _warm_up(engine: Engine, progress: Progress) -> None:
    """Runs the smallest call, so that the first caller does not wait for what libraries do on first use."""
    progress("warming up", 0.0)
    request = DebugSubRequest((0, 0), (0,), (), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, 1)
    for _ in engine.run([Call("warm-up", (inference_sub_request(request),))], lambda _: False):
        pass
    progress("warming up", 1.0)


def device_of(configuration: Configuration) -> str:
    """Where a worker computes, as torch names it.

    Raises:
        ModelError: there is no such device here.
    """
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if configuration.device == AUTO:
        return f"cuda:{configuration.worker_index % n_gpus}" if n_gpus else "cpu"
    try:
        device = torch.device(configuration.device)
    except RuntimeError as error:
        raise ModelError(f"{configuration.device}: not a device; auto, cpu or cuda:N", "NO_DEVICE") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= n_gpus):
        raise ModelError(f"{device}: there is no such device here, which has {n_gpus} GPUs", "NO_DEVICE")
    return str(device)


def dictionary_report(folders: Sequence[Path], model: str | None, progress: Progress) -> list[str]:
    """What folders of dictionaries hold, a line for each layer, and whether it fits a model.

    Args:
        folders: or names on the hub.
        model: as for `resolve_model`; only its configuration is read. None where none is meant.
        progress: told how far a download is.

    Raises:
        ModelError: a file is missing or damaged, or does not fit the model.
    """
    from tdb_server.model.dictionaries.report import report_lines

    with load_failures(", ".join(map(str, folders))):
        return report_lines([dictionary_folder(one, progress) for one in folders], model, progress)


def model_info(name: str, digest: str, dtype: str, engine: Engine) -> ModelInfo:
    """What the front and its callers need to know of a model."""
    config = engine.model.decoder.config
    return ModelInfo(
        name=name,
        digest=digest,
        family=config.family,
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_key_value_heads=config.n_key_value_heads,
        d_head=config.d_head,
        n_neurons=config.n_neurons,
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        dtype=dtype,
        autoencoders=tuple(one.info for one in engine.model.autoencoders),
        absent_hook_points=engine.model.decoder.absent_hook_points,
        attention_cap=config.attention_cap,
        logit_cap=config.logit_cap,
        windows=config.windows,
        kernels=engine.kernels,
    )
