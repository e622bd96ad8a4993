"""Every key of a GGUF file's architecture is used, known to change nothing, or refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from tdb_server.errors import ModelBroken, ModelError, UnsupportedModel
from tdb_server.model.gguf_config import config_from_gguf
from tdb_server.model.gguf_file import GgufFile, read_gguf
from tdb_server.model.gguf_keys import HARMLESS, NEUTRAL

from tests.gguf_models import write_gguf
from tests.random_models import write_random_model

FAMILIES = {
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "gptneox": "gpt_neox",
    "granite": "granite",
    "llama": "llama",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "stablelm": "stablelm",
}
"""By what llama.cpp calls them."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    root = tmp_path_factory.mktemp("files")
    return {
        architecture: read_gguf(
            write_gguf(write_random_model(root / architecture, family), root / f"{architecture}.gguf")
        )
        for architecture, family in FAMILIES.items()
    }


@pytest.fixture
def config(files: dict[str, GgufFile]) -> Any:
    """The configuration of a file with other values of its architecture's keys; None removes one."""

    def read(family: str = "llama", **keys: object) -> dict[str, object]:
        full = {f"{family}.{key}": value for key, value in keys.items()}
        metadata = {key: value for key, value in (files[family].metadata | full).items() if value is not None}
        return config_from_gguf(replace(files[family], metadata=metadata))

    return read


def known_keys() -> set[str]:
    """Every key that the gguf package knows for some architecture."""
    groups = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM, gguf.Keys.Classifier)
    names = {value for group in groups for value in vars(group).values() if isinstance(value, str)}
    return {name.removeprefix("{arch}.") for name in names if name.startswith("{arch}.") and "{d" not in name}


USED = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
}


WINDOW = {"attention.sliding_window", "attention.sliding_window_pattern"}
USED_BY_ONE = {
    "gemma2": {"attn_logit_softcapping", "final_logit_softcapping"},
    "gemma3": {"rope.freq_base_swa"},
    "granite": {"attention.scale", "embedding_scale", "logit_scale", "residual_scale"},
    "stablelm": {"attention.layer_norm_epsilon", "use_parallel_residual"},
}
NOT_OF = {"granite": WINDOW, "stablelm": WINDOW | {"attention.layer_norm_rms_epsilon"}}
"""What others use and these refuse."""


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt2", "gptneox"}))
def test_no_key_is_ignored(config: Any, family: str) -> None:
    used = USED - NOT_OF.get(family, set()) | USED_BY_ONE.get(family, set())
    for key in sorted(known_keys() - used - set(HARMLESS)):
        with pytest.raises(ModelError, match=re.escape(f"{family}.gguf: {family}.{key} ")):
            config(family, **{key: 3.5})


def test_no_key_is_ignored_of_gpt2(config: Any) -> None:
    rotary = {
        key for key in USED if key.startswith(("rope.", "attention.sliding", "attention.layer_norm_rms"))
    }
    for key in sorted((known_keys() - USED - set(HARMLESS) | rotary) - {"attention.layer_norm_epsilon"}):
        with pytest.raises(ModelError, match=re.escape(f"gpt2.gguf: gpt2.{key} ")):
            config("gpt2", **{key: 3.5})


def test_no_key_is_ignored_of_gpt_neox(config: Any) -> None:
    others = {key for key in USED if key.startswith(("attention.sliding", "attention.layer_norm_rms"))}
    used = {"attention.layer_norm_epsilon", "use_parallel_residual"}
    for key in sorted((known_keys() - USED - set(HARMLESS) | others) - used):
        with pytest.raises(ModelError, match=re.escape(f"gptneox.gguf: gptneox.{key} ")):
            config("gptneox", **{key: 3.5})


