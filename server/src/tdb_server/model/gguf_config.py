"""From a GGUF file's metadata to the `config.json` that says the same.

Every key of the architecture is read, or known to change nothing, or the file is refused with its name: a key
that is silently ignored would give silently wrong answers. What a key means is what llama.cpp makes of it
(github.com/ggml-org/llama.cpp, src/llama-model.cpp and src/models).
"""

from __future__ import annotations

import math

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.gguf_file import GgufFile
from tdb_server.model.gguf_keys import ArchitectureKeys

ARCHITECTURES = (
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
    "granite",
    "llama",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "stablelm",
)
"""Those read here, by `general.architecture`; Mistral's files call themselves llama, and OLMo 3's olmo2."""

PAIRED = ("granite", "llama")
"""Those of which llama.cpp keeps channels that turn together as neighbours."""

ROTARY_FACTORS = "rope_freqs.weight"
"""The tensor by which llama.cpp divides each pair's frequency: how Llama 3.1 and later are scaled."""

SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
"""The same for Phi-3, up to the length it was first trained at, and beyond."""

FACTORS_OF = {"phi3": (SHORT_FACTORS, LONG_FACTORS)} | dict.fromkeys(PAIRED, (ROTARY_FACTORS,))
"""Which of these tensors are read, with the configuration; elsewhere they have no place."""


def config_from_gguf(file: GgufFile) -> dict[str, object]:
    """The `config.json` that says the same as the metadata.

    Raises:
        ModelBroken: something is missing, makes no sense, or contradicts the tensors.
        UnsupportedModel: an architecture, key or value that asks for what the decoder does not compute.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path}: architecture {architecture!r} is not supported; {', '.join(ARCHITECTURES)} are"
        )
    _refuse_other_architectures(file, architecture)
    keys = ArchitectureKeys(file, architecture)
    match architecture:
        case "gpt2":
            own = _gpt2(keys)
        case "gemma2" | "gemma3":
            own = _gemma(file, keys)
        case "gptneox":
            own = _gpt_neox(file, keys)
        case "granite":
            own = _granite(file, keys)
        case "olmo2":
            own = _olmo(file, keys)
        case "phi3":
            own = _phi3(file, keys)
        case "stablelm":
            own = _stablelm(file, keys)
        case _:
            own = _rotary_family(file, keys)
    config = _common(file, keys) | own
    keys.refuse_unread()
    return config


def _refuse_other_architectures(file: GgufFile, architecture: str) -> None:
    """Two architectures in one file contradict each other. Other words before a dot are people's notes."""
    import gguf

    for key in sorted(file.metadata):
        other = key.split(".", 1)[0]
        if other != architecture and other in gguf.MODEL_ARCH_NAMES.values():
            raise ModelBroken(f"{file.path}: {key} belongs to another architecture than {architecture!r}")


