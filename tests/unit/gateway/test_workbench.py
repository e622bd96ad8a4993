"""The workbench's page and routes over a stand-in for the services."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from google.protobuf.message import Message
from tdb_client.report.rounding import rounded
from tdb_client.workbench.routes import ROUTES
from tdb_server import errors
from tdb_server.domain.budget import Budget
from tdb_server.errors import FieldViolation
from tdb_server.gateway.app import create_gateway
from tdb_server.gateway.http_calls import HttpCalls
from tdb_server.gateway.workbench.pages import wants_page
from tdb_server.security_settings import Security
from tdb_server.service.access.access import Access
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.caller import current_caller
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.http.host_check import AllowedHosts, HostCheck
from tdb_server.service.http.listener import HttpListener
from tdb_server.service.open_calls import OpenCalls
from transformer_debugger.v1 import model_service_pb2 as model_pb2
from transformer_debugger.v1.activation_pb2 import (
    ACTIVATION_LOCATION_TYPE_RESID_LN_F_SCALE,
    DIMENSION_ATTN_HEADS,
    DIMENSION_LAYERS,
    DIMENSION_SEQUENCE_TOKENS,
)
from transformer_debugger.v1.backward_rule_pb2 import BACKWARD_RULE_RELP
from transformer_debugger.v1.call_pb2 import (
    PRIORITY_INTERACTIVE,
    PRIORITY_SWEEP,
    Finished,
    ResultPart,
    SubRequestValues,
)
from transformer_debugger.v1.derived_scalar_pb2 import DerivedScalarType
from transformer_debugger.v1.loss_pb2 import LOSS_FN_NAME_KL_FROM_BASELINE
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceServicer
from transformer_debugger.v1.node_pb2 import PASS_TYPE_BACKWARD, PASS_TYPE_FORWARD
from transformer_debugger.v1.processing_pb2 import ComponentTotalsSpec
from transformer_debugger.v1.result_pb2 import ComponentTotalsResult, NamedResult
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    InferEdgesRequest,
    InferRequest,
    InferResponse,
    StreamInferResponse,
)
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceServicer

from tests.unit.client.fake_service import (
    TOKENS,
    FakeService,
    as_it_is,
    circuit_values,
    component_totals,
    debug_stream,
    node_indices,
    started,
    tell_what_is_compared,
    tensor,
    top_tokens,
)
from tests.unit.gateway.test_app import LIMITS
from tests.unit.gateway.test_records import FOLDER

Client = httpx.AsyncClient
Lines = list[dict[str, Any]]
QUESTION = {"prompt": "When Mary gave to", "target": [" Mary"], "distractor": [" John"]}
MEMORY_BYTES = 256 * 2**20


class StandIn(TransformerDebuggerServiceServicer, ModelServiceServicer):
    """Answers what the client's own fake does, and fails or waits after so many messages."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.waits_after: int | None = None
        self.fails_after = 0
        self.requests: list[Message] = []
        self.cancelled = asyncio.Event()
        self.adds_bos = False
        self.most_listed = 50

    async def StreamDebug(self, request: DebugRequest, context: Any) -> AsyncIterator[Message]:  # noqa: N802
        async for message in self._answered(request, debug_stream(request)):
            yield message

    async def StreamInfer(self, request: InferRequest, context: Any) -> AsyncIterator[Message]:  # noqa: N802
        async for message in self._answered(request, infer_stream(request)):
            yield message

    async def StreamInferEdges(  # noqa: N802
        self, request: InferEdgesRequest, context: Any
    ) -> AsyncIterator[Message]:
        async for message in self._answered(request, FakeService().StreamInferEdges(request, NO_CONTEXT)):
            yield message

    async def Infer(self, request: InferRequest, context: Any) -> InferResponse:  # noqa: N802
        assert request.validate_only
        if self.error is not None:
            raise self.error
        return InferResponse()

    async def GetModelInfo(  # noqa: N802
        self, request: model_pb2.GetModelInfoRequest, context: Any
    ) -> model_pb2.GetModelInfoResponse:
        info = model_pb2.ModelInfo(
            name="stand-in",
            digest="00ff",
            n_layers=2,
            n_heads=6,
            n_mlp_neurons=96,
            api_version="v1.0",
            server_version="9.8",
        )
        info.limits.max_node_ablations, info.limits.max_circuit_nodes = 8, 64
        info.limits.max_sub_requests, info.limits.max_top_and_bottom_k = 8, self.most_listed
        dictionary = info.autoencoders.add(
            site=model_pb2.AUTOENCODER_SITE_MLP_POST_ACT, n_latents=80, layer_indices=[0, 1]
        )
        dictionary.notes.add(layer_index=1, link="https://example.org/{latent}", labels={9: "names"})
        return model_pb2.GetModelInfoResponse(model_info=info)

    async def Tokenize(  # noqa: N802
        self, request: model_pb2.TokenizeRequest, context: Any
    ) -> model_pb2.TokenizeResponse:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        begun = [99] if request.add_bos else []
        ids = [*begun, *range(len(TOKENS))]
        texts = ["<bos>"] * len(begun) + list(TOKENS)
        return model_pb2.TokenizeResponse(
            token_ids=ids,
            token_strings=texts,
            bos_added=bool(begun),
            special_token_indices=range(len(begun)),
            prompt_adds_bos=self.adds_bos and not begun,
        )

    async def _answered(self, request: Message, messages: Iterator[Message]) -> AsyncIterator[Message]:
        self.requests.append(request)
        try:
            for number, message in enumerate(messages):
                if self.error is not None and number == self.fails_after:
                    raise self.error
                if number == self.waits_after:
                    await asyncio.sleep(60)
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


