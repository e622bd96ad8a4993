"""Bodies of the reference's HTTP API as requests of the service.

The two say the same in the same shape, so that a body's keys are its message's fields: under the same names,
but for those in `_FIELDS`.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from pydantic.alias_generators import to_camel
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    InferEdgesRequest,
    InferRequest,
)

from tdb_server.gateway import json_bodies as bodies
from tdb_server.gateway.json_faults import read_body

SINGLE_SPECS: dict[str, type[bodies.Body]] = {
    "derived_scalars": bodies.DerivedScalarsRequest,
    "derived_attention_scalars": bodies.DerivedAttentionScalarsRequest,
    "multiple_top_k_derived_scalars": bodies.MultipleTopKDerivedScalarsRequest,
}
"""Bodies of the endpoints that answer one spec, by the endpoint's name."""
_FIELDS = {
    "depends_on_spec_name": "depends_on",
    "dimensions_to_keep_for_intermediate_sum": "dimensions_to_keep_for_sum",
    "dst": "derived_scalar_type",
    "dst_list_by_group_id": "groups",
    "inference_request_spec": "inference_spec",
    "inference_sub_requests": "sub_requests",
    "normalize_activations_using_neuron_record": "normalize_by_prompt_maximum",
    "processing_request_spec_by_name": "processing_specs",
    "top_and_bottom_k_for_node_table": "top_and_bottom_k",
}
"""The message's field for keys that are called otherwise there."""
_NEEDLESS = {"detach_layer_norm_scale", "downstream_trace_config", "normalize_by_prompt_maximum", "spec_type"}
"""Keys that change nothing, or must be null: they are left out where the message has no field for them."""
_SPECS: dict[type[bodies.Body], str] = {
    bodies.MultipleTopKDerivedScalarsRequestSpec: "multiple_top_k",
    bodies.DerivedScalarsRequestSpec: "derived_scalars",
    bodies.DerivedAttentionScalarsRequestSpec: "derived_attention_scalars",
    bodies.ScoredTokensRequestSpec: "scored_tokens",
    bodies.TokenPairAttributionRequestSpec: "token_pair_attribution",
    bodies.ComponentTotalsRequestSpec: "component_totals",
    bodies.LensRequestSpec: "lens",
    bodies.ActivationsRequestSpec: "activations",
}


def debug_request(body: Any) -> DebugRequest:
    """The body of `/batched_tdb`.

    Raises:
        InvalidRequest: a value is not of the type it should be.
    """
    return DebugRequest(**_fields(read_body(bodies.BatchedTdbRequest, body), DebugRequest.DESCRIPTOR))


def infer_request(body: Any) -> InferRequest:
    """The body of `/batched`; raises as `debug_request`."""
    return _infer_request(read_body(bodies.BatchedRequest, body))


def edges_request(body: Any) -> InferEdgesRequest:
    """The body of `/v1/edges`; raises as `debug_request`."""
    return InferEdgesRequest(**_fields(read_body(bodies.EdgesRequest, body), InferEdgesRequest.DESCRIPTOR))


def single_infer_request(endpoint: str, body: Any) -> InferRequest:
    """The body of an endpoint that answers one processing spec; raises as `debug_request`.

    Args:
        endpoint: its name, a key of `SINGLE_SPECS`.
        body: the body. The spec gets the name that its answer has in the response's body.
    """
    read: Any = read_body(SINGLE_SPECS[endpoint], body)
    spec = getattr(read, f"{endpoint}_request_spec")
    sub_request = bodies.InferenceSubRequest.model_construct(
        inference_request_spec=read.inference_request_spec,
        processing_request_spec_by_name=spec and {to_camel(f"{endpoint}_response_data"): spec},
    )
    return _infer_request(bodies.BatchedRequest.model_construct(inference_sub_requests=[sub_request]))


def _infer_request(body: bodies.BatchedRequest) -> InferRequest:
    return InferRequest(**_fields(body, InferRequest.DESCRIPTOR))


def _fields(body: bodies.Body, message: Descriptor) -> dict[str, Any]:
    """A body as what makes its message. Keys with null are as good as none."""
    found = {
        name: _value(value, field)
        for key, name, field in _fields_of(type(body), message)
        if (value := getattr(body, key)) is not None
    }
    if type(body) is bodies.MirroredActivationIndex:
        found["tensor_indices"] = _axes(body)
    return found


@cache
def _fields_of(body: type[bodies.Body], message: Descriptor) -> list[tuple[str, str, Any]]:
    """A body's keys that the message has a field for, each with the field's name and descriptor."""
    names = {key: _FIELDS.get(key, key) for key in body.model_fields}
    fields = message.fields_by_name
    return [
        (key, name, fields[name]) for key, name in names.items() if name in fields or name not in _NEEDLESS
    ]


def _value(value: Any, field: Any) -> Any:
    """What a message's field is made of.

    Args:
        value: of a body's key; not None.
        field: the field's descriptor.
    """
    match value:
        case Enum():
            return _wire_name(value, field.enum_type)
        case int() | float() | str():  # asked first: pydantic's answer to "is it a body?" is slow
            return value
        case bodies.NodeIdAndDatasets():
            return True
        case bodies.Body():
            return _fields(value, field.message_type)
        case list():
            return [_value(one, field) for one in value]
        case dict():
            inner = field.message_type.fields_by_name
            if field.name == "groups":
                keys = ("group_id", "derived_scalar_types")
                return [
                    {key: _value(one, inner[key]) for key, one in zip(keys, group, strict=True)}
                    for group in value.items()
                ]
            return [
                {"name": name, (kind := _SPECS[type(spec)]): _value(spec, inner[kind])}
                for name, spec in value.items()
            ]
        case _:
            raise TypeError(f"{field.name} cannot be made of {value!r}")


def _axes(index: bodies.MirroredActivationIndex) -> list[dict[str, Any]]:
    """The index on each axis. Axes that are left out at the end are "All", as in the reference."""
    given, hook_point = index.tensor_indices or [], index.activation_location_type
    n_left_out = len(hook_point.dimensions) - len(given) if hook_point else 0
    axes = [*given, *[bodies.ALL] * n_left_out]
    return [{"all": True} if one == bodies.ALL else {"index": one} for one in axes]


@cache
def _wire_name(member: Enum, wire: EnumDescriptor) -> str:
    """An enum's member as its message writes it: with the prefix that UNSPECIFIED, the first, has too."""
    return wire.values[0].name.replace("UNSPECIFIED", member.name)
