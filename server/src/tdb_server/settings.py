"""How the server was told to run: the only reader of the command line and of the environment.

Every flag can also be given as an environment variable: `--max-sub-requests` as
`TDB_SERVER_MAX_SUB_REQUESTS`. A flag wins over its variable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tdb_server.domain.limits import Limits
from tdb_server.examples_settings import ExamplesSettings
from tdb_server.flags import (
    add_flags,
    at_least,
    flag,
    group,
    name_list,
    one_of,
    paths,
    port_number,
    positive_seconds,
    read_flags,
    switch,
)
from tdb_server.pool_settings import LOCAL, RayPoolSettings, WorkerCare
from tdb_server.scheduling_settings import Scheduling
from tdb_server.security_settings import NewToken, Security, add_token_command, check_security, read_new_token
from tdb_server.telemetry_settings import Telemetry

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
_TRACE_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def _ranking(text: str) -> str | None:
    way = one_of("auto", "exact", "int8")(text)
    return None if way == "auto" else str(way)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `tdb-server serve` was told.

    Attributes:
        model: None for the default model.
        ranking: None for the fastest way on each worker's machine.
        ray: the workers' place on Ray; None for processes of this machine.
        http_port: None for no JSON API.
        reflection: whether clients can ask for the protos.
        limits: what requests are checked against.
    """

    model: str | None = flag(
        None,
        str,
        "PATH|NAME",
        "folder, GGUF file or hub name (default: SmolLM2-135M-Instruct)",
        title="what to serve",
    )
    autoencoders: tuple[Path, ...] = paths(
        "FOLDER", "autoencoder or transcoder to splice in; may be given several times", "--autoencoder"
    )
    examples: Path | None = flag(
        None, Path, "FOLDER", "where texts activate nodes, as `tdb-server examples` found it for this model"
    )
    dtype: str = flag(
        "float32",
        one_of("auto", "float32", "float64", "bfloat16"),
        "TYPE",
        "of the weights: float32, float64, bfloat16, or auto for that of the model's files",
    )
    device: str = flag(
        "auto",
        str,
        "DEVICE",
        "auto, cpu or cuda:N; auto takes GPUs where there are any",
        title="where to compute",
    )
    devices: tuple[str, ...] | None = flag(
        None, name_list, "LIST", "several devices, separated by commas, in place of --device"
    )
    workers: int | None = flag(
        None, at_least(1), "N", "worker processes, dealt out over the devices (default: one each)"
    )
    n_threads: int | None = flag(
        None, at_least(1), "N", "CPU threads per worker (default: the cores shared out)", name="--threads"
    )
    ranking: str | None = flag(
        None,
        _ranking,
        "WAY",
        "how tokens are ranked: exact scores all, int8 searches in 8 bits first, auto tries which is faster",
        shown="auto",
    )
    care: WorkerCare = group(WorkerCare, "when workers are replaced, and rest")
    pool: str = flag(
        LOCAL,
        one_of(LOCAL, "ray"),
        "POOL",
        "local: on this machine; ray: on Ray Serve",
        title="where the workers live",
    )
    ray: RayPoolSettings | None = field(default=None, metadata={"kind": RayPoolSettings})
    host: str = flag("127.0.0.1", str, "ADDRESS", "address to listen on", title="where to listen")
    port: int = flag(50051, port_number, "PORT", "port of the gRPC server; 0 picks a free one")
    http_port: int | None = flag(
        None, port_number, "PORT", "port of the JSON API; 0 picks a free one (default: none)"
    )
    listen_when_ready: bool = switch(False, "open the ports once the model is loaded, not before")
    ready_file: Path | None = flag(
        None, Path, "PATH", "file that gets the port as JSON when the server is ready"
    )
    grace_seconds: float = flag(10.0, positive_seconds, "S", "how long running calls may go on after SIGTERM")
    reflection: bool = switch(True, "do not tell clients the protos", "--no-reflection")
    channelz: bool = switch(False, "let clients look at the server's connections")
    limits: Limits = group(Limits, "limits", "bytes may be written as 64MiB")
    scheduling: Scheduling = group(Scheduling, "how calls share the workers")
    security: Security = group(Security, "who may call")
    telemetry: Telemetry = group(
        Telemetry, "what to tell", "traces go to where the variable OTEL_EXPORTER_OTLP_ENDPOINT says"
    )

    @property
    def worker_devices(self) -> tuple[str, ...]:
        """The device of each worker: "auto", "cpu", "cuda:0"..."""
        devices = self.devices or (self.device,)
        return tuple(devices[index % len(devices)] for index in range(self.workers or len(devices)))


