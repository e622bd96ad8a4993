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

from tdb_server.domain.limits import Limits
from tdb_server.flags import Flags, at_least, byte_size, name_list, one_of, port_number, positive_seconds
from tdb_server.pool_settings import (
    RayPoolSettings,
    WorkerCare,
    add_pool_flags,
    read_care,
    read_pool,
)
from tdb_server.scheduling_settings import Scheduling, add_scheduling_flags, read_scheduling
from tdb_server.security_settings import (
    NewToken,
    Security,
    add_security_flags,
    add_token_command,
    read_new_token,
    read_security,
)
from tdb_server.telemetry_settings import Telemetry, add_telemetry_flags, read_telemetry

_DESCRIPTION = "Holds a language model and explains over gRPC why it predicts one token rather than another."
_EXAMPLES = """\
examples:
  tdb-server serve                                     the default model on this machine, port 50051
  tdb-server serve --model ./gpt2 --device cuda:0      a Hugging Face folder on the first GPU
  tdb-server serve --model gpt2 --port 0 --ready-file /run/tdb.json
                                                       a free port, written to the file when ready
  tdb-server serve --devices cuda:0,cuda:1             one worker process on each GPU
  tdb-server serve --pool ray --ray-address auto --workers 2 --ray-max-workers 8
                                                       two to eight workers on a Ray cluster
  tdb-server serve --model ./gpt2 --autoencoder ./sae/mlp --autoencoder ./sae/attention
  tdb-server serve --host 0.0.0.0 --tls-certificate server.pem --tls-key server.key --token-file tokens.toml
                                                       for other machines, and for those who have a token
  TDB_SERVER_MAX_SUB_REQUESTS=8 tdb-server serve       every flag has its variable
"""
_LIMIT_HELP = {
    "max_prompt_tokens": "tokens of a prompt (default: the model's context)",
    "max_prompt_bytes": "bytes of a prompt (default: as many as its tokens can have)",
    "max_sub_requests": "sub-requests of a call",
    "max_node_ablations": "ablations of a sub-request",
    "max_target_tokens": "entries of each list of target or distractor tokens",
    "max_top_and_bottom_k": "nodes from each end of a ranking",
    "max_processing_specs": "processing specs of a sub-request",
    "max_request_bytes": "bytes of a request",
    "max_response_bytes": "bytes of an answer that is not streamed",
    "max_buffered_bytes": "bytes of long requests and answers that wait in memory, all calls together",
    "max_spool_bytes": "bytes of answers that wait on disk for their readers, all calls together",
    "max_concurrent_calls": "calls taken up at the same time, waiting ones included",
    "max_queue_length": "calls that may wait for a worker",
    "max_activation_bytes": "estimated bytes of activations and gradients of a call",
    "max_call_seconds": "seconds a call may take, waiting included",
    "chunk_bytes": "bytes of tensor data in one message of a stream",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What `tdb-server serve` was told.

    Attributes:
        model: a folder, a GGUF file or a hub name; None for the default model.
        autoencoders: folders of autoencoders to splice in.
        devices: one per worker: "auto", "cpu", "cuda:0"...
        ray: the workers' place on Ray; None for processes of this machine.
        care: when workers are replaced, and when they give memory back.
        dtype: type the model computes in.
        n_threads: CPU threads per worker; None shares the cores out among the workers.
        ranking: how vocabularies are ranked; None for the fastest way on each worker's machine.
        host: address to listen on.
        port: 0 picks a free one.
        http_port: of the JSON API; None for no such API.
        listens_when_ready: whether the ports stay closed while the model is loading.
        ready_file: where to write the ports when the server is ready.
        grace_seconds: how long running calls may go on after SIGTERM.
        reflection: whether clients can ask for the protos.
        channelz: whether clients can look at the server's connections.
        limits: what requests are checked against.
        scheduling: how calls share the workers.
        security: who may connect and call.
        telemetry: metrics, traces and logs.
    """

    model: str | None = None
    autoencoders: tuple[Path, ...] = ()
    devices: tuple[str, ...] = ("auto",)
    ray: RayPoolSettings | None = None
    care: WorkerCare = field(default_factory=WorkerCare)
    dtype: str = "float32"
    n_threads: int | None = None
    ranking: str | None = None
    host: str = "127.0.0.1"
    port: int = 50051
    http_port: int | None = None
    listens_when_ready: bool = False
    ready_file: Path | None = None
    grace_seconds: float = 10.0
    reflection: bool = True
    channelz: bool = False
    limits: Limits = field(default_factory=Limits)
    scheduling: Scheduling = field(default_factory=Scheduling)
    security: Security = field(default_factory=Security)
    telemetry: Telemetry = field(default_factory=Telemetry)


def parse_settings(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, version: str = "unknown"
) -> Settings | NewToken:
    """Reads the command and its flags; exits with code 2 and a message where they make no sense."""
    parser = _parser(environment, version)
    told = parser.parse_args(arguments)
    try:
        return _settings(told, environment) if told.command == "serve" else read_new_token(told)
    except ValueError as error:
        parser.exit(2, f"tdb-server: {error}\n")


def _parser(environment: Mapping[str, str], version: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tdb-server", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"tdb-server {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    add_token_command(commands)
    serve = commands.add_parser(
        "serve",
        help="serve a model until told to stop",
        description=f"{_DESCRIPTION} Each flag can also be set as an environment variable, in upper case "
        "after TDB_SERVER_, lists separated by commas.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags = Flags(serve, environment)
    flags.group("what to serve")
    flags.add(
        "--model", str, None, "PATH|NAME", "folder, GGUF file or hub name (default: SmolLM2-135M-Instruct)"
    )
    flags.add_repeated("--autoencoder", "FOLDER", "autoencoder to splice in; may be given several times")
    flags.add(
        "--dtype",
        one_of("float32", "float64", "bfloat16"),
        "float32",
        "TYPE",
        "float32, float64 or bfloat16",
    )
    flags.group("where to compute")
    flags.add("--device", str, "auto", "DEVICE", "auto, cpu or cuda:N; auto takes GPUs where there are any")
    flags.add(
        "--devices", name_list, None, "LIST", "several devices, separated by commas, in place of --device"
    )
    flags.add(
        "--workers",
        at_least(1),
        None,
        "N",
        "worker processes, dealt out over the devices (default: one each)",
    )
    flags.add("--threads", at_least(1), None, "N", "CPU threads per worker (default: the cores shared out)")
    flags.add(
        "--ranking",
        one_of("auto", "exact", "int8"),
        "auto",
        "WAY",
        "how tokens are ranked: exact scores all, int8 searches in 8 bits first, auto tries which is faster",
    )
    add_pool_flags(flags)
    flags.group("where to listen")
    flags.add("--host", str, "127.0.0.1", "ADDRESS", "address to listen on")
    flags.add("--port", port_number, 50051, "PORT", "port of the gRPC server; 0 picks a free one")
    flags.add(
        "--http-port", port_number, None, "PORT", "port of the JSON API; 0 picks a free one (default: none)"
    )
    flags.add_switch("--listen-when-ready", "open the ports once the model is loaded, not before")
    flags.add("--ready-file", Path, None, "PATH", "file that gets the port as JSON when the server is ready")
    flags.add(
        "--grace-seconds", positive_seconds, 10.0, "S", "how long running calls may go on after SIGTERM"
    )
    flags.add_switch("--no-reflection", "do not tell clients the protos")
    flags.add_switch("--channelz", "let clients look at the server's connections")
    flags.group("limits", "bytes may be written as 64MiB")
    for limit in fields(Limits):
        kind = _kind_of_limit(limit.name)
        flags.add(f"--{limit.name.replace('_', '-')}", kind, limit.default, "N", _LIMIT_HELP[limit.name])
    add_scheduling_flags(flags)
    add_security_flags(flags)
    add_telemetry_flags(flags)
    return parser


def _settings(told: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    devices: tuple[str, ...] = told.devices or (told.device,)
    n_workers: int = told.workers or len(devices)
    return Settings(
        model=told.model,
        autoencoders=tuple(told.autoencoder or told.autoencoder_variable),
        devices=tuple(devices[index % len(devices)] for index in range(n_workers)),
        ray=read_pool(told, n_workers),
        care=read_care(told),
        dtype=told.dtype,
        n_threads=told.threads,
        ranking=None if told.ranking == "auto" else told.ranking,
        host=told.host,
        port=told.port,
        http_port=told.http_port,
        listens_when_ready=told.listen_when_ready,
        ready_file=told.ready_file,
        grace_seconds=told.grace_seconds,
        reflection=not told.no_reflection,
        channelz=told.channelz,
        limits=Limits(**{limit.name: getattr(told, limit.name) for limit in fields(Limits)}),
        scheduling=read_scheduling(told),
        security=read_security(told),
        telemetry=read_telemetry(told, environment),
    )


def _kind_of_limit(name: str) -> Any:
    if name.endswith("_bytes"):
        return byte_size
    return positive_seconds if name.endswith("_seconds") else at_least(1)