def infer_stream(request: InferRequest) -> Iterator[Message]:
    """Every kind of result that the workbench asks for, whatever it is called."""
    first = started(len(request.sub_requests))
    for tokens, one in zip(first.sub_requests, request.sub_requests, strict=True):
        tell_what_is_compared(tokens, one.inference_spec)
        tokens.backward_rule = one.inference_spec.backward_rule
        tokens.ablation_specs.extend(one.inference_spec.ablation_specs)
        tokens.backward_rule = one.inference_spec.backward_rule
    yield StreamInferResponse(started=first)
    for number, one in enumerate(request.sub_requests):
        for spec in one.processing_specs:
            part = ResultPart(sub_request_index=number, last_part=True)
            part.result.CopyFrom(as_it_is(spec) or NamedResult(name=spec.name))
            match spec.WhichOneof("spec"):
                case "derived_attention_scalars":
                    pairs = part.result.derived_attention_scalars
                    pairs.tokens.extend(TOKENS)
                    for field in pairs.DESCRIPTOR.fields[1:]:
                        shape = [4, 4] if field.number < 4 else [4]
                        getattr(pairs, field.name).CopyFrom(tensor(np.full(shape, field.number + number / 8)))
                case "derived_scalars":
                    scalars = part.result.derived_scalars
                    scalars.node_indices.extend(node_indices(f"L0 neuron 5 @ {token}" for token in range(4)))
                    scalars.activations.CopyFrom(tensor([0.5, -1.25, float("nan"), 3.00004]))
                    if spec.derived_scalars.num_top_tokens:
                        scalars.top_tokens.CopyFrom(top_tokens())
                case "component_totals" if spec.component_totals.by_token:
                    put_totals_by_token(part.result.component_totals, spec.component_totals)
                case "component_totals":
                    part.result.component_totals.CopyFrom(component_totals(spec.component_totals))
            yield StreamInferResponse(result=part)
        if one.inference_spec.HasField("loss_fn_config"):
            values = SubRequestValues(sub_request_index=number, loss=1.0)
            if one.inference_spec.HasField("only_these"):
                values.circuit.CopyFrom(circuit_values(one.inference_spec.only_these))
            yield StreamInferResponse(values=values)
    yield StreamInferResponse(finished=Finished())


class NoContext:
    """What the fake wants to know of a call over gRPC."""

    def invocation_metadata(self) -> tuple[()]:
        return ()


NO_CONTEXT: Any = NoContext()


class Refusing(Access):
    """Asks for a token."""

    def token_owner(self, credentials: Any) -> Any:
        if list(credentials) != ["Bearer right"]:
            raise errors.Unauthenticated("who are you?")
        return current_caller()


def gateway(
    backend: StandIn, memory: Budget | None = None, access: Access | None = None, examples: Any = None
) -> HostCheck:
    memory = memory or Budget(MEMORY_BYTES, "bodies", "BUFFERS_FULL")
    guard = CallGuard(LIMITS, OpenCalls(), access or Access())
    calls = HttpCalls(guard, FairThreads(memory), memory, max_body_seconds=0.5)
    return create_gateway(backend, backend, calls, AllowedHosts("127.0.0.1", ["test"]), "1.2.3", examples)


@pytest.fixture
def backend() -> StandIn:
    return StandIn()


@pytest.fixture
async def client(backend: StandIn) -> AsyncIterator[Client]:
    async with Client(transport=httpx.ASGITransport(gateway(backend)), base_url="http://test") as one:
        yield one


async def asked(client: Client, route: str, body: Any, **headers: str) -> tuple[httpx.Response, Lines]:
    response = await client.post(f"/v1/workbench/{route}", json=body, headers=headers)
    return response, [json.loads(line) for line in response.text.splitlines()]


async def debugged(client: Client, **changed: Any) -> tuple[httpx.Response, Lines]:
    return await asked(client, "debug", {"question": QUESTION | changed})


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


async def test_who_gets_the_page(client: Client) -> None:
    page = await client.get("/", headers={"accept": BROWSER})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "Accept" in page.headers["vary"]
    assert 'src="workbench/workbench.js"' in page.text
    head = await client.head("/", headers={"accept": BROWSER})
    assert (head.headers["content-length"], head.content) == (str(len(page.content)), b"")
    for accept in ("*/*", "application/json", "", "text/html;q=0, */*", "application/json, text/html;q=0.5"):
        response = await client.get("/", headers={"accept": accept})
        assert response.json() == {"name": "transformer-debugger", "documentation": "/openapi.json"}
        assert "Accept" in response.headers["vary"]
    assert (await client.get("/")).json()["name"] == "transformer-debugger"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [("text/html", True), ("TEXT/HTML;level=1", True), ("text/html;q=x", False), ("text/*", False)],
)
def test_what_a_header_says(accept: str, wanted: bool) -> None:
    assert wants_page(accept) is wanted


