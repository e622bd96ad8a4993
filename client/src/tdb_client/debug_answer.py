"""The answer to a debug sub-request: the node table, per-token sums, the top logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tdb_client.component_table import ComponentTable, component_table
from tdb_client.inference import AblationSpec, held_norm_scales
from tdb_client.model_info import ModelInfo
from tdb_client.node_table import LogitTable, NodeTable
from tdb_client.number_text import number
from tdb_client.objective_words import distractor_words, objective_words, target_words
from tdb_client.requests import DebugSubRequest
from tdb_client.results import (
    CallInfo,
    CircuitValues,
    FloatArray,
    LossTokens,
    ProcessingResult,
    PromptTokens,
    Timings,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DebugAnswer:
    """What `DebugResult` says; that class also shows it as a page.

    Attributes:
        request: what was asked.
        call: which call, which model.
        prompt: the prompt's tokens.
        loss: the loss, such as the difference of logits; None when a node was explained and no loss computed.
        traced_value: value of the traced objective; None when no node was traced.
        nodes: the node table.
        logits: the top logits after the current token: the last one, or the traced node's.
        sums: by group (`act_times_grad`, ...) and derived scalar, sums over all layers and components:
            per token [T] for embeddings and neurons, per token pair [T, T] for heads.
        results: every named result as it came.
        timings: where the time of the whole call went.
        peak_memory_bytes: the most memory in use on the worker's device; 0 when not known.
        cached: whether the results come from the server's cache.
        loss_tokens: the loss's targets and distractors; None without a loss, or from an older server.
        ablations: what was set in the run: nodes as the cells they stand for, and gradients.
        backward_rule: how gradients went back through what is not linear: `gradient`, `relp`, ...
        attention: by head (`L9 head 6`), what each token pays to each [T, T], attended-from token first.
            Empty unless Client.with_attention has asked for it.
        model: the model, as its server has described it; None where it has not.
        totals: by derived scalar (`unflattened_attn_act_times_grad`, ...), sums over all tokens: of heads
            [layers, heads], of MLPs and of attention's latents [layers], of the embedding []. All nodes
            count, also those too small for the table. Empty from an older server.
        baselines: the tokens of the prompts that it was compared with. With any, act times grad, direct
            effects and their sums are of differences from the mean of these; activation and write norm are
            the prompt's own.
        circuit: how much of the objective the nodes of `only_these` keep; None where that was not asked.
    """

    request: DebugSubRequest
    call: CallInfo
    prompt: PromptTokens
    loss: float | None
    traced_value: float | None
    nodes: NodeTable
    logits: LogitTable
    sums: Mapping[str, Mapping[str, FloatArray]]
    results: Mapping[str, ProcessingResult]
    timings: Timings
    peak_memory_bytes: int
    cached: bool
    loss_tokens: LossTokens | None = None
    ablations: tuple[AblationSpec, ...] = ()
    backward_rule: str = "gradient"
    attention: Mapping[str, FloatArray] = field(default_factory=dict)
    model: ModelInfo | None = None
    totals: Mapping[str, FloatArray] = field(default_factory=dict)
    baselines: tuple[PromptTokens, ...] = ()
    circuit: CircuitValues | None = None

    def __repr__(self) -> str:
        value = "none" if self.objective_value is None else number(self.objective_value)
        return f"<{type(self).__name__}: {self.objective} = {value}, {len(self.nodes)} nodes>"

    @property
    def token_attribution(self) -> FloatArray:
        """What each token of the prompt adds to the objective: act times grad of its embedding [T]."""
        return self.sums["act_times_grad"]["token_attribution"]

    @property
    def objective(self) -> str:
        """What is explained, in words: `logit ' Mary' - ' John'`, or the traced node."""
        trace, downstream = self.request.trace, self.request.downstream
        if trace is None:
            return objective_words(self.request.objective, self.loss_tokens)
        read_by = "" if downstream is None else f", read by {downstream.words(self.prompt.tokens)}"
        return trace.words(self.prompt.tokens) + read_by

    @property
    def target_words(self) -> list[str]:
        """Each target in quotes; those asked for by number with that: `' Mary' (token 5335)`."""
        return target_words(self.request.objective, self.loss_tokens)

    @property
    def distractor_words(self) -> list[str]:
        """The same of the distractors."""
        return distractor_words(self.request.objective, self.loss_tokens)

    def role(self, token_id: int, text: str) -> Literal["target", "distractor"] | None:
        """Whether a token of the vocabulary is a target or a distractor."""
        loss = self.loss_tokens
        if loss is None:  # the texts must do
            targets, distractors = self.request.objective.target, self.request.objective.distractor
        else:
            targets, distractors = loss.target_ids, loss.distractor_ids
        if token_id in targets or text in targets:
            return "target"
        return "distractor" if token_id in distractors or text in distractors else None

    @property
    def objective_value(self) -> float | None:
        """The loss, or the traced objective's value where a node was traced."""
        return self.loss if self.request.trace is None else self.traced_value

    @property
    def held_norm_scales(self) -> tuple[str, ...]:
        """The norms whose scales were held constant on the way back: the final one alone.

        That of the norm through which a traced node reads always is, and is not listed. With another
        backward rule than `gradient` all are.
        """
        return held_norm_scales(self.ablations)

    @property
    def objective_unit(self) -> str:
        """What the objective is measured in, and with it act × grad and direct effects."""
        trace, downstream = self.request.trace, self.request.downstream
        explained = downstream if trace is not None and trace.through == "V" else trace
        if explained is None:
            units = {"probs": "probability", "direction": "projection"}
            units |= dict.fromkeys(("log_prob", "kl_from_baseline"), "nats")
            return units.get(self.request.objective.name, "logits")
        return "attention score" if explained.node.type == "attention_head" else "activation"

    @property
    def components(self) -> ComponentTable:
        """Every head and MLP, and the embedding, with its scalars summed over all tokens."""
        return component_table(self.totals)

    def to_frame(self, by: Literal["node", "component"] = "node") -> pd.DataFrame:
        """The node table as a pandas frame, or every head and MLP, a row each.

        Args:
            by: `node`, see NodeTable.to_frame; or `component`, see ComponentTable.to_frame.
        """
        return self.components.to_frame() if by == "component" else self.nodes.to_frame()
