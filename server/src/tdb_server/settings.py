"""How the server was told to run: the only reader of the command line and of the environment.

Every flag can also be given as an environment variable: `--max-sub-requests` as
`TDB_SERVER_MAX_SUB_REQUESTS`. A flag wins over its variable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tdb_server.domain.limits import MIB, Limits

_DESCRIPTION = "Holds a language model and explains over gRPC why it predicts one token rather than another."
_EXAMPLES = """\
examples:
  tdb-server serve                                     the default model on this machine, port 50051
  tdb-server serve --model ./gpt2 --device cuda:0      a Hugging Face folder on the first GPU
  tdb-server serve --model gpt2 --port 0 --ready-file /run/tdb.json
                                                       a free port, written to the file when ready
  tdb-server serve --devices cuda:0,cuda:1             one worker process on each GPU
  tdb-server serve --model ./gpt2 --autoencoder ./sae/mlp --autoencoder ./sae/attention
  TDB_SERVER_MAX_SUB_REQUESTS=8 tdb-server serve       every flag has its variable
"""
_LIMIT_HELP = {
    "max_prompt_tokens": "tokens of a prompt (default: the model's context)",
    "max_sub_requests": "sub-requests of a call",
    "max_node_ablations": "ablations of a sub-request",
    "max_top_and_bottom_k": "nodes from each end of a ranking",
    "max_processing_specs": "processing specs of a sub-request",
    "max_request_bytes": "bytes of a request",
    "max_response_bytes": "bytes of an answer that is not streamed",
    "max_concurrent_calls": "calls taken up at the same time, waiting ones included",
    "max_queue_length": "calls that may wait for a worker",
    "max_activation_bytes": "estimated bytes of activations and gradients of a call",
    "max_call_seconds": "seconds a call may take, waiting included",
    "chunk_bytes": "bytes of tensor data in one message of a stream",
}
_UNITS = {"KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB}


@dataclass(frozen=True, slots=True)
class Settings:
    """What `tdb-server serve` was told.

    Attributes:
        model: a folder, a GGUF file or a hub name; None for the default model.
        autoencoders: folders of autoencoders to splice in.
        devices: one per worker: "auto", "cpu", "cuda:0"...
        dtype: type the model computes in.
        n_threads: CPU threads per worker; None shares the cores out among the workers.
        host: address to listen on.
        port: 0 picks a free one.
        ready_file: where to write the ports when the server is ready.
        grace_seconds: how long running calls may go on after SIGTERM.
        reflection: whether clients can ask for the protos.
        channelz: whether clients can look at the server's connections.
        limits: what requests are checked against.
    """

    model: str | None = None
    autoencoders: tuple[Path, ...] = ()
    devices: tuple[str, ...] = ("auto",)
    dtype: str = "float32"
    n_threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    ready_file: Path | None = None
    grace_seconds: float = 10.0
    reflection: bool = True
    channelz: bool = False
    limits: Limits = field(default_factory=Limits)


def parse_settings(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, version: str = "unknown"
) -> Settings:
    """Reads `serve` and its flags; exits with a usage message where they make no sense."""
    parser = _parser(environment, version)
    return _settings(parser.parse_args(arguments))


def _parser(environment: Mapping[str, str], version: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tdb-server", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"tdb-server {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model until told to stop",
        description=f"{_DESCRIPTION} Each flag can also be set as an environment variable, in upper case "
        "after TDB_SERVER_, lists separated by commas.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags = _Flags(serve, environment)
    flags.group("what to serve")
    flags.add(
        "--model", str, None, "PATH|NAME", "folder, GGUF file or hub name (default: SmolLM2-135M-Instruct)"
    )
    flags.add_repeated("--autoencoder", "FOLDER", "autoencoder to splice in; may be given several times")
    flags.add(
        "--dtype",
        _choice("float32", "float64", "bfloat16"),
        "float32",
        "TYPE",
        "float32, float64 or bfloat16",
    )
    flags.group("where to compute")
    flags.add("--device", str, "auto", "DEVICE", "auto, cpu or cuda:N; auto takes GPUs where there are any")
    flags.add(
        "--devices", _devices, None, "LIST", "several devices, separated by commas, in place of --device"
    )
    flags.add(
        "--workers",
        _at_least(1),
        None,
        "N",
        "worker processes, dealt out over the devices (default: one each)",
    )
    flags.add("--threads", _at_least(1), None, "N", "CPU threads per worker (default: the cores shared out)")
    flags.group("where to listen")
    flags.add("--host", str, "127.0.0.1", "ADDRESS", "address to listen on")
    flags.add("--port", _port, 50051, "PORT", "port of the gRPC server; 0 picks a free one")
    flags.add("--ready-file", Path, None, "PATH", "file that gets the port as JSON when the server is ready")
    flags.add(
        "--grace-seconds", _positive_seconds, 10.0, "S", "how long running calls may go on after SIGTERM"
    )
    flags.add_switch("--no-reflection", "do not tell clients the protos")
    flags.add_switch("--channelz", "let clients look at the server's connections")
    flags.group("limits", "bytes may be written as 64MiB")
    for limit in fields(Limits):
        kind = _kind_of_limit(limit.name)
        flags.add(f"--{limit.name.replace('_', '-')}", kind, limit.default, "N", _LIMIT_HELP[limit.name])
    return parser


class _Flags:
    """Adds flags to a parser, each with its environment variable as the default."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment
        self._group: Any = parser

    def group(self, title: str, description: str | None = None) -> None:
        self._group = self._parser.add_argument_group(title, description)

    def add(self, flag: str, kind: Any, default: object, metavar: str, text: str) -> None:
        # argparse puts a default that is a string through `kind`, so variables are checked as flags are.
        told = self._variable(flag)
        shown = "" if default is None else f" (default: {default})"
        self._group.add_argument(
            flag, type=kind, default=default if told is None else told, metavar=metavar, help=text + shown
        )

    def add_repeated(self, flag: str, metavar: str, text: str) -> None:
        told = self._variable(flag)
        self._group.add_argument(flag, type=Path, action="append", metavar=metavar, help=text)
        self._parser.set_defaults(
            **{f"{flag[2:]}_variable": [Path(one) for one in told.split(",")] if told else []}
        )

    def add_switch(self, flag: str, text: str) -> None:
        is_on = (self._variable(flag) or "").lower() in ("1", "true", "yes", "on")
        self._group.add_argument(flag, action="store_true", default=is_on, help=text)

    def _variable(self, flag: str) -> str | None:
        return self._environment.get("TDB_SERVER_" + flag[2:].replace("-", "_").upper())