async def test_a_node_has_an_address(client: Client) -> None:
    page = await client.get("/node/L23.head.3")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'src="../workbench/workbench.js"' in page.text
    for address in ("/node", "/node/", "/node/L23/head"):
        assert (await client.get(address)).status_code == 404


@pytest.mark.parametrize(
    ("address", "home"),
    [
        ("/nothing", "."),
        ("/no/thing", "../."),
        ("/no%2Fthing", "."),
        ("/workbench/no.js", "../."),
        ("/node/", "../."),
    ],
)
async def test_an_address_of_nothing_leads_home(client: Client, address: str, home: str) -> None:
    page = await client.get(address, headers={"accept": BROWSER})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert f'<a href="{home}">' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|<style|style=", page.text)
    response = await client.get(address)
    assert (response.status_code, response.json()) == (404, {"message": "Not Found"})
    for one in (page, response):
        assert "Accept" in one.headers["vary"]


async def test_nothing_else_may_run_in_the_page(client: Client) -> None:
    for address in ("/", "/node/L1.mlp.0"):
        page = await client.get(address, headers={"accept": BROWSER})
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'self'" in policy
        assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page.text)


async def test_what_an_answer_is_nobody_guesses(backend: StandIn) -> None:
    server = HttpListener(gateway(backend), "127.0.0.1", 0, Security())
    await server.start()
    try:
        async with Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            answers = [
                await client.get(address, headers={"accept": BROWSER})
                for address in ("/", "/node/L1.mlp.0", "/workbench/workbench.js", "/report/report.css", "/x")
            ]
            answers.append(await client.get("/", headers={"host": "evil.example"}))
            for body in ({"question": QUESTION}, {}):
                response, _ = await asked(client, "debug", body)
                answers.append(response)
    finally:
        await server.stop()
    assert [one.status_code for one in answers] == [200, 200, 200, 200, 404, 421, 200, 400]
    assert {one.headers["x-content-type-options"] for one in answers} == {"nosniff"}


