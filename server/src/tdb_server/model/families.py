"""Model families: from a Hugging Face `config.json` to the decoder's own configuration.

What the decoder cannot compute is refused here, before any weight is read: a setting that is silently ignored
would give silently wrong answers. Where a file says one thing in two places, transformers' choice is ours,
and the log says which it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.config import DecoderConfig
from tdb_server.model.model_files import SINGLE_FILE
from tdb_server.model.rotary import scaling_type

_log = logging.getLogger(__name__)

MAX_COUNT = 2**31 - 1
"""Of anything in a model: what fits into the fields of `ModelInfo`."""

MAX_HEAD_CHANNELS = 2**16
"""Of a head that is rotated: its angles are computed before its weights are looked at."""
MAX_NUMBER = 2.0**127
"""Larger ones are not finite in float32, or nearly so."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names of activation functions, and the decoder's."""

GPT2_NAMES_OF_OTHERS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""What other families call entries of GPT-2's configuration; transformers takes these before GPT-2's own."""

ROTARY_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset(("factor",)),
    "llama3": frozenset(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    ),
}
"""What each kind of rotary scaling reads, besides its type and theta."""

Block = Mapping[str, object]


def decoder_config_from_hugging_face(config: Block) -> DecoderConfig:
    """Translates the content of a `config.json`, as written by transformers 5 or before.

    Raises:
        UnsupportedModel: unknown family, activation function or option that changes the mathematics.
        ModelBroken: a number is missing or makes no sense.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedModel(
            f"config.json: model_type {family!r} is not supported; {', '.join(sorted(FAMILIES))} are"
        )
    if config.get("quantization_config") is not None:
        raise UnsupportedModel("config.json: quantized weights are not supported; a GGUF file is")
    if config.get("transformers_weights") not in (None, SINGLE_FILE):
        raise UnsupportedModel(
            f"config.json: transformers_weights {config['transformers_weights']!r}: weights in a file of "
            f"another name than {SINGLE_FILE} are not supported"
        )
    if not config.get("is_causal", True):
        raise UnsupportedModel(
            f"config.json: is_causal {config['is_causal']!r}: attention to later tokens is not supported"
        )
    decoder_config = FAMILIES[family](config)
    if decoder_config.n_heads % decoder_config.n_key_value_heads:
        raise ModelBroken(
            f"config.json: {decoder_config.n_heads} heads cannot share "
            f"{decoder_config.n_key_value_heads} key/value heads evenly"
        )
    return decoder_config


