"""What the server tells about itself: the part of the settings that is about metrics, traces and logs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tdb_server.flags import flag, one_of, port_number, switch

LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics, traces and logs.

    Attributes:
        metrics_port: 0 picks a free one; None for no metrics.
        exports_traces: whether the environment names an OpenTelemetry collector for traces.
    """

    metrics_port: int | None = flag(None, port_number, "PORT", "port where Prometheus reads metrics")
    metrics_host: str = flag("127.0.0.1", str, "ADDRESS", "address of that port")
    log_format: str = flag("text", one_of("text", "json"), "FORMAT", "text or json, one line each")
    log_level: str = flag("info", one_of(*LOG_LEVELS), "LEVEL", "debug, info, warning or error")
    log_prompts: bool = switch(False, "put prompts into the log; they may be private")
    load_reports: bool = switch(False, "say in the trailers of answers how loaded the server is")
    exports_traces: bool = False