@pytest.mark.parametrize(
    ("architecture", "key", "value", "error"),
    [
        ("gemma2", "attn_logit_softcapping", None, ModelBroken),
        ("gemma2", "final_logit_softcapping", 0.0, ModelBroken),
        ("gemma2", "attention.sliding_window_pattern", 3, UnsupportedModel),
        ("gemma2", "rope.freq_base_swa", 77.0, UnsupportedModel),
        ("gemma2", "rope.scaling.factor", 4.0, UnsupportedModel),
        ("gemma3", "attention.sliding_window", None, ModelBroken),
        ("gemma3", "attention.sliding_window_pattern", [True, False, True], UnsupportedModel),
        ("gemma3", "final_logit_softcapping", 30.0, UnsupportedModel),
        ("gptneox", "use_parallel_residual", None, ModelBroken),
        ("gptneox", "rope.dimension_count", None, ModelBroken),
        ("gptneox", "rope.scaling.factor", 4.0, UnsupportedModel),
        ("gptneox", "attention.head_count_kv", 2, UnsupportedModel),
        ("olmo2", "rope.freq_base_swa", 77.0, UnsupportedModel),
        ("olmo2", "attention.sliding_window_pattern", [True], ModelBroken),
        ("granite", "attention.scale", None, ModelBroken),
        ("granite", "logit_scale", None, ModelBroken),
        ("granite", "rope.scaling.finetuned", False, UnsupportedModel),
        ("granite", "attention.value_length", 16, UnsupportedModel),
        ("phi3", "attention.sliding_window", None, ModelBroken),
        ("phi3", "attention.sliding_window", 5.5, ModelBroken),
        ("phi3", "rope.dimension_count", None, ModelBroken),
        ("phi3", "rope.dimension_count", 16, UnsupportedModel),
        ("phi3", "rope.scaling.type", "longrope", UnsupportedModel),
        ("phi3", "rope.scaling.factor", 4.0, UnsupportedModel),
        ("stablelm", "rope.dimension_count", None, ModelBroken),
        ("stablelm", "attention.layer_norm_epsilon", None, ModelBroken),
    ],
)
def test_what_other_architectures_must_say(
    config: Any, architecture: str, key: str, value: object, error: type[ModelError]
) -> None:
    with pytest.raises(error, match=re.escape(f"{architecture}.gguf: {architecture}.{key} ")):
        config(architecture, **{key: value})


def test_what_files_of_gemma_do_not_say_is_what_llama_cpp_knows(config: Any) -> None:
    assert config("gemma2")["query_pre_attn_scalar"] == config("gemma3")["query_pre_attn_scalar"] == 8
    assert config("gemma2", **{"attention.sliding_window": None})["sliding_window"] == 4096
    rotary = config("gemma3", **{"rope.scaling.factor": 8.0, "rope.scaling.type": "linear"})[
        "rope_parameters"
    ]
    assert rotary["full_attention"] == {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    assert rotary["sliding_attention"] == {"rope_theta": 1e4}


def test_what_files_of_granite_need_not_say(config: Any) -> None:
    for value in (None, 0.0):
        found = config("granite", embedding_scale=value, residual_scale=value)
        assert (found["embedding_multiplier"], found["residual_multiplier"]) == (1.0, 1.0)
    assert config("granite", **{"rope.scaling.finetuned": True}) == config("granite")


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ({"attention.sliding_window": 0}, None),
        ({"attention.sliding_window": 5, "attention.sliding_window_pattern": [False] * 3}, None),
        ({"attention.sliding_window": 5}, [True] * 3),  # the fourth layer would see everything
        ({"attention.sliding_window": 5, "attention.sliding_window_pattern": 2}, [True, False, True]),
        ({"attention.sliding_window": 99, "attention.sliding_window_pattern": 2}, [True, False, True]),
    ],
)
def test_olmo_2_with_a_window_is_olmo_3(config: Any, keys: dict[str, Any], kinds: list[bool] | None) -> None:
    scaled = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    found = config("olmo2", **keys, **scaled)
    linear = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
    if kinds is None:
        assert (found["model_type"], found["rope_parameters"]) == ("olmo2", linear)
        return
    assert (found["model_type"], found["sliding_window"]) == ("olmo3", keys["attention.sliding_window"])
    assert [one == "sliding_attention" for one in found["layer_types"]] == kinds
    assert found["rope_parameters"] == {
        "full_attention": linear,
        "sliding_attention": {"rope_theta": 10000.0},
    }


def test_stablelm_is_parallel_where_its_mlp_has_no_norm(files: dict[str, GgufFile], config: Any) -> None:
    assert config("stablelm", use_parallel_residual=False) == config("stablelm")
    tensors = {name: one for name, one in files["stablelm"].tensors.items() if "ffn_norm" not in name}
    with pytest.raises(
        UnsupportedModel, match=r"stablelm\.use_parallel_residual is meant, as there is no blk"
    ):
        config_from_gguf(replace(files["stablelm"], tensors=tensors))


