"""`/openapi.json` describes the bodies that are read and the answers that are written."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_client.workbench.body_reader import QuestionError
from tdb_client.workbench.questions import QUESTION_FIELDS
from tdb_client.workbench.routes import ROUTES
from tdb_server.domain.results import ProcessingResult
from tdb_server.errors import InvalidRequest
from tdb_server.gateway.json_requests import SINGLE_SPECS
from tdb_server.gateway.openapi import openapi_document
from tdb_server.gateway.records import record_endpoints

from tests.property.requests import examples
from tests.unit.gateway.test_json_requests import GOLDENS, MALFORMED, read, translated
from tests.unit.gateway.test_json_responses import edges_result, lens_result, one_result, place_result

DOCUMENT = openapi_document("1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]
REFUSED = json.loads((Path(__file__).parents[2] / "golden" / "refused.json").read_text())
SMALL_GOLDENS = [path for path in GOLDENS if path.parent.name == "tiny-a" and path.stat().st_size < 80_000]
NOT_A_MATTER_OF_SHAPE = {"\ud800", 10**400}
"""Values of the right type that cannot be held."""


def operation(endpoint: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][f"/{endpoint}"]["post"]
    return found


def content(described: dict[str, Any]) -> Any:
    return described["content"]["application/json"]["schema"]


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """Checks against a schema of the document, which OpenAPI 3.1 writes in this draft."""
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


@cache
def of_body(endpoint: str) -> jsonschema.Draft202012Validator:
    return validator(content(operation(endpoint)["requestBody"]))


@cache
def of_answer(endpoint: str, status: str = "200") -> jsonschema.Draft202012Validator:
    return validator(content(operation(endpoint)["responses"][status]))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_the_document_is_sound() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    named = {one.removeprefix("#/components/schemas/") for one in references(DOCUMENT)}
    assert named == set(SCHEMAS)
    assert DOCUMENT["openapi"] == "3.1.0"
    operations = [path["post"]["operationId"] for path in DOCUMENT["paths"].values()]
    assert len(set(operations)) == len(operations) == 22
    assert "inference-batched_tdb" in operations


def test_names_are_the_references() -> None:
    """Clients made from it have the enums and keys that the viewer's own client has."""
    assert "mlp_post_act" in SCHEMAS["DerivedScalarType"]["enum"]
    assert "mlp.post_act" in SCHEMAS["ActivationLocationType"]["enum"]
    components = ["neuron", "autoencoder_latent", "transcoder_latent", "whole_mlp"]
    assert SCHEMAS["ComponentTypeForMlp"]["enum"] == components
    assert SCHEMAS["ComponentTypeForResidualStream"]["enum"] == ["post_attn_latent", "post_mlp_latent"]
    assert SCHEMAS["AblationValueType"]["enum"] == ["number", "baseline", "scale", "add"]
    assert not {"circuit", "baselines"} & set(SCHEMAS["InferenceAndTokenData"]["required"])
    assert not {"HookPoint", "DerivedScalar", "MlpComponent", "ResidualStreamComponent"} & set(SCHEMAS)
    assert all(schema["title"] == name for name, schema in SCHEMAS.items())
    assert "topAndBottomKForNodeTable" in SCHEMAS["TdbRequestSpec"]["properties"]


def test_what_is_computed_has_a_priority() -> None:
    told = {name for name in DOCUMENT["paths"] if "parameters" in operation(name[1:])}
    single = {f"/{name}" for name in SINGLE_SPECS}
    told_priority = {f"/v1/workbench/{name}" for name in ROUTES}
    assert told == {"/batched_tdb", "/batched", "/v1/edges"} | single | told_priority
    (parameter,) = operation("batched_tdb")["parameters"]
    assert (parameter["in"], parameter["name"]) == ("header", "tdb-priority")
    assert parameter["schema"]["enum"] == ["interactive", "sweep"]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_requests_are_as_described(path: Path) -> None:
    golden = read(path)
    of_body(golden["endpoint"]).validate(golden["request"])


