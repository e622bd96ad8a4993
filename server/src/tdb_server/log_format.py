"""How lines of the log look: for people, or as JSON for programs. Front and workers write the same.

A line may have fields beside its message; whoever logs gives them as `extra={FIELDS: {...}}`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

FIELDS = "fields"
_PLAIN = re.compile(r"[\w.:/@%+,\[\]-]+", re.ASCII)


def configure_logging(log_format: str, level: int, stream: TextIO = sys.stderr) -> None:
    """Sends everything that is logged in this process to a stream.

    Args:
        log_format: "text" or "json".
        level: of the least important lines to write.
        stream: where to.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for library in ("asyncio", "httpx", "urllib3", "uvicorn"):  # chatty below this
        logging.getLogger(library).setLevel(max(level, logging.WARNING))


class TextLines(logging.Formatter):
    """`2026-11-23T14:09:42.741Z INFO [4711] call method=... status=OK`; values with spaces are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = f"{_time(record)} {record.levelname} [{record.process}] {record.getMessage()}"
        line += "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


class JsonLines(logging.Formatter):
    """One JSON object a line, with a stack trace as one of its strings."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        said = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, FIELDS, {})
    return fields


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(value: object) -> str:
    """Text that a client chose can neither end the line nor look like another field."""
    text = json.dumps(value) if isinstance(value, bool | list) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(value)
