"""When a call whose answer broke off is made again.

gRPC repeats by itself what was UNAVAILABLE before an answer had begun. A stream that has begun is beyond it;
but a caller who waits for the whole answer has seen nothing yet, and the same request has the same answer on
every server.
"""

from __future__ import annotations

import random
import time

from tdb_client.errors import CallError

MAX_REPEATS = 3
FIRST_PAUSE_SECONDS = 0.2
BROKEN_OFF = frozenset({"UNAVAILABLE", "INTERNAL", "UNKNOWN"})
"""The statuses with which gRPC, or a proxy, ends an answer when the server is lost."""

LOST = "Stream removed"
"""What gRPC says of a stream whose connection was lost after headers had come: it repeats others itself."""


class Repeats:
    """The attempts at one call.

    Args:
        seconds: that all of them together may take; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._ends_at = None if seconds is None else time.monotonic() + seconds
        self._n_failed = 0

    @property
    def seconds_left(self) -> float | None:
        """For the next attempt."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def pause(self, error: CallError, *, had_begun: bool) -> float:
        """How long to wait before the next attempt.

        Args:
            error: how the last one ended.
            had_begun: whether some of the answer had come.

        Raises:
            CallError: `error`, when there shall be no other attempt.
        """
        self._n_failed += 1
        is_unavailable = error.status == "UNAVAILABLE"
        is_refusal = error.reason is not None and not is_unavailable
        was_repeated = is_unavailable and not had_begun and LOST not in error.message
        if is_refusal or was_repeated or error.status not in BROKEN_OFF or self._n_failed > MAX_REPEATS:
            raise error
        longest = FIRST_PAUSE_SECONDS * 2.0**self._n_failed
        seconds = longest * random.uniform(0.5, 1.0)  # callers who were cut off together come back apart
        if self.seconds_left is not None and seconds >= self.seconds_left:
            raise error
        return seconds
