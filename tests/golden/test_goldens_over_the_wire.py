"""The reference's answers and refusals against a real server's, over gRPC and through the JSON API."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tdb_server.gateway.json_requests import debug_request, infer_request, single_infer_request
from tdb_server.gateway.json_responses import batched_response, single_response
from tdb_server.gateway.json_text import json_pieces

from tests.golden.compare import differences
from tests.golden.rounding_noise import without_rounding_noise
from tests.running_server import RunningServer, start, stop

GOLDENS = Path(__file__).parent
FIXTURES = GOLDENS.parent / "fixtures"
FILES = sorted(GOLDENS.glob("*/*.json.gz"))
REFUSED = json.loads((GOLDENS / "refused.json").read_text())
Held = tuple[str, tuple[str, ...]]
"""What a server holds: the fixture, and the sites of its autoencoders."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningServer]]:
    """The server that holds a fixture with autoencoders of some sites; one at a time."""
    running: dict[Held, RunningServer] = {}

    def holding(fixture: str, sites: tuple[str, ...]) -> RunningServer:
        if (fixture, sites) not in running:
            for one in running.values():
                stop(one)
            running.clear()
            folder = FIXTURES / fixture
            flags = [f"--autoencoder={folder / 'autoencoders' / site}" for site in sites]
            running[fixture, sites] = start(
                tmp_path_factory.mktemp("server"),
                *("--http-port", "0", "--max-response-bytes", "64MiB", *flags),
                model=folder,
            )
        return running[fixture, sites]

    yield holding
    for one in running.values():
        stop(one)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as one:
        yield one


def read(path: Path) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return golden


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name.removesuffix('.json.gz')}"


BY_WHAT_IS_HELD = sorted(FILES, key=lambda path: (path.parent.name, read(path)["sites"], path.name))


def over_grpc(server: RunningServer, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    match endpoint:
        case "batched_tdb":
            response: Any = server.debugger.Debug(debug_request(body), timeout=60)
        case "batched":
            response = server.debugger.Infer(infer_request(body), timeout=60)
        case _:
            response = server.debugger.Infer(single_infer_request(endpoint, body), timeout=60)
    body = batched_response(response) if endpoint.startswith("batched") else single_response(response)
    return json.loads(b"".join(json_pieces(body)))


def untimed(body: dict[str, Any]) -> dict[str, Any]:
    """An answer less the time it took."""
    for one in body.get("inferenceSubResponses", [{"inferenceResponse": body}]):
        del one["inferenceResponse"]["inferenceAndTokenData"]["inferenceTime"]
    return body


@pytest.mark.parametrize("refused", REFUSED, ids=lambda one: one["case"])
def test_refusals_agree(refused: dict[str, Any], servers: Any, http: httpx.Client) -> None:
    server = servers(refused["fixture"], ())
    with pytest.raises(grpc.RpcError) as raised:
        over_grpc(server, refused["endpoint"], refused["request"])
    assert raised.value.code().name == refused["grpc_status"]
    assert refused["field"] in violated_fields(raised.value)
    answer = http.post(f"http://127.0.0.1:{server.http_port}/{refused['endpoint']}", json=refused["request"])
    assert answer.status_code == refused["http_status"]
    assert refused["field"] in answer.json()["message"]


@pytest.mark.parametrize("path", BY_WHAT_IS_HELD, ids=name)
def test_answers_agree_with_golden(path: Path, servers: Any, http: httpx.Client) -> None:
    golden = read(path)
    server = servers(golden["fixture"], tuple(golden["sites"]))
    body = over_grpc(server, golden["endpoint"], golden["request"])
    answer = http.post(f"http://127.0.0.1:{server.http_port}/{golden['endpoint']}", json=golden["request"])
    assert answer.status_code == 200, answer.text
    assert differences(without_rounding_noise(golden, body), body) == []
    # The same to the last digit, so that it need not be compared once more.
    assert untimed(answer.json()) == untimed(body)


def violated_fields(error: grpc.RpcError) -> list[str]:
    """The paths of the fields at fault, from the error's details."""
    status = rpc_status.from_call(error)
    fields: list[str] = []
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            fields += [one.field for one in bad_request.field_violations]
    return fields
