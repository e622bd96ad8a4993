"""Metrics for Prometheus: gRPC's standard ones, and those of the queue, the workers and the cache.

Names and buckets of `grpc.server.*` are those of gRPC's proposal A66. Prometheus shows dots as underscores
and adds units: `grpc_server_call_duration_seconds`. Imported only where metrics are wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, CallbackT, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, make_asgi_app

from tdb_server.service.http.host_check import AllowedHosts, HostCheck
from tdb_server.service.http.listener import HttpListener
from tdb_server.service.http.probes import Probes
from tdb_server.service.telemetry.call_record import CallRecord
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


class Metrics:
    """The page on which Prometheus reads everything.

    Args:
        version: of the server's software.
        readings: the state of queue and workers.
    """

    def __init__(self, version: str, readings: Readings) -> None:
        resource = Resource.create({"service.name": "tdb-server", "service.version": version})
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time and open files of the front
        self._provider = MeterProvider(
            [PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)], resource
        )
        meter = self._provider.get_meter("tdb_server", version)
        self.calls = CallMetrics(meter)
        self.batches = BatchMetrics(meter)
        self.loop_lag = meter.create_histogram(
            "tdb.event_loop.lag",
            "s",
            "How late the event loop was, twenty times a second.",
            explicit_bucket_boundaries_advisory=LAG_SECONDS,
        )
        _observe(meter, readings)

    def page(self, settings: Settings, is_ready: Callable[[], bool]) -> HttpListener:
        """The page, with the probes, to be served on the settings' port for it.

        Args:
            settings: where.
            is_ready: whether calls would be taken now.
        """
        host, port = settings.telemetry.metrics_host, settings.telemetry.metrics_port or 0
        hosts = AllowedHosts(host, settings.security.allowed_hosts)
        page = Probes(HostCheck(one_each_turn(make_asgi_app(self._registry)), hosts), is_ready)
        return HttpListener(page, host, port, settings.security, serves="metrics")

    def stop(self) -> None:
        """Measures no more."""
        self._provider.shutdown()


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


class CallMetrics:
    """What calls do. A `CallListener`."""

    def __init__(self, meter: Meter) -> None:
        name = "grpc.server.call."
        self._started = meter.create_counter(f"{name}started", "{call}", "Calls that have come.")
        self._seconds = meter.create_histogram(
            f"{name}duration",
            "s",
            "From a call's arrival to its end.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._received = meter.create_histogram(
            f"{name}rcvd_total_compressed_message_size",
            "By",
            "Bytes of the messages of a call that came.",
            explicit_bucket_boundaries_advisory=BYTES,
        )
        self._sent = meter.create_histogram(
            f"{name}sent_total_compressed_message_size",
            "By",
            "Bytes of the messages of a call that were sent.",
            explicit_bucket_boundaries_advisory=BYTES,
        )
        self._http_seconds = meter.create_histogram(
            "http.server.request.duration",
            "s",
            "From a request's arrival at the JSON gateway to its end.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._failed = meter.create_counter("tdb.call.failures", "{call}", "Calls that failed, by reason.")
        self._waited = meter.create_histogram(
            "tdb.queue.duration",
            "s",
            "Waiting of a call for a worker.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._looked_up = meter.create_counter(
            "tdb.cache.lookups", "{call}", "Calls looked up in the result cache: hit or miss."
        )

    def call_started(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if not record.is_http:
            self._started.add(1, {"grpc.method": record.method})

    def call_finished(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if not record.is_http:
            attributes = {"grpc.method": record.method, "grpc.status": record.status}
            self._seconds.record(record.seconds, attributes)
            self._received.record(record.received_bytes, attributes)
            self._sent.record(record.sent_bytes, attributes)
        else:
            method, _, route = record.method.partition(" ")
            self._http_seconds.record(
                record.seconds,
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": record.http_status,
                },
            )
        if record.reason:
            self._failed.add(1, {"reason": record.reason})
        if record.is_cached is not None:
            self._looked_up.add(1, {"result": "hit" if record.is_cached else "miss"})
        if record.queue_seconds is not None and not record.is_cached:
            self._waited.record(record.queue_seconds)


class BatchMetrics:
    """What workers do."""

    def __init__(self, meter: Meter) -> None:
        self._calls = meter.create_histogram(
            "tdb.batch.calls", "{call}", "Calls in a batch.", explicit_bucket_boundaries_advisory=CALLS
        )
        self._sub_requests = meter.create_histogram(
            "tdb.batch.sub_requests",
            "{sub_request}",
            "Sub-requests, the rows, in a batch.",
            explicit_bucket_boundaries_advisory=CALLS,
        )
        self._seconds = meter.create_counter(
            "tdb.device.busy", "s", "Time that devices have spent on batches."
        )
        self._caller_seconds = meter.create_counter(
            "tdb.caller.device_time",
            "s",
            "Time that devices have spent on calls, by the token's name; all callers without one together.",
        )

    def batch_ended(self, batch: BatchMeasure) -> None:
        """A worker is done with a batch."""
        self._calls.record(batch.n_calls)
        self._sub_requests.record(batch.n_sub_requests)
        self._seconds.add(batch.seconds, {"device": batch.device})
        for caller, seconds in batch.caller_seconds.items():
            self._caller_seconds.add(seconds, {"caller": caller})


def _observe(meter: Meter, readings: Readings) -> None:
    meter.create_observable_gauge(
        "tdb.queue.length", [_callback(readings.queue_length)], "{call}", "Calls that wait for a worker."
    )
    meter.create_observable_gauge(
        "tdb.queue.callers", [_callback(readings.callers_waiting)], "{caller}", "Callers with a waiting call."
    )
    meter.create_observable_counter(
        "tdb.queue.displaced",
        [_callback(readings.calls_displaced)],
        "{call}",
        "Calls that gave up their place in the full queue to others'.",
    )
    meter.create_observable_gauge(
        "tdb.worker.ready", [_callback(readings.workers_ready)], "{worker}", "Workers that can compute."
    )
    meter.create_observable_counter(
        "tdb.worker.restarts",
        [_callback(readings.worker_restarts)],
        "{worker}",
        "Workers started in place of dead ones.",
    )
    meter.create_observable_counter(
        "tdb.log.dropped",
        [_callback(readings.log_lines_dropped)],
        "{line}",
        "Lines of the log that could not be written.",
    )


def _callback(read: Callable[[], int]) -> CallbackT:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read())]

    return observe