def _settings(told: argparse.Namespace) -> Settings:
    devices: tuple[str, ...] = told.devices or (told.device,)
    n_workers: int = told.workers or len(devices)
    return Settings(
        model=told.model,
        autoencoders=tuple(told.autoencoder or told.autoencoder_variable),
        devices=tuple(devices[index % len(devices)] for index in range(n_workers)),
        dtype=told.dtype,
        n_threads=told.threads,
        host=told.host,
        port=told.port,
        ready_file=told.ready_file,
        grace_seconds=told.grace_seconds,
        reflection=not told.no_reflection,
        channelz=told.channelz,
        limits=Limits(**{limit.name: getattr(told, limit.name) for limit in fields(Limits)}),
    )


def _kind_of_limit(name: str) -> Any:
    if name.endswith("_bytes"):
        return _bytes
    return _positive_seconds if name.endswith("_seconds") else _at_least(1)


def _at_least(minimum: int) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}: {text}")
        return value

    parse.__name__ = "integer"
    return parse


def _bytes(text: str) -> int:
    factor = _UNITS.get(text[-3:], 1)
    value = int(text[:-3] if factor > 1 else text) * factor
    if value < 1024:
        raise argparse.ArgumentTypeError(f"must be at least 1024 bytes: {text}")
    return value


def _positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0: {text}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535: {text}")
    return value


def _choice(*choices: str) -> Any:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}: {text}")
        return text

    return parse


def _devices(text: str) -> tuple[str, ...]:
    devices = tuple(one.strip() for one in text.split(",") if one.strip())
    if not devices:
        raise argparse.ArgumentTypeError("must name at least one device")
    return devices
