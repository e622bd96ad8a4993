"""A small vocabulary of SentencePiece's kind: "▁" for a space, one in front of texts, bytes for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdb_server.model.tokenizer import Tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

PIECES = ["▁", "t", "o", "x", "to", "▁to", "▁x"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCABULARY = {piece: index for index, piece in enumerate(["<unk>", "<s>", *BYTES, *PIECES])}
MERGES = [("t", "o"), ("▁", "to"), ("▁", "x")]


def sentence_pieces(folder: Path, *, by_metaspace: bool = False) -> Tokenizer:
    """The tokenizer, with the space in front put there by a normalizer or by a pre-tokenizer."""
    unknown = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    raw = RawTokenizer(models.BPE(VOCABULARY, MERGES, **unknown))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if by_metaspace:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        spaces = normalizers.Replace(" ", "▁")
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    raw.add_special_tokens([AddedToken("<s>", special=True)])
    raw.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)
