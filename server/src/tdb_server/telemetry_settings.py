"""What the server tells about itself: the part of the settings that is about metrics, traces and logs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from tdb_server.flags import Flags, one_of, port_number

LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics, traces and logs.

    Attributes:
        metrics_port: port where Prometheus reads the metrics; 0 picks a free one, None for no metrics.
        metrics_host: address of that port.
        exports_traces: whether the environment names an OpenTelemetry collector for traces.
        log_format: "text" or "json".
        log_level: a key of `LOG_LEVELS`.
        log_prompts: whether the line of a call has its prompts.
        load_reports: whether answers say how loaded the server is.
    """

    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    exports_traces: bool = False
    log_format: str = "text"
    log_level: str = "info"
    log_prompts: bool = False
    load_reports: bool = False


def add_telemetry_flags(flags: Flags) -> None:
    """The flags of `serve` that are about being watched."""
    flags.group("what to tell", "traces go to where the variable OTEL_EXPORTER_OTLP_ENDPOINT says")
    flags.add("--metrics-port", port_number, None, "PORT", "port where Prometheus reads metrics")
    flags.add("--metrics-host", str, "127.0.0.1", "ADDRESS", "address of that port")
    flags.add("--log-format", one_of("text", "json"), "text", "FORMAT", "text or json, one line each")
    flags.add("--log-level", one_of(*LOG_LEVELS), "info", "LEVEL", "debug, info, warning or error")
    flags.add_switch("--log-prompts", "put prompts into the log; they may be private")
    flags.add_switch("--load-reports", "say in the trailers of answers how loaded the server is")


def read_telemetry(told: argparse.Namespace, environment: Mapping[str, str]) -> Telemetry:
    """What was told about metrics, traces and logs."""
    return Telemetry(
        metrics_port=told.metrics_port,
        metrics_host=told.metrics_host,
        exports_traces=any(environment.get(variable) for variable in _ENDPOINT_VARIABLES),
        log_format=told.log_format,
        log_level=told.log_level,
        log_prompts=told.log_prompts,
        load_reports=told.load_reports,
    )
