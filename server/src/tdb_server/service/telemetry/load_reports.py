"""The server's load in the trailers of every answer, as the Open Request Cost Aggregation standard writes it.

Balancers that read it (Envoy's and gRPC's client-side weighted round robin) send each server calls in
proportion to what it can do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from transformer_debugger.v1.load_report_pb2 import LoadReport

from tdb_server.service.handlers import answer_of, handler_like
from tdb_server.service.telemetry.load_meter import OUR_METHODS, LoadMeter

if TYPE_CHECKING:  # generic for the type checker alone
    from tdb_server.service.handlers import Context, Handler

_log = logging.getLogger(__name__)
LOAD_REPORT_KEY = "endpoint-load-metrics-bin"
WEIGHT_SCALE = 10_000
"""Envoy's weights are whole numbers: a server that answers less than one call per second would have none."""


class LoadReports(grpc.aio.ServerInterceptor):
    """Adds the report to the calls of our own services.

    Args:
        meter: knows the load.
    """

    def __init__(self, meter: LoadMeter) -> None:
        self._meter = meter

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.lstrip("/").startswith(OUR_METHODS):
            return handler
        answer = answer_of(handler)

        async def answer_and_report(request: Any, context: Context) -> Any:
            self._report(context)  # for those that are refused, which happens soon
            response = await answer(request, context)
            self._report(context)
            return response

        return handler_like(
            handler, answer_and_report, handler.request_deserializer, handler.response_serializer
        )

    def _add_report(self, context: Context) -> None:
        load = self._meter.load()
        named_metrics: dict[str, float] = {"queue_length": load.queue_length}
        if load.capacity is not None:
            named_metrics["utilization_for_weight"] = load.calls_per_second / (load.capacity * WEIGHT_SCALE)
        report = LoadReport(
            application_utilization=load.utilization,
            rps_fractional=load.calls_per_second,
            eps=load.failures_per_second,
            named_metrics=named_metrics,
        )
        context.set_trailing_metadata(((LOAD_REPORT_KEY, report.SerializeToString()),))

    def _report(self, context: Context) -> None:
        try:
            self._add_report(context)
        except Exception:
            _log.exception("the load cannot be reported")  # which is no reason for the call to fail
