"""Reads the parts of a request that occur in many places, and gathers everything that is wrong with it.

Nothing is raised while a request is read, so that a client learns of all its mistakes at once. A part that
cannot be read is None, and what depends on it is not checked further.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugSubRequest, InferenceSpec

from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.reason import LIMIT_REASONS, PRECONDITION_REASONS, Reason
from tdb_server.errors import FailedPrecondition, FieldViolation, InvalidRequest, OverLimit, in_words
from tdb_server.service.beginning_of_text import BosTokenizer, bos_violations, with_bos
from tdb_server.service.enum_names import EnumNames
from tdb_server.service.token_words import shortened, tokens_in_words

MAX_TARGET_CHARACTERS = 8192
"""A longer text is no token, and is not looked at."""
MAX_VIOLATIONS = 64
"""Mistakes that are told; of the others only how many there are."""
MemberT = TypeVar("MemberT", bound=Enum)
NumberT = TypeVar("NumberT", bound=int)


class Encoder(BosTokenizer, Protocol):
    """What turns text into tokens. The tokenizer does."""

    longest_token_bytes: int

    def encode_at_most(self, text: str, n_tokens: int) -> list[int] | None:
        """Token ids of a text; None where there are far more."""
        ...

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text where other text stands before it."""
        ...

    def spelled(self, piece: str) -> int | None:
        """The id of the token that the vocabulary spells so."""
        ...

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """What each token says by itself."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's tokens, and whether the first one was put in front of its text."""

    token_ids: tuple[int, ...]
    bos_added: bool


