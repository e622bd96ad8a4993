"""How long a call is likely to keep a device busy, from its estimated cost and what was measured before."""

from __future__ import annotations

from tdb_server.domain.cost import Cost

DECAY = 0.9
"""Weight that earlier batches keep when one more is measured."""
WORK_PER_ANSWER_BYTE = 4.0
"""Work of a byte of the answer, where one of activations is 1: it is looked for, scored and written."""
UNKNOWN_SECONDS = 1.0
"""How long any call is supposed to take while nothing was measured."""


def device_work(cost: Cost, n_rows: int) -> float:
    """The work of a call, in a unit of its own: only ratios count. Never 0.

    The estimated answer holds, for each row, the nodes that any row may choose. Rows of a call are mostly
    variations of one prompt and choose the same, so about one row's nodes are left.
    """
    computed = max(cost.activation_bytes, cost.computed_bytes)
    return 1.0 + computed + WORK_PER_ANSWER_BYTE * cost.response_bytes / max(1, n_rows)


class Pace:
    """A worker's seconds for a unit of work, as measured; later batches count for more."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._work = 0.0

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return self._work > 0

    def saw(self, work: float, seconds: float) -> None:
        """Learns from a batch of so much work, which has taken so long."""
        self._seconds = DECAY * self._seconds + seconds
        self._work = DECAY * self._work + work

    def seconds(self, work: float) -> float:
        """What work is likely to take."""
        return self._seconds / self._work * work if self.is_known else UNKNOWN_SECONDS
