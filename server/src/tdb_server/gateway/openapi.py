"""What `/openapi.json` says: every endpoint with the models of its body and its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from tdb_server.domain.priority import Priority
from tdb_server.gateway import json_answers as answers
from tdb_server.gateway import json_bodies as bodies
from tdb_server.gateway.http_calls import JSON, LINES
from tdb_server.gateway.priority_header import PRIORITY_HEADER, PRIORITY_NAMES
from tdb_server.gateway.workbench import bodies as workbench

_SCHEMAS = "#/components/schemas/"
_REFERENCE_NAMES = {
    "AttentionComponent": "ComponentTypeForAttention",
    "DerivedScalar": "DerivedScalarType",
    "LossName": "LossFnName",
    "MlpComponent": "ComponentTypeForMlp",
    "HookPoint": "ActivationLocationType",
    "ResidualStreamComponent": "ComponentTypeForResidualStream",
    "ValueType": "AblationValueType",
}
"""Enums that are called otherwise in this program; two are ours alone, and named like their neighbours."""

_PRIORITY = {
    "name": PRIORITY_HEADER,
    "in": "header",
    "description": "How urgent the request is, as far as the token allows.",
    "schema": {"type": "string", "enum": PRIORITY_NAMES, "default": Priority.INTERACTIVE.value},
}


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """What an endpoint is for, its body where it has one, and its answer or a list of such."""

    summary: str
    body: type[bodies.Body] | None
    answer: type[bodies.Body]
    answers_list: bool = False


_WORKBENCH = "workbench"
_ENDPOINTS = {
    "inference": {
        "batched_tdb": _Endpoint(
            "Explain prompts: a batch of debug requests.", bodies.BatchedTdbRequest, answers.BatchedResponse
        ),
        "batched": _Endpoint(
            "Run prompts and process what is found: a batch of general requests.",
            bodies.BatchedRequest,
            answers.BatchedResponse,
        ),
        "derived_scalars": _Endpoint(
            "One component at every token.", bodies.DerivedScalarsRequest, answers.DerivedScalarsResponse
        ),
        "derived_attention_scalars": _Endpoint(
            "One attention component for every pair of tokens.",
            bodies.DerivedAttentionScalarsRequest,
            answers.DerivedAttentionScalarsResponse,
        ),
        "multiple_top_k_derived_scalars": _Endpoint(
            "The most important nodes.",
            bodies.MultipleTopKDerivedScalarsRequest,
            answers.MultipleTopKDerivedScalarsResponse,
        ),
        "v1/edges": _Endpoint(
            "Score the edges between components: a batch of prompts, each with the result edges.",
            bodies.EdgesRequest,
            answers.BatchedResponse,
        ),
        "model_info": _Endpoint("The model and its autoencoders.", None, answers.ModelInfoResponse),
    },
    "read": {
        "neuron_datasets_metadata": _Endpoint(
            "Data sets of records, where examples were made.",
            None,
            answers.NeuronDatasetMetadata,
            answers_list=True,
        ),
        "neuron_record": _Endpoint(
            "Texts that activate a neuron or a latent, where examples were made.",
            bodies.NodeIdAndDatasets,
            answers.NeuronRecordResponse,
        ),
        "attention_head_record": _Endpoint(
            "Texts that activate a head, where examples were made.",
            bodies.NodeIdAndDatasets,
            answers.AttentionHeadRecordResponse,
        ),
        "existing_explanations": _Endpoint(
            "Explanations that were made before: none.",
            bodies.ExistingExplanationsRequest,
            answers.AttributedScoredExplanation,
            answers_list=True,
        ),
    },
    "explainer": {
        "explain": _Endpoint(
            "Explain a component from its records: refused, as there are none.",
            bodies.NodeIdAndDatasets,
            answers.ExplanationResult,
        ),
        "score": _Endpoint(
            "Score an explanation against records: refused, as there are none.",
            bodies.ScoreRequest,
            answers.ScoreResult,
        ),
    },
    _WORKBENCH: {
        f"v1/workbench/{name}": _Endpoint(summary, body, workbench.Line)
        for name, summary, body in (
            ("model", "The model, what can be asked of it, and examples.", workbench.NoFields),
            ("tokens", "The tokens of a text.", workbench.TextToCut),
            ("debug", "Explain a prompt, with changes beside the same without.", workbench.Asked),
            ("attention", "What a head attends to at every pair of tokens.", workbench.HeadAsked),
            ("layers", "What is written at each token in each layer.", workbench.Asked),
            ("lens", "What each layer would predict.", workbench.LensAsked),
            ("edges", "The edges between components with the largest scores.", workbench.EdgesAsked),
            ("circuit", "The few heads and MLPs that do most of it.", workbench.CircuitAsked),
            ("node", "What a node writes and reads, and where it is active.", workbench.NodeAsked),
        )
    },
}
"""Endpoints by tag and name."""
_ALL = [(tag, name, one) for tag, group in _ENDPOINTS.items() for name, one in group.items()]
WITHOUT_BODY = frozenset(name for _, name, one in _ALL if one.body is None)
"""Endpoints that read no body."""


def openapi_document(server_version: str) -> dict[str, Any]:
    """The document.

    Args:
        server_version: version of this software.
    """
    models = [model for *_, one in _ALL for model in (one.body, one.answer) if model]
    models += [answers.ErrorMessage, workbench.FaultMessage]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template=_SCHEMAS + "{model}"
    )
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Transformer Debugger",
            "version": server_version,
            "description": "The activation server's JSON API, in front of the gRPC service.",
        },
        "paths": {f"/{name}": {"post": _operation(tag, name, one)} for tag, name, one in _ALL},
        "components": {"schemas": schemas["$defs"]},
    }
    return _with_reference_names(document)


def _operation(tag: str, name: str, endpoint: _Endpoint) -> dict[str, Any]:
    answer = _reference(endpoint.answer)
    if endpoint.answers_list:
        answer = {"type": "array", "items": answer}
    is_ours = tag == _WORKBENCH
    fault = workbench.FaultMessage if is_ours else answers.ErrorMessage
    operation: dict[str, Any] = {
        "operationId": f"{tag}-{name.rpartition('/')[2]}",
        "tags": [tag],
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "The answer.", "content": _content(answer, LINES if is_ours else JSON)},
            "default": {
                "description": "What went wrong.",
                "content": _content(_reference(fault)),
            },
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(_reference(endpoint.body))}
    if endpoint.body is not None and tag in ("inference", _WORKBENCH):
        operation["parameters"] = [_PRIORITY]
    return operation


def _content(schema: dict[str, Any], media_type: str = JSON) -> dict[str, Any]:
    return {media_type: {"schema": schema}}


def _reference(model: type[bodies.Body]) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + model.__name__}


def _with_reference_names(document: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(document)
    for own, theirs in _REFERENCE_NAMES.items():
        text = text.replace(f'"{_SCHEMAS}{own}"', f'"{_SCHEMAS}{theirs}"')
    renamed: dict[str, Any] = json.loads(text)
    described = renamed["components"]["schemas"]
    for own, theirs in _REFERENCE_NAMES.items():
        described[theirs] = {**described.pop(own), "title": theirs}
    return renamed