@dataclass(frozen=True)
class DictionaryReport:
    """What `dictionaries` was told.

    Attributes:
        folders: of dictionaries, or their names on the hub.
        model: that they should fit; None where none is meant.
    """

    folders: tuple[Path, ...]
    model: str | None


def parse_settings(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, version: str = "unknown"
) -> Settings | NewToken | DictionaryReport | ExamplesSettings:
    """Reads the command and its flags; exits with code 2 and a message where they make no sense."""
    parser = _parser(environment, version)
    told = parser.parse_args(arguments)
    try:
        if told.command == "examples":
            return read_flags(ExamplesSettings, told)
        if told.command == "dictionaries":
            return DictionaryReport(tuple(told.folders), told.model)
        return _settings(told, environment) if told.command == "serve" else read_new_token(told)
    except ValueError as error:
        parser.exit(2, f"tdb-server: {error}\n")


def _parser(environment: Mapping[str, str], version: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tdb-server", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"tdb-server {version}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    add_token_command(commands)
    dictionaries = commands.add_parser(
        "dictionaries",
        help="say what folders of autoencoders and transcoders hold",
        description="Says what folders of autoencoders and transcoders hold, where they read and write, and "
        "whether they fit a model. No server is started.",
    )
    examples = commands.add_parser(
        "examples",
        help="find where in texts each neuron, latent and head is strongest",
        description="Goes through a file of texts once, and makes a folder with the strongest examples of "
        "each neuron, latent and head, some at random, and a histogram. `serve --examples` shows them. A run "
        "that was cut off goes on where it was when it is started again.",
    )
    add_flags(ExamplesSettings, examples, environment)
    told = "a folder, or OWNER/REPOSITORY/FOLDER on Hugging Face's hub"
    dictionaries.add_argument("folders", nargs="+", type=Path, metavar="PATH", help=told)
    dictionaries.add_argument("--model", metavar="MODEL", help="the model that they should fit, as for serve")
    serve = commands.add_parser(
        "serve",
        help="serve a model until told to stop",
        description=f"{_DESCRIPTION} Each flag can also be set as an environment variable, in upper case "
        "after TDB_SERVER_, lists separated by commas.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(Settings, serve, environment)
    return parser


def _settings(parsed: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """What was parsed, with what follows from several flags together.

    Raises:
        ValueError: flags contradict each other, or the server would be open to other machines.
    """
    told = read_flags(Settings, parsed)
    exports_traces = any(environment.get(variable) for variable in _TRACE_VARIABLES)
    told = replace(told, ray=_ray(told), telemetry=replace(told.telemetry, exports_traces=exports_traces))
    if told.examples is not None and told.http_port is None:
        raise ValueError("--examples are shown over HTTP: give --http-port too")
    check_security(told.security, told.host, told.http_port)
    return told


def _ray(told: Settings) -> RayPoolSettings | None:
    """The pool on Ray; None for workers on this machine."""
    if told.ray is None or told.pool == LOCAL:
        return None
    if told.devices is not None or told.device not in ("auto", "cpu"):
        raise ValueError("with --pool ray, --device is auto or cpu: Ray decides which GPU a worker gets")
    n_workers = len(told.worker_devices)
    max_replicas = told.ray.max_replicas or n_workers
    if max_replicas < n_workers:
        raise ValueError(f"--ray-max-workers {max_replicas} is less than --workers {n_workers}")
    return replace(told.ray, min_replicas=n_workers, max_replicas=max_replicas)
