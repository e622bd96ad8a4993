"""The token for the beginning of text: which it is, and whether the tokenizer puts it in front unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tdb_server.errors import ModelBroken
from tdb_server.model.tokenizer import Tokenizer
from tokenizers import AddedToken, models, processors
from tokenizers import Tokenizer as RawTokenizer

BOS, EOS = ("<s>", 2), ("</s>", 3)
BYTES = processors.ByteLevel(trim_offsets=False)
TEMPLATE = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[BOS])


def tokenizer_with(folder: Path, processor: Any, configuration: dict[str, object] | None = None) -> Tokenizer:
    raw = RawTokenizer(models.BPE({"a": 0, "b": 1}, []))
    raw.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    if processor is not None:
        raw.post_processor = processor
    raw.save(str(folder / "tokenizer.json"))
    if configuration is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    return Tokenizer(folder)


@pytest.mark.parametrize(
    ("processor", "adds_bos"),
    [
        (None, False),
        (BYTES, False),
        (processors.TemplateProcessing(single="$A", special_tokens=[]), False),
        (TEMPLATE, True),
        (processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[BOS, EOS]), True),
        (processors.TemplateProcessing(single="$A </s>", special_tokens=[EOS]), False),
        (processors.Sequence([BYTES, TEMPLATE]), True),  # Llama 3's
        (processors.Sequence([TEMPLATE, BYTES]), True),
        (processors.BertProcessing(EOS, BOS), True),
        (processors.RobertaProcessing(EOS, BOS), True),
    ],
)
def test_post_processors(tmp_path: Path, processor: Any, adds_bos: bool) -> None:
    tokenizer = tokenizer_with(tmp_path, processor)
    assert tokenizer.adds_bos == adds_bos
    assert tokenizer.bos_token_id == (2 if adds_bos else None)
    assert tokenizer.encode("ab") == [0, 1]
    raw = RawTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (raw.encode("ab").ids[0] == 2) == adds_bos


@pytest.mark.parametrize("processor", [None, BYTES, TEMPLATE])
@pytest.mark.parametrize("bos", ["<s>", {"content": "<s>", "special": True}])
def test_a_token_that_the_configuration_names(tmp_path: Path, processor: Any, bos: object) -> None:
    tokenizer = tokenizer_with(tmp_path, processor, {"bos_token": bos})
    assert (tokenizer.bos_token_id, tokenizer.adds_bos) == (2, processor is TEMPLATE)


@pytest.mark.parametrize("configuration", [{}, {"bos_token": None}, {"bos_token": "<unknown>"}])
def test_none(tmp_path: Path, configuration: dict[str, object]) -> None:
    tokenizer = tokenizer_with(tmp_path, None, configuration)
    assert (tokenizer.bos_token_id, tokenizer.adds_bos) == (None, False)


def test_the_token_that_is_put_in_front_counts_more_than_the_one_that_is_named(tmp_path: Path) -> None:
    assert tokenizer_with(tmp_path, TEMPLATE, {"bos_token": "</s>"}).bos_token_id == 2


def test_a_broken_configuration(tmp_path: Path) -> None:
    tokenizer_with(tmp_path, None)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelBroken, match=r"tokenizer_config\.json: not a JSON object"):
        Tokenizer(tmp_path)