def test_the_documentation_has_every_key() -> None:
    text = (Path(__file__).parents[3] / "docs" / "gguf.md").read_text()
    for key in (*USED, *NEUTRAL, *HARMLESS):
        assert f"`{key}`" in text, key


def test_a_key_that_nobody_knows(config: Any) -> None:
    with pytest.raises(UnsupportedModel, match=r"llama\.mixing\.odd is a key that is not known here"):
        config(**{"mixing.odd": 1})


@pytest.mark.parametrize(("key", "values"), sorted(NEUTRAL.items()))
def test_keys_that_are_switched_off(config: Any, key: str, values: tuple[object, ...]) -> None:
    plain = config()
    for value in values:
        assert config(**{key: value}) == plain


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_of_scalings_that_are_not_used(config: Any, key: str) -> None:
    assert config(**{key: 32.0}) == config()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 1000),
        ("attention.value_length", 8),
        ("attention.scale", 8**-0.5),
        ("attention.scale", 0.0),
        ("embedding_length_out", 32),
        ("attention.sliding_window", 0),
        ("attention.sliding_window", 64),  # as long as the context
        ("attention.head_count", [4, 4, 4]),
        ("attention.head_count_kv", [2, 2, 2]),
        ("feed_forward_length", [48, 48, 48]),
    ],
)
def test_keys_that_say_what_is_so_anyway(config: Any, key: str, value: object) -> None:
    assert config(**{key: value}) == config()


def test_a_width_that_is_not_stored_follows_from_the_heads(config: Any) -> None:
    assert config(**{"attention.key_length": None, "rope.dimension_count": None}) == config()


@pytest.mark.parametrize(
    ("key", "value", "error", "what"),
    [
        ("attention.head_count_kv", [2, 1, 2], UnsupportedModel, r"differs between layers.*\[1, 2\]"),
        ("attention.head_count", [4, 4, 2], UnsupportedModel, r"differs between layers"),
        ("feed_forward_length", [48, 64, 48], UnsupportedModel, r"differs between layers"),
        ("attention.head_count_kv", [2, 2], ModelBroken, r"has 2 entries for 3 layers"),
        ("feed_forward_length", [48] * 4, ModelBroken, r"has 4 entries for 3 layers"),
        ("attention.key_length", [8, 8, 8], UnsupportedModel, r"is a list, where one value is expected"),
        ("block_count", [3], UnsupportedModel, r"is a list"),
        ("rope.freq_base", [1.0, 1.0, 1.0], UnsupportedModel, r"is a list"),
        ("block_count", 2**31, ModelBroken, r"is 2147483648, but there are tensors of 3 layers"),
        ("attention.head_count_kv", 0, ModelBroken, r"must be a whole number above 0, not 0"),
        ("context_length", 64.5, ModelBroken, r"must be a whole number above 0, not 64\.5"),
        ("context_length", True, ModelBroken, r"must be a whole number above 0, not True"),
        ("attention.layer_norm_rms_epsilon", "small", ModelBroken, r"must be a number above 0, not 'small'"),
        ("attention.layer_norm_rms_epsilon", 0.0, ModelBroken, r"must be a number above 0"),
        ("rope.freq_base", float("nan"), ModelBroken, r"must be a number above 0, not nan"),
        ("rope.dimension_count", 4, UnsupportedModel, r"is 4; only 8 is supported"),
        ("rope.dimension_sections", [2, 1, 1, 0], UnsupportedModel, r"is a key that is not known"),
        ("attention.value_length", 16, UnsupportedModel, r"is 16; only 8 is supported"),
        ("attention.scale", 0.5, UnsupportedModel, r"is 0\.5; only 0\.35"),
        ("attention.causal", False, UnsupportedModel, r"is False; only True is supported"),
        ("attention.clamp_kqv", 8.0, UnsupportedModel, r"is 8\.0; only 0\.0 is supported"),
        ("attn_logit_softcapping", 50.0, UnsupportedModel, r"is 50\.0"),
        ("final_logit_softcapping", 30.0, UnsupportedModel, r"is 30\.0"),
        ("logit_scale", 0.25, UnsupportedModel, r"is 0\.25; only 1\.0 is supported"),
        ("embedding_scale", 12.0, UnsupportedModel, r"is 12\.0"),
        ("residual_scale", 0.22, UnsupportedModel, r"is 0\.2"),
        ("expert_count", 8, UnsupportedModel, r"is 8; only 0 is supported"),
        ("pooling_type", 3, UnsupportedModel, r"is 3; only 0 is supported"),
        ("use_parallel_residual", True, UnsupportedModel, r"is True"),
        ("tensor_data_layout", "odd", UnsupportedModel, r"is 'odd'"),
        ("classifier.output_labels", ["yes", "no"], UnsupportedModel, r"is a key that is not known"),
        ("embedding_length_out", 64, UnsupportedModel, r"is 64; only 32"),
    ],
)
def test_what_is_refused(config: Any, key: str, value: object, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=rf"llama\.gguf: llama\.{re.escape(key)} {what}"):
        config(**{key: value})


