"""The reference's answers and refusals through every way there is: gRPC, gRPC-Web and JSON."""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from tdb_client.connection import Connection
from tdb_server.gateway.json_requests import debug_request, infer_request, single_infer_request
from tdb_server.gateway.json_responses import batched_response, single_response
from tdb_server.gateway.json_text import json_pieces
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugResponse, InferResponse
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.cluster.fronts import SERVICE, running_fronts
from tests.cluster.grpc_web import web_call
from tests.cluster.pools import Pool
from tests.cluster.ways import Cluster, Way, running_cluster
from tests.golden.compare import differences
from tests.golden.rounding_noise import without_rounding_noise

TESTS = Path(__file__).parents[1]
GOLDENS, FIXTURES = TESTS / "golden", TESTS / "fixtures"
MAX_RECEIVE_BYTES = 64 * 2**20
N_ANSWERS = 6
"""To each golden: gRPC three ways, JSON two, gRPC-Web one."""
Golden = dict[str, Any]
Held = tuple[str, tuple[str, ...]]
"""What a server holds: the fixture, and the sites of its autoencoders."""


def goldens_by_what_is_held() -> dict[Held, dict[str, Golden]]:
    found: dict[Held, dict[str, Golden]] = defaultdict(dict)
    for path in sorted(GOLDENS.glob("*/*.json.gz")):
        golden = json.loads(gzip.decompress(path.read_bytes()))
        found[golden["fixture"], tuple(golden["sites"])][path.name.removesuffix(".json.gz")] = golden
    return found


GROUPS = goldens_by_what_is_held()
ON_RAY: list[Held] = [
    ("tiny-a", ()),
    ("tiny-a", ("mlp_post_act",)),
    ("tiny-llama-c", ("resid_delta_mlp", "resid_delta_attn")),
]
"""Each takes Ray some ten seconds. `make ray-test` has all the others, without a balancer."""
CASES = [("local", held) for held in GROUPS] + [("ray", held) for held in ON_RAY]


def case_name(part: str | Held) -> str:
    return part if isinstance(part, str) else "-".join((part[0], *part[1]))


@pytest.mark.parametrize(("pool", "held"), CASES, indirect=["pool"], ids=case_name)
def test_answers(held: Held, pool: Pool, tmp_path: Path) -> None:
    fixture, sites = held
    folder = FIXTURES / fixture
    flags = pool.flags(1, application="-".join((fixture, *sites)))
    flags += tuple(f"--autoencoder={folder / 'autoencoders' / site}" for site in sites)
    faults: list[str] = []
    n_answers = 0
    with (
        running_fronts(tmp_path, [flags] * 2, folder) as fronts,
        running_cluster(tmp_path, fronts) as running,
        all_ways(running) as ask,
    ):
        for name, golden in GROUPS[held].items():
            for where, body in ask(golden):
                n_answers += 1
                expected = without_rounding_noise(golden, body)
                faults += [f"{name} through {where}: {one}" for one in differences(expected, body)]
        n_calls = [front.n_calls("Debug") + front.n_calls("Infer") for front in fronts]
    what = f"{pool.kind}, {fixture} {sites}: {len(GROUPS[held])} goldens"
    print(f"\n{what}, {n_answers} answers by {n_calls} calls")
    assert faults == []
    assert min(n_calls) > 0
    assert n_answers == N_ANSWERS * len(GROUPS[held])


