"""What the event loop calls. An exception there goes to the loop, not to whoever waits for what is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)
RETRY_SECONDS = 1.0


def guarded(action: Callable[[], None], on_fault: Callable[[Exception], None]) -> Callable[[], None]:
    """A callback that does something, and has somebody hear of the exception that it ends with."""

    def callback() -> None:
        try:
            action()
        except Exception as error:
            on_fault(error)

    return callback


def keep_trying(action: Callable[[], None], what: str) -> None:
    """Does what has to be done, on the event loop: where it fails midway, again every second.

    The log is told `what` has failed.
    """
    try:
        action()
    except Exception:
        _log.exception("%s; tried again in %g s", what, RETRY_SECONDS)
        asyncio.get_running_loop().call_later(RETRY_SECONDS, keep_trying, action, what)
