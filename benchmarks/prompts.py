"""Random prompts of exactly as many tokens as wanted, which the service reads back the same."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import tokenizers

_WORD = re.compile(r" [A-Za-z]{2,}")


@dataclass(frozen=True)
class Prompt:
    """A prompt with the two tokens whose logits are compared after it: as text, and as token ids."""

    text: str
    token_ids: tuple[int, ...]
    target: str
    target_id: int
    distractor: str
    distractor_id: int


class Words:
    """The words of a vocabulary, each a space and letters, that are one token wherever they stand.

    Args:
        tokenizer_folder: holds `tokenizer.json`.
        seed: of the prompts.
    """

    def __init__(self, tokenizer_folder: Path, seed: int = 0) -> None:
        tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        spelled = [(token_id, tokenizer.decode([token_id])) for token_id in range(tokenizer.get_vocab_size())]
        candidates = [(token_id, text) for token_id, text in spelled if _WORD.fullmatch(text)]
        encoded = tokenizer.encode_batch([text for _, text in candidates], add_special_tokens=False)
        self._words = [
            one for one, encoding in zip(candidates, encoded, strict=True) if encoding.ids == [one[0]]
        ]
        self._random = random.Random(seed)

    def prompt(self, n_tokens: int) -> Prompt:
        """A prompt that nobody has seen before."""
        *words, (target_id, target), (distractor_id, distractor) = self._random.sample(
            self._words, n_tokens + 2
        )
        token_ids = tuple(token_id for token_id, _ in words)
        text = "".join(word for _, word in words)
        return Prompt(text, token_ids, target, target_id, distractor, distractor_id)

    def below(self, n: int) -> int:
        """A random number from 0 to n - 1: which neuron, which head."""
        return self._random.randrange(n)
