"""Model families: from a Hugging Face `config.json` to the decoder's own configuration.

What the decoder cannot compute is refused here, before any weight is read: a setting that is silently ignored
would give silently wrong answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.config import DecoderConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names of activation functions, and the decoder's."""

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
    decoder_config = FAMILIES[family](config)
    if decoder_config.n_heads % decoder_config.n_key_value_heads:
        raise ModelBroken(
            f"config.json: {decoder_config.n_heads} heads cannot share "
            f"{decoder_config.n_key_value_heads} key/value heads evenly"
        )
    return decoder_config


def _gpt2(config: Block) -> DecoderConfig:
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
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        qkv_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
        bos_token_id=_optional_id(config, "bos_token_id"),
    )


def _llama(config: Block) -> DecoderConfig:
    biased = bool(config.get("attention_bias", False))
    return _rotary_family(
        config, qkv_bias=biased, attn_out_bias=biased, mlp_bias=bool(config.get("mlp_bias", False))
    )


def _mistral(config: Block) -> DecoderConfig:
    window = config.get("sliding_window", 4096)  # transformers' default, which the first Mistral relies on
    return _rotary_family(config, sliding_window=_window(config, window))


def _qwen2(config: Block) -> DecoderConfig:
    return _rotary_family(config, qkv_bias=True, sliding_window=_qwen_window(config))


def _qwen3(config: Block) -> DecoderConfig:
    biased = bool(config.get("attention_bias", False))
    return _rotary_family(
        config,
        qkv_bias=biased,
        attn_out_bias=biased,
        head_norms=True,
        sliding_window=_qwen_window(config),
        default_d_head=128,
    )


FAMILIES: dict[str, Callable[[Block], DecoderConfig]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
"""Every family the decoder can compute, by its `model_type`."""


def _rotary_family(
    config: Block,
    *,
    qkv_bias: bool = False,
    attn_out_bias: bool = False,
    mlp_bias: bool = False,
    head_norms: bool = False,
    sliding_window: int | None = None,
    default_d_head: int | None = None,
) -> DecoderConfig:
    """What Llama and those after it share."""
    d_model, n_heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    d_head = _count(config, "head_dim", default_d_head or d_model // n_heads)
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
        rotary_theta=_number(rotary, "rope_theta", _number(config, "rope_theta", 10000.0)),
        rotary_scaling={key: value for key, value in rotary.items() if key != "rope_theta"} or None,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        sliding_window=sliding_window,
        qkv_bias=qkv_bias,
        attn_out_bias=attn_out_bias,
        mlp_bias=mlp_bias,
        head_norms=head_norms,
        bos_token_id=_optional_id(config, "bos_token_id"),
    )


def _rotary_block(config: Block) -> Block:
    """`rope_parameters` of transformers 5, or `rope_scaling` of those before."""
    block = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(block, dict):
        raise ModelBroken(f"config.json: rope_parameters must be an object, not {block!r}")
    if any(isinstance(value, dict) for value in block.values()):
        raise UnsupportedModel("config.json: rotary positions that differ between layers are not supported")
    for owner in (block, config):
        if _number(owner, "partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModel("config.json: partial_rotary_factor other than 1 is not supported")
    if block.get("rope_type", block.get("type")) == "llama3":
        # transformers falls back to the context length, too.
        return {"original_max_position_embeddings": config.get("max_position_embeddings"), **block}
    return block


def _qwen_window(config: Block) -> int | None:
    """Qwen's window, which its models ship switched off."""
    if not config.get("use_sliding_window", False):
        return None
    n_full_layers = config.get("max_window_layers", 28)
    if config.get("layer_types") is None and n_full_layers != 0:
        if isinstance(n_full_layers, int) and n_full_layers >= _count(config, "num_hidden_layers"):
            return None
        raise UnsupportedModel("config.json: a sliding window in some of the layers is not supported")
    return _window(config, config.get("sliding_window", 4096))


def _window(config: Block, window: object) -> int | None:
    """The window that all layers share; `layer_types`, where given, has the last word."""
    layer_types = config.get("layer_types")
    kinds = set(map(str, layer_types)) if isinstance(layer_types, list) else {"sliding_attention"}
    if kinds == {"full_attention"} or window is None:
        return None
    if kinds != {"sliding_attention"}:
        raise UnsupportedModel(f"config.json: layer_types {sorted(kinds)} are not supported")
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ModelBroken(f"config.json: sliding_window must be a whole number above 0, not {window!r}")
    return window


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
    return value


def _number(config: Block, key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelBroken(f"config.json: {key} must be a number above 0, not {value!r}")
    return float(value)


def _optional_id(config: Block, key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) else None
