"""Callbacks of the event loop. An exception in one goes to the loop, not to whoever waits for its work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)
RETRY_SECONDS = 1.0


def guarded(action: Callable[[], None], on_fault: Callable[[Exception], None]) -> Callable[[], None]:
    """A callback that does `action`, and hands an exception of it to `on_fault`."""

    def callback() -> None:
        try:
            action()
        except Exception as error:
            on_fault(error)

    return callback


def keep_trying(action: Callable[[], None], what: str) -> None:
    """Does what has to be done, on the event loop: after a failure again, every second.

    Args:
        action: what to do. It may have failed midway before.
        what: has failed, in the words of the log.
    """
    try:
        action()
    except Exception:
        _log.exception("%s; tried again in %g s", what, RETRY_SECONDS)
        asyncio.get_running_loop().call_later(RETRY_SECONDS, keep_trying, action, what)