def _gpt2(config: Block) -> DecoderConfig:
    for other, own in GPT2_NAMES_OF_OTHERS.items():
        if config.get(other) is not None:
            _tell_of_two(own, config.get(own), other, config[other])
            config = {**config, own: config[other]}
    for option, expected in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if config.get(option, expected) is not expected:
            raise UnsupportedModel(f"config.json: {option} = {config[option]!r} is not supported")
    d_model, n_heads = _count(config, "n_embd"), _count(config, "n_head")
    if d_model % n_heads:
        raise ModelBroken(f"config.json: n_embd {d_model} is not a multiple of n_head {n_heads}")
    return DecoderConfig(
        family="gpt2",
        n_layers=_count(config, "n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_model // n_heads,
        n_neurons=_count(config, "n_inner", 4 * d_model),
        vocabulary_size=_count(config, "vocab_size"),
        context_length=_count(config, "n_positions"),
        norm="layer_norm",
        norm_epsilon=_number(config, "layer_norm_epsilon", 1e-5),
        activation=_activation(config, "activation_function", "gelu_new"),
        gated=False,
        rotary_theta=None,
        tied_embeddings=_flag(config, "tie_word_embeddings", True),
        qkv_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
        bos_token_id=_optional_id(config, "bos_token_id"),
    )


def _llama(config: Block) -> DecoderConfig:
    biased = _flag(config, "attention_bias", False)
    if config.get("sliding_window") is not None:
        _log.warning(
            "config.json: sliding_window %s is not used: llama models attend to all tokens before",
            config["sliding_window"],
        )
    mlp_bias = _flag(config, "mlp_bias", False)
    return replace(_rotary_family(config), qkv_bias=biased, attn_out_bias=biased, mlp_bias=mlp_bias)


def _mistral(config: Block) -> DecoderConfig:
    window = config.get("sliding_window", 4096)  # transformers' default, which the first Mistral relies on
    return replace(_rotary_family(config), sliding_window=_window(window, _layer_types(config)))


def _qwen2(config: Block) -> DecoderConfig:
    return replace(_rotary_family(config), qkv_bias=True, sliding_window=_qwen_window(config))


def _qwen3(config: Block) -> DecoderConfig:
    biased = _flag(config, "attention_bias", False)
    return replace(
        _rotary_family(config, default_d_head=128),
        qkv_bias=biased,
        attn_out_bias=biased,
        head_norms=True,
        sliding_window=_qwen_window(config),
    )


FAMILIES: dict[str, Callable[[Block], DecoderConfig]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
"""Every family the decoder can compute, by its `model_type`."""


def _rotary_family(config: Block, default_d_head: int | None = None) -> DecoderConfig:
    """What Llama and those after it share: no biases, no norms of heads, no window."""
    d_model, n_heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    d_head = _count(config, "head_dim", default_d_head or d_model // n_heads)
    if d_head > MAX_HEAD_CHANNELS:
        raise ModelBroken(f"config.json: heads of {d_head} channels; at most {MAX_HEAD_CHANNELS} are read")
    if d_head % 2:
        raise ModelBroken(f"config.json: rotary positions need an even head width, got {d_head}")
    rotary = _rotary_block(config)
    return DecoderConfig(
        family=str(config["model_type"]),
        n_layers=_count(config, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=_count(config, "num_key_value_heads", n_heads),
        d_head=d_head,
        n_neurons=_count(config, "intermediate_size"),
        vocabulary_size=_count(config, "vocab_size"),
        context_length=_count(config, "max_position_embeddings"),
        norm="rms_norm",
        norm_epsilon=_number(config, "rms_norm_eps", 1e-6),
        activation=_activation(config, "hidden_act", "silu"),
        gated=True,
        rotary_theta=_number(rotary, "rope_theta", 10000.0),
        rotary_scaling={key: value for key, value in rotary.items() if key != "rope_theta"} or None,
        tied_embeddings=_flag(config, "tie_word_embeddings", False),
        bos_token_id=_optional_id(config, "bos_token_id"),
    )


def _rotary_block(config: Block) -> dict[str, object]:
    """Type, theta and scaling from `rope_parameters` of transformers 5 or `rope_scaling` of those before.

    As transformers has it: where both stand, `rope_scaling` is all that counts; a theta inside goes before
    one outside; `original_max_position_embeddings` outside goes before one inside.
    """
    blocks = {key: _block(config, key) for key in ("rope_scaling", "rope_parameters")}
    key = "rope_scaling" if blocks["rope_scaling"] else "rope_parameters"
    block = blocks[key]
    if key == "rope_scaling" and blocks["rope_parameters"]:
        _tell_of_two("rope_parameters", blocks["rope_parameters"], "rope_scaling", block)
    if any(isinstance(value, dict) for value in block.values()):
        raise UnsupportedModel("config.json: rotary positions that differ between layers are not supported")
    for owner in (block, config):
        if _number(owner, "partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModel("config.json: partial_rotary_factor other than 1 is not supported")
    if block.get("rope_theta") is None:
        block["rope_theta"] = config.get("rope_theta")
    elif "rope_theta" in config:
        _tell_of_two("rope_theta", config["rope_theta"], f"{key}.rope_theta", block["rope_theta"])
    kind = scaling_type(block)
    if "rope_type" in block and "type" in block:
        _tell_of_two(f"{key}.type", block["type"], f"{key}.rope_type", kind)
    if kind == "llama3":
        name = "original_max_position_embeddings"
        if name in config:
            _tell_of_two(f"{key}.{name}", block.get(name), name, config[name])
            block[name] = config[name]
        elif name not in block:
            block[name] = config.get("max_position_embeddings")
    known = ROTARY_KEYS.get(kind, frozenset(block)) | {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
    }
    for name in sorted(block.keys() - known):
        _log.warning("config.json: %s.%s is not used: %r scaling has none", key, name, kind)
    return block


def _block(config: Block, key: str) -> dict[str, object]:
    """A copy of the object under a key; empty where there is none."""
    block = config.get(key)
    if block is not None and not isinstance(block, dict):
        raise ModelBroken(f"config.json: {key} must be an object, not {block!r}")
    return dict(block or {})


def _tell_of_two(loser: str, unused: object, winner: str, used: object) -> None:
    """Says in the log which of two places that differ counts; nothing where they agree or one is empty."""
    if unused is not None and unused != used:
        _log.warning("config.json: %s %s is used, not %s %s, as in transformers", winner, used, loser, unused)


def _qwen_window(config: Block) -> int | None:
    """Qwen's window, which its models ship switched off."""
    window = config.get("sliding_window", 4096) if _flag(config, "use_sliding_window", False) else None
    kinds = _layer_types(config)
    if kinds is None and window is not None:
        n_layers = _count(config, "num_hidden_layers")
        n_full_layers = min(n_layers, _count_or_zero(config, "max_window_layers", 28))
        kinds = {"full_attention"} if n_full_layers else set()
        kinds |= {"sliding_attention"} if n_full_layers < n_layers else set()
    return _window(window, kinds)


def _window(window: object, kinds: set[str] | None) -> int | None:
    """The window that all layers share; `layer_types`, where given, has the last word."""
    if kinds is None:
        kinds = {"full_attention" if window is None else "sliding_attention"}
    if len(kinds) > 1:
        raise UnsupportedModel("config.json: a sliding window in some of the layers is not supported")
    if kinds == {"full_attention"}:
        return None
    if window is None:
        raise ModelBroken("config.json: layer_types has sliding_attention, but no sliding_window is in force")
    if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= MAX_COUNT:
        raise ModelBroken(
            f"config.json: sliding_window must be a whole number from 1 to {MAX_COUNT}, not {window!r}"
        )
    return window


def _layer_types(config: Block) -> set[str] | None:
    """The kinds of attention that `layer_types` names; None where there is no such entry."""
    layer_types = config.get("layer_types")
    if layer_types is None:
        return None
    n_layers = _count(config, "num_hidden_layers")
    if not isinstance(layer_types, list) or len(layer_types) != n_layers:
        raise ModelBroken(
            f"config.json: layer_types must list one kind for each of num_hidden_layers {n_layers}"
        )
    kinds = set(map(str, layer_types))
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(f"config.json: layer_types {sorted(kinds)} are not supported")
    return kinds


def _activation(config: Block, key: str, default: str) -> str:
    name = str(config.get(key, default))
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"config.json: {key} {name!r} is not supported; {', '.join(sorted(ACTIVATIONS))} are"
        )
    return ACTIVATIONS[name]


def _count(config: Block, key: str, default: int | None = None) -> int:
    """A whole number above 0; null counts as left out."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelBroken(f"config.json: {key} must be a whole number above 0, not {value!r}")
    if value > MAX_COUNT:
        raise ModelBroken(f"config.json: {key} must be at most {MAX_COUNT}, not {value}")
    return value


def _count_or_zero(config: Block, key: str, default: int) -> int:
    return 0 if config.get(key) == 0 else _count(config, key, default)


def _flag(config: Block, key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ModelBroken(f"config.json: {key} must be true or false, not {value!r}")
    return value


def _number(config: Block, key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_NUMBER:
        raise ModelBroken(f"config.json: {key} must be a number above 0, within float32, not {value!r}")
    return float(value)


def _optional_id(config: Block, key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) else None
