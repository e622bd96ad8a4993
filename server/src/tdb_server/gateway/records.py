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


def neuron_datasets_metadata(_: Any) -> list[Any]:
    """No data sets."""
    return []


def neuron_record(body: Any) -> dict[str, Any]:
    """A record with no texts."""
    return {"dataset": _dataset(body), "maxActivation": 0.0, "topActivations": [], "randomSample": []}


def attention_head_record(body: Any) -> dict[str, Any]:
    """A record with no texts."""
    return {
        "dataset": _dataset(body),
        "maxAttentionActivation": 0.0,
        "mostPositiveTokenSequences": [],
        "randomTokenSequences": [],
    }


def existing_explanations(body: Any) -> list[Any]:
    """No explanations."""
    read_body(bodies.ExistingExplanationsRequest, body)
    return []


def explain(body: Any) -> dict[str, Any]:
    """Raises `FailedPrecondition`: an empty list would leave the viewer waiting."""
    read_body(bodies.NodeIdAndDatasets, body)
    raise _nothing_to("explain from")


def score(body: Any) -> dict[str, Any]:
    """Raises `FailedPrecondition`."""
    read_body(bodies.ScoreRequest, body)
    raise _nothing_to("score against")


RECORD_ANSWERS: dict[str, Callable[[Any], list[Any] | dict[str, Any]]] = {
    one.__name__: one
    for one in (
        neuron_datasets_metadata,
        neuron_record,
        attention_head_record,
        existing_explanations,
        explain,
        score,
    )
}


def _dataset(body: Any) -> str:
    """The first data set that was asked for; the reference names the one that it found the component in."""
    return next(iter(read_body(bodies.NodeIdAndDatasets, body).datasets or ()), "")


def _nothing_to(what: str) -> FailedPrecondition:
    description = f"this server has no neuron records to {what}"
    return FailedPrecondition([FieldViolation("datasets", description, Reason.FIELD_NOT_ALLOWED)])
