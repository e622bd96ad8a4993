"""Entries of a Hugging Face `config.json`, read with care.

A setting that is silently ignored would give silently wrong answers. What the decoder cannot compute is
refused before any weight is read. Where a file says one thing in two places, transformers' choice is ours,
and the log says which it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.config import DecoderConfig, Rotary
from tdb_server.model.rotary import scaling_type

_log = logging.getLogger(__name__)

Block = Mapping[str, object]

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

ROTARY_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset(("factor",)),
    "llama3": frozenset(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    ),
}
"""What each kind of rotary scaling reads, besides its type and theta."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers that `layer_types` may name."""


def rotary_decoder(
    config: Block,
    *,
    default_d_head: int | None = None,
    rotary_share: float | None = None,
) -> DecoderConfig:
    """What Llama and those after it share: RMS norms, gated neurons, rotation; no biases, no window.

    Args:
        config: the content of a `config.json`.
        default_d_head: width of heads where the file is silent; None: an even share of the model's.
        rotary_share: how much of each head turns where the file is silent; None where all of it must turn.

    Raises:
        UnsupportedModel: an activation function or a rotation that is not known here.
        ModelBroken: a number is missing or makes no sense.
    """
    d_model, n_heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    d_head = count(config, "head_dim", default_d_head or d_model // n_heads)
    if d_head > MAX_HEAD_CHANNELS:
        raise ModelBroken(f"config.json: heads of {d_head} channels; at most {MAX_HEAD_CHANNELS} are read")
    block = rotary_block(config)
    if rotary_share is None:
        for owner in (block, config):
            if number(owner, "partial_rotary_factor", 1.0) != 1.0:
                raise UnsupportedModel("config.json: partial_rotary_factor other than 1 is not supported")
    share = number(
        block, "partial_rotary_factor", number(config, "partial_rotary_factor", rotary_share or 1.0)
    )
    turn = rotary(block, config, d_head, share)
    return DecoderConfig(
        family=str(config["model_type"]),
        n_layers=count(config, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=count(config, "num_key_value_heads", n_heads),
        d_head=d_head,
        n_neurons=count(config, "intermediate_size"),
        vocabulary_size=count(config, "vocab_size"),
        context_length=context_of(config, turn),
        norm="rms_norm",
        norm_epsilon=number(config, "rms_norm_eps", 1e-6),
        activation=activation(config, "hidden_act", "silu"),
        gated=True,
        rotary=turn,
        tied_embeddings=flag(config, "tie_word_embeddings", False),
        bos_token_id=optional_id(config, "bos_token_id"),
    )


def rotary(block: Block, config: Block, d_head: int, share: float = 1.0) -> Rotary:
    """How queries and keys turn, from one block of rotary parameters.

    Args:
        block: the parameters.
        config: what stands around them, for the length of the context.
        d_head: channels of a head.
        share: how much of it turns.
    """
    n_channels = int(d_head * share)
    if share > 1 or n_channels % 2 or n_channels == 0:
        raise ModelBroken(
            f"config.json: rotary positions need an even head width, got {share} of {d_head} channels"
        )
    scaling = {key: value for key, value in block.items() if key != "rope_theta"}
    if scaling_type(scaling) == "longrope":
        scaling["attention_factor"] = _attention_factor(scaling, config)
    return Rotary(number(block, "rope_theta", 10000.0), n_channels, scaling)


def context_of(config: Block, turn: Rotary) -> int:
    """The longest prompt: the model's context, or what "longrope" does before it turns by other angles."""
    context = count(config, "max_position_embeddings")
    scaling = turn.scaling
    if scaling_type(scaling) != "longrope" or scaling.get("short_factor") == scaling.get("long_factor"):
        return context
    short = count(scaling, "original_max_position_embeddings", context)
    if short < context:
        _log.warning(
            "config.json: prompts may have %d tokens, not %d: longrope is supported at its short length",
            short,
            context,
        )
    return min(short, context)


def _attention_factor(scaling: Block, config: Block) -> float:
    """What longrope multiplies queries and keys with, as transformers works it out."""
    context = count(config, "max_position_embeddings")
    short = count(scaling, "original_max_position_embeddings", context)
    factor = number(scaling, "factor", context / short)
    derived = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(short))
    return number(scaling, "attention_factor", derived)


def rotary_block(config: Block) -> dict[str, object]:
    """Type, theta and scaling of all layers alike: `rope_parameters`, or `rope_scaling` as it was before."""
    blocks = {key: block_of(config, key) for key in ("rope_scaling", "rope_parameters")}
    key = "rope_scaling" if blocks["rope_scaling"] else "rope_parameters"
    block = blocks[key]
    if key == "rope_scaling" and blocks["rope_parameters"]:
        tell_of_two("rope_parameters", blocks["rope_parameters"], "rope_scaling", block)
    if any(isinstance(value, dict) for value in block.values()):
        raise UnsupportedModel("config.json: rotary positions that differ between layers are not supported")
    return _complete(block, key, config)


def rotary_blocks_by_kind(config: Block, default_theta: float, local_theta: float) -> dict[str, Block]:
    """Those of the layers that see everything, and of those that slide.

    As in transformers, a scaling outside `rope_parameters` is that of the layers that see everything.
    """
    parameters = block_of(config, "rope_parameters")
    found: dict[str, Block] = {}
    for kind, theta in ((FULL, default_theta), (SLIDING, local_theta)):
        own = block_of(parameters, kind)
        if kind == FULL:
            own |= block_of(config, "rope_scaling")
        own["rope_theta"] = own.get("rope_theta") or theta
        found[kind] = _complete(own, f"rope_parameters.{kind}", {**config, "rope_theta": None})
    for name in sorted(parameters.keys() - {FULL, SLIDING}):
        in_force = [{"rope_type": scaling_type(block), **block}.get(name) for block in found.values()]
        if in_force != [parameters[name]] * 2:
            raise UnsupportedModel(
                f"config.json: rope_parameters.{name} {parameters[name]!r} is not supported in this model: "
                f"transformers reads what is in rope_parameters.{FULL} and .{SLIDING} alone, "
                f"where it is {in_force[0]!r} and {in_force[1]!r}"
            )
    return found


def _complete(block: dict[str, object], key: str, config: Block) -> dict[str, object]:
    """A block with what stands beside it in the file, as transformers has it.

    A theta inside goes before one outside; `original_max_position_embeddings` outside before one inside.
    """
    if block.get("rope_theta") is None:
        block["rope_theta"] = config.get("rope_theta")
    elif "rope_theta" in config:
        tell_of_two("rope_theta", config["rope_theta"], f"{key}.rope_theta", block["rope_theta"])
    kind = scaling_type(block)
    if "rope_type" in block and "type" in block:
        tell_of_two(f"{key}.type", block["type"], f"{key}.rope_type", kind)
    if kind in ("llama3", "longrope"):
        name = "original_max_position_embeddings"
        if name in config:
            tell_of_two(f"{key}.{name}", block.get(name), name, config[name])
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


def block_of(config: Block, key: str) -> dict[str, object]:
    """A copy of the object under a key; empty where there is none."""
    block = config.get(key)
    if block is not None and not isinstance(block, dict):
        raise ModelBroken(f"config.json: {key} must be an object, not {block!r}")
    return dict(block or {})


def tell_of_two(loser: str, unused: object, winner: str, used: object) -> None:
    """Says in the log which of two places that differ counts; nothing where they agree or one is empty."""
    if unused is not None and unused != used:
        _log.warning("config.json: %s %s is used, not %s %s, as in transformers", winner, used, loser, unused)


def expect(config: Block, **expected: bool) -> None:
    """Refuses switches that ask for what the decoder does not compute; they may be missing.

    Raises:
        UnsupportedModel: a switch is not as expected.
    """
    for key, value in expected.items():
        if bool(config.get(key, value)) is not value:
            raise UnsupportedModel(f"config.json: {key} = {config[key]!r} is not supported")


def expect_even_heads(config: Block) -> None:
    """Refuses a `head_dim` that is no even share of the model's width, in families whose heads have that.

    Raises:
        UnsupportedModel: such a one.
    """
    d_head = count(config, "hidden_size") // count(config, "num_attention_heads")
    if config.get("head_dim") not in (None, d_head):
        raise UnsupportedModel(
            f"config.json: head_dim {config['head_dim']!r} is not supported: heads of this family are "
            f"hidden_size / num_attention_heads = {d_head} wide; transformers goes by head_dim for how many "
            "channels turn, but not for how many there are"
        )


def sliding_layers(config: Block, default: tuple[bool, ...]) -> tuple[bool, ...]:
    """Whether each layer looks no further back than the window; `layer_types`, where given, says it.

    Raises:
        UnsupportedModel: another kind of attention.
        ModelBroken: there is not one kind for each layer.
    """
    layer_types = config.get("layer_types")
    if layer_types is None:
        return default
    if not isinstance(layer_types, list) or len(layer_types) != len(default):
        raise ModelBroken(
            f"config.json: layer_types must list one kind for each of num_hidden_layers {len(default)}"
        )
    kinds = set(map(str, layer_types))
    if not kinds <= {FULL, SLIDING}:
        raise UnsupportedModel(f"config.json: layer_types {sorted(kinds)} are not supported")
    return tuple(kind == SLIDING for kind in layer_types)


def every_nth_sees_all(config: Block, n: int) -> tuple[bool, ...]:
    """Whether each layer slides where every n-th, counted from one, does not."""
    return tuple((layer_index + 1) % n != 0 for layer_index in range(count(config, "num_hidden_layers")))


def window(size: object, slides: tuple[bool, ...]) -> int | None:
    """The window of the layers that slide; None where none does.

    Raises:
        ModelBroken: there is none, or it is no number above 0.
    """
    if not any(slides):
        return None
    if size is None:
        raise ModelBroken("config.json: layer_types has sliding_attention, but no sliding_window is in force")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_COUNT:
        raise ModelBroken(
            f"config.json: sliding_window must be a whole number from 1 to {MAX_COUNT}, not {size!r}"
        )
    return size


def activation(config: Block, key: str, default: str) -> str:
    """The decoder's name of an activation function."""
    name = str(config.get(key, default))
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"config.json: {key} {name!r} is not supported; {', '.join(sorted(ACTIVATIONS))} are"
        )
    return ACTIVATIONS[name]


