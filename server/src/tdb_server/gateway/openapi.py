"""What `/openapi.json` says: the endpoints and their bodies, as far as clients need it to find their way."""

from __future__ import annotations

from typing import Any

_ENDPOINTS = {
    "batched_tdb": ("Explain prompts: a batch of debug requests.", "subRequests"),
    "batched": (
        "Run prompts and process what is found: a batch of general requests.",
        "inferenceSubRequests",
    ),
    "derived_scalars": ("One component at every token.", "derivedScalarsRequestSpec"),
    "derived_attention_scalars": (
        "One attention component for every pair of tokens.",
        "derivedAttentionScalarsRequestSpec",
    ),
    "multiple_top_k_derived_scalars": (
        "The most important nodes.",
        "multipleTopKDerivedScalarsRequestSpec",
    ),
}
_LISTS = ("batched_tdb", "batched")
_OBJECT: dict[str, Any] = {"type": "object"}
_MESSAGE: dict[str, Any] = {"type": "object", "properties": {"message": {"type": "string"}}}
_ANSWERS: dict[str, Any] = {
    "200": {"description": "The answer.", "content": {"application/json": {"schema": _OBJECT}}},
    "default": {"description": "What went wrong.", "content": {"application/json": {"schema": _MESSAGE}}},
}


def openapi_document(server_version: str) -> dict[str, Any]:
    """The document.

    Args:
        server_version: version of this software.
    """
    paths: dict[str, Any] = {
        f"/{endpoint}": {"post": _operation(endpoint, summary, key)}
        for endpoint, (summary, key) in _ENDPOINTS.items()
    }
    paths["/model_info"] = {
        "post": {
            "operationId": "model_info",
            "summary": "The model and its autoencoders.",
            "responses": _ANSWERS,
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Transformer Debugger",
            "version": server_version,
            "description": "The activation server's JSON API, in front of the gRPC service.",
        },
        "paths": paths,
    }


def _operation(endpoint: str, summary: str, key: str) -> dict[str, Any]:
    is_list = endpoint in _LISTS
    properties: dict[str, Any] = {key: {"type": "array", "items": _OBJECT} if is_list else _OBJECT}
    if not is_list:
        properties["inferenceRequestSpec"] = _OBJECT
    schema = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {
        "operationId": endpoint,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _ANSWERS,
    }
