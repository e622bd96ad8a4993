"""Reads messages of a request field by field, and gathers everything that is wrong with it.

Nothing is raised while a request is read, so that a client learns of all its mistakes at once. A part that
cannot be read is None, and what depends on it is not checked further.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.reason import LIMIT_REASONS, PRECONDITION_REASONS, Reason
from tdb_server.domain.requests import BackwardRule
from tdb_server.errors import FailedPrecondition, FieldsOverLimit, FieldViolation, InvalidRequest
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.beginning_of_text import bos_violations, with_bos
from tdb_server.service.enum_names import BACKWARD_RULES, EnumNames
from tdb_server.service.token_words import shortened, tokens_in_words

MAX_TARGET_CHARACTERS = 8192
"""A longer text is no token, and is not looked at."""
MAX_VIOLATIONS = 64
"""Mistakes that are named; of the others only their number is given."""
MemberT = TypeVar("MemberT", bound=Enum)
NumberT = TypeVar("NumberT", bound=int)
MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's tokens, and whether the first one was put in front of its text."""

    token_ids: tuple[int, ...]
    bos_added: bool


@dataclass(slots=True)
class RequestReader:
    """What a request is read against, and what was found to be wrong.

    Attributes:
        info: the model.
        limits: what the server is willing to do.
        tokenizer: the model's tokenizer.
        n_violations: mistakes found so far.
    """

    info: ModelInfo
    limits: Limits
    tokenizer: Tokenizer
    n_violations: int = 0
    _violations: list[FieldViolation] = field(default_factory=list)
    _reasons: set[str] = field(default_factory=set)

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
            FieldsOverLimit: all are right but for the server's limits.
        """
        if not self._violations:
            return
        n_more = self.n_violations - len(self._violations)
        if self._reasons <= PRECONDITION_REASONS:
            raise FailedPrecondition(self._violations, n_more)
        if self._reasons <= LIMIT_REASONS:
            raise FieldsOverLimit(self._violations, n_more)
        raise InvalidRequest(self._violations, n_more)


@dataclass(frozen=True, slots=True)
class MessageReader(Generic[MessageT]):
    """One message of a request, read by the names of its fields.

    Attributes:
        request: that it belongs to.
        message: itself.
        path: where it stands in the request; empty for the request itself.
    """

    request: RequestReader
    message: MessageT
    path: str = ""

    def at(self, field: str = "") -> str:
        """The path of a field, or the message's own."""
        return f"{self.path}.{field}" if self.path and field else self.path or field

    def refuse(self, field: str, description: str, reason: Reason) -> None:
        """Notes a field at fault; without a name the message itself."""
        self.request.refuse(self.at(field), description, reason)

    def has(self, field: str) -> bool:
        """Whether a field is set."""
        return self.message.HasField(field)

    def requires(self, field: str) -> bool:
        """Whether a field is set, as it has to be."""
        if self.has(field):
            return True
        self.refuse(field, "is required", Reason.FIELD_REQUIRED)
        return False

    def value(self, field: str) -> Any:
        """What a field says."""
        return getattr(self.message, field)

    def optional(self, field: str) -> Any:
        """What a field says; None where it says nothing."""
        return self.value(field) if self.has(field) else None

    def inner(self, field: str) -> MessageReader[Any]:
        """The message in a field; an empty one where there is none."""
        return MessageReader(self.request, self.value(field), self.at(field))

    def entries(self, field: str) -> list[MessageReader[Any]]:
        """The messages in a list."""
        return [
            MessageReader(self.request, one, f"{self.at(field)}[{i}]")
            for i, one in enumerate(self.value(field))
        ]

    def member(
        self, field: str, names: EnumNames[MemberT, NumberT], default: MemberT | None = None
    ) -> MemberT | None:
        """The member that a field's number stands for.

        Args:
            field: its name.
            names: the enum.
            default: what UNSPECIFIED means; None where the field is required.
        """
        return self._member(self.value(field), names, field, default)

    def members(self, field: str, names: EnumNames[MemberT, NumberT], kinds: str) -> list[MemberT] | None:
        """Those of a list. None where one cannot be read, or where there are more than kinds of them."""
        numbers = self.value(field)
        if not self.only(field, len(names.numbers), kinds):
            return None
        found = [self._member(one, names, f"{field}[{i}]", None) for i, one in enumerate(numbers)]
        known = [one for one in found if one is not None]
        return known if len(known) == len(found) else None

    def at_most(self, field: str, limit: int, reason: Reason) -> bool:
        """Whether a list is within its limit."""
        n_entries = len(self.value(field))
        if n_entries > limit:
            self.refuse(field, f"{n_entries} are over the limit of {limit}", reason)
        return n_entries <= limit

    def only(self, field: str, n_kinds: int, kinds: str) -> bool:
        """Whether a list can do without entries that occur twice: there are only so many kinds of them."""
        n_entries = len(self.value(field))
        if n_entries > n_kinds:
            self.refuse(field, f"has {n_entries} entries; there are {n_kinds} {kinds}", Reason.OUT_OF_RANGE)
        return n_entries <= n_kinds

    def prompt(self) -> Prompt | None:
        """The tokens of the message's prompt."""
        request, add_bos = self.request, self.optional("add_bos")
        if not request.note(bos_violations(add_bos, request.tokenizer, self.at("add_bos"))):
            return None
        return self._tokens(self.value("prompt"), "prompt")

    def baselines(self, prompt: Prompt | None) -> tuple[tuple[int, ...], ...]:
        """The tokens of the baseline prompts, each as many as the prompt's; unreadable ones are left out."""
        field, limit = "baseline_prompts", self.request.limits.max_sub_requests
        if prompt is None or not self.at_most(field, limit, Reason.TOO_MANY_BASELINES):
            return ()
        found = []
        for i, text in enumerate(self.value(field)):
            place = f"{field}[{i}]"
            baseline = self._tokens(text, place)
            if baseline is None:
                continue
            n_tokens, n_needed = len(baseline.token_ids), len(prompt.token_ids)
            if n_tokens != n_needed:
                description = f"has {n_tokens} tokens; it must have {n_needed}, as the prompt has"
                self.refuse(place, description, Reason.UNEQUAL_PROMPT_LENGTHS)
            found.append(baseline.token_ids)
        return tuple(found)

    def _tokens(self, text: str, field: str) -> Prompt | None:
        """The tokens of a prompt in one of the fields."""
        request, add_bos = self.request, self.optional("add_bos")
        limit = request.limits.prompt_tokens(request.info.context_length)
        if not self._is_short(text, field):
            return None
        encoded = request.tokenizer.encode_at_most(text, limit)
        if encoded is None:
            description = f"the prompt has more than {2 * limit} tokens; at most {limit} fit"
            self.refuse(field, description, Reason.PROMPT_TOO_LONG)
            return None
        if not encoded and not add_bos:
            self.refuse(field, "the prompt has no tokens", Reason.EMPTY_PROMPT)
            return None
        token_ids = tuple(with_bos(encoded, add_bos, request.tokenizer))
        if len(token_ids) > limit:
            description = f"the prompt has {len(token_ids)} tokens; at most {limit} fit"
            self.refuse(field, description, Reason.PROMPT_TOO_LONG)
            return None
        if not self._are_in_vocabulary(token_ids, field):
            return None
        return Prompt(token_ids, bos_added=len(token_ids) > len(encoded))

    def targets_and_distractors(self) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """Their token ids. Each text must be one token; those given by index come after them."""
        return self.single_tokens("target_token"), self.single_tokens("distractor_token")

    def backward_rule(self, *, has_objective: bool) -> tuple[BackwardRule | None, bool]:
        """The message's backward rule, and whether attention patterns pass gradients on.

        Args:
            has_objective: whether there are gradients at all.
        """
        field, patterns = "backward_rule", "attention_pattern_gradients"
        rule = self.member(field, BACKWARD_RULES, BackwardRule.GRADIENT)
        if rule not in (None, BackwardRule.GRADIENT) and not has_objective:
            self.refuse(field, "needs a loss or a trace: it is about gradients", Reason.OBJECTIVE_REQUIRED)
        if self.value(patterns) and rule not in (None, BackwardRule.RELP):
            self.refuse(patterns, "only goes with the backward rule RELP", Reason.FIELD_NOT_ALLOWED)
        return rule, self.value(patterns)

    def single_tokens(self, name: str) -> tuple[int, ...] | None:
        """The token ids that the fields `{name}s`, of texts, and `{name}_ids` stand for.

        A text is cut as where other text stands before it.
        """
        n_violations, limit = self.request.n_violations, self.request.limits.max_target_tokens
        of_texts, of_ids = f"{name}s", f"{name}_ids"
        texts, ids = self.value(of_texts), self.value(of_ids)
        if not all(self.at_most(one, limit, Reason.TOO_MANY_TARGET_TOKENS) for one in (of_texts, of_ids)):
            return None
        token_ids: list[int] = []
        for i, text in enumerate(texts):
            place = f"{of_texts}[{i}]"
            if len(text) > MAX_TARGET_CHARACTERS:
                description = f"must be one token, and has {len(text)} characters"
                self.refuse(place, description, Reason.NOT_ONE_TOKEN)
                continue
            found = self.request.tokenizer.encode_continuation(text)
            if len(found) == 1:
                self._are_in_vocabulary(found, place)
            else:
                self.refuse(place, self._not_one_token(text, found), Reason.NOT_ONE_TOKEN)
            token_ids += found
        for i, token_id in enumerate(ids):
            self._are_in_vocabulary([token_id], f"{of_ids}[{i}]")
        return (*token_ids, *ids) if self.request.n_violations == n_violations else None

    def _member(
        self, number: int, names: EnumNames[MemberT, NumberT], field: str, default: MemberT | None
    ) -> MemberT | None:
        if number == 0 and default is None:
            self.refuse(field, "is required", Reason.FIELD_REQUIRED)
        elif number not in names.members and number != 0:
            self.refuse(field, f"{number} is not a value this server knows", Reason.UNKNOWN_ENUM_VALUE)
        return names.members.get(number, default if number == 0 else None)

    def _is_short(self, text: str, field: str) -> bool:
        """Whether a prompt has few enough bytes to be cut into tokens."""
        request = self.request
        limit = request.limits.prompt_bytes(
            request.info.context_length, request.tokenizer.longest_token_bytes
        )
        n_bytes = len(text) if len(text) > limit else len(text.encode())
        if n_bytes > limit:
            description = f"the prompt has {n_bytes} bytes or more; at most {limit} are read"
            self.refuse(field, description, Reason.PROMPT_TOO_LONG)
        return n_bytes <= limit

    def _not_one_token(self, text: str, token_ids: Sequence[int]) -> str:
        """What is wrong with a target, the most important first: long messages are cut."""
        if not token_ids:
            return "must be one token, and is none"
        tokenizer, spaced = self.request.tokenizer, f" {text}"
        hint = f", as {shortened(spaced)} is" if len(tokenizer.encode_continuation(spaced)) == 1 else ""
        if (spelled := tokenizer.spelled(text)) is not None:
            hint = f" (the vocabulary spells token {spelled} so: ask for it by index)"
        words = tokens_in_words(token_ids, tokenizer.token_strings(token_ids))
        return f"must be one token{hint}, and {shortened(text)} is {len(token_ids)}: {words}"

    def _are_in_vocabulary(self, token_ids: Sequence[int], field: str) -> bool:
        size = self.request.info.vocabulary_size
        unknown = next((one for one in token_ids if not 0 <= one < size), None)
        if unknown is not None:
            description = f"token {unknown} is outside the model's {size} tokens, 0 to {size - 1}"
            self.refuse(field, description, Reason.UNKNOWN_TOKEN_ID)
        return unknown is None