def count(config: Block, key: str, default: int | None = None) -> int:
    """A whole number above 0; null counts as left out."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelBroken(f"config.json: {key} must be a whole number above 0, not {value!r}")
    if value > MAX_COUNT:
        raise ModelBroken(f"config.json: {key} must be at most {MAX_COUNT}, not {value}")
    return value


def count_or_zero(config: Block, key: str, default: int) -> int:
    """A whole number from 0."""
    return 0 if config.get(key) == 0 else count(config, key, default)


def flag(config: Block, key: str, default: bool) -> bool:
    """True or false."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ModelBroken(f"config.json: {key} must be true or false, not {value!r}")
    return value


def number(config: Block, key: str, default: float) -> float:
    """A number above 0; null counts as left out."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_NUMBER:
        raise ModelBroken(f"config.json: {key} must be a number above 0, within float32, not {value!r}")
    return float(value)


def signed_number(config: Block, key: str, default: float) -> float:
    """A number of either sign, not 0; null counts as left out."""
    value = config.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        return -number({key: -value}, key, default)
    return number(config, key, default)


def cap(config: Block, key: str, default: float | None) -> float | None:
    """The bound of a soft cap; null switches it off."""
    if config.get(key) == 0:
        raise ModelBroken(
            f"config.json: {key} must be a number above 0, or null for none: transformers divides by it, and "
            "with 0 all that is capped would be 0 or no number"
        )
    return None if config.get(key, default) is None else number(config, key, default or 1.0)


def optional_id(config: Block, key: str) -> int | None:
    """A token id, where there is one."""
    value = config.get(key)
    return value if isinstance(value, int) else None
