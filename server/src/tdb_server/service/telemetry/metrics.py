"""Metrics for Prometheus: gRPC's standard ones, and those of the queue, the workers and the cache.

Names and buckets of `grpc.server.*` are those of gRPC's proposal A66. Prometheus shows dots as underscores
and adds units: `grpc_server_call_duration_seconds`. Imported only where metrics are wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackT, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, make_asgi_app

from tdb_server.service.http.host_check import AllowedHosts, HostCheck
from tdb_server.service.http.listener import HttpListener
from tdb_server.service.http.probes import Probes
from tdb_server.service.telemetry.call_record import CallListener, CallRecord
from tdb_server.settings import Settings
from tdb_server.workers.measures import BatchMeasure, Readings

SECONDS = (
    0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008,
    0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4,
    0.5, 0.65, 0.8, 1, 2, 5, 10, 20, 50, 100,
)  # fmt: skip
LAG_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
BYTES = (0, *(2**power for power in (10, 11, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)))
CALLS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def one_each_turn(page: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """A page that takes milliseconds to make, made no more than once in each turn of the event loop.

    So all who ask for it at the same moment hold up calls for no longer than one does.
    """
    turn = asyncio.Lock()

    async def in_turn(*request: Any) -> None:
        async with turn:
            await asyncio.sleep(0)
        await page(*request)

    return in_turn


class Metrics(CallListener):
    """The page on which Prometheus reads everything: calls, batches, and the state of queue and workers."""

    def __init__(self, version: str, readings: Readings) -> None:
        resource = Resource.create({"service.name": "tdb-server", "service.version": version})
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time and open files of the front
        reader = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        self._provider = MeterProvider([reader], resource)
        meter = self._provider.get_meter("tdb_server", version)
        counter = meter.create_counter

        def histogram(name: str, unit: str, description: str, boundaries: Sequence[float]) -> Histogram:
            return meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=boundaries
            )

        bytes_of, size = "Bytes of the messages of a call that", "total_compressed_message_size"
        self._started = counter("grpc.server.call.started", "{call}", "Calls that have come.")
        duration = "From a call's arrival to its end."
        self._seconds = histogram("grpc.server.call.duration", "s", duration, SECONDS)
        self._received = histogram(f"grpc.server.call.rcvd_{size}", "By", f"{bytes_of} came.", BYTES)
        self._sent = histogram(f"grpc.server.call.sent_{size}", "By", f"{bytes_of} were sent.", BYTES)
        ended = "From a request's arrival at the JSON gateway to its end."
        self._http_seconds = histogram("http.server.request.duration", "s", ended, SECONDS)
        self._failed = counter("tdb.call.failures", "{call}", "Calls that failed, by reason.")
        self._waited = histogram("tdb.queue.duration", "s", "Waiting of a call for a worker.", SECONDS)
        looked_up = "Calls looked up in the result cache: hit or miss."
        self._looked_up = counter("tdb.cache.lookups", "{call}", looked_up)
        late = "How late the event loop was, twenty times a second."
        self.loop_lag = histogram("tdb.event_loop.lag", "s", late, LAG_SECONDS)
        self._calls = histogram("tdb.batch.calls", "{call}", "Calls in a batch.", CALLS)
        rows = "Sub-requests, the rows, in a batch."
        self._sub_requests = histogram("tdb.batch.sub_requests", "{sub_request}", rows, CALLS)
        busy = "Time that devices have spent on batches."
        self._device_seconds = counter("tdb.device.busy", "s", busy)
        spent = (
            "Time that devices have spent on calls, by the token's name; all callers without one together."
        )
        self._caller_seconds = counter("tdb.caller.device_time", "s", spent)
        _observe(meter, readings)

    def page(self, settings: Settings, is_ready: Callable[[], bool]) -> HttpListener:
        """The page, with the probes, which say whether calls would be taken, on the settings' port for it."""
        host, port = settings.telemetry.metrics_host, settings.telemetry.metrics_port or 0
        hosts = AllowedHosts(host, settings.security.allowed_hosts)
        page = Probes(HostCheck(one_each_turn(make_asgi_app(self._registry)), hosts), is_ready)
        return HttpListener(page, host, port, settings.security, serves="metrics")

    def stop(self) -> None:
        """Measures no more."""
        self._provider.shutdown()

    def call_started(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if not record.is_http:
            self._started.add(1, {"grpc.method": record.method})

    def call_finished(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if record.is_http:
            self._http_seconds.record(record.seconds, record.http_attributes)
        else:
            attributes = {"grpc.method": record.method, "grpc.status": record.status}
            self._seconds.record(record.seconds, attributes)
            self._received.record(record.received_bytes, attributes)
            self._sent.record(record.sent_bytes, attributes)
        if record.reason:
            self._failed.add(1, {"reason": record.reason})
        if record.is_cached is not None:
            self._looked_up.add(1, {"result": "hit" if record.is_cached else "miss"})
        if record.queue_seconds is not None and not record.is_cached:
            self._waited.record(record.queue_seconds)

    def batch_ended(self, batch: BatchMeasure) -> None:
        """A worker is done with a batch."""
        self._calls.record(batch.n_calls)
        self._sub_requests.record(batch.n_sub_requests)
        self._device_seconds.add(batch.seconds, {"device": batch.device})
        for caller, seconds in batch.caller_seconds.items():
            self._caller_seconds.add(seconds, {"caller": caller})


def _observe(meter: Meter, readings: Readings) -> None:
    gauge, counter = meter.create_observable_gauge, meter.create_observable_counter
    displaced = "Calls that gave up their place in the full queue to others'."
    restarts, dropped = (
        "Workers started in place of dead ones.",
        "Lines of the log that could not be written.",
    )
    for create, name, unit, description, read in (
        (gauge, "queue.length", "{call}", "Calls that wait for a worker.", readings.queue_length),
        (gauge, "queue.callers", "{caller}", "Callers with a waiting call.", readings.callers_waiting),
        (counter, "queue.displaced", "{call}", displaced, readings.calls_displaced),
        (gauge, "worker.ready", "{worker}", "Workers that can compute.", readings.workers_ready),
        (counter, "worker.restarts", "{worker}", restarts, readings.worker_restarts),
        (counter, "log.dropped", "{line}", dropped, readings.log_lines_dropped),
    ):
        create(f"tdb.{name}", [_callback(read)], unit, description)


def _callback(read: Callable[[], int]) -> CallbackT:
    return lambda _: [Observation(read())]
