"""A few pieces taken at random of as many as there are."""

from __future__ import annotations

import hashlib
import heapq


class RandomSample:
    """Those pieces whose digests, with a seed, are smallest: each piece is as likely as any other.

    What is taken follows from the seed and the number of pieces alone, so that nothing but those taken so far
    has to be kept.
    """

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed
        self._taken: list[tuple[int, int]] = []  # a heap, the largest digest first, as its negative

    def see(self, piece: int) -> None:
        """Looks at a piece, for the first time."""
        digest = hashlib.blake2b(f"{self._seed} {piece}".encode(), digest_size=8).digest()
        heapq.heappush(self._taken, (-int.from_bytes(digest), piece))
        if len(self._taken) > self._n:
            heapq.heappop(self._taken)

    @property
    def pieces(self) -> list[int]:
        """Those that are taken, in their order."""
        return sorted(piece for _, piece in self._taken)
