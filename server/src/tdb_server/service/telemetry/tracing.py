"""Traces by OpenTelemetry: a span for each call, with spans for its time in the queue and on a worker.

The spans are made from the call's record once it has ended; the caller's own span, named in the
`traceparent` header of W3C Trace Context, is their parent. Where they go, and everything else about
exporting, is said by the SDK's own environment variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and others).
Imported only where traces are wanted.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tdb_server.service.telemetry.call_record import ABOUT_THE_SERVER, CallListener, CallRecord

NANOSECONDS = 1e9


class CallTraces(CallListener):
    """Makes spans of records, and sends them from a thread of its own."""

    def __init__(self, version: str) -> None:
        ours = Resource.create({"service.name": "tdb-server", "service.version": version})
        named_by_operator = OTELResourceDetector().detect()
        self._provider = TracerProvider(resource=ours.merge(named_by_operator))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tdb_server", version)
        self._propagator = TraceContextTextMapPropagator()

    def call_finished(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if record.method.startswith(ABOUT_THE_SERVER):
            return
        span = self._tracer.start_span(
            record.method,
            context=self._propagator.extract({"traceparent": record.traceparent}),
            kind=SpanKind.SERVER,
            attributes={
                **_protocol_attributes(record),
                "tdb.caller": record.caller,
                "tdb.request_id": record.request_id,
                "tdb.sub_requests": record.n_sub_requests,
                "tdb.tokens": record.n_tokens,
                "tdb.cached": bool(record.is_cached),
            },
            start_time=_moment(record, 0.0),
        )
        if record.status != "OK":
            span.set_attribute("error.type", record.reason or record.status)
            span.set_status(Status(StatusCode.ERROR, record.reason or record.status))
        self._add_parts(span, record)
        span.end(_moment(record, record.seconds))

    def stop(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()

    def _add_parts(self, call: trace.Span, record: CallRecord) -> None:
        """The queue, and the run; what never ended lasted as long as the call."""
        if record.submitted_seconds is None or record.is_cached:
            return
        context = trace.set_span_in_context(call)
        taken_up = record.submitted_seconds + (record.queue_seconds or 0.0)
        left_queue = record.seconds if record.queue_seconds is None else taken_up
        parts = [("queue", record.submitted_seconds, left_queue)]
        if record.queue_seconds is not None:
            ended = record.seconds if record.run_seconds is None else taken_up + record.run_seconds
            parts.append(("run", taken_up, ended))
        for name, began, ended in parts:
            part = self._tracer.start_span(name, context, start_time=_moment(record, began))
            part.end(_moment(record, ended))


def _protocol_attributes(record: CallRecord) -> dict[str, str | int]:
    """As OpenTelemetry's semantic conventions name them."""
    if record.is_http:
        return record.http_attributes
    service, _, method = record.method.rpartition("/")
    return {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.response.status_code": record.status,
    }


def _moment(record: CallRecord, seconds: float) -> int:
    return int((record.began_at + seconds) * NANOSECONDS)