@pytest.mark.parametrize(
    "key", ["block_count", "context_length", "attention.head_count", "feed_forward_length"]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_missing_keys(config: Any, family: str, key: str) -> None:
    with pytest.raises(ModelBroken, match=rf"{family}\.gguf: {family}\.{key} is missing"):
        config(family, **{key: None})


def test_a_window_in_some_layers(config: Any) -> None:
    key = "attention.sliding_window_pattern"
    with pytest.raises(UnsupportedModel, match=rf"llama\.{key} gives a window to some of the layers only"):
        config(**{"attention.sliding_window": 5, key: [True, False, True]})
    with pytest.raises(UnsupportedModel, match=rf"llama\.{key} gives a window to some of the layers only"):
        config(**{"attention.sliding_window": 5, key: 2})
    with pytest.raises(UnsupportedModel, match=rf"phi3\.{key} gives a window to some of the layers only"):
        config("phi3", **{"attention.sliding_window": 5, key: 2})
    with pytest.raises(ModelBroken, match=rf"llama\.{key} has 2 entries for 3 layers"):
        config(**{"attention.sliding_window": 5, key: [True, False]})


@pytest.mark.parametrize(
    ("pattern", "window"),
    [([True] * 3, 5), (0, 5), (4, 5), ([False] * 3, None), (1, None)],
)
def test_a_window_in_all_layers_or_none(config: Any, pattern: object, window: int | None) -> None:
    keys = {"attention.sliding_window": 5, "attention.sliding_window_pattern": pattern}
    assert config(**keys)["sliding_window"] == window
    assert config("qwen2", **keys)["use_sliding_window"] is bool(window)


def test_the_vocabulary_is_as_long_as_the_embedding(config: Any, files: dict[str, GgufFile]) -> None:
    with pytest.raises(ModelBroken, match=r"has 1000 rows for 1000 tokens .* llama\.vocab_size of 999"):
        config(vocab_size=999)
    tokens = files["llama"].metadata["tokenizer.ggml.tokens"]
    for some in (tokens[:-1], [*tokens, "more"]):
        metadata = files["llama"].metadata | {"tokenizer.ggml.tokens": some}
        with pytest.raises(ModelBroken, match=rf"has 1000 rows for {len(some)} tokens"):
            config_from_gguf(replace(files["llama"], metadata=metadata))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("general.architecture", "mamba", "architecture 'mamba' is not supported"),
        ("general.architecture", None, "architecture None is not supported"),
        ("qwen2.note", "x", r"qwen2\.note belongs to another architecture than 'llama'"),
        ("clip.has_vision_encoder", True, r"clip\.has_vision_encoder belongs to another architecture"),
    ],
)
def test_other_architectures(files: dict[str, GgufFile], key: str, value: object, what: str) -> None:
    with pytest.raises(ModelError, match=rf"llama\.gguf: {what}"):
        config_from_gguf(replace(files["llama"], metadata=files["llama"].metadata | {key: value}))


def test_notes_of_whoever_made_the_file_are_left_alone(files: dict[str, GgufFile]) -> None:
    notes = {"quantize.imatrix.file": "x.dat", "someone.quantize_version": "2", "general.anything": "x"}
    noted = replace(files["llama"], metadata=files["llama"].metadata | notes)
    assert config_from_gguf(noted) == config_from_gguf(files["llama"])