@pytest.mark.parametrize(
    ("address", "content_type"),
    [
        ("/workbench/workbench.js", "text/javascript; charset=utf-8"),
        ("/workbench/workbench.css", "text/css; charset=utf-8"),
        ("/report/report.css", "text/css; charset=utf-8"),
        ("/report/elements.js", "text/javascript; charset=utf-8"),
    ],
)
async def test_static_files(client: Client, address: str, content_type: str) -> None:
    file = await client.get(address)
    assert (file.status_code, file.headers["content-type"]) == (200, content_type)
    assert file.headers["cache-control"] == "no-cache"
    again = await client.get(address, headers={"if-none-match": f'"other", W/{file.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == file.headers["etag"]
    head = await client.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(file.content))


@pytest.mark.parametrize(
    "address",
    [
        "/workbench/../report/data.py",
        "/workbench/%2e%2e/report/data.py",
        "/workbench/..%2freport%2fdata.py",
        "/workbench//etc/passwd",
        "/workbench/workbench.html",
        "/report/data.py",
        "/report/",
        "/workbench/nothing.js",
    ],
)
async def test_nothing_but_the_files_of_the_page_is_read(backend: StandIn, address: str) -> None:
    """Sent as it is: clients would take `..` out."""
    sent: list[dict[str, Any]] = []
    path, _, _ = address.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": httpx.URL(f"http://test{path}").path if "%" in path else path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"test")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway(backend)(scope, receive, send)
    assert sent[0]["status"] == 404


async def test_other_hosts_get_no_file(client: Client) -> None:
    for address in ("/", "/node/L1.mlp.0", "/workbench/workbench.js", "/report/report.css"):
        response = await client.get(address, headers={"host": "evil.example", "accept": BROWSER})
        assert response.status_code == 421


async def test_files_need_no_token_and_questions_do(backend: StandIn) -> None:
    application = gateway(backend, access=Refusing())
    async with Client(transport=httpx.ASGITransport(application), base_url="http://test") as client:
        for address in ("/", "/node/L1.mlp.0", "/workbench/workbench.js", "/report/report.css"):
            assert (await client.get(address, headers={"accept": BROWSER})).status_code == 200
        for route in ROUTES:
            refused, _ = await asked(client, route, {})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json() == {"message": "who are you?", "violations": []}
        response, _ = await asked(client, "model", {}, authorization="Bearer right")
        assert response.status_code == 200


async def test_the_model(client: Client) -> None:
    response, (line,) = await asked(client, "model", {})
    assert response.headers["content-type"] == "application/x-ndjson"
    model = line["model"]
    assert (model["name"], model["nLayers"], model["nHeads"]) == ("stand-in", 2, 6)
    assert (model["version"], model["limits"]["changes"]) == ("9.8", 8)
    assert line["examples"][0]["prompt"].startswith("When Mary")


async def test_tokens(client: Client, backend: StandIn) -> None:
    _, (line,) = await asked(client, "tokens", {"text": "x"})
    assert line["count"] == len(TOKENS)
    assert line["tokens"][1] == {"id": 1, "text": " Mary", "quoted": "' Mary'", "isSpecial": False}
    backend.adds_bos = True
    _, (line,) = await asked(client, "tokens", {"text": "x"})  # as the prompt begins
    assert line["bosAdded"] is True
    assert line["tokens"][0] == {"id": 99, "text": "<bos>", "quoted": "'<bos>'", "isSpecial": True}
    _, (line,) = await asked(client, "tokens", {"text": "x", "addBos": False})
    assert line["count"] == len(TOKENS)


async def test_a_question(client: Client, backend: StandIn) -> None:
    _, lines = await debugged(client)
    assert [line["event"] for line in lines[:2]] == ["started", "progress"]
    assert lines[0]["tokens"][1]["text"] == " Mary"
    progress = [line for line in lines if line["event"] == "progress"]
    assert [line["done"] for line in progress] == list(range(1, 10))
    assert {line["of"] for line in progress} == {9}
    (values,) = [line for line in lines if line["event"] == "values"]
    assert values["objective"] == "logit ' Mary' - ' John'"
    assert values["runs"] == [{"value": 3.0, "circuit": None}]
    assert lines[-1]["event"] == "answer"
    assert lines[-1]["data"]["nodes"][1]["spelling"] == "L1 head 2 @ 3 -> 1"
    assert lines[-1]["data"]["request"]["command"].startswith("tdb debug --prompt")


async def test_changes_stand_beside_the_same_without(client: Client, backend: StandIn) -> None:
    _, lines = await debugged(client, changes=["L1 head 2 @ -1", "L0 neuron 5 @ 3 * 2"])
    request = backend.requests[-1]
    assert isinstance(request, DebugRequest)
    without, changed = request.sub_requests
    assert (len(without.node_ablations), len(changed.node_ablations)) == (0, 2)
    assert changed.node_ablations[0].node_index.tensor_indices[0] == len(TOKENS) - 1
    (values,) = [line for line in lines if line["event"] == "values"]
    assert [one["value"] for one in values["runs"]] == [3.0, 2.0]
    assert [one["value"] for one in lines[-1]["data"]["runs"]] == [3.0, 2.0]


async def test_what_is_kept_is_measured(client: Client, backend: StandIn) -> None:
    _, lines = await debugged(client, onlyThese=["L1 whole head 2"], baseline=["When John gave to"])
    (values,) = [line for line in lines if line["event"] == "values"]
    assert values["runs"][0]["circuit"] is None
    assert values["runs"][1]["circuit"]["faithfulness"] == 0.5
    _, lines = await debugged(client, onlyThese=[])
    assert lines[-1]["data"]["circuit"] is not None


async def test_every_field_at_fault_is_named_as_in_the_question(client: Client, backend: StandIn) -> None:
    wrong = {
        "prompt": "",
        "addBos": "yes",
        "target": [3],
        "targetIds": ["x"],
        "changes": ["L1 head 2 @ -1", "nothing"],
        "onlyThese": ["L1 head 2 @ 3 -> 1"],
        "trace": "nix",
        "mlp": "neurons",
        "k": 2.5,
        "loss": {"name": "zero", "at": 3},
        "other": 1,
    }
    response, _ = await asked(client, "debug", {"question": wrong})
    assert response.status_code == 400
    violations = response.json()["violations"]
    assert {one["field"] for one in violations} == {
        "prompt", "addBos", "target[0]", "targetIds[0]", "changes[1]", "onlyThese[0]", "trace", "mlp", "k",
        "loss.name", "loss.at", "other",
    }  # fmt: skip
    assert all(one["description"] and one["reason"] for one in violations)
    assert backend.requests == []


REFUSED_FIELDS = [
    ("sub_requests[0].prompt", "prompt"),
    ("sub_requests[1].target_tokens[2]", "target[2]"),
    ("sub_requests[0].distractor_token_ids[0]", "distractorIds[0]"),
    ("sub_requests[1].node_ablations[1].node_index.layer_index", "changes[1]"),
    ("sub_requests[0].upstream_node_to_trace.attention_trace_type", "trace"),
    ("sub_requests[0].downstream_node_to_trace", "downstream"),
    ("sub_requests[0].loss_fn_config.target_tokens[0]", "target[0]"),
    ("sub_requests[0].loss_fn_config.token_index", "loss.token"),
    ("sub_requests[0].loss_fn_config", "loss"),
    ("sub_requests[0].inference_spec.prompt", "prompt"),
    ("sub_requests[1].only_these.nodes[3].layer_index", "onlyThese[3]"),
    ("sub_requests[1].only_these", "onlyThese"),
    ("sub_requests[0].baseline_prompts[0]", "baseline[0]"),
    ("sub_requests[0].top_and_bottom_k", "k"),
    ("sub_requests", "sub_requests"),
]


@pytest.mark.parametrize(("path", "field"), REFUSED_FIELDS)
async def test_what_the_service_refuses_is_named_as_in_the_question(
    client: Client, backend: StandIn, path: str, field: str
) -> None:
    backend.error = errors.InvalidRequest([FieldViolation(path, "is wrong", "OUT_OF_RANGE")])
    response, _ = await debugged(client)
    assert response.status_code == 400
    assert response.json() == {
        "message": f"{field}: is wrong",
        "violations": [{"field": field, "description": "is wrong", "reason": "OUT_OF_RANGE"}],
    }


async def test_a_field_over_a_limit_is_named(client: Client, backend: StandIn) -> None:
    paths = [f"sub_requests[{number}].top_and_bottom_k" for number in range(2)]
    backend.error = errors.FieldsOverLimit(
        [FieldViolation(one, "is over the limit", "K_TOO_LARGE") for one in paths]
    )
    response, _ = await debugged(client)
    assert response.status_code == 413
    assert response.json() == {
        "message": "k: is over the limit",
        "violations": [{"field": "k", "description": "is over the limit", "reason": "K_TOO_LARGE"}],
    }
    backend.fails_after = 4
    _, lines = await debugged(client)
    assert (lines[-1]["event"], lines[-1]["violations"]) == ("error", response.json()["violations"])


async def test_a_fault_of_both_runs_is_told_once(client: Client, backend: StandIn) -> None:
    paths = [f"sub_requests[{number}].target_tokens[0]" for number in range(2)]
    backend.error = errors.FailedPrecondition(
        [FieldViolation(one, "is two", "NOT_ONE_TOKEN") for one in paths]
    )
    response, _ = await debugged(client, changes=["L1 head 2 @ 1"])
    assert [one["field"] for one in response.json()["violations"]] == ["target[0]"]


async def test_a_token_before_the_prompt(client: Client) -> None:
    response, _ = await debugged(client, changes=["L1 head 2 @ -99"])
    assert [one["field"] for one in response.json()["violations"]] == ["changes[0]"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.OverLimit("too much", "COST_TOO_HIGH"), 413),
        (errors.OverLimit("busy", "QUEUE_FULL", 1.5), 429),
        (errors.Unavailable("loading", "NO_WORKER_READY", 1.0), 503),
        (errors.DeadlineExceeded("late"), 408),
        (errors.PermissionDenied("not you"), 401),
        (errors.Internal("abc"), 500),
        (RuntimeError("secret"), 500),
    ],
)
async def test_errors_have_the_statuses_of_the_json_api(
    client: Client, backend: StandIn, error: Exception, status: int
) -> None:
    backend.error = error
    for response, _ in [await debugged(client), await asked(client, "tokens", {"text": "x"})]:
        assert response.status_code == status
        assert "secret" not in response.text
        assert response.json()["violations"] == []
        retry_after = getattr(error, "retry_after_seconds", None)
        assert ("retry-after" in response.headers) is (retry_after is not None)