@pytest.mark.parametrize("path", SMALL_GOLDENS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_answers_are_as_described(path: Path) -> None:
    """The goldens leave out what depends on the machine."""
    golden = read(path)
    of_answer(golden["endpoint"]).validate(with_machine(golden["response"]))


DATA_TYPES = {
    "activationsByGroupId": "multiple_top_k_derived_scalars_response_data",
    "activations": "derived_scalars_response_data",
    "tokenAndAttentionScalarsList": "derived_attention_scalars_response_data",
    "topTokensList": "scored_tokens_response_data",
    "topTokensAttendedToList": "token_pair_attribution_response_data",
}


def with_machine(value: Any) -> Any:
    if isinstance(value, list):
        return [with_machine(one) for one in value]
    if not isinstance(value, dict):
        return value
    added: dict[str, Any] = {}
    if "tokensAsInts" in value:
        added = {"inferenceTime": 0.1, "memoryUsedBefore": None, "memoryUsedAfter": None, "log": None}
    elif "nodeIndices" in value or "tokenAndAttentionScalarsList" in value:
        added = {"responseDataType": next(name for key, name in DATA_TYPES.items() if key in value)}
    if "activationsByGroupId" in value:
        added["vocabTokenStringsForIndices"] = None
    return {**added, **{key: with_machine(one) for key, one in value.items()}}


@pytest.mark.parametrize("refused", REFUSED, ids=lambda one: one["case"])
def test_what_is_refused_for_its_meaning_is_as_described(refused: dict[str, Any]) -> None:
    translated(refused["endpoint"], refused["request"])
    of_body(refused["endpoint"]).validate(refused["request"])


def leaves(value: Any) -> Iterator[Any]:
    """All values and keys."""
    if isinstance(value, dict | list):
        yield from value if isinstance(value, dict) else ()
        for one in value.values() if isinstance(value, dict) else value:
            yield from leaves(one)
    else:
        yield value


def paths_at_fault(errors: Any) -> Iterator[str]:
    for error in errors:
        keys = list(error.absolute_path)
        if "propertyNames" in error.relative_schema_path:
            keys.append(error.instance)
        yield "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in keys).lstrip(".") or "body"
        yield from paths_at_fault(error.context)


OF_SHAPE = [
    one
    for one in MALFORMED
    if not NOT_A_MATTER_OF_SHAPE & set(leaves(one[1])) and one[2].count("downstreamTraceConfig") < 3
]


@pytest.mark.parametrize(("endpoint", "body", "field", "reason"), OF_SHAPE)
def test_what_is_refused_for_its_shape_is_not_as_described(
    endpoint: str, body: Any, field: str, reason: str
) -> None:
    found = set(paths_at_fault(of_body(endpoint).iter_errors(body)))
    assert field in found or field.removesuffix(".specType") in found


def spots(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from spots(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from spots(one, (*path, index))


VALUES = [None, True, -1, 3, 2.5, 2**40, "x", "All", "neuron", [], [None], [3], {}, {"x": None}]


SOME_GOLDENS = [read(path) for path in SMALL_GOLDENS]


@examples(200)
@given(data=st.data())
def test_what_is_as_described_can_be_read(data: st.DataObject) -> None:
    """Any golden body with some value in another one's place: what cannot be read is not as described."""
    golden = data.draw(st.sampled_from(SOME_GOLDENS))
    body = copy.deepcopy(golden["request"])
    *outer, last = data.draw(st.sampled_from(list(spots(body))))
    holder = body
    for key in outer:
        holder = holder[key]
    holder[last] = data.draw(st.sampled_from(VALUES))
    try:
        translated(golden["endpoint"], body)
    except InvalidRequest:
        assert not of_body(golden["endpoint"]).is_valid(body)


LENS = {"specType": "lens_request_spec", "layerIndices": [0], "numTopTokens": 2}
PLACE = {"activationLocationType": "attn.qk_logits", "tokenIndices": [-1], "passType": "backward"}
EDGES = {"prompt": "a", "baselinePrompts": ["b"], "lossFnConfig": {"name": "log_prob"}, "wholeMatrix": True}


def test_bodies_that_the_reference_has_not_are_as_described() -> None:
    specs = {"lens": LENS, "place": PLACE}
    one = {"inferenceRequestSpec": {"prompt": "a"}, "processingRequestSpecByName": specs}
    of_body("batched").validate({"inferenceSubRequests": [one]})
    specs["lens"] = {"numTopTokens": 2}
    assert not of_body("batched").is_valid({"inferenceSubRequests": [one]})
    of_body("v1/edges").validate({"subRequests": [EDGES]})
    assert not of_body("v1/edges").is_valid({"subRequests": [{**EDGES, "method": "acdc"}]})


@pytest.mark.parametrize("result", [lens_result(), place_result(), edges_result()], ids=lambda one: type(one))
def test_results_that_the_reference_has_not_are_as_described(result: ProcessingResult) -> None:
    schema = {"$ref": f"#/components/schemas/{type(result).__name__.removesuffix('Result')}ResponseData"}
    validator(schema).validate(one_result(result))


NODE = {"dst": "mlp_post_act", "layerIndex": 1, "activationIndex": 2, "datasets": ["tiny", "other"]}


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("neuron_datasets_metadata", None),
        ("neuron_record", NODE),
        ("attention_head_record", NODE),
        ("existing_explanations", {**NODE, "explanationDatasets": [], "neuronDataset": "tiny"}),
    ],
)
def test_answers_about_records_are_as_described(endpoint: str, body: Any) -> None:
    if body is not None:
        of_body(endpoint).validate(body)
    record = record_endpoints(None)[endpoint]
    of_answer(endpoint).validate(record.answer(record.read(body)))


@pytest.mark.parametrize("name", ROUTES)
def test_the_workbenchs_bodies_have_the_fields_that_are_read(name: str) -> None:
    """And no others: what is described is known, and what is not described is not."""
    schema = SCHEMAS[content(operation(f"v1/workbench/{name}")["requestBody"])["$ref"].rpartition("/")[2]]
    assert unknown_fields(name, dict.fromkeys(schema["properties"])) == set()
    assert unknown_fields(name, {"other": 1}) == {"other"}
    question = SCHEMAS["Question"]["properties"]
    if "question" in schema["properties"]:
        assert unknown_fields(name, {"question": dict.fromkeys(question)}) == set()
        assert set(question) == set(QUESTION_FIELDS)


def unknown_fields(name: str, body: dict[str, Any]) -> set[str]:
    try:
        ROUTES[name].read(body)
    except QuestionError as error:
        return {one.path for one in error.violations if one.reason == "FIELD_NOT_ALLOWED"}
    return set()
