"""One line in the log for each call that has ended."""

from __future__ import annotations

import logging

from tdb_server.log_format import FIELDS
from tdb_server.service.telemetry.call_record import ABOUT_THE_SERVER, CallListener, CallRecord

_log = logging.getLogger("tdb_server.call")
_OUR_FAULT = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
MAX_ID_CHARACTERS = 200


class CallLog(CallListener):
    """Writes the line: errors of ours as errors, health checks for those who debug, all else as information.

    Prompts are in it only where the record has them.
    """

    def call_finished(self, record: CallRecord) -> None:
        """See `CallListener`."""
        _log.log(_level(record), "call", extra={FIELDS: _fields(record)})


def _level(record: CallRecord) -> int:
    if record.status in _OUR_FAULT:
        return logging.ERROR
    return logging.DEBUG if record.method.startswith(ABOUT_THE_SERVER) else logging.INFO


def _fields(record: CallRecord) -> dict[str, object]:
    """What is known; what is not is left out."""
    known: dict[str, object] = {
        "request_id": record.request_id[:MAX_ID_CHARACTERS],
        "caller": record.caller,
        "peer": record.peer if record.peer != record.caller else "",
        "method": record.method,
        "status": record.status,
        "reason": record.reason,
        "n_sub_requests": record.n_sub_requests,
        "n_tokens": record.n_tokens,
        "queue_seconds": record.queue_seconds and round(record.queue_seconds, 6),
        "seconds": round(record.seconds, 6),
        "cached": record.is_cached,
        "trace_id": record.traceparent[3:35],
        "prompts": list(record.prompts),
    }
    return {key: value for key, value in known.items() if value not in ("", None, 0, []) or value is False}
