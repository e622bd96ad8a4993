"""Tokens and texts of a request in the words of an error: escaped, and short however long they are."""

from __future__ import annotations

from collections.abc import Sequence

_N_TOKENS = 8
_N_CHARACTERS = 40


def tokens_in_words(token_ids: Sequence[int], token_strings: Sequence[str]) -> str:
    """The first tokens as text and vocabulary index: `' John' (1757), 'son' (559), …`."""
    shown = [
        f"{shortened(text)} ({token_id})"
        for token_id, text in zip(token_ids[:_N_TOKENS], token_strings, strict=False)
    ]
    return ", ".join(shown if len(token_ids) <= _N_TOKENS else [*shown, "…"])


def shortened(text: str) -> str:
    """A text in quotes, or its beginning; what cannot be printed is escaped."""
    return repr(text) if len(text) <= _N_CHARACTERS else f"{text[:_N_CHARACTERS]!r}…"
