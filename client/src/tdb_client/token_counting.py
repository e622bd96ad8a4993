"""Warns when token numbers may have been counted with, or without, the token that begins a text.

Where the beginning-of-text token stands in front of a prompt it is token 0, and every other token is one
further. A number written for the other way names the token beside, and the answer looks as sound as any.
So a call that names tokens by number, and leaves it to the model whether there is such a token, is compared
with what the caller has seen of this prompt: its tokens, or an earlier answer. There is no warning for those
who say `add_bos`, count from the end, or count as they were shown.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from threading import Lock

from tdb_client.events import Event, Started
from tdb_client.requests import AnySubRequest, tokens_from_start
from tdb_client.results import PromptTokens
from tdb_client.token_text import quoted

N_PROMPTS = 1000
"""Prompts that are remembered, the latest ones."""


class TokenCountWarning(UserWarning):
    """Token numbers count the beginning-of-text token, or do not, and may have been written the other way."""


class TokenCounting:
    """What one client has shown of each prompt: its tokens with that token in front, without it, or both."""

    def __init__(self) -> None:
        self._shown: dict[str, frozenset[bool]] = {}
        self._lock = Lock()  # calls of several threads may be about one prompt, which is warned of once

    def showed(self, prompt: str, tokens: PromptTokens) -> None:
        """The caller sees these tokens of the prompt."""
        with self._lock:
            self._showed(prompt, tokens)

    def _showed(self, prompt: str, tokens: PromptTokens) -> None:
        self._shown[prompt] = self._shown.pop(prompt, frozenset()) | {tokens.bos_added}
        if len(self._shown) > N_PROMPTS:
            self._shown.pop(next(iter(self._shown)), None)

    def look_at(self, event: Event, sub_requests: Sequence[AnySubRequest]) -> None:
        """Warns, once the prompts' tokens are known, where numbers may mean others than were meant.

        Once for each prompt.
        """
        if not isinstance(event, Started):
            return
        problems: dict[str, str] = {}
        with self._lock:
            for sub_request, tokens in zip(sub_requests, event.prompts, strict=True):
                problem = self._problem(sub_request, tokens)
                if problem is not None:
                    problems.setdefault(sub_request.prompt, problem)
            for sub_request, tokens in zip(sub_requests, event.prompts, strict=True):
                self._showed(sub_request.prompt, tokens)
        for problem in problems.values():
            warnings.warn(problem, TokenCountWarning, stacklevel=4)

    def _problem(self, sub_request: AnySubRequest, tokens: PromptTokens) -> str | None:
        shown = self._shown.get(sub_request.prompt, {False})  # so people count who have seen nothing
        numbers = [one for one in tokens_from_start(sub_request) if one < len(tokens)]
        if sub_request.add_bos is not None or tokens.bos_added in shown or not numbers:
            return None
        examples = ", ".join(f"{one} is {quoted(tokens.tokens[one])}" for one in sorted(set(numbers))[:3])
        if tokens.bos_added:
            return (
                f"this model puts {quoted(tokens.tokens[0])} in front of prompts, and numbers of tokens"
                f" count it: {examples}."
                " Say add_bos=True (--add-bos) if that is meant, or False (--no-add-bos)"
            )
        return (
            "this model puts no beginning-of-text token in front of prompts by itself, and numbers of tokens"
            f" do not count one, as they did where this prompt was seen before: {examples}."
            " Say add_bos=False (--no-add-bos) if that is meant, or True (--add-bos)"
        )
