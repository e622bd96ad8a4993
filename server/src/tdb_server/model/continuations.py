"""How a tokenizer cuts text that follows other text, as a predicted token does.

Some tokenizers change the ends of a text before they cut it. Those of SentencePiece put a space in front, so
that a text's first word is the same piece as in the middle of a sentence: "to" becomes "▁to", and " to" two
pieces. A prompt that goes on has no such space: there " to" is the piece "▁to", and "to" the piece "to".
"""

from __future__ import annotations

import json
from typing import Any

import tokenizers


def continuing(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, but it leaves the ends of a text as they are; itself where it does so already."""
    steps = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    states = [None if one is None else json.loads(one.__getstate__()) for one in steps]
    changed = [_without_ends(one) for one in states]
    if changed == states:
        return tokenizer
    whole = json.loads(tokenizer.to_str())
    whole["normalizer"], whole["pre_tokenizer"] = changed
    made = tokenizers.Tokenizer.from_str(json.dumps(whole))
    made.encode_special_tokens = tokenizer.encode_special_tokens
    return made


def _without_ends(step: Any) -> Any:
    """A step without what it does to the ends of a text; None where it does nothing else."""
    match step:
        case {"type": "Prepend" | "Strip"}:
            return None
        case {"type": "Metaspace"}:
            return step | {"prepend_scheme": "never"}
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return step | {"add_prefix_space": False}
        case {"type": "Sequence"}:
            (key,) = step.keys() - {"type"}
            return step | {key: [one for one in map(_without_ends, step[key]) if one is not None]}
    return step
