"""What single heads and MLPs write, and gradients at what each of them reads as if it read a copy of its own.

A reader's input is the residual stream before its norm. Gradients go back through that norm and its scale.

Shapes: T tokens, d model width, H heads, G key/value heads, e head width, S = H + 2G of all their readers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdb_server.model.decoder import Attention, Mlp
from tdb_server.model.node_maps import gradient_of


def head_writes(attention: Attention, v_out: Tensor, scale: Tensor | None) -> Tensor:
    """What each head writes of its weighted sum of values [H, T, e]: [H, T, d].

    Args:
        scale: what is written is divided by this [T, 1]; None where it is not divided.
    """
    written = v_out @ attention.out_weights().transpose(1, 2)
    return written if scale is None else written / scale


def at_products(attention: Attention, x: Tensor, at_q: Tensor, at_k: Tensor, at_v: Tensor) -> Tensor:
    """Gradients at queries, keys and values to those at the products which they are made of [T, S, e].

    All tokens are needed: where they are turned depends on their places. A norm of several heads together
    makes each depend on the products of all.

    Args:
        x: the residual stream before the layer [T, d].
        at_q: at the queries [H, T, e].
        at_k: at the keys [G, T, e].
        at_v: at the values [G, T, e].
    """

    def objectives(products: Tensor) -> Tensor:
        made = attention.split(products[None])
        terms = zip(made, (at_q, at_k, at_v), strict=True)
        return torch.stack([(one[0] * gradient).sum() for one, gradient in terms])

    return gradient_of(objectives, attention.products(x)).view(len(x), -1, attention.config.d_head)


def head_input_gradients(attention: Attention, x: Tensor, gradients: Tensor) -> Tensor:
    """Gradients at the products [T, S, e] to those at the inputs of queries, keys and values [S, T, d].

    Args:
        x: the residual stream before the layer, at these tokens [T, d].
    """
    return attention.norm.gradient_before(x, attention.read_each_transposed(gradients))


def mlp_input_gradients(mlp: Mlp, x: Tensor, at_written: Tensor) -> Tensor:
    """Gradients at what an MLP adds [T, d] to those at its input [T, d].

    Args:
        x: the residual stream that it reads [T, d].
    """
    return gradient_of(lambda residual: mlp(residual[None])[0] * at_written, x)
