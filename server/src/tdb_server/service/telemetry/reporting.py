"""Log, metrics and traces, as the settings ask for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tdb_server.errors import TdbError
from tdb_server.service.telemetry.call_log import CallLog
from tdb_server.service.telemetry.call_record import CallListener
from tdb_server.service.telemetry.load_meter import LoadMeter
from tdb_server.service.telemetry.load_reports import put_load_report
from tdb_server.service.telemetry.loop_lag import watch_loop
from tdb_server.settings import Settings
from tdb_server.workers.measures import BatchMeasure, OnBatch, Readings

if TYPE_CHECKING:  # metrics and traces are imported where they are wanted: they take longer than all the rest
    from tdb_server.service.handlers import Context
    from tdb_server.service.http.listener import HttpListener
    from tdb_server.service.telemetry.metrics import Metrics
    from tdb_server.service.telemetry.tracing import CallTraces

_log = logging.getLogger(__name__)
_INSTALL = "pip install 'transformer-debugger-server[telemetry]'"


class Reporting:
    """The listeners of calls and batches that the settings ask for.

    Attributes:
        listeners: those that hear of calls.
        report_load: puts the server's load into a call's trailers; None where that is not wanted.
        ports: the port of the metrics as the ready file names it, once there is one.

    Raises:
        TdbError: metrics are wanted but the packages for them are not installed.
    """

    def __init__(
        self, settings: Settings, version: str, readings: Readings, is_ready: Callable[[], bool]
    ) -> None:
        telemetry = settings.telemetry
        self._metrics = None if telemetry.metrics_port is None else _metrics(version, readings)
        self._listener: HttpListener | None = None
        self._traces = _traces(version) if telemetry.exports_traces else None
        self.listeners: list[CallListener] = [CallLog()]
        self.report_load: Callable[[Context], None] | None = None
        self.ports: dict[str, int] = {}
        self._watching: asyncio.Future[None] | None = None
        self._on_batch: list[OnBatch] = []
        if self._metrics is not None:
            self._listener = self._metrics.page(settings, is_ready)
            self.listeners.append(self._metrics)
            self._on_batch.append(self._metrics.batch_ended)
        if self._traces is not None:
            self.listeners.append(self._traces)
        if telemetry.load_reports:
            meter = LoadMeter(readings)
            self.listeners.append(meter)
            self._on_batch.append(meter.batch_ended)
            self.report_load = partial(put_load_report, meter)

    def on_batch(self, batch: BatchMeasure) -> None:
        """Hands a batch that a worker is done with to whatever counts batches."""
        for tell in self._on_batch:
            tell(batch)

    async def start(self) -> None:
        """Opens the port of the metrics.

        Raises:
            OSError: it cannot be had.
        """
        if self._metrics is not None and self._listener is not None:
            await self._listener.start()
            self.ports = {"metrics_port": self._listener.port}
            self._watching = asyncio.ensure_future(watch_loop(self._metrics.loop_lag.record))

    async def stop(self) -> None:
        """Sends what is left of the traces, and closes the port."""
        if self._watching is not None:
            self._watching.cancel()
        if self._listener is not None:
            await self._listener.stop()
        for part in (self._traces, self._metrics):
            if part is not None:
                await asyncio.to_thread(part.stop)


def _metrics(version: str, readings: Readings) -> Metrics:
    try:
        from tdb_server.service.telemetry.metrics import Metrics
    except ImportError as error:
        raise TdbError(f"--metrics-port needs `{_INSTALL}`: {error}", "OPTION_NOT_AVAILABLE") from error
    return Metrics(version, readings)


def _traces(version: str) -> CallTraces | None:
    try:
        from tdb_server.service.telemetry.tracing import CallTraces
    except ImportError as error:
        _log.warning("no traces are sent, for want of `%s`: %s", _INSTALL, error)
        return None
    return CallTraces(version)
