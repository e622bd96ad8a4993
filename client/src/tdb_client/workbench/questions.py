"""The page's question, from JSON to the sub-requests that a server is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from tdb_client.circuit_nodes import WHOLE_NODE_TYPES, CircuitNode
from tdb_client.encoding import ablated_cells
from tdb_client.errors import FieldViolation, NodeError
from tdb_client.inference import (
    BackwardRule,
    InferenceSubRequest,
    Loss,
    LossName,
    ProcessingSpec,
    Token,
)
from tdb_client.interventions import Ablation, Trace, traces_towards_loss
from tdb_client.nodes import NodeType
from tdb_client.requests import (
    AttentionComponent,
    DebugSubRequest,
    MlpComponent,
    ResidualStreamComponent,
)
from tdb_client.workbench.body_reader import BodyReader, QuestionError

QUESTION_FIELDS = (
    "prompt",
    "addBos",
    "target",
    "distractor",
    "targetIds",
    "distractorIds",
    "baseline",
    "changes",
    "onlyThese",
    "nodeTypes",
    "trace",
    "downstream",
    "mlp",
    "attention",
    "residualStream",
    "rule",
    "k",
    "loss",
    "hideEarlyLayers",
)
LOSSES = tuple(one for one in get_args(LossName) if one not in ("zero", "direction"))
"""Losses that a question may name: those that consist of targets."""


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asks.

    Attributes:
        asked: the sub-request with all changes.
    """

    asked: DebugSubRequest

    @property
    def sub_requests(self) -> tuple[DebugSubRequest, ...]:
        """What goes in one call: with changes first the same without any, to compare with."""
        if not self.asked.ablate and self.asked.only_these is None:
            return (self.asked,)
        return replace(self.asked, ablate=(), only_these=None), self.asked

    def inference(self, results: Mapping[str, ProcessingSpec]) -> list[InferenceSubRequest]:
        """The same runs, of which other results are wanted that need no gradient.

        Raises:
            QuestionError: a change is one that a debug request alone can say.
        """
        faults = []
        for place, one in enumerate(self.asked.ablate):
            try:
                ablated_cells(one)
            except NodeError as error:
                faults.append(FieldViolation(f"changes[{place}]", str(error), "NODE_NOT_ABLATABLE"))
        if faults:
            raise QuestionError(faults)
        return [_as_inference(one, results) for one in self.sub_requests]


def read_question(body: object) -> Question:
    """The question that the page has sent as `{"question": {...}}`.

    Raises:
        QuestionError: fields are missing or cannot be read.
    """
    outer = BodyReader(body, ("question",))
    question = question_of(outer)
    outer.check()
    return question


def question_of(outer: BodyReader) -> Question:
    """The question in a larger body; its faults are noted there, by the names of its own fields."""
    body = outer.value("question")
    reader = BodyReader({} if body is None else body, QUESTION_FIELDS, faults=outer.faults)
    prompt = reader.text("prompt")
    if not prompt:
        reader.fault("prompt", "is empty", "EMPTY_PROMPT")
    target: tuple[Token, ...] = (*reader.texts("target"), *reader.wholes("targetIds"))
    distractor: tuple[Token, ...] = (*reader.texts("distractor"), *reader.wholes("distractorIds"))
    loss = _loss(reader, target, distractor)
    only_these = reader.all_spelled("onlyThese", CircuitNode.parse)
    if reader.value("downstream") and not reader.value("trace"):
        reader.fault("downstream", "needs a node to trace", "DOWNSTREAM_WITHOUT_UPSTREAM")
    return Question(
        DebugSubRequest(
            prompt=prompt,
            target=() if loss else target,
            distractor=() if loss else distractor,
            k=reader.whole("k", 10) or 0,
            ablate=reader.all_spelled("changes", Ablation.parse),
            trace=reader.spelled("trace", Trace.parse),
            downstream=reader.spelled("downstream", Trace.parse),
            mlp=reader.choice("mlp", get_args(MlpComponent), "neuron"),
            attention=reader.choice("attention", get_args(AttentionComponent), "attention_head"),
            residual_stream=reader.choices("residualStream", get_args(ResidualStreamComponent)),
            hide_early_layers=reader.flag("hideEarlyLayers") or False,
            add_bos=reader.flag("addBos"),
            backward_rule=reader.choice("rule", get_args(BackwardRule), "gradient"),
            loss=loss,
            baseline=reader.texts("baseline"),
            only_these=None if reader.value("onlyThese") is None else only_these,
            node_types=reader.choices("nodeTypes", get_args(NodeType)) or WHOLE_NODE_TYPES,
            top_k_sums=False,  # the page shows those of neurons and heads
        )
    )


def refuse_changes(reader: BodyReader, asked: DebugSubRequest, why: str) -> None:
    """Notes what a question has that would be passed over, where something else than `debug` is asked."""
    has = {
        "changes": bool(asked.ablate),
        "onlyThese": asked.only_these is not None,
        "trace": asked.trace is not None,
        "rule": asked.backward_rule != "gradient",
    }
    for name in (name for name, is_given in has.items() if is_given):
        reader.fault(name, f"must be left out: {why}", "FIELD_NOT_ALLOWED")


def _as_inference(asked: DebugSubRequest, results: Mapping[str, ProcessingSpec]) -> InferenceSubRequest:
    has_loss = asked.loss is not None or bool(asked.target)
    # As in debug requests: what is traced takes the loss's place, which may only give a value its direction.
    trace = asked.trace
    is_towards_loss = trace is None or traces_towards_loss(trace, asked.downstream)
    return InferenceSubRequest(
        asked.prompt,
        loss=asked.objective if has_loss and is_towards_loss else None,
        trace=trace,
        downstream=asked.downstream,
        ablate=asked.ablate,
        results=results,
        add_bos=asked.add_bos,
        baseline=asked.baseline,
        only_these=asked.only_these,
        node_types=asked.node_types,
    )


def _loss(outer: BodyReader, target: tuple[Token, ...], distractor: tuple[Token, ...]) -> Loss | None:
    """Another loss than the difference of logits at the last token."""
    body = outer.value("loss")
    if body is None:
        return None
    reader = BodyReader(body, ("name", "token"), "loss.", outer.faults)
    name, token = reader.choice("name", LOSSES, "logit_diff"), reader.whole("token")
    return None if name == "logit_diff" and token is None else Loss(name, target, distractor, token)
