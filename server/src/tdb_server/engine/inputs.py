"""What a plan brings to the device, in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.requests import Trace
from tdb_server.engine.objectives import LossTerms, loss_terms
from tdb_server.engine.plan import Plan
from tdb_server.engine.plan_rows import Row
from tdb_server.engine.streams import Stream
from tdb_server.engine.transfers import Array, upload
from tdb_server.model.backward_rules import BackwardRules, rows_by_step

ALL_WRITES = 2**31
"""A depth behind all writes."""


@dataclass(frozen=True)
class TracedRows:
    """Rows whose traces are alike but for their nodes' indices.

    Attributes:
        trace: theirs.
        rows: of the batch [m].
        node: the nodes' indices [n_axes, m].
        downstream: those of the downstream nodes.
    """

    trace: Trace
    rows: Tensor
    node: Tensor
    downstream: Tensor


@dataclass(frozen=True)
class RowsAlongDirections:
    """Rows whose loss is a residual stream at one token, dotted with a vector.

    Attributes:
        stream: that of all of them.
        rows: of the batch [m].
        vectors: theirs [m, d].
    """

    stream: Stream
    rows: Tensor
    vectors: Tensor


class Inputs:
    """What a plan brings to the device.

    Attributes:
        token_ids: padded on the right [B, T].
        n_tokens: of each row [B].
        loss_tokens: the token whose logits each row's loss is of [B], mostly the last.
        row_indices: 0 to B - 1.
        direction_tokens: where directions of interest can be other than zero [B, n], padded with the first;
        host_direction_tokens: the same on the host.
        is_direction: which of these are not padding [B, n], 1 or 0.
        is_ragged: whether any of these is padding.
        logit_tokens: the tokens whose logits are wanted [B, m], padded with the last of them;
        host_logit_tokens: the same on the host.
        has_padding: whether any token is padding.
        padded_rows: the row of each token that is padding, and
        padded_tokens: where it is.
        depths: writes to the residual stream at this depth or before are seen by a row's objective [B].
        loss_rows: those whose objective is a loss.
        loss_terms: of the rows' losses;
        host_loss_terms: the same on the host.
        circuit_pairs: rows and references of `Plan.circuit_pairs`.
        divergence_targets: references, and their tokens, whose predictions losses diverge from: those of each
            of `Plan.divergence_targets`, one after another.
        divergences: rows and targets of `Plan.divergences`.
        circuit_divergences: those of `Plan.circuit_divergences`.
        traces: rows whose objective is a trace, by trace.
        rules: how rows go back; None where all do by the derivative.
        directions: losses along directions.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        rows = plan.rows
        n_tokens = np.array([row.n_tokens for row in rows])
        token_ids, is_token = _padded([row.inference.token_ids for row in rows], 0, plan.n_tokens)
        self.host_direction_tokens, is_direction = _padded([row.direction_tokens for row in rows], 0)
        self.host_logit_tokens, _ = _padded([row.logit_tokens for row in rows], -1)
        self.host_loss_terms = loss_terms([row.inference.loss for row in rows])
        depths = [ALL_WRITES if row.stream is None else row.stream.depth for row in rows]
        has_loss = [row.trace is None and row.inference.loss is not None for row in rows]
        by_step = rows_by_step(
            [(row.inference.backward_rule, row.inference.pattern_gradients) for row in rows]
        )
        of_steps = [np.array(step, np.int64) for step in by_step if any(step)]
        traces = [
            [
                np.array(trace_rows),
                _indices([rows[one].trace for one in trace_rows]),
                _indices([rows[one].trace.downstream for one in trace_rows]),  # type: ignore[union-attr]
            ]
            for trace_rows in plan.traces.values()
        ]
        directions = [
            [np.array(loss_rows), np.array([_vector(rows[one]) for one in loss_rows])]
            for loss_rows in plan.losses_along_directions.values()
        ]
        pairs = {
            "circuit_pairs": plan.circuit_pairs,
            "divergence_targets": [
                (one, token) for baselines, token in plan.divergence_targets for one in baselines
            ],
            "divergences": plan.divergences,
            "circuit_divergences": plan.circuit_divergences,
        }
        named = {
            "token_ids": token_ids,
            "n_tokens": n_tokens,
            "loss_tokens": np.array([row.loss_token for row in rows]),
            "row_indices": np.arange(len(rows)),
            "direction_tokens": self.host_direction_tokens,
            "is_direction": is_direction.astype(np.float64),
            "logit_tokens": self.host_logit_tokens,
            "padding": np.array(np.nonzero(~is_token)),
            "depths": np.array(depths),
            "loss_rows": np.flatnonzero(has_loss),
            **{name: np.array(some, np.int64).reshape(-1, 2).T for name, some in pairs.items()},
        }
        lists = [self.host_loss_terms, of_steps, *traces, *directions]
        uploaded = iter(upload([*named.values(), *(array for arrays in lists for array in arrays)], device))
        by_name = {name: next(uploaded) for name in named}
        self.token_ids, self.n_tokens = by_name["token_ids"], by_name["n_tokens"]
        self.loss_tokens, self.row_indices = by_name["loss_tokens"], by_name["row_indices"]
        self.direction_tokens, self.is_direction = by_name["direction_tokens"], by_name["is_direction"]
        self.logit_tokens, self.depths = by_name["logit_tokens"], by_name["depths"]
        self.loss_rows, (self.padded_rows, self.padded_tokens) = by_name["loss_rows"], by_name["padding"]
        self.circuit_pairs, self.divergence_targets = by_name["circuit_pairs"], by_name["divergence_targets"]
        self.divergences, self.circuit_divergences = by_name["divergences"], by_name["circuit_divergences"]
        self.loss_terms = LossTerms(*(next(uploaded) for _ in self.host_loss_terms))
        self.rules = None
        if of_steps:
            self.rules = BackwardRules(*(next(uploaded) != 0 if any(step) else None for step in by_step))
        self.traces = [
            TracedRows(trace, next(uploaded), next(uploaded), next(uploaded)) for trace in plan.traces
        ]
        self.directions = [
            RowsAlongDirections(stream, next(uploaded), next(uploaded))
            for stream in plan.losses_along_directions
        ]
        self.has_padding = not is_token.all()
        self.is_ragged = not is_direction.all()


def _padded(rows: Sequence[Sequence[int]], pad: int, least: int = 0) -> tuple[Array, Array]:
    """Rows of equal length, padded with their first or last entry; and which entries are not padding."""
    width = max(least, *(len(row) for row in rows))
    padded = [[*row, *[row[pad]] * (width - len(row))] for row in rows]
    return np.array(padded, np.int64), np.array([[at < len(row) for at in range(width)] for row in rows])


def _indices(traces: Sequence[Trace | None]) -> Array:
    """Indices of traced nodes, axis by axis; none where there is no trace."""
    return np.array([one.node.tensor_indices if one else () for one in traces], np.int64).T


def _vector(row: Row) -> Sequence[float]:
    """What a row's loss is along."""
    assert row.inference.loss is not None
    assert row.inference.loss.direction is not None
    return row.inference.loss.direction.vector
