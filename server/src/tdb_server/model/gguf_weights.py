"""The tensors of a GGUF file as a Hugging Face checkpoint keeps them: other names, other orders, float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import weight_names
from tdb_server.model.gguf_config import FACTORS_OF, PAIRED
from tdb_server.model.gguf_file import GgufFile, GgufTensor

Order = Literal["same", "transposed", "pairs", "by_head", "less_one"]


@dataclass(frozen=True)
class Target:
    """One tensor of the checkpoint.

    Attributes:
        name: in the checkpoint.
        source: in the GGUF file.
        shape: in the GGUF file, rows first.
        order: "transposed" where the checkpoint keeps a matrix as [inputs, outputs], which GGUF never does;
            "pairs" where llama.cpp keeps channels that turn together as neighbours; "by_head" where the
            checkpoint keeps each head's query, key and value together, and llama.cpp all of a kind;
            "less_one" where the checkpoint keeps gains less 1, and llama.cpp does not.
        n_heads: whose channels these are.
        is_required: whether the file must have it; else it is zero where it is missing.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    order: Order = "same"
    n_heads: int = 1
    is_required: bool = True

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint."""
        return self.shape[::-1] if self.order == "transposed" else self.shape


def checkpoint_targets(file: GgufFile, config: DecoderConfig) -> list[Target]:
    """What the checkpoint consists of, after a look at whether the file has that and nothing else.

    Raises:
        UnsupportedModel: a tensor that has no place in such a model.
        ModelBroken: one is missing or has another shape than the metadata demand.
    """
    architecture = file.metadata["general.architecture"]
    factors = FACTORS_OF.get(architecture, ())
    targets = [*_outside_layers(config)]
    for layer_index in range(config.n_layers):
        targets += _layer(config, layer_index, "pairs" if architecture in PAIRED else "same")
    by_source = {target.source: target for target in targets}
    for name, tensor in file.tensors.items():
        if name in factors:
            continue  # read with the configuration
        if name not in by_source:
            raise UnsupportedModel(
                f"{file.path}: tensor {name} has no place in a {config.family} model of "
                f"{config.n_layers} layers"
            )
        if tensor.shape != by_source[name].shape:
            raise ModelBroken(
                f"{file.path}: {name} has shape {list(tensor.shape)}; the metadata demand "
                f"{list(by_source[name].shape)}"
            )
    for target in targets:
        if target.is_required and target.source not in file.tensors:
            raise ModelBroken(f"{file.path}: tensor {target.source} is missing")
    return targets


def checkpoint_values(file: GgufFile, target: Target) -> NDArray[np.float32]:
    """One tensor, dequantized, in the checkpoint's order.

    Raises:
        ModelBroken: it holds values that are not finite.
    """
    tensor = file.tensors.get(target.source)
    if tensor is None:
        return np.zeros(target.stored_shape, np.float32)
    values = _dequantized(tensor)
    if not np.isfinite(values).all():
        raise ModelBroken(f"{file.path}: {target.source} holds values that are not finite")
    if target.order == "transposed":
        values = values.T
    elif target.order == "pairs":
        values = _unpaired(values, target.n_heads)
    elif target.order == "by_head":
        by_kind = values.reshape(3, target.n_heads, -1, *values.shape[1:])
        values = by_kind.swapaxes(0, 1).reshape(values.shape)
    elif target.order == "less_one":
        values = values - 1
    return np.ascontiguousarray(values)


def _dequantized(tensor: GgufTensor) -> NDArray[np.float32]:
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # what is not finite is refused by whoever asked
        values: NDArray[np.float32] = dequantize(tensor.data, tensor.kind)
    return values.reshape(tensor.shape)


def _unpaired(values: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Undoes llama.cpp's order of the query's and key's channels, [heads * e, ...].

    It rotates neighbouring channels together, where Hugging Face rotates channel i with channel i + e/2.
    """
    pairs = values.reshape(n_heads, len(values) // n_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _outside_layers(config: DecoderConfig) -> Iterator[Target]:
    names = weight_names(config.family)
    table = (config.vocabulary_size, config.d_model)
    yield Target(f"{names.prefixes[-1]}{names.token_embedding}.weight", "token_embd.weight", table)
    if config.rotary is None:
        name = f"{names.prefixes[-1]}{names.position_embedding}.weight"
        yield Target(name, "position_embd.weight", (config.context_length, config.d_model))
    yield from _norm(config, names.prefixes[-1] + names.final_norm, "output_norm")
    if not config.tied_embeddings:
        yield Target(f"{names.unembedding}.weight", "output.weight", table)


def _layer(config: DecoderConfig, layer_index: int, turning: Order) -> Iterator[Target]:
    """The tensors of one layer; `turning` is the order of queries and keys."""
    names = weight_names(config.family)
    outside, source = f"{names.prefixes[-1]}{names.layers}.{layer_index}.", f"blk.{layer_index}."
    n_queries, n_keys = config.n_heads, config.n_key_value_heads

    def linear(
        part: str,
        name: str,
        shape: tuple[int, int],
        has_bias: bool,
        order: Order = "same",
        n_heads: int = 1,
    ) -> Iterator[Target]:
        weight_order: Order = "transposed" if names.matrices == "transposed" else order
        yield Target(f"{outside}{name}.weight", f"{source}{part}.weight", shape, weight_order, n_heads)
        if has_bias:
            is_required = config.norm == "layer_norm"  # llama.cpp adds those of other families where they are
            bias = f"{source}{part}.bias"
            yield Target(f"{outside}{name}.bias", bias, shape[:1], order, n_heads, is_required)

    if config.pre_norms:
        yield from _norm(config, outside + names.attn_norm, f"{source}attn_norm")
    if config.post_norms:
        yield from _norm(config, outside + names.attn_post_norm, f"{source}post_attention_norm")
        yield from _norm(config, outside + names.mlp_post_norm, f"{source}post_ffw_norm")
    width = config.d_head
    if len(names.qkv) == 1:
        n_rows = (n_queries + 2 * n_keys) * width
        joined: Order = "by_head" if names.matrices == "heads_interleaved" else "same"
        yield from linear(
            "attn_qkv", names.qkv[0], (n_rows, config.d_model), config.qkv_bias, joined, n_queries
        )
    else:
        for part, name, heads in zip(("q", "k", "v"), names.qkv, (n_queries, n_keys, n_keys), strict=True):
            of_part: Order = "same" if part == "v" else turning
            shape = (heads * width, config.d_model)
            yield from linear(f"attn_{part}", name, shape, config.qkv_bias, of_part, heads)
    if config.qk_norm:
        widths = (n_queries * width, n_keys * width) if config.qk_norm == "full" else (width, width)
        for part, name, n in zip(("attn_q_norm", "attn_k_norm"), names.qk_norms, widths, strict=True):
            yield _gain(config, outside + name, source + part, n)
    shape = (config.d_model, n_queries * width)
    yield from linear("attn_output", names.attn_out, shape, config.attn_out_bias)
    if config.pre_norms:
        yield from _norm(config, outside + names.mlp_norm, f"{source}ffn_norm")
    n_rows = config.n_neurons * (1 + config.gated) // len(names.mlp_in)
    for part, name in zip(("ffn_gate", "ffn_up")[-len(names.mlp_in) :], names.mlp_in, strict=True):
        yield from linear(part, name, (n_rows, config.d_model), config.mlp_bias)
    yield from linear("ffn_down", names.mlp_out, (config.d_model, config.n_neurons), config.mlp_bias)


def _norm(config: DecoderConfig, name: str, source: str) -> Iterator[Target]:
    yield _gain(config, name, source, config.d_model)
    if config.norm == "layer_norm":
        yield Target(f"{name}.bias", f"{source}.bias", (config.d_model,))


def _gain(config: DecoderConfig, name: str, source: str, n_channels: int) -> Target:
    order: Order = "less_one" if config.adds_one_to_gains else "same"
    return Target(f"{name}.weight", f"{source}.weight", (n_channels,), order)
