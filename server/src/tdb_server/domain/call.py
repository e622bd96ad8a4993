"""A call as the workers see it: sub-requests that are run and answered together."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_server.domain.requests import InferenceSubRequest


@dataclass(frozen=True, slots=True)
class Call:
    """The sub-requests of one client call, under an id that is unique within the server."""

    call_id: str
    sub_requests: tuple[InferenceSubRequest, ...]

    @property
    def n_rows(self) -> int:
        """Rows that they take in a batch."""
        return sum(one.n_rows for one in self.sub_requests)

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows together."""
        return sum(len(one.inference.token_ids) * one.n_rows for one in self.sub_requests)
