"""How lines of the log look: for people, or as JSON for programs. Front and workers write the same.

A line may have fields beside its message; whoever logs gives them as `extra={FIELDS: {...}}`.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import TextIO

FIELDS = "fields"
_PLAIN = re.compile(r"[\w.:/@%+,\[\]-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What ends lines for some programs though JSON allows it, steers terminals, turns the direction of text
round, or is no text: control characters, separators of lines and paragraphs, marks of direction, lone
surrogates."""


def configure_logging(log_format: str, level: int, stream: TextIO | None = None) -> None:
    """Sends what is logged in this process, from a level on, to a stream or stderr, as "text" or "json"."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for library in ("asyncio", "httpx", "urllib3", "uvicorn"):  # chatty below this
        logging.getLogger(library).setLevel(max(level, logging.WARNING))


class TextLines(logging.Formatter):
    """`2026-11-23T14:09:42.741Z INFO [4711] call method=... status=OK`; values with spaces are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = f"{_time(record)} {record.levelname} [{record.process}] {_escaped(record.getMessage())}"
        line += "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n".join((line, *map(_escaped, trace)))


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
        return _escaped(json.dumps(said, ensure_ascii=False, default=str))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return dict(getattr(record, FIELDS, {}))


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _escaped(text: str) -> str:
    """The same in visible characters, as JSON writes them; the text stays JSON if it was."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _quoted(value: object) -> str:
    """Text that a client chose can neither end the line nor look like another field."""
    text = json.dumps(value) if isinstance(value, bool | list) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(value)
