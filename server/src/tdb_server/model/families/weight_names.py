"""What checkpoints call the decoder's weights.

Every name is given without its ending (`.weight`, `.bias`), and without the prefix of the whole model, which
some files carry and others do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class WeightNames:
    """The names of one way to lay out a checkpoint.

    Attributes:
        prefixes: what may stand before every name, or before all but that of the unembedding.
        token_embedding, position_embedding, final_norm: outside the layers.
        layers: layer i's names start with `{layers}.{i}.`; those below are inside a layer.
        attn_norm, attn_post_norm, attn_out, mlp_norm, mlp_post_norm, mlp_out: as in `LayerWeights`.
        qkv: the tensors that the decoder joins into one, in its order: one already joined, or three.
        qk_norms: norms of queries and of keys.
        mlp_in: one tensor, or gate and up.
        matrices: how they are stored: as the decoder has them, transposed, or, of `qkv` alone, each head's
            query, key and value side by side (GPT-NeoX).
        left_alone: endings of tensors that are no weights of the decoder.
        parts_left_alone: beginnings of tensors of other parts of the model, which are not run.
        other_names: what some files call a tensor, and its name here.
    """

    prefixes: tuple[str, ...]
    token_embedding: str
    layers: str
    qkv: tuple[str, ...]
    attn_out: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    final_norm: str
    attn_norm: str = ""
    attn_post_norm: str = ""
    mlp_norm: str = ""
    mlp_post_norm: str = ""
    qk_norms: tuple[str, str] = ("", "")
    position_embedding: str = ""
    unembedding: str = "lm_head"
    matrices: Literal["as_is", "transposed", "heads_interleaved"] = "as_is"
    left_alone: tuple[str, ...] = ("rotary_emb.inv_freq",)
    parts_left_alone: tuple[str, ...] = ()
    other_names: Mapping[str, str] = field(default_factory=dict)