@contextmanager
def all_ways(cluster: Cluster) -> Iterator[Callable[[Golden], list[tuple[str, dict[str, Any]]]]]:
    """Asks for one golden each way at the same time, and gives the answers with the way each took."""
    with ExitStack() as opened:
        http = opened.enter_context(httpx.Client(timeout=60))
        stubs = {
            way.name: TransformerDebuggerServiceStub(
                opened.enter_context(Connection(way.target, max_receive_bytes=MAX_RECEIVE_BYTES).open())
            )
            for way in cluster.ways.values()
        }
        threads = opened.enter_context(ThreadPoolExecutor(N_ANSWERS))

        def ask(golden: Golden) -> list[tuple[str, dict[str, Any]]]:
            method, message, kind, to_json = translation(golden["endpoint"], golden["request"])

            def by_grpc(stub: TransformerDebuggerServiceStub) -> dict[str, Any]:
                return as_read(to_json(getattr(stub, method)(message, timeout=60)))

            def by_json(port: int) -> dict[str, Any]:
                url = f"http://127.0.0.1:{port}/{golden['endpoint']}"
                return http.post(url, json=golden["request"]).raise_for_status().json()

            def by_grpc_web() -> dict[str, Any]:
                web = web_call(cluster.envoy.port, f"{SERVICE}/{method}", message)
                assert web["grpc-status"] == "0"
                return as_read(to_json(kind.FromString(web.messages[0])))

            asked = {f"{name}, gRPC": threads.submit(by_grpc, stub) for name, stub in stubs.items()}
            asked |= {
                f"{way.name}, JSON": threads.submit(by_json, way.json_port)
                for way in cluster.ways.values()
                if way.json_port is not None
            }
            asked["envoy, gRPC-Web"] = threads.submit(by_grpc_web)
            return [(where, one.result()) for where, one in asked.items()]

        yield ask


def as_read(body: Any) -> dict[str, Any]:
    """A body as clients have it."""
    read: dict[str, Any] = json.loads(b"".join(json_pieces(body)))
    return read


def translation(endpoint: str, body: dict[str, Any]) -> tuple[str, Any, Any, Callable[[Any], Any]]:
    """The method, the request, the kind of the response, and what makes JSON of it."""
    match endpoint:
        case "batched_tdb":
            return "Debug", debug_request(body), DebugResponse, batched_response
        case "batched":
            return "Infer", infer_request(body), InferResponse, batched_response
        case _:
            return "Infer", single_infer_request(endpoint, body), InferResponse, single_response


REFUSED = [one for one in json.loads((GOLDENS / "refused.json").read_text()) if one["fixture"] == "tiny-a"]


def test_refusals(cluster: Cluster) -> None:
    for refused in REFUSED:
        for way in cluster.ways.values():
            _is_refused(way, refused)
        method, message, _, _ = translation(refused["endpoint"], refused["request"])
        web = web_call(cluster.envoy.port, f"{SERVICE}/{method}", message)
        assert int(web["grpc-status"]) == grpc.StatusCode[refused["grpc_status"]].value[0]
        details = web["grpc-status-details-bin"]
        status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
        assert refused["field"] in _violated_fields(status)


def _is_refused(way: Way, refused: dict[str, Any]) -> None:
    method, message, _, _ = translation(refused["endpoint"], refused["request"])
    with Connection(way.target).open() as channel, pytest.raises(grpc.RpcError) as raised:
        getattr(TransformerDebuggerServiceStub(channel), method)(message, timeout=60)
    assert raised.value.code().name == refused["grpc_status"]
    assert refused["field"] in _violated_fields(rpc_status.from_call(raised.value))
    if way.json_port is not None:
        url = f"http://127.0.0.1:{way.json_port}/{refused['endpoint']}"
        answer = httpx.post(url, json=refused["request"], timeout=60)
        assert answer.status_code == refused["http_status"]
        assert refused["field"] in answer.json()["message"]


def _violated_fields(status: Any) -> list[str]:
    fields: list[str] = []
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            fields += [one.field for one in bad_request.field_violations]
    return fields


def test_browsers_may_call_from_their_own_machine(cluster: Cluster) -> None:
    """The preflight that a browser sends, then the call itself."""
    url = f"http://127.0.0.1:{cluster.envoy.port}/{SERVICE}/Debug"
    for origin, is_welcome in (("http://localhost:5173", True), ("https://elsewhere.example", False)):
        preflight = httpx.options(
            url,
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "content-type,x-grpc-web",
            },
        )
        assert (preflight.headers.get("access-control-allow-origin") == origin) == is_welcome
    body = {"subRequests": [{"prompt": "the cat", "targetTokens": [" sat"]}]}
    web = web_call(
        cluster.envoy.port, f"{SERVICE}/Debug", debug_request(body), origin="http://localhost:5173"
    )
    assert "grpc-status-details-bin" in web.headers["access-control-expose-headers"]
