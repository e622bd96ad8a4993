"""The server: what it offers, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped]

from tdb_server.errors import ConfigurationBroken
from tdb_server.model.load_failures import load_failures
from tdb_server.queued_stderr import n_dropped_lines
from tdb_server.service.access.access import Access
from tdb_server.service.access.file_watch import FileReader
from tdb_server.service.access.token_file import TokenFile
from tdb_server.service.call_events import CallEvents
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.front_memory import keep_few_arenas, keep_what_is_loaded
from tdb_server.service.grpc_server import OUR_SERVICES, grpc_server
from tdb_server.service.http.host_check import WILDCARD_ADDRESSES
from tdb_server.service.listening import listen, server_tls
from tdb_server.service.loading_report import LoadingReport
from tdb_server.service.model_service import ModelService
from tdb_server.service.open_calls import OpenCalls
from tdb_server.service.ready_file import ready_file
from tdb_server.service.served_model import ModelSlot, ServedModel, read_tokenizer
from tdb_server.service.shared_services import SharedServices
from tdb_server.service.signals import signals_handled
from tdb_server.service.systemd import READY, STOPPING, Systemd
from tdb_server.service.telemetry.reporting import Reporting
from tdb_server.settings import Settings
from tdb_server.telemetry_settings import LOG_LEVELS
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.measures import OnBatch, Readings
from tdb_server.workers.messages import Configuration, Ready
from tdb_server.workers.pool import LocalPool, Pool, PoolObserver
from tdb_server.workers.ray_environment import prepare_ray
from tdb_server.workers.result_cache import ResultCache
from tdb_server.workers.scheduler import Scheduler

if TYPE_CHECKING:
    from tdb_server.examples.reading import ExampleFolder

_log = logging.getLogger(__name__)
LAST_BYTES_SECONDS = 1.0
"""How long what is left may take when the gRPC server ends."""
HEALTH_RETRY_SECONDS = 1.0
GOODBYE_SECONDS = 0.02
"""How long connections have to learn that the server ends, before the last calls are refused."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HttpServer(Protocol):
    """A server beside the gRPC server, such as the JSON gateway."""

    port: int

    async def start(self) -> None:
        """Listens."""

    async def stop(self) -> None:
        """Takes no more requests and lets the open ones end."""


MakeHttp = Callable[[SharedServices], HttpServer]


async def serve(settings: Settings, version: str, make_http: MakeHttp | None = None) -> None:
    """Serves until told to stop by a signal.

    Args:
        settings: what to serve, and how.
        version: of the server's software.
        make_http: makes the server for HTTP, where one is wanted.

    Raises:
        TdbError: the model cannot be loaded.
        OSError: the port cannot be had.
    """
    keep_few_arenas()
    app = App(settings, version, make_http)
    with signals_handled(app.reload) as stopped:
        await app.start()
        try:
            if await app.until_ready(stopped):
                keep_what_is_loaded()
                with ready_file(settings.ready_file, app.ports):
                    await stopped.wait()
        finally:
            await app.stop()


