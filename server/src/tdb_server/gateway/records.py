"""What the viewer asks about neuron records: texts of data sets, and what a language model wrote about them.

This service has no records. It says so in the terms of the questions, so that pages show what else they have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tdb_server.domain.reason import Reason
from tdb_server.errors import FailedPrecondition, FieldViolation
from tdb_server.gateway import json_bodies as bodies
from tdb_server.gateway.json_faults import read_body


def _record(**without_texts: Any) -> Callable[[Any], dict[str, Any]]:
    def answer(body: Any) -> dict[str, Any]:
        datasets = read_body(bodies.NodeIdAndDatasets, body).datasets
        # The first that was asked for; the reference names the one that it found the component in.
        return {"dataset": next(iter(datasets or ()), ""), **without_texts}

    return answer


def _no_explanations(body: Any) -> list[Any]:
    read_body(bodies.ExistingExplanationsRequest, body)
    return []


def _nothing_to(what: str, model: type[bodies.Body]) -> Callable[[Any], list[Any]]:
    """Raises `FailedPrecondition`: an empty list would leave the viewer waiting."""

    def refuse(body: Any) -> list[Any]:
        read_body(model, body)
        description = f"this server has no neuron records to {what}"
        raise FailedPrecondition([FieldViolation("datasets", description, Reason.FIELD_NOT_ALLOWED)])

    return refuse


RECORD_ANSWERS: dict[str, Callable[[Any], list[Any] | dict[str, Any]]] = {
    "neuron_datasets_metadata": lambda _: [],
    "neuron_record": _record(maxActivation=0.0, topActivations=[], randomSample=[]),
    "attention_head_record": _record(
        maxAttentionActivation=0.0, mostPositiveTokenSequences=[], randomTokenSequences=[]
    ),
    "existing_explanations": _no_explanations,
    "explain": _nothing_to("explain from", bodies.NodeIdAndDatasets),
    "score": _nothing_to("score against", bodies.ScoreRequest),
}
"""Answers to parsed bodies, by endpoint; they raise `InvalidRequest` for what they cannot read."""