class RequestReader:
    """What a request is read against, and what was found to be wrong.

    Args:
        info: the model.
        limits: what the server is willing to do.
        tokenizer: the model's tokenizer.

    Attributes:
        n_violations: mistakes found so far.
    """

    def __init__(self, info: ModelInfo, limits: Limits, tokenizer: Encoder) -> None:
        self.info = info
        self.limits = limits
        self.tokenizer = tokenizer
        self.n_violations = 0
        self._violations: list[FieldViolation] = []
        self._reasons: set[str] = set()

    def refuse(self, field: str, description: str, reason: Reason) -> None:
        """Notes a field at fault."""
        self.note([FieldViolation(field, description, reason)])

    def note(self, violations: Iterable[FieldViolation]) -> bool:
        """Notes fields at fault; whether there are none."""
        n_before = self.n_violations
        for one in violations:
            self.n_violations += 1
            self._reasons.add(one.reason)
            if len(self._violations) < MAX_VIOLATIONS:
                self._violations.append(one)
        return self.n_violations == n_before

    def raise_violations(self) -> None:
        """Raises what was noted, if anything was.

        Raises:
            InvalidRequest: some field can never be right.
            FailedPrecondition: all are right but for what is loaded.
            OverLimit: all are right but for the server's limits.
        """
        if not self._violations:
            return
        n_more = self.n_violations - len(self._violations)
        if self._reasons <= PRECONDITION_REASONS:
            raise FailedPrecondition(self._violations, n_more)
        if self._reasons <= LIMIT_REASONS:
            raise OverLimit(in_words(self._violations, n_more), self._violations[0].reason)
        raise InvalidRequest(self._violations, n_more)

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

    def only(self, items: Sequence[object], n_kinds: int, kinds: str, path: str) -> bool:
        """Whether a list can do without entries that occur twice: there are only so many kinds of them."""
        if len(items) <= n_kinds:
            return True
        self.refuse(path, f"has {len(items)} entries; there are {n_kinds} {kinds}", Reason.OUT_OF_RANGE)
        return False

    def prompt(self, message: DebugSubRequest | InferenceSpec, path: str) -> Prompt | None:
        """The tokens of a message's prompt."""
        add_bos = message.add_bos if message.HasField("add_bos") else None
        if not self.note(bos_violations(add_bos, self.tokenizer, f"{path}.add_bos")):
            return None
        prompt_path, text = f"{path}.prompt", message.prompt
        limit = self.limits.prompt_tokens(self.info.context_length)
        if not self._is_short(text, prompt_path):
            return None
        encoded = self.tokenizer.encode_at_most(text, limit)
        if encoded is None:
            description = f"the prompt has more than {2 * limit} tokens; at most {limit} fit"
            self.refuse(prompt_path, description, Reason.PROMPT_TOO_LONG)
            return None
        if not encoded and not add_bos:
            self.refuse(prompt_path, "the prompt has no tokens", Reason.EMPTY_PROMPT)
            return None
        token_ids = tuple(with_bos(encoded, add_bos, self.tokenizer))
        if len(token_ids) > limit:
            self.refuse(
                prompt_path,
                f"the prompt has {len(token_ids)} tokens; at most {limit} fit",
                Reason.PROMPT_TOO_LONG,
            )
            return None
        if not self._are_in_vocabulary(token_ids, prompt_path):
            return None
        return Prompt(token_ids, bos_added=len(token_ids) > len(encoded))

    def single_tokens(self, texts: Sequence[str], ids: Sequence[int], path: str) -> tuple[int, ...] | None:
        """The token ids of texts that must be one token each, then those given as such.

        Args:
            texts: each is cut as where other text stands before it.
            ids: vocabulary indices.
            path: of both fields, which end in `s` and in `_ids`.
        """
        n_violations, limit = self.n_violations, self.limits.max_target_tokens
        for field, entries in ((f"{path}s", texts), (f"{path}_ids", ids)):
            if not self.at_most(entries, limit, field, Reason.TOO_MANY_TARGET_TOKENS):
                return None
        token_ids: list[int] = []
        for i, text in enumerate(texts):
            if len(text) > MAX_TARGET_CHARACTERS:
                description = f"must be one token, and has {len(text)} characters"
                self.refuse(f"{path}s[{i}]", description, Reason.NOT_ONE_TOKEN)
                continue
            found = self.tokenizer.encode_continuation(text)
            if len(found) == 1:
                self._are_in_vocabulary(found, f"{path}s[{i}]")
            else:
                self.refuse(f"{path}s[{i}]", self._not_one_token(text, found), Reason.NOT_ONE_TOKEN)
            token_ids += found
        for i, token_id in enumerate(ids):
            self._are_in_vocabulary([token_id], f"{path}_ids[{i}]")
        return (*token_ids, *ids) if self.n_violations == n_violations else None

    def _is_short(self, text: str, path: str) -> bool:
        """Whether a prompt has few enough bytes to be cut into tokens."""
        limit = self.limits.prompt_bytes(self.info.context_length, self.tokenizer.longest_token_bytes)
        n_bytes = len(text) if len(text) > limit else len(text.encode())
        if n_bytes <= limit:
            return True
        description = f"the prompt has {n_bytes} bytes or more; at most {limit} are read"
        self.refuse(path, description, Reason.PROMPT_TOO_LONG)
        return False

    def _not_one_token(self, text: str, token_ids: Sequence[int]) -> str:
        """What is wrong with a target, the most important first: long messages are cut."""
        if not token_ids:
            return "must be one token, and is none"
        spaced, spelled = f" {text}", self.tokenizer.spelled(text)
        hint = f", as {shortened(spaced)} is" if len(self.tokenizer.encode_continuation(spaced)) == 1 else ""
        if spelled is not None:
            hint = f" (the vocabulary spells token {spelled} so: ask for it by index)"
        words = tokens_in_words(token_ids, self.tokenizer.token_strings(token_ids))
        return f"must be one token{hint}, and {shortened(text)} is {len(token_ids)}: {words}"

    def _are_in_vocabulary(self, token_ids: Sequence[int], path: str) -> bool:
        size = self.info.vocabulary_size
        unknown = next((one for one in token_ids if not 0 <= one < size), None)
        if unknown is not None:
            self.refuse(
                path,
                f"token {unknown} is outside the model's {size} tokens, 0 to {size - 1}",
                Reason.UNKNOWN_TOKEN_ID,
            )
        return unknown is None