@pytest.mark.parametrize(
    "error", [errors.Unavailable("the worker died", "WORKER_LOST"), RuntimeError("secret")]
)
async def test_an_error_in_the_middle_is_the_last_line(
    client: Client, backend: StandIn, error: Exception
) -> None:
    backend.error, backend.fails_after = error, 4
    response, lines = await debugged(client)
    assert response.status_code == 200
    assert [line["event"] for line in lines[:2]] == ["started", "progress"]
    assert (lines[-1]["event"], lines[-1]["violations"]) == ("error", [])
    assert lines[-1]["message"]
    assert "secret" not in response.text


async def test_an_error_in_the_middle_of_another_question(client: Client, backend: StandIn) -> None:
    """While the client asks for the server's version, which nobody waits for any more."""
    backend.error, backend.fails_after = errors.Internal("abc"), 1
    response, _ = await asked(client, "attention", {"question": QUESTION, "layer": 1, "head": 3})
    assert response.status_code == 500
    assert "abc" in response.json()["message"]


async def test_a_fault_names_no_field_of_the_api(client: Client, backend: StandIn) -> None:
    of_run = "sub_requests[1].node_ablations"
    told = f"sets what {of_run}[0] sets to 0"
    backend.error = errors.InvalidRequest([FieldViolation(f"{of_run}[1].value", told, "DUPLICATE_ABLATION")])
    response, _ = await debugged(client, changes=["L1 head 2 @ 1", "L1 head 2 @ 1 * 2"])
    (violation,) = response.json()["violations"]
    assert (violation["field"], violation["description"]) == ("changes[1]", "sets what changes[0] sets to 0")
    backend.error = None
    response, _ = await debugged(client, trace="L1 head 2 @ 1")
    (violation,) = response.json()["violations"]
    assert (violation["field"], violation["description"].partition(",")[0]) == (
        "trace", "L1 head 2 @ 1: say which token it attends to",
    )  # fmt: skip


