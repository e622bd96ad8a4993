"""What is counted: calls of the engine, alone and merged, and transformers' model as the floor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import tdb_server
import torch
import transformers
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    AttentionTraceType,
    DebugSubRequest,
    MlpComponent,
    NodeAblation,
    Trace,
)
from tdb_server.engine.engine import Engine
from tdb_server.engine.stage_clock import StageClock
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.decoder import Decoder
from tdb_server.model.weights import load_decoder

from benchmarks.cases import K
from benchmarks.pretended_gpu import GPU, LAUNCH, GpuTensor, PretendedGpu

FLOORS = ("floor-sdpa", "floor-eager")
CASES = ("plain", "ablated", "neuron", "head", "latents")
REST = "rest"
TARGET, DISTRACTOR = 11, 12
N_LATENTS, N_ACTIVE_LATENTS = 2048, 32
hugging_face: Any = transformers  # its Auto classes have no types


@dataclass(frozen=True)
class Counted:
    """What a batch of calls tells a GPU.

    Attributes:
        case: one of `CASES` or `FLOORS`.
        calls: merged in the batch.
        tokens: of each prompt.
        launches: operations that launch kernels.
        waits: how often the host waits.
        views: operations that launch nothing.
        launches_by_stage: forward, backward, derive and score, as calls report their times.
        waits_by_stage: likewise.
        launching: launches by stage, operation and line, most first.
        waiting: waits by stage, kind and line, most first.
    """

    case: str
    calls: int
    tokens: int
    launches: int
    waits: int
    views: int
    launches_by_stage: dict[str, int]
    waits_by_stage: dict[str, int]
    launching: dict[str, int]
    waiting: dict[str, int]


class LaunchCounter:
    """Counts for one model.

    Args:
        folder: of the model.
        n_latents: of the random autoencoders that stand for trained ones.
        n_active_latents: of these, how many are active at a token; None for as many as are above 0.
    """

    def __init__(
        self, folder: Path, n_latents: int = N_LATENTS, n_active_latents: int | None = N_ACTIVE_LATENTS
    ) -> None:
        self._folder, self._n_latents, self._n_active_latents = folder, n_latents, n_active_latents

    def count(self, case: str, n_tokens: int, n_calls: int = 1) -> Counted:
        """Runs calls of one kind in one batch, each with a prompt of its own."""
        if case in FLOORS:
            gpu = self._floor(case.partition("-")[2], n_tokens, n_calls)
        else:
            gpu = self._engine(case, n_tokens, n_calls)
        return _counted(case, n_tokens, n_calls, gpu)

    def _engine(self, case: str, n_tokens: int, n_calls: int) -> PretendedGpu:
        """A batch, after a call that leaves behind what an engine keeps."""
        gpu = PretendedGpu(Path(tdb_server.__file__).parent)

        class Clock(StageClock):
            def start(self) -> None:
                gpu.end_stage(REST)
                super().start()

            def end(self, stage: str) -> None:
                gpu.end_stage(stage)
                super().end(stage)

        with gpu.on(), mock.patch("tdb_server.engine.engine.StageClock", Clock):
            engine = self._engines[case == "latents"]
            for _ in engine.run(self._calls("plain", n_tokens, 1, seed=0), lambda _: False):
                pass
            gpu.clear()
            for _ in engine.run(self._calls(case, n_tokens, n_calls, seed=1), lambda _: False):
                pass
            gpu.end_stage(REST)
        return gpu

    def _floor(self, attention: str, n_tokens: int, n_calls: int) -> PretendedGpu:
        """A forward pass, and a backward pass from the difference of two logits to the embeddings."""
        gpu = PretendedGpu(Path(transformers.__file__).parent)
        auto = hugging_face.AutoModelForCausalLM
        model = auto.from_pretrained(self._folder, attn_implementation=attention, dtype=torch.float32)
        model.train(False).requires_grad_(False)
        _bring_to_gpu(model)
        with gpu.on():
            ids = torch.zeros(n_calls, n_tokens, dtype=torch.long, device=GPU)
            gpu.clear()
            embeddings = model.get_input_embeddings()(ids).requires_grad_()
            last = model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
            objective = (last[:, TARGET] - last[:, DISTRACTOR]).sum()
            gpu.end_stage("forward")
            torch.autograd.grad(objective, embeddings)
            gpu.end_stage("backward")
        return gpu

    @cached_property
    def _engines(self) -> tuple[Engine, Engine]:
        """Without latents, and with."""
        return Engine(self._decoder, []), Engine(self._decoder, [self._autoencoder])

    @cached_property
    def _decoder(self) -> Decoder:
        loaded = load_decoder(self._folder, "cpu", torch.float32)
        on_gpu = {id(one): GpuTensor(one) for one in loaded.weights.tensors()}
        return Decoder(loaded.config, copy.deepcopy(loaded.weights, on_gpu))

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        """Of every MLP's output."""
        generator, width = torch.Generator().manual_seed(0), self._decoder.config.d_model

        def layer() -> AutoencoderLayer:
            drawn = torch.randn(self._n_latents, width, generator=generator)
            directions = GpuTensor(drawn / drawn.norm(dim=1, keepdim=True))
            nothing = [GpuTensor(torch.zeros(size)) for size in (width, self._n_latents)]
            return AutoencoderLayer(nothing[0], directions, nothing[1], directions, self._n_active_latents)

        found = Autoencoder(Site.RESID_DELTA_MLP, {at: layer() for at in range(len(self._decoder.blocks))})
        found.compute_write_norms(self._decoder)
        return found

    def _calls(self, case: str, n_tokens: int, n_calls: int, seed: int) -> list[Call]:
        generator = torch.Generator().manual_seed(seed)
        size = (n_calls, n_tokens)
        prompts = torch.randint(self._decoder.config.vocabulary_size, size, generator=generator).tolist()
        return [
            Call(str(number), tuple(map(inference_sub_request, self._sub_requests(case, prompt))))
            for number, prompt in enumerate(prompts)
        ]

    def _sub_requests(self, case: str, prompt: Sequence[int]) -> list[DebugSubRequest]:
        """The kinds of `benchmarks.cases`, in the engine's words."""
        n_layers, last = len(self._decoder.blocks), len(prompt) - 1
        deep = 3 * n_layers // 4
        plain = DebugSubRequest(
            tuple(prompt), (TARGET,), (DISTRACTOR,), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, K
        )
        match case:
            case "plain":
                return [plain]
            case "ablated":
                ablated = NodeIndex(NodeType.ATTENTION_HEAD, n_layers // 2, (last, last, 1))
                return [plain, replace(plain, node_ablations=(NodeAblation(ablated),))]
            case "neuron":
                return [replace(plain, upstream_trace=Trace(NodeIndex(NodeType.MLP_NEURON, deep, (last, 7))))]
            case "head":
                moved = NodeIndex(NodeType.ATTENTION_HEAD, deep, (last, len(prompt) // 2, 1))
                return [replace(plain, upstream_trace=Trace(moved, AttentionTraceType.V))]
            case "latents":
                return [replace(plain, mlp_component=MlpComponent.AUTOENCODER_LATENT)]
        raise ValueError(f"no case {case!r}; there are {', '.join((*FLOORS, *CASES))}")


def _bring_to_gpu(model: Any) -> None:
    """A module's parameters and buffers become plain attributes on the pretended GPU."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            delattr(module, name)
            setattr(module, name, GpuTensor(tensor))


def _counted(case: str, n_tokens: int, n_calls: int, gpu: PretendedGpu) -> Counted:
    launches = {key: n for key, n in gpu.counts.most_common() if key[1] == LAUNCH}
    waits = {key: n for key, n in gpu.counts.most_common() if key[1] != LAUNCH}
    return Counted(
        case, n_calls, n_tokens, sum(launches.values()), sum(waits.values()), gpu.n_views,
        _by_stage(launches), _by_stage(waits),
        {f"{stage}: {operation}, {line}": n for (stage, _, operation, line), n in launches.items()},
        {f"{stage}: {kind}, {line}": n for (stage, kind, _, line), n in waits.items()},
    )  # fmt: skip


def _by_stage(counts: dict[tuple[str, str, str, str], int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for (stage, *_), n in counts.items():
        found[stage] = found.get(stage, 0) + n
    return found
