"""Tokens as callers name them: by text or by vocabulary index, alone or several."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from tdb_client.errors import InvalidValueError


def as_tokens(words: object, path: str) -> tuple[str | int, ...]:
    """The tokens that a caller names; one may stand for a list of them.

    Args:
        words: texts and vocabulary indices, of Python or of numpy, or one of them.
        path: what they are called.

    Raises:
        InvalidValueError: something is neither. Bytes, which Python takes for a list of numbers, are neither.
    """
    several = words if isinstance(words, Iterable) and not isinstance(words, str | bytes) else (words,)
    return tuple(_token(one, f"{path}[{i}]") for i, one in enumerate(several))


def read_tokens(new: Any) -> None:
    """Reads target and distractor of a new request or loss; it is frozen, and nobody has seen it yet.

    Else a single text would count as a list of its letters.
    """
    for name in ("target", "distractor"):
        object.__setattr__(new, name, as_tokens(getattr(new, name), name))


def _token(word: object, path: str) -> str | int:
    if isinstance(word, str):
        return word
    try:
        if not isinstance(word, bool):
            return operator.index(word)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InvalidValueError(path, f"{word!r} is neither the text of a token nor its vocabulary index")