async def test_a_body_that_is_no_question(client: Client) -> None:
    for body in ([], 3, {"question": []}, {"question": None}, {}):
        response, _ = await asked(client, "debug", body)
        assert response.status_code == 400
        assert response.json()["violations"]
    response = await client.post("/v1/workbench/debug", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert response.json()["violations"][0]["field"] == "content-type"


async def test_how_urgent_a_question_is(client: Client, backend: StandIn) -> None:
    await debugged(client)
    await asked(client, "debug", {"question": QUESTION}, **{"tdb-priority": "sweep"})
    priorities = [one.priority for one in backend.requests if isinstance(one, DebugRequest)]
    assert priorities == [PRIORITY_INTERACTIVE, PRIORITY_SWEEP]


async def test_lines_come_as_they_are_made_and_going_away_cancels(backend: StandIn) -> None:
    backend.waits_after = 3
    lines: Lines = []
    has_lines = asyncio.Event()
    left = asyncio.Event()
    body = json.dumps({"question": QUESTION}).encode()
    requests = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        for one in requests:
            return one
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        lines.extend(json.loads(one) for one in message.get("body", b"").splitlines())
        if len(lines) == 2:
            has_lines.set()

    headers = [(b"host", b"test"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/workbench/debug",
        "raw_path": b"/v1/workbench/debug",
        "query_string": b"",
        "headers": headers,
    }
    memory = Budget(MEMORY_BYTES, "bodies", "BUFFERS_FULL")
    answering = asyncio.ensure_future(gateway(backend, memory)(scope, receive, send))
    await asyncio.wait_for(has_lines.wait(), 5.0)
    assert [one["event"] for one in lines] == ["started", "progress"]
    assert not backend.cancelled.is_set()
    assert memory.n_bytes > 0
    left.set()
    await asyncio.wait_for(backend.cancelled.wait(), 5.0)
    await asyncio.wait_for(answering, 5.0)
    assert memory.n_bytes == 0


async def test_answers_take_their_part_of_the_memory(backend: StandIn) -> None:
    memory = Budget(2 * 2000, "answers", "BUFFERS_FULL")
    application = gateway(backend, memory)
    async with Client(transport=httpx.ASGITransport(application), base_url="http://test") as client:
        _, lines = await debugged(client, changes=["L1 head 2 @ 1"])
    assert lines[-1]["event"] == "error"
    assert "bytes of answers" in lines[-1]["message"]
    assert memory.n_bytes == 0


def put_totals_by_token(to: ComponentTotalsResult, spec: ComponentTotalsSpec) -> None:
    """Of 4 tokens: 2 layers of 3 heads each, of one MLP each, and the embedding."""
    for kind in spec.derived_scalar_types:
        name = DerivedScalarType.Name(kind)
        heads = (DIMENSION_ATTN_HEADS,) if "WHOLE_HEAD" in name else ()
        layers = (DIMENSION_LAYERS,) if "WHOLE" in name else ()
        values = np.full([2] * len(layers) + [4] + [3] * len(heads), 0.5)
        to.totals.add(
            derived_scalar_type=kind, total=tensor(values, *layers, DIMENSION_SEQUENCE_TOKENS, *heads)
        )


def last_request(backend: StandIn) -> InferRequest:
    request = backend.requests[-1]
    assert isinstance(request, InferRequest)
    return request


async def test_the_attention_of_a_head(client: Client, backend: StandIn) -> None:
    body = {"question": QUESTION | {"changes": ["L1 head 2 @ -1"]}, "layer": 1, "head": 3}
    _, (line,) = await asked(client, "attention", body)
    assert (line["event"], line["layer"], line["head"]) == ("attention", 1, 3)
    assert [len(row) for row in line["runs"][0]["pattern"]] == [1, 2, 3, 4]
    assert line["runs"][1]["writeNorm"][3][0] == 2.125
    without, changed = last_request(backend).sub_requests
    assert (len(without.inference_spec.ablation_specs), len(changed.inference_spec.ablation_specs)) == (0, 1)
    spec = changed.processing_specs[0].derived_attention_scalars
    assert (spec.layer_index, spec.activation_index) == (1, 3)


async def test_a_change_that_other_questions_cannot_say(client: Client, backend: StandIn) -> None:
    question = QUESTION | {"changes": ["L0 neuron 5 @ 1", "L1 head 2 @ 3 -> 1 = baseline"], "baseline": ["x"]}
    response, _ = await asked(client, "attention", {"question": question, "layer": 1, "head": 3})
    assert [one["field"] for one in response.json()["violations"]] == ["changes[1]"]


async def test_the_lens(client: Client, backend: StandIn) -> None:
    _, (line,) = await asked(client, "lens", {"question": QUESTION, "at": [-1, 1]})
    assert line["at"] == [3, 1]
    assert [one["role"] for one in line["wanted"]] == ["target", "distractor"]
    rows = line["runs"][0]["resid_post_mlp"]
    assert [row["layer"] for row in rows] == [None, 0, 1]
    assert rows[1]["at"][0]["top"] == [["' Mary'", 9.5], ["'\\n'", -0.25]]
    assert rows[2]["at"][1]["logits"] == [10.0, 11.0]
    assert set(line["runs"][0]) == {"resid_post_attn", "resid_post_mlp"}


async def test_no_more_tokens_are_asked_for_than_the_server_lists(client: Client, backend: StandIn) -> None:
    backend.most_listed = 3
    await asked(client, "lens", {"question": QUESTION})
    (run,) = last_request(backend).sub_requests
    assert {one.lens.num_top_tokens for one in run.processing_specs} == {3}
    await asked(client, "node", {"node": "L1.neuron.5"})
    specs = [
        one.derived_scalars for run in last_request(backend).sub_requests for one in run.processing_specs
    ]
    assert [one.num_top_tokens for one in specs] == [3, 3]


async def test_a_traced_node_has_a_lens_without_targets(client: Client, backend: StandIn) -> None:
    question = {"prompt": "When Mary gave to", "trace": "L0 neuron 5 @ 3", "onlyThese": []}
    _, (line,) = await asked(client, "lens", {"question": question})
    assert line["wanted"] == []
    assert line["runs"][1]["resid_post_attn"][0]["at"][0]["logits"] == []
    assert last_request(backend).sub_requests[1].inference_spec.HasField("trace_config")


@pytest.mark.parametrize(
    ("trace", "has_loss"),
    [
        ("L0 neuron 5 @ 3", False),
        ("L1 head 0 @ 3 -> 1 through Q", False),
        ("L1 head 0 @ 3 -> 1 through V", True),  # the loss gives it its direction
    ],
)
async def test_sums_by_layer_are_of_what_is_traced_and_not_of_the_loss(
    client: Client, backend: StandIn, trace: str, has_loss: bool
) -> None:
    await asked(client, "layers", {"question": QUESTION | {"trace": trace}})
    (run,) = (one.inference_spec for one in last_request(backend).sub_requests)
    assert run.HasField("trace_config")
    assert run.HasField("loss_fn_config") == has_loss


async def test_layers(client: Client, backend: StandIn) -> None:
    question = QUESTION | {"changes": ["L1 head 2 @ -1"], "rule": "relp"}
    _, (line,) = await asked(client, "layers", {"question": question})
    sums = line["runs"][1]["act_times_grad"]
    assert (sums["embedding"], sums["heads"], sums["mlps"]) == ([0.5] * 4, [[1.5] * 4] * 2, [[0.5] * 4] * 2)
    runs = [one.inference_spec for one in last_request(backend).sub_requests]
    assert [len(one.ablation_specs) for one in runs] == [1, 2]
    held = {one.ablation_specs[-1].index.activation_location_type for one in runs}
    assert held == {ACTIVATION_LOCATION_TYPE_RESID_LN_F_SCALE}
    assert {one.backward_rule for one in runs} == {BACKWARD_RULE_RELP}


async def test_edges(client: Client, backend: StandIn) -> None:
    question = QUESTION | {"baseline": ["When John gave to"]}
    body = {"question": question, "topK": 2, "method": "eap_ig", "steps": 3}
    _, (line,) = await asked(client, "edges", body)
    assert line["edges"] == [
        {"from": "L0 whole head 0", "to": "logits", "reads": "logits", "score": -2.5},
        {"from": "embedding", "to": "L0 key head 0", "reads": "key", "score": 0.5},
    ]
    assert {one["spelling"]: one["kind"] for one in line["nodes"]} == {
        "L0 whole head 0": "head", "logits": "logits", "embedding": "embedding", "L0 key head 0": "head_key",
    }  # fmt: skip
    request = backend.requests[-1]
    assert isinstance(request, InferEdgesRequest)
    assert (request.sub_requests[0].top_k, request.sub_requests[0].steps) == (2, 3)


CHANGED = {"changes": ["L1 head 2 @ -1"], "onlyThese": [], "trace": "L0 neuron 5 @ 3", "baseline": []}


@pytest.mark.parametrize(("route", "also"), [("edges", {"baseline"}), ("circuit", set())])
async def test_what_would_be_passed_over_is_refused(
    client: Client, backend: StandIn, route: str, also: set[str]
) -> None:
    response, _ = await asked(client, route, {"question": QUESTION | CHANGED | {"rule": "relp"}})
    fields = {one["field"] for one in response.json()["violations"]}
    assert fields == {"changes", "onlyThese", "trace", "rule"} | also
    assert backend.requests == []


async def test_a_circuit(client: Client, backend: StandIn) -> None:
    body = {"question": QUESTION | {"baseline": ["When John gave to"]}, "atMost": 6, "faithfulness": 0.8}
    _, lines = await asked(client, "circuit", body)
    steps = [one for one in lines if one["event"] == "step"]
    assert [one["calls"] for one in steps] == list(range(2, len(steps) + 2))
    assert 1 < len(steps) <= 6
    assert all(len(one["nodes"]) == one["size"] for one in steps)
    last = lines[-1]
    assert (last["event"], last["isFaithful"]) == ("circuit", True)
    assert last["faithfulness"] >= 0.8
    assert last["nodes"] == steps[-1]["nodes"]
    assert [one["size"] for one in last["path"]] == sorted(one["size"] for one in last["path"])


async def test_what_a_circuit_is_wanted_for_makes_sense(client: Client) -> None:
    question = QUESTION | {"loss": {"name": "probs"}}
    response, _ = await asked(client, "circuit", {"question": question, "atMost": 0, "faithfulness": 2})
    assert [one["field"] for one in response.json()["violations"]] == ["loss", "faithfulness", "atMost"]


async def test_a_neuron(client: Client, backend: StandIn) -> None:
    body = {"node": "L1.neuron.5", "question": QUESTION, "texts": ["a", "b"]}
    _, lines = await asked(client, "node", body)
    node = lines[0]
    assert (node["event"], node["spelling"], node["type"]) == ("node", "L1 neuron 5", "mlp_neuron")
    assert node["writes"][0][0] == ["' Mary'", 4.0]
    assert node["reads"][1][0] == ["' John'", -1.0]
    asked_first = next(one for one in backend.requests if isinstance(one, InferRequest))
    passes = [one.inference_spec.ablation_specs[0].index.pass_type for one in asked_first.sub_requests]
    assert passes == [PASS_TYPE_FORWARD, PASS_TYPE_BACKWARD]
    assert [(one.get("run"), one.get("text")) for one in lines[1:]] == [(0, None), (None, 0), (None, 1)]
    assert lines[1]["values"] == [0.5, -1.25, None, 3.0]
    assert lines[1]["attendedTo"] is None


async def test_a_latent_has_its_label_and_link(client: Client) -> None:
    for address in ("L1.mlp_autoencoder_latent.9", "L1 mlp latent 9"):
        _, (node,) = await asked(client, "node", {"node": address})
        assert (node["label"], node["link"]) == ("names", "https://example.org/9")


async def test_a_head_shows_where_it_is_used(client: Client, backend: StandIn) -> None:
    _, lines = await asked(client, "node", {"node": "L1.head.2", "question": QUESTION})
    assert (lines[0]["writes"], lines[0]["reads"]) == (None, None)
    assert lines[1]["attendedTo"] == [0, 0, 0, 0]
    uses = lines[-1]
    assert uses["event"] == "uses"
    assert [one["spelling"] for one in uses["nodes"]] == ["L1 head 2 @ 3 -> 1"]
    assert uses["scalars"]["direct_effect"] == [4.0]
    assert uses["lists"][0]["writes"][0][0] == ["' Mary'", 4.0]
    request = backend.requests[-1]
    assert isinstance(request, DebugRequest)
    assert request.sub_requests[0].top_and_bottom_k == 50


@pytest.mark.parametrize(
    "node",
    ["L9.head.2", "L1.head.6", "L1.neuron.96", "L1.layer.0", "nothing", "", None, 3, "L1.whole_head.1"],
)
async def test_nodes_that_have_no_page(client: Client, node: Any) -> None:
    response, _ = await asked(client, "node", {"node": node})
    assert response.status_code == 400
    assert "node" in {one["field"] for one in response.json()["violations"]}


async def test_texts_that_cannot_be_read(client: Client, backend: StandIn) -> None:
    response, _ = await asked(client, "node", {"node": "L1.head.2", "texts": ["a", ""] + ["b"] * 31})
    assert [one["field"] for one in response.json()["violations"]] == ["texts[1]", "texts"]
    backend.error = errors.InvalidRequest(
        [FieldViolation("sub_requests[0].inference_spec.prompt", "is too long", "PROMPT_TOO_LONG")]
    )
    _, lines = await asked(client, "node", {"node": "L1.head.2", "texts": ["a"]})
    assert lines[-1]["violations"] == [
        {"field": "texts[0]", "description": "is too long", "reason": "PROMPT_TOO_LONG"}
    ]


def test_numbers_are_short() -> None:
    numbers = [0.0, 1.0, 0.123456, -123456.0, 1e-30, 1.00004e30, 5e-324, np.nan, np.inf, -np.inf]
    expected = [0.0, 1.0, 0.1235, -123500.0, 1e-30, 1e30]
    found = rounded(np.array(numbers))
    assert found[:4] == expected[:4]
    assert found[4:6] == pytest.approx(expected[4:6], rel=1e-12)
    assert found[7:] == [None, None, None]
    assert found[6] == pytest.approx(0.0, abs=1e-300)


async def test_examples_where_a_server_has_them(backend: StandIn, client: Client) -> None:
    _, (line,) = await asked(client, "model", {})
    assert line["model"]["hasExamples"] is False
    application = gateway(backend, examples=FOLDER)
    async with Client(transport=httpx.ASGITransport(application), base_url="http://test") as knowing:
        _, (line,) = await asked(knowing, "model", {})
        assert line["model"]["hasExamples"] is True
        _, lines = await asked(knowing, "node", {"node": "L1.neuron.2", "texts": ["a"]})
        assert [one["event"] for one in lines] == ["node", "examples", "activations"]
        assert lines[1]["examples"][0]["peak"] == 2
        _, lines = await asked(knowing, "node", {"node": "L0.neuron.0"})
        assert [one["event"] for one in lines] == ["node"]


async def test_a_loss_without_targets(client: Client, backend: StandIn) -> None:
    question = {"prompt": "When Mary gave to", "baseline": ["x"], "loss": {"name": "kl_from_baseline"}}
    _, (line,) = await asked(client, "lens", {"question": question | {"onlyThese": ["L0 mlp"]}})
    assert line["wanted"] == []
    spec = last_request(backend).sub_requests[1].inference_spec
    assert spec.loss_fn_config.name == LOSS_FN_NAME_KL_FROM_BASELINE
