"""The server's load in the trailers of every answer, as the Open Request Cost Aggregation standard writes it.

Balancers that read it (Envoy's and gRPC's client-side weighted round robin) send each server calls in
proportion to what it can do.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from transformer_debugger.v1.load_report_pb2 import LoadReport

from tdb_server.service.telemetry.load_meter import Load, LoadMeter

if TYPE_CHECKING:  # generic for the type checker alone
    from tdb_server.service.handlers import Context

_log = logging.getLogger(__name__)
LOAD_REPORT_KEY = "endpoint-load-metrics-bin"
WEIGHT_SCALE = 10_000
"""Envoy's weights are whole numbers: a server that answers less than one call per second would have none."""


def put_load_report(meter: LoadMeter, context: Context) -> None:
    """Puts the report into the trailers of a call of our own services."""
    try:
        report = _report(meter.load())
        context.set_trailing_metadata(((LOAD_REPORT_KEY, report.SerializeToString()),))
    except Exception:
        _log.exception("the load cannot be reported")  # which is no reason for the call to fail


def _report(load: Load) -> LoadReport:
    named_metrics: dict[str, float] = {"queue_length": load.queue_length}
    if load.capacity is not None:
        named_metrics["utilization_for_weight"] = load.calls_per_second / (load.capacity * WEIGHT_SCALE)
    return LoadReport(
        application_utilization=load.utilization,
        rps_fractional=load.calls_per_second,
        eps=load.failures_per_second,
        named_metrics=named_metrics,
    )
