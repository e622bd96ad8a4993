"""Failures to load that nobody foresaw: they end with the file's name and a reason, like all others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tdb_server.errors import ModelError, TdbError

_log = logging.getLogger(__name__)
MAX_REASON_CHARACTERS = 500


@contextmanager
def load_failures(what: object) -> Iterator[None]:
    """Turns whatever is raised inside, and is not ours already, into a `ModelError` in one line.

    The libraries that read tokenizers and safetensors are written in Rust. When they panic they raise what is
    no `Exception`; hence all is caught but the user's own interruption. The debug log has the stack trace.

    Raises:
        ModelError: something unforeseen was raised.
    """
    try:
        yield
    except (TdbError, KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:
        _log.debug("%s cannot be loaded", what, exc_info=True)
        raise ModelError(f"{what}: cannot be loaded: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An exception in one line: its kind, and what it says."""
    kind = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    said = " ".join(str(error).split())
    if len(said) > MAX_REASON_CHARACTERS:
        said = f"{said[:MAX_REASON_CHARACTERS]}..."
    return f"{kind}: {said}" if said else kind
