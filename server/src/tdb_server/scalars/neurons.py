"""Derived scalars of MLP neurons. Shapes: T tokens, F neurons, n tokens with a direction of interest."""

from __future__ import annotations

from torch import Tensor

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.place import Place
from tdb_server.model.decoder import Decoder
from tdb_server.scalars.row_run import RowRun, mlp_depth
from tdb_server.scalars.scalar_values import DenseScalars

_AXES = DERIVED_SCALAR_SHAPES[DerivedScalar.MLP_POST_ACT].dimensions


def _scalars(run: RowRun, *factors: Tensor, tokens: Tensor | None = None) -> DenseScalars:
    return DenseScalars(factors, _AXES, _AXES, run.n_tokens, tokens)


def write_norm(run: RowRun, layer_index: int) -> DenseScalars:
    """Activation × norm of the neuron's output weights."""
    norms = run.facts.neuron_write_norms[layer_index]
    return _scalars(run, run.value(Place.MLP_POST_ACT, layer_index), norms[None])


def act_times_grad(run: RowRun, layer_index: int) -> DenseScalars:
    """Activation × its gradient."""
    post_act = run.value(Place.MLP_POST_ACT, layer_index)
    return _scalars(run, post_act, run.gradient(Place.MLP_POST_ACT, layer_index))


def direct_effect(run: RowRun, layer_index: int) -> DenseScalars:
    """Activation × the output weights projected onto the direction of interest."""
    weight = run.decoder.weights.layers[layer_index].mlp_out_weight
    tokens, projected = run.project_direction(mlp_depth(layer_index), weight)  # [n], [n, F]
    return _scalars(run, run.value(Place.MLP_POST_ACT, layer_index)[tokens], projected, tokens=tokens)


def unit_writes(decoder: Decoder, layer_index: int, neurons: Tensor) -> Tensor:
    """What neurons [m] write per unit of activation [m, d]."""
    return decoder.weights.layers[layer_index].mlp_out_weight[:, neurons].T


def plain_reads(decoder: Decoder, layer_index: int, neurons: Tensor) -> Tensor:
    """What neurons without gates [m] read along, up to the norm's scale [m, d]."""
    return decoder.centered(read_weights(decoder, layer_index, neurons))


def read_weights(decoder: Decoder, layer_index: int, neurons: Tensor) -> Tensor:
    """The same before the mean over channels is taken away [m, d]."""
    layer = decoder.weights.layers[layer_index]
    return layer.mlp_norm.gain * layer.mlp_in_weight[neurons]
