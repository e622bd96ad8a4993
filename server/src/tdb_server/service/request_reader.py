"""Reads the parts of a request that occur in many places, and gathers everything that is wrong with it.

Nothing is raised while a request is read, so that a client learns of all its mistakes at once. A part that
cannot be read is None, and what depends on it is not checked further.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.reason import LIMIT_REASONS, PRECONDITION_REASONS, Reason
from tdb_server.errors import FailedPrecondition, FieldViolation, InvalidRequest, OverLimit
from tdb_server.service.enum_names import EnumNames

MemberT = TypeVar("MemberT", bound=Enum)
NumberT = TypeVar("NumberT", bound=int)


class Encoder(Protocol):
    """What turns text into tokens. The tokenizer does."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """What each token says by itself."""
        ...


class RequestReader:
    """What a request is read against, and what was found to be wrong.

    Args:
        info: the model.
        limits: what the server is willing to do.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, info: ModelInfo, limits: Limits, tokenizer: Encoder) -> None:
        self.info = info
        self.limits = limits
        self.violations: list[FieldViolation] = []
        self.tokenizer = tokenizer

    def refuse(self, field: str, description: str, reason: Reason) -> None:
        """Notes a field at fault."""
        self.violations.append(FieldViolation(field, description, reason))

    def note(self, violations: Iterable[FieldViolation]) -> bool:
        """Notes fields at fault; whether there are none."""
        found = list(violations)
        self.violations += found
        return not found

    def raise_violations(self) -> None:
        """Raises what was noted, if anything was.

        Raises:
            InvalidRequest: some field can never be right.
            FailedPrecondition: all are right but for what is loaded.
            OverLimit: all are right but for the server's limits.
        """
        if not self.violations:
            return
        reasons = {one.reason for one in self.violations}
        if reasons <= PRECONDITION_REASONS:
            raise FailedPrecondition(self.violations)
        if reasons <= LIMIT_REASONS:
            message = "; ".join(f"{one.field}: {one.description}" for one in self.violations)
            raise OverLimit(message, self.violations[0].reason)
        raise InvalidRequest(self.violations)

    def member(
        self, number: int, names: EnumNames[MemberT, NumberT], path: str, default: MemberT | None = None
    ) -> MemberT | None:
        """The member that a number stands for.

        Args:
            number: what the request says.
            names: the enum.
            path: the field.
            default: what UNSPECIFIED means; None where the field is required.
        """
        if number == 0 and default is not None:
            return default
        if number == 0:
            self.refuse(path, "is required", Reason.FIELD_REQUIRED)
            return None
        member = names.members.get(number)
        if member is None:
            self.refuse(path, f"{number} is not a value this server knows", Reason.UNKNOWN_ENUM_VALUE)
        return member

    def at_most(self, items: Sequence[object], limit: int, path: str, reason: Reason) -> bool:
        """Whether a list is within its limit."""
        if len(items) <= limit:
            return True
        self.refuse(path, f"{len(items)} are over the limit of {limit}", reason)
        return False

    def prompt(self, text: str, path: str) -> tuple[int, ...] | None:
        """The token ids of a prompt."""
        token_ids = tuple(self.tokenizer.encode(text))
        limit = self.limits.prompt_tokens(self.info.context_length)
        if not token_ids:
            self.refuse(path, "the prompt has no tokens", Reason.EMPTY_PROMPT)
            return None
        if len(token_ids) > limit:
            self.refuse(
                path, f"the prompt has {len(token_ids)} tokens; at most {limit} fit", Reason.PROMPT_TOO_LONG
            )
            return None
        return token_ids if self._are_in_vocabulary(token_ids, path) else None

    def single_tokens(self, texts: Sequence[str], path: str) -> tuple[int, ...] | None:
        """The token ids of texts that must be one token each."""
        token_ids: list[int] = []
        for i, text in enumerate(texts):
            found = self.tokenizer.encode(text)
            if len(found) != 1:
                self.refuse(
                    f"{path}[{i}]", f"{text!r} is {len(found)} tokens; it must be one", Reason.NOT_ONE_TOKEN
                )
            elif self._are_in_vocabulary(found, f"{path}[{i}]"):
                token_ids += found
        return tuple(token_ids) if len(token_ids) == len(texts) else None

    def _are_in_vocabulary(self, token_ids: Sequence[int], path: str) -> bool:
        size = self.info.vocabulary_size
        unknown = next((one for one in token_ids if one >= size), None)
        if unknown is not None:
            self.refuse(
                path, f"token {unknown} is outside the model's {size} tokens", Reason.UNKNOWN_TOKEN_ID
            )
        return unknown is None