def _common(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelBroken(f"{file.path}: tensor token_embd.weight is missing")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise ModelBroken(f"{file.path}: tokenizer.ggml.tokens is missing")
    n_rows = embedding.shape[0]
    n_said = keys.count("vocab_size", n_rows)
    if len(tokens) != n_rows or n_said != n_rows:
        raise ModelBroken(
            f"{file.path}: token_embd.weight has {n_rows} rows for {len(tokens)} tokens in "
            f"tokenizer.ggml.tokens and a {keys.architecture}.vocab_size of {n_said}"
        )
    for key in ("embedding_length_out", "features_length"):
        keys.expect(key, keys.count("embedding_length"))
    return {
        "vocab_size": n_rows,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
    }


def _gpt2(keys: ArchitectureKeys) -> dict[str, object]:
    d_model, n_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    keys.expect("attention.head_count_kv", n_heads)
    _expect_head_width(keys, d_model // n_heads)
    return {
        "model_type": "gpt2",
        "n_layer": keys.n_layers,
        "n_embd": d_model,
        "n_head": n_heads,
        "n_inner": keys.count("feed_forward_length"),
        "n_positions": keys.count("context_length"),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
    }


def _gemma(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    """Gemma 2 and 3. What llama.cpp knows of them and files do not say stands here.

    That is which layers slide, and the scale of attention, which the largest models (told by their number of
    layers) take from other widths.
    """
    is_gemma2 = keys.architecture == "gemma2"
    keys.expect("attention.sliding_window_pattern", 2 if is_gemma2 else 6)
    config = _sizes(file, keys)
    d_model, n_heads, d_head = (keys.count(key) for key in _GEMMA_WIDTHS)
    is_27b = keys.n_layers == (46 if is_gemma2 else 62)
    config |= {
        "model_type": "gemma2" if is_gemma2 else "gemma3_text",
        "sliding_window": keys.count("attention.sliding_window", 4096 if is_gemma2 else None),
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": d_model // n_heads if is_27b else d_head,
    }
    theta, factor = keys.number("rope.freq_base", 10000.0), _linear_factor(keys)
    if is_gemma2:
        keys.expect("rope.freq_base_swa", theta)
        if factor != 1.0:
            raise keys.unsupported("rope.scaling.factor", f"is {factor}; gemma2 has none")
        caps = {key: keys.number(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
        return config | caps | {"rope_parameters": {"rope_theta": theta}}
    scaled = {} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    local = {"rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
    parameters = {"full_attention": {"rope_theta": theta, **scaled}, "sliding_attention": local}
    return config | {"rope_parameters": parameters}


_HEADS = "attention.head_count"
_GEMMA_WIDTHS = ("embedding_length", _HEADS, "attention.key_length")


def _gpt_neox(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    d_model, n_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    d_head = d_model // n_heads
    keys.expect("attention.head_count_kv", n_heads)
    _expect_head_width(keys, d_head)
    if _linear_factor(keys) != 1.0:
        raise keys.unsupported("rope.scaling.factor", "scales the rotation, which gptneox does not")
    is_parallel = keys.take("use_parallel_residual")
    if not isinstance(is_parallel, bool):
        raise keys.broken("use_parallel_residual", f"must be true or false, not {is_parallel!r}")
    return {
        "model_type": "gpt_neox",
        "num_hidden_layers": keys.n_layers,
        "hidden_size": d_model,
        "num_attention_heads": n_heads,
        "intermediate_size": keys.count("feed_forward_length"),
        "max_position_embeddings": keys.count("context_length"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "rotary_pct": _turning_share(keys, d_head),
        "rotary_emb_base": keys.number("rope.freq_base", 10000.0),
        "use_parallel_residual": is_parallel,
        "hidden_act": "gelu",
        "attention_bias": _has_bias(file, "attn_qkv", "attn_output"),
    }


def _phi3(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    """Phi-3 and Phi-4. Their window is the file's, though llama.cpp leaves it out, and warns of that."""
    d_head = _even_share(keys)
    share = _turning_share(keys, d_head)
    if keys.take("attention.sliding_window") is None:
        raise keys.broken("attention.sliding_window", "is missing; 0 would say that there is none")
    keys.expect("rope.scaling.factor", 1.0, 0.0)
    parameters: dict[str, object] = {
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "partial_rotary_factor": share,
    }
    long_rope: dict[str, object] = {}
    if SHORT_FACTORS in file.tensors or LONG_FACTORS in file.tensors:
        length = keys.count("rope.scaling.original_context_length")
        long_rope["original_max_position_embeddings"] = length
        parameters |= {
            "rope_type": "longrope",
            "short_factor": _rotary_factors(file, SHORT_FACTORS, int(share * d_head)),
            "long_factor": _rotary_factors(file, LONG_FACTORS, int(share * d_head)),
            "attention_factor": keys.number("rope.scaling.attn_factor"),
            "original_max_position_embeddings": length,
        }
    if keys.take("rope.scaling.type") not in (None, "longrope" if long_rope else "none"):
        raise keys.unsupported("rope.scaling.type", f"is {keys.take('rope.scaling.type')!r}")
    return (
        _shared_sizes(keys)
        | long_rope
        | {
            "model_type": "phi3",
            "pad_token_id": None,  # transformers' own is beyond a small vocabulary
            "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
            "rope_parameters": parameters,
            "sliding_window": _sliding_window(keys),
        }
    )


def _granite(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    """Granite: a Llama with four constants.

    Without a scale of attention llama.cpp and a folder would take different ones, so it must be there.
    """
    if keys.take("rope.scaling.finetuned") is False:
        raise keys.unsupported("rope.scaling.finetuned", "is False, by which granite does not turn at all")
    config = _sizes(file, keys)
    return config | {
        "model_type": "granite",
        "rope_parameters": _rotary_parameters(
            file, keys, keys.count("attention.key_length", _even_share(keys))
        ),
        "attention_multiplier": keys.number("attention.scale"),
        "embedding_multiplier": keys.number("embedding_scale", 0, may_be_zero=True) or 1.0,
        "residual_multiplier": keys.number("residual_scale", 0, may_be_zero=True) or 1.0,
        "logits_scaling": keys.number("logit_scale"),
    }


def _stablelm(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    """StableLM without norms of heads, block behind block.

    `use_parallel_residual` is not believed: the converter writes true where a folder does not say it, and
    llama.cpp goes by whether the MLP has a norm.
    """
    keys.take("use_parallel_residual")
    if "blk.0.ffn_norm.weight" not in file.tensors:
        raise keys.unsupported(
            "use_parallel_residual", "is meant, as there is no blk.0.ffn_norm.weight; it is not supported"
        )
    d_head = _even_share(keys)
    share = _turning_share(keys, d_head)
    return _shared_sizes(keys) | {
        "model_type": "stablelm",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "rope_parameters": _rotary_parameters(file, keys, d_head) | {"partial_rotary_factor": share},
        "use_qkv_bias": _has_bias(file, "attn_q", "attn_k", "attn_v"),
    }


def _olmo(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    """OLMo 2; with a window, in three of four layers where nothing else is said, OLMo 3.

    A scaling is that of the layers that see everything.
    """
    config = _sizes(file, keys)
    parameters = _rotary_parameters(file, keys, keys.count("attention.key_length", _even_share(keys)))
    theta = keys.number("rope.freq_base", 10000.0)
    keys.expect("rope.freq_base_swa", theta)
    window, slides = _windows(keys, every=4)
    if not window or not any(slides):
        return config | {"model_type": "olmo2", "rope_parameters": parameters}
    return config | {
        "model_type": "olmo3",
        "rope_parameters": {"full_attention": parameters, "sliding_attention": {"rope_theta": theta}},
        "sliding_window": window,
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
    }


def _even_share(keys: ArchitectureKeys) -> int:
    """The width of a head where no key says it."""
    return keys.count("embedding_length") // keys.count("attention.head_count")


def _turning_share(keys: ArchitectureKeys, d_head: int) -> float:
    """Of how much of each head the file says that it turns. Also refuses heads of another width."""
    _expect_head_width(keys, d_head)
    n_turning = keys.count("rope.dimension_count")
    share = n_turning / d_head
    if share > 1 or int(share * d_head) != n_turning:
        raise keys.unsupported("rope.dimension_count", f"is {n_turning} of {d_head} channels")
    return share


def _shared_sizes(keys: ArchitectureKeys) -> dict[str, object]:
    """What Llama and those after it call alike."""
    n_heads = keys.count("attention.head_count")
    return {
        "num_hidden_layers": keys.n_layers,
        "hidden_size": keys.count("embedding_length"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", n_heads),
        "intermediate_size": keys.count("feed_forward_length"),
        "max_position_embeddings": keys.count("context_length"),
    }


def _sizes(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    """What those whose heads turn as a whole share."""
    d_head = keys.count("attention.key_length", _even_share(keys))
    _expect_head_width(keys, d_head)
    keys.expect("rope.dimension_count", d_head)  # fewer: a part of each head turns
    return _shared_sizes(keys) | {
        "head_dim": d_head,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "attention_bias": _has_bias(file, "attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": _has_bias(file, "ffn_gate", "ffn_up", "ffn_down"),
    }


def _rotary_family(file: GgufFile, keys: ArchitectureKeys) -> dict[str, object]:
    """Llama and those after it, whose layers are alike."""
    config, d_head = _sizes(file, keys), keys.count("attention.key_length", _even_share(keys))
    window = _sliding_window(keys)
    return config | {
        "model_type": "mistral" if keys.architecture == "llama" and window else keys.architecture,
        "rope_parameters": _rotary_parameters(file, keys, d_head),
        "sliding_window": window,
        "use_sliding_window": bool(window),
        "max_window_layers": 0,
    }


def _expect_head_width(keys: ArchitectureKeys, d_head: int) -> None:
    keys.expect("attention.key_length", d_head)
    keys.expect("attention.value_length", d_head)
    if keys.architecture != "granite":  # whose scale is a constant of its own
        keys.expect("attention.scale", d_head**-0.5, 0.0)


def _sliding_window(keys: ArchitectureKeys) -> int | None:
    """The window that all layers share; None where no layer has one or it is never left."""
    window, slides = _windows(keys)
    if not window or window >= keys.count("context_length") or not any(slides):
        return None
    if not all(slides):
        raise keys.unsupported(
            "attention.sliding_window_pattern", "gives a window to some of the layers only"
        )
    return window


def _windows(keys: ArchitectureKeys, every: int = 0) -> tuple[int, list[bool]]:
    """The window, 0 where there is none, and whether each layer slides.

    Args:
        keys: of the file.
        every: of how many layers one sees everything where the file does not say it; 0: none does.
    """
    window = keys.number("attention.sliding_window", 0, may_be_zero=True)
    if window != int(window):
        raise keys.broken("attention.sliding_window", f"must be a whole number, not {window!r}")
    key = "attention.sliding_window_pattern"
    pattern = keys.take(key)
    pattern = every if pattern is None else pattern
    if isinstance(pattern, list):
        if len(pattern) != keys.n_layers:
            raise keys.broken(key, f"has {len(pattern)} entries for {keys.n_layers} layers")
        return int(window), [bool(one) for one in pattern]
    if not isinstance(pattern, int):
        raise keys.broken(key, f"must be a list or a number, not {pattern!r}")
    return int(window), [pattern == 0 or i % pattern < pattern - 1 for i in range(keys.n_layers)]


def _rotary_parameters(file: GgufFile, keys: ArchitectureKeys, d_head: int) -> dict[str, object]:
    """The block that has the same frequencies in Hugging Face's terms."""
    base: dict[str, object] = {"rope_theta": keys.number("rope.freq_base", 10000.0)}
    factor = _linear_factor(keys)
    if ROTARY_FACTORS not in file.tensors or keys.architecture not in PAIRED:  # elsewhere it is refused
        return base if factor == 1.0 else base | {"rope_type": "linear", "factor": factor}
    divisors = [factor * one for one in _rotary_factors(file, ROTARY_FACTORS, d_head)]
    return base | {
        "rope_type": "longrope",  # which divides each frequency by a number of its own, at all lengths alike
        "short_factor": divisors,
        "long_factor": divisors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": keys.count("context_length"),
    }


def _linear_factor(keys: ArchitectureKeys) -> float:
    """By how much all frequencies are divided. A factor without a type is linear."""
    kind = keys.take("rope.scaling.type")
    new = keys.number("rope.scaling.factor", 0, may_be_zero=True)  # 0 says that nothing is scaled
    old = keys.number("rope.scale_linear", new, may_be_zero=True)
    if kind not in (None, "none", "linear"):
        raise keys.unsupported("rope.scaling.type", f"is {kind!r}; none and linear are supported")
    if keys.take("rope.scaling.factor") is not None and old != new:
        raise keys.broken("rope.scale_linear", f"is {old}, but rope.scaling.factor is {new}")
    return 1.0 if kind == "none" else old or 1.0


def _rotary_factors(file: GgufFile, name: str, n_turning: int) -> list[float]:
    from gguf.quants import dequantize

    tensor = file.tensors.get(name)
    if tensor is None:
        raise ModelBroken(f"{file.path}: tensor {name} is missing")
    if tensor.shape != (n_turning // 2,):
        raise ModelBroken(
            f"{file.path}: {name} has shape {list(tensor.shape)}; half a head is {n_turning // 2}"
        )
    values: list[float] = dequantize(tensor.data, tensor.kind).ravel().tolist()
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ModelBroken(f"{file.path}: {name} holds values that are not finite or not above 0")
    return values


def _has_bias(file: GgufFile, *parts: str) -> bool:
    return any(
        name.startswith("blk.") and name.endswith(tuple(f".{part}.bias" for part in parts))
        for name in file.tensors
    )
