"""One component over all tokens, or over all token pairs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import NodeIndex, Nodes, NodeType
from tdb_server.domain.requests import DerivedAttentionScalarsSpec, DerivedScalarsSpec
from tdb_server.domain.results import (
    AttentionTotals,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    TopTokens,
)
from tdb_server.scalars.derived import scalar_values
from tdb_server.scalars.host_arrays import as_array
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.token_pairs import writes_to_latent
from tdb_server.scalars.token_scores import Scoring, TokenScorer, scaled
from tdb_server.scalars.top_k import shown_pass


def derived_scalars(run: RowRun, spec: DerivedScalarsSpec, scorer: TokenScorer) -> DerivedScalarsResult:
    """One component's derived scalar at every token, and the tokens of its direction."""
    scalar, shape = spec.derived_scalar, DERIVED_SCALAR_SHAPES[spec.derived_scalar]
    values = scalar_values(run, scalar, spec.layer_index, spec.pass_type)
    tokens = torch.arange(run.n_tokens, device=run.decoder.device)
    indices = torch.stack((tokens, torch.full_like(tokens, spec.activation_index)), dim=1)
    activations = values.at(indices)
    make_node = partial(
        NodeIndex, shape.node_type, spec.layer_index, pass_type=shown_pass(scalar, spec.pass_type)
    )
    maximum = activations.max() if spec.normalizes_by_prompt_maximum else spec.normalizing_value
    normalized = None if maximum is None else normalized_by(activations, maximum)
    return DerivedScalarsResult(
        nodes=Nodes(make_node((token, spec.activation_index)) for token in range(run.n_tokens)),
        activations=as_array(activations),
        normalized_activations=None if normalized is None else as_array(normalized),
        top_tokens=None
        if spec.n_top_tokens is None
        else _top_tokens(run, spec, spec.n_top_tokens, scorer, activations[:1]),
    )


def _top_tokens(
    run: RowRun, spec: DerivedScalarsSpec, n_tokens: int, scorer: TokenScorer, first: Tensor
) -> TopTokens | None:
    """Output tokens that the component's write at the first token upvotes.

    `first` [1] is its activation there. For a read direction, the input tokens that feed it.
    """
    if spec.derived_scalar is DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION:
        tokens = torch.arange(len(run.decoder.weights.token_embedding), device=first.device)
        scores = scalar_values(run, spec.derived_scalar, None).at(torch.stack((tokens * 0, tokens), dim=1))
        return scaled(scorer.ranked(scores[None], n_tokens), torch.ones_like(first))
    write = _unit_write(run, spec)
    if write is None:
        return None
    return next(scorer.score([Scoring(write[None], first, n_tokens, is_output=True)]))


def _unit_write(run: RowRun, spec: DerivedScalarsSpec) -> Tensor | None:
    """What the component writes per unit of activation [d]; None where that depends on the prompt."""
    node_type = DERIVED_SCALAR_SHAPES[spec.derived_scalar].node_type
    if spec.layer_index is None:
        return None
    if node_type is NodeType.MLP_NEURON:
        return run.decoder.weights.layers[spec.layer_index].mlp_out_weight[:, spec.activation_index]
    if node_type.is_latent:
        latent = torch.tensor([spec.activation_index], device=run.decoder.device)
        autoencoder = run.autoencoder_of_node(node_type)
        return autoencoder.write_directions(run.decoder, spec.layer_index, latent)[0]
    return None


def derived_attention_scalars(
    run: RowRun, spec: DerivedAttentionScalarsSpec
) -> DerivedAttentionScalarsResult:
    """One head (or all heads' writes to one latent) at every token pair, with totals and maxima per token."""
    if spec.derived_scalar is DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS:
        wanted = run.row.inference.within_layer_gradient
        assert wanted is not None
        pairs = writes_to_latent(run, spec.layer_index, wanted)
    else:
        tokens = torch.arange(run.n_tokens, device=run.decoder.device)
        cells = torch.cartesian_prod(
            tokens, tokens, torch.tensor([spec.activation_index], device=tokens.device)
        )
        pairs = scalar_values(run, spec.derived_scalar, spec.layer_index).at(cells)
        pairs = pairs.view(run.n_tokens, -1)
    visible = pairs.tril()
    unseen = torch.ones_like(pairs, dtype=torch.bool).triu(1)
    best = pairs.masked_fill(unseen, -torch.inf)
    total_in, total_out = visible.sum(dim=1), visible.sum(dim=0)
    scalar_max = best.max() if spec.max_scalar is None else _scalar(spec.max_scalar, pairs)
    in_max = total_in.max() if spec.max_total_in is None else _scalar(spec.max_total_in, pairs)
    out_max = total_out.max() if spec.max_total_out is None else _scalar(spec.max_total_out, pairs)
    return DerivedAttentionScalarsResult(
        as_array(visible),
        as_array(normalized_by(visible, scalar_max)),
        _totals(total_in, in_max, best.amax(dim=1), scalar_max),
        _totals(total_out, out_max, best.amax(dim=0), scalar_max),
    )


def _totals(total: Tensor, total_max: Tensor, maximum: Tensor, scalar_max: Tensor) -> AttentionTotals:
    return AttentionTotals(
        as_array(total),
        as_array(normalized_by(total, total_max)),
        as_array(maximum),
        as_array(normalized_by(maximum, scalar_max)),
    )


def _scalar(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def normalized_by(x: Tensor, maximum: Tensor | float) -> Tensor:
    """`x` over its maximum, negative numbers as zero, as for a colour scale; zeros where none is positive."""
    return x.clamp(min=0) / (maximum if maximum > 0 else 1.0)