class App:
    """The gRPC server with its services, and the workers behind it.

    Args:
        settings: what to serve, and how.
        version: of the server's software.
        make_http: makes the server for HTTP, where one is wanted.
    """

    def __init__(self, settings: Settings, version: str, make_http: MakeHttp | None = None) -> None:
        self._settings = settings
        self._report = LoadingReport(to_log=settings.telemetry.log_format == "json")
        self._slot = ModelSlot()
        self._calls = OpenCalls()
        self._health = health.aio.HealthServicer()
        self._health_changes: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._systemd = Systemd()
        self._tls = server_tls(settings)
        self._examples = example_folder(settings.examples)
        security = settings.security
        tokens = None if security.token_file is None else TokenFile(security.token_file)
        proxies = [ip_network(one) for one in security.trusted_proxies]
        self._files = FileReader([one.look for one in (tokens, self._tls) if one is not None])
        readings = Readings(
            lambda: self._scheduler.n_waiting,
            lambda: self._scheduler.n_callers_waiting,
            lambda: self._scheduler.n_displaced,
            lambda: self._pool.n_ready,
            lambda: self._pool.n_restarts,
            n_dropped_lines,
        )
        self._reporting = Reporting(settings, version, readings, lambda: self.is_ready)
        self._scheduler = scheduler(settings, self._reporting.on_batch)
        self._pool = pool(settings, self._scheduler, self._on_readiness, self._report.show)
        self._threads = FairThreads(self._scheduler.memory)
        shared = SharedServices(
            CallEvents(self._slot, self._scheduler, self._threads),
            ModelService(self._slot, self._scheduler, self._threads, version),
            CallGuard(
                settings.limits,
                self._calls,
                Access(tokens, frozenset(security.tls_client_names), proxies),
                self._reporting.listeners,
                settings.telemetry.log_prompts,
            ),
            self._scheduler.memory,
            self._threads,
            self._tls,
            settings,
            version,
            lambda: self.is_ready,
            self._examples,
        )
        self._server = grpc_server(shared, self._reporting.report_load, self._health)
        self._http = make_http(shared) if make_http else None
        self.port = 0

    @property
    def ports(self) -> dict[str, int]:
        """The ports listened on, as the ready file names them."""
        http = {} if self._http is None else {"http_port": self._http.port}
        return {"grpc_port": self.port, **http, **self._reporting.ports}

    @property
    def is_ready(self) -> bool:
        """Whether calls would be taken now."""
        return self._slot.is_filled and self._pool.n_ready > 0 and not self._is_stopping

    async def start(self) -> None:
        """Listens, answers health, and starts the workers.

        Raises:
            OSError: a port cannot be had.
        """
        await self._reporting.start()
        self._files.start()
        self._systemd.start()
        await self._set_health(_NOT_SERVING)
        if not self._settings.listen_when_ready:
            await self._listen()
        self._pool.start()

    async def until_ready(self, stopped: asyncio.Event) -> bool:
        """Waits until the first worker can compute. False when told to stop before that.

        Raises:
            TdbError: the model cannot be loaded.
            OSError: a port that was to be opened now cannot be had.
        """
        first_ready = asyncio.ensure_future(self._pool.first_ready())
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait((first_ready, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not first_ready.done():
            first_ready.cancel()
            return False
        await self._fill_slot(first_ready.result())
        if self._settings.listen_when_ready:
            await self._listen()
        self._systemd.tell(READY)
        self._report.say(f"serving on {self._settings.host}:{self.port}")
        if self._http is not None:
            self._report.say(f"the workbench is at {self._page_address(self._http.port)}")
        return True

    async def stop(self) -> None:
        """Takes no more calls, lets the open ones end, then ends the workers."""
        self._is_stopping = True
        self._systemd.tell(STOPPING)
        await self._health.enter_graceful_shutdown()
        await self._calls.drain(self._settings.grace_seconds)
        await self._calls.until_silence()
        # What is left: the last bytes of answers, calls out of time or held, and watchers of health.
        server_stops = asyncio.ensure_future(self._server.stop(LAST_BYTES_SECONDS))
        await asyncio.sleep(GOODBYE_SECONDS)
        self._calls.let_go()
        if self._http is not None:
            await self._http.stop()
        await server_stops
        await self._pool.stop()
        self._threads.stop()
        await self._reporting.stop()
        self._files.stop()
        self._systemd.stop()

    def reload(self) -> None:
        """Reads tokens and certificates again, if they have changed, without waiting for the next look."""
        _log.info("tokens and certificates are read again, as asked for by a signal")
        self._files.look_now()

    def _page_address(self, port: int) -> str:
        """Where a browser on this machine finds the page."""
        host = "localhost" if self._settings.host in WILDCARD_ADDRESSES else self._settings.host
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"

    async def _listen(self) -> None:
        self.port = listen(self._server, self._settings.host, self._settings.port, self._tls)
        await self._server.start()
        if self._http is not None:
            await self._http.start()

    async def _fill_slot(self, ready: Ready) -> None:
        with load_failures(ready.tokenizer_folder):
            tokenizer = await asyncio.to_thread(read_tokenizer, ready)
        if self._examples is not None:
            self._examples.check(model=ready.info.name, digest=ready.info.digest)
        limits = self._settings.limits
        if limits.max_activation_bytes is None:
            limits = replace(limits, max_activation_bytes=ready.room_bytes)
            self._scheduler.set_max_activation_bytes(ready.room_bytes)
        self._slot.fill(ServedModel(ready.info, tokenizer, limits))
        await self._set_health(_SERVING if self._pool.n_ready else _NOT_SERVING)

    def _on_readiness(self, n_ready: int) -> None:
        if self._slot.is_filled:
            change = asyncio.ensure_future(self._set_health(_SERVING if n_ready else _NOT_SERVING))
            self._health_changes.add(change)
            change.add_done_callback(self._after_health_change)

    def _after_health_change(self, change: asyncio.Task[None]) -> None:
        self._health_changes.discard(change)
        if not change.cancelled() and (error := change.exception()) is not None:
            _log.error("health cannot be set, and is set again", exc_info=error)
            asyncio.get_running_loop().call_later(
                HEALTH_RETRY_SECONDS, lambda: self._on_readiness(self._pool.n_ready)
            )

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *OUR_SERVICES):
            await self._health.set(service, status)


def example_folder(path: Path | None) -> ExampleFolder | None:
    """The folder of examples that is named, opened; None where none is.

    Raises:
        ConfigurationBroken: it cannot be read, or pyarrow is not installed.
    """
    if path is None:
        return None
    try:
        from tdb_server.examples.reading import ExampleFolder  # only where it is wanted
    except ModuleNotFoundError as error:
        needed = "pip install 'transformer-debugger-server[examples]'"
        raise ConfigurationBroken(f"--examples needs `{needed}`: {error}") from error
    return ExampleFolder(path)


def scheduler(settings: Settings, on_batch: OnBatch) -> Scheduler:
    """The scheduler, with the rules that the settings give."""
    sharing, limits = settings.scheduling, settings.limits
    longest = (sharing.max_wait_seconds, sharing.max_batch_seconds)
    rule = BatchRule(sharing.max_batch_tokens, limits.max_activation_bytes or 0, *longest)
    cache = ResultCache(sharing.cache_bytes)
    return Scheduler(limits, rule, sharing.max_calls_per_caller, cache, on_batch)


def pool(
    settings: Settings,
    observer: PoolObserver,
    on_readiness: Callable[[int], None],
    on_loading: Callable[[int, str, float], None],
) -> Pool:
    """The workers, on this machine or on Ray.

    Raises:
        ConfigurationBroken: Ray is wanted and not installed.
    """
    configurations = worker_configurations(settings)
    if settings.ray is None:
        return LocalPool(configurations, observer, on_readiness, on_loading, settings.care)
    prepare_ray(settings.ray.address)
    try:
        from tdb_server.workers.ray_pool import RayPool  # only where it is wanted
    except ModuleNotFoundError as error:
        needed = "pip install 'transformer-debugger-server[ray]'"
        raise ConfigurationBroken(f"--pool ray needs `{needed}`: {error}") from error
    return RayPool(settings.ray, configurations[0], observer, on_readiness, on_loading)


def worker_configurations(settings: Settings) -> list[Configuration]:
    """What each worker loads. The CPU's cores are shared out among the workers."""
    n_workers = len(settings.worker_devices) if settings.ray is None else settings.ray.max_replicas
    log_format, log_level = settings.telemetry.log_format, LOG_LEVELS[settings.telemetry.log_level]
    n_threads = settings.n_threads or max(1, len(os.sched_getaffinity(0)) // n_workers)
    return [
        Configuration(
            settings.model,
            settings.autoencoders,
            device,
            index,
            settings.dtype,
            n_threads,
            settings.ranking,
            log_format,
            log_level,
            settings.care.step_seconds,
            settings.care.idle_memory_seconds,
            n_alike=settings.worker_devices.count(device) if settings.ray is None else 1,
        )
        for index, device in enumerate(settings.worker_devices)
    ]
