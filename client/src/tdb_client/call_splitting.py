"""Which sub-requests share a call: as many as the server takes, of prompts with one number of tokens."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tdb_client.errors import CallError, InvalidValueError
from tdb_client.events import Event, ResultReady, Values
from tdb_client.model_info import Limits

_TOO_LARGE = frozenset({"COST_TOO_HIGH", "NO_ROOM_FOR_ANSWER", "OUT_OF_MEMORY", "REQUEST_TOO_LARGE"})
"""Why a server refuses a call whose halves it may take."""

_AROUND_EACH = 8
"""Bytes of a request around a sub-request, at most."""

_AROUND_ALL = 512
"""Bytes of a request beside its sub-requests, at most."""

_NUMBER = re.compile(r"sub_requests\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Share:
    """Sub-requests that go in one call.

    Attributes:
        families: their numbers; those of a family are never parted.
    """

    families: tuple[tuple[int, ...], ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which of all sub-requests they are, in the order of the call."""
        return tuple(sorted(number for family in self.families for number in family))

    def renumbering(self, on_event: Callable[[Event], object] | None) -> Callable[[Event], object] | None:
        """`on_event`, called with the numbers that this call's sub-requests have among all."""
        if on_event is None:
            return None
        numbers = self.numbers

        def renumber(event: Event) -> object:
            if isinstance(event, ResultReady | Values):
                event = replace(event, sub_request_index=numbers[event.sub_request_index])
            return on_event(event)

        return renumber


class Calls:
    """The calls that are still to be made; a call that is refused as too large is made in two halves.

    Args:
        shares: what goes in which call.
        request_id: of the first call; the others get `-2`, `-3` behind it. Empty where the server makes them.
    """

    def __init__(self, shares: Sequence[Share], request_id: str) -> None:
        self._waiting = deque(shares)
        self._request_id = request_id
        self._n_calls = 0

    @classmethod
    def apart(cls, shares: Sequence[Share], request_id: str) -> list[Calls]:
        """For calls that are made at the same time: each by itself, with the request ids of all together."""
        return [cls([share], _numbered(request_id, number)) for number, share in enumerate(shares, 1)]

    def __iter__(self) -> Iterator[tuple[Share, str]]:
        """What goes in the next call, and the call's request id."""
        while self._waiting:
            self._n_calls += 1
            yield self._waiting.popleft(), _numbered(self._request_id, self._n_calls)

    def failed(self, share: Share, error: CallError) -> None:
        """A call has failed: its halves are tried next where that may help.

        Raises:
            CallError: `error`, which names sub-requests by their numbers among all.
        """
        families = share.families
        if error.reason not in _TOO_LARGE or error.retry_after is not None or len(families) == 1:
            raise renumbered(error, share.numbers)
        middle = len(families) // 2
        self._waiting.extendleft([Share(families[middle:]), Share(families[:middle])])


def _numbered(request_id: str, number: int) -> str:
    return f"{request_id}-{number}" if request_id and number > 1 else request_id


def shares(
    families: Sequence[tuple[int, ...]],
    lengths: Sequence[int],
    sizes: Sequence[int],
    limits: Limits | None,
) -> list[Share]:
    """Puts as many families of sub-requests in each call as the server's limits allow.

    Args:
        families: the numbers of sub-requests that have to share a call.
        lengths: how many tokens each family's prompt has; those of a call are equal.
        sizes: bytes of each sub-request's message.
        limits: None where they are not known.

    Raises:
        InvalidValueError: a family alone has more sub-requests than a call may have.
    """
    max_number = (limits.max_sub_requests if limits else 0) or math.inf  # older servers may not say
    max_bytes = (limits.max_request_bytes if limits else 0) or math.inf
    full: list[Share] = []
    open_calls: dict[int, tuple[list[tuple[int, ...]], int, int]] = {}
    for family, length in zip(families, lengths, strict=True):
        number, size = len(family), sum(sizes[one] + _AROUND_EACH for one in family)
        if number > max_number:
            what = (
                f"{number} are of one prompt, and a call of this server takes {max_number}: only those of one"
                " call share their nodes; ask for some at a time, or for objectives alone (ablate_each)"
            )
            raise InvalidValueError("sub_requests", what)
        call, n_so_far, n_bytes = open_calls.get(length, ([], 0, _AROUND_ALL))
        if call and (n_so_far + number > max_number or n_bytes + size > max_bytes):
            full.append(Share(tuple(call)))
            call, n_so_far, n_bytes = [], 0, _AROUND_ALL
        call.append(family)
        open_calls[length] = call, n_so_far + number, n_bytes + size
    full += [Share(tuple(call)) for call, _, _ in open_calls.values()]
    return sorted(full, key=lambda one: one.numbers)


def renumbered(error: CallError, numbers: Sequence[int]) -> CallError:
    """The error with the numbers that a call's sub-requests have among all, in place of those in the call."""

    def rename(text: str) -> str:
        return _NUMBER.sub(lambda match: f"sub_requests[{numbers[int(match[1])]}]", text)

    return in_other_words(error, rename)


def in_other_words(error: CallError, rename: Callable[[str], str]) -> CallError:
    """The same error with its texts renamed; violations that are equal then are given once."""
    error.message = rename(error.message)
    violations = [
        replace(one, path=rename(one.path), description=rename(one.description))
        for one in error.field_violations
    ]
    error.field_violations = tuple(dict.fromkeys(violations))
    return error
