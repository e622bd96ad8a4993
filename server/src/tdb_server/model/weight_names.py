"""What checkpoints call the decoder's weights.

Every name is given without its ending (`.weight`, `.bias`), and without the prefix of the whole model, which
some files carry and others do not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightNames:
    """The names of one way to lay out a checkpoint.

    Attributes:
        prefix: stands before every name but that of the unembedding, or is left out.
        token_embedding, position_embedding, final_norm: outside the layers.
        layers: layer i's names start with `{layers}.{i}.`; those below are inside a layer.
        attn_norm, attn_out, mlp_norm, mlp_out: as in `LayerWeights`.
        qkv: the tensors that the decoder joins into one, in its order: one already joined, or three.
        head_norms: norms of the query and the key heads.
        mlp_in: one tensor, or gate and up.
        transposed: whether matrices are stored as [inputs, outputs].
        buffers: endings of tensors that are no weights and are left alone.
    """

    prefix: str
    token_embedding: str
    position_embedding: str
    final_norm: str
    layers: str
    attn_norm: str
    qkv: tuple[str, ...]
    head_norms: tuple[str, str]
    attn_out: str
    mlp_norm: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    transposed: bool
    buffers: tuple[str, ...]

    unembedding: str = "lm_head"


GPT2_NAMES = WeightNames(
    prefix="transformer.",
    token_embedding="wte",
    position_embedding="wpe",
    final_norm="ln_f",
    layers="h",
    attn_norm="ln_1",
    qkv=("attn.c_attn",),
    head_norms=("attn.q_norm", "attn.k_norm"),
    attn_out="attn.c_proj",
    mlp_norm="ln_2",
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
    transposed=True,
    buffers=(".attn.bias", ".attn.masked_bias"),
)

LLAMA_NAMES = WeightNames(
    prefix="model.",
    token_embedding="embed_tokens",
    position_embedding="embed_positions",
    final_norm="norm",
    layers="layers",
    attn_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    attn_out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
    transposed=False,
    buffers=("rotary_emb.inv_freq",),
)


def weight_names(family: str) -> WeightNames:
    """The layout of a family, by its `model_type`."""
    return GPT2_NAMES if family == "gpt2" else LLAMA_NAMES
