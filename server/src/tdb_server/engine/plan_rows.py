"""The rows of a batch as they are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.requests import (
    AttentionTraceType,
    ComponentTotalsSpec,
    InferenceSpec,
    LossName,
    MultipleTopKSpec,
    ProcessingSpec,
    Trace,
)
from tdb_server.engine.streams import Stream


class CircuitReferences(NamedTuple):
    """The references whose losses that of a row with a circuit is compared with, as places among them.

    Attributes:
        prompt: its prompt, run whole.
        baselines: its baselines; without any, the prompt with all nodes of the circuit's types set to 0.
    """

    prompt: int
    baselines: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        call_index: whose it is.
        sub_request_index: of that call.
        inference: how it is run.
        processing: what is wanted of it, by name.
        trace: its trace, with "whichever autoencoder is loaded" spelled out.
        logit_tokens: the tokens whose logits are wanted, in order, the loss's always among them.
        stream: the residual stream that the objective is of; None for a loss of logits.
        baselines: of `Plan.references`, those whose mean it is compared with.
        circuit_references: of a row with a circuit, what its loss is compared with.
        embedding_share: its embedding is so much of the way from that of its baselines to its own. Rows where
            that is not all of it are there for the gradients that another row of the sub-request needs.
    """

    call_index: int
    sub_request_index: int
    inference: InferenceSpec
    processing: dict[str, ProcessingSpec]
    trace: Trace | None
    logit_tokens: tuple[int, ...]
    stream: Stream | None
    baselines: tuple[int, ...] = ()
    circuit_references: CircuitReferences | None = None
    embedding_share: float = 1.0

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.inference.token_ids)

    @property
    def loss_token(self) -> int:
        """The token whose logits a loss is of."""
        return self.inference.loss_token

    @property
    def divergence(self) -> tuple[tuple[int, ...], int] | None:
        """The baselines, and the token, from whose predictions the loss diverges; None for other losses."""
        loss = self.inference.loss
        is_divergence = loss is not None and loss.name is LossName.KL_FROM_BASELINE
        return (self.baselines, self.loss_token) if is_divergence else None

    @property
    def direction_tokens(self) -> Sequence[int]:
        """The tokens at which the direction of interest can be other than zero."""
        everywhere = range(self.n_tokens)
        if any(
            one.index.pass_type is PassType.BACKWARD and one.value != 0 for one in self.inference.ablations
        ):
            return everywhere
        if self.trace is None:
            return (self.loss_token,)
        token, *others = self.trace.node.tensor_indices
        if self.trace.node.node_type is NodeType.ATTENTION_AUTOENCODER_LATENT:
            return everywhere[: token + 1]
        if self.trace.node.node_type is not NodeType.ATTENTION_HEAD:
            return (token,)
        keys = everywhere[: token + 1] if self.trace.post_act else (others[0],)
        match self.trace.attention_trace_type:
            case AttentionTraceType.Q:
                return (token,)
            case AttentionTraceType.K:
                return keys
            case AttentionTraceType.V:
                return (others[0],)
            case _:
                return sorted({token, *keys})

    @property
    def top_k_specs(self) -> dict[str, MultipleTopKSpec]:
        """Its multiple-top-k specs, by name."""
        return {name: spec for name, spec in self.processing.items() if isinstance(spec, MultipleTopKSpec)}

    @property
    def totals(self) -> tuple[tuple[DerivedScalar, bool], ...]:
        """The derived scalars that are wanted by component, and whether also by token."""
        specs = (one for one in self.processing.values() if isinstance(one, ComponentTotalsSpec))
        wanted = ((scalar, one.by_token) for one in specs for scalar in one.derived_scalars)
        return tuple(dict.fromkeys(wanted))
