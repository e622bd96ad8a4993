"""The workbench of a real server that asks for tokens: its page, its questions, and what ends them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from tdb_client import Client

from tests.integration.browser import CHROMIUM
from tests.integration.tokens import TOKENS, client_of
from tests.integration.workbench_page import workbench
from tests.running_server import RunningServer

PROMPT, BASELINE = "the cat sat on the", "the cat cat on the"
QUESTION = {"prompt": PROMPT, "target": [" the"], "distractor": [" and"], "baseline": [BASELINE]}
SECONDS = 20.0


@pytest.fixture(scope="module")
def http(guarded: RunningServer) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {TOKENS['alice']}"}
    url = f"http://127.0.0.1:{guarded.http_port}"
    with httpx.Client(base_url=url, headers=headers, timeout=SECONDS) as client:
        yield client


def asked(http: httpx.Client, route: str, body: Any) -> list[dict[str, Any]]:
    response = http.post(f"v1/workbench/{route}", json=body)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_the_page_needs_no_token_and_its_questions_do(guarded: RunningServer, http: httpx.Client) -> None:
    url = f"http://127.0.0.1:{guarded.http_port}"
    assert f"the workbench is at {url}/\n" in guarded.log.read_text()
    page = httpx.get(url, headers={"accept": "text/html"})
    assert "<script" in page.text
    assert httpx.get(f"{url}/workbench/workbench.js").status_code == 200
    assert httpx.post(f"{url}/v1/workbench/model", json={}).status_code == 401
    (line,) = asked(http, "model", {})
    assert line["model"]["name"] == "tiny-a"


def test_a_question_is_answered_as_the_client_is(guarded: RunningServer, http: httpx.Client) -> None:
    lines = asked(http, "debug", {"question": QUESTION | {"changes": ["L2 head 2 @ -1"]}})
    with client_of(guarded, "alice") as client:
        result = client.debug(PROMPT, " the", " and", baseline=BASELINE, ablate="L2 head 2 @ -1")
    before, after = lines[-1]["data"]["runs"]
    assert after["value"] == pytest.approx(result.loss, rel=1e-4)
    assert before["value"] != after["value"]
    assert [one["event"] for one in lines[:1] + lines[-1:]] == ["started", "answer"]
    assert lines[-2]["done"] == lines[-2]["of"] == len(lines) - 3


def test_pictures(http: httpx.Client) -> None:
    (attention,) = asked(http, "attention", {"question": QUESTION, "layer": 1, "head": 2})
    assert all(sum(row) == pytest.approx(1.0, abs=1e-3) for row in attention["runs"][0]["pattern"])
    (lens,) = asked(http, "lens", {"question": QUESTION})
    assert [row["layer"] for row in lens["runs"][0]["resid_post_mlp"]] == [None, 0, 1, 2]
    assert [one["quoted"] for one in lens["wanted"]] == ["' the'", "' and'"]
    (edges,) = asked(http, "edges", {"question": QUESTION, "topK": 10})
    assert len(edges["edges"]) == 10
    *steps, circuit = asked(http, "circuit", {"question": QUESTION, "atMost": 4})
    assert (circuit["event"], circuit["nComponents"]) == ("circuit", 15)
    assert [one["calls"] for one in steps] == list(range(2, 2 + len(steps)))


def test_sums_by_layer_and_token_are_those_of_all_heads(http: httpx.Client) -> None:
    question = QUESTION | {"changes": ["L2 head 2 @ -1"]}
    *_, answer = asked(http, "debug", {"question": question})
    (layers,) = asked(http, "layers", {"question": question})
    assert len(layers["runs"]) == 2
    for run, found in zip(answer["data"]["runs"], layers["runs"], strict=True):
        for scalar, sums in found.items():
            by_token = [sum(column) for column in zip(*sums["heads"], strict=True)]
            largest = max(abs(one) for row in sums["heads"] for one in row)
            assert len(sums["heads"]) == len(sums["mlps"]) == 3
            assert sums["embedding"] == pytest.approx(run["sums"][scalar]["embedding"], rel=2e-3, abs=1e-4)
            if scalar == "direct_effect":  # the others of whole heads are not those of their pairs
                assert by_token == pytest.approx(run["sums"][scalar]["heads_from"], abs=2e-3 * largest)


def test_nodes(http: httpx.Client) -> None:
    node, activations = asked(http, "node", {"node": "L1.neuron.5", "texts": [PROMPT]})
    top, bottom = node["writes"]
    assert top[0][1] > 0 > bottom[0][1]
    assert node["reads"][0][0][1] > node["reads"][1][0][1]
    assert len(activations["values"]) == len(activations["tokens"])


def test_fields_at_fault_are_those_of_the_question(http: httpx.Client) -> None:
    wrong = QUESTION | {"target": [" the the"], "changes": ["L0 head 99 @ -1"], "baseline": ["the"]}
    response = http.post("/v1/workbench/debug", json={"question": wrong})
    assert response.status_code == 400
    fields = {one["field"] for one in response.json()["violations"]}
    assert fields == {"target[0]", "changes[0]", "baseline[0]"}


def test_going_away_ends_a_search(guarded: RunningServer, http: httpx.Client) -> None:
    body = {"question": QUESTION, "faithfulness": 1.0}
    with http.stream("POST", "/v1/workbench/circuit", json=body) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + SECONDS
    told = 'method="POST /v1/workbench/circuit" status=CANCELLED'
    while told not in guarded.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_page_on_the_users_machine(guarded: RunningServer) -> None:
    with (
        Client(f"127.0.0.1:{guarded.port}", token=TOKENS["bob"]) as client,
        client.workbench(show=False) as page,
        httpx.Client(base_url=page.address, timeout=SECONDS) as http,
    ):
        assert "<script" in http.get("").text
        lines = asked(http, "debug", {"question": QUESTION})
    assert lines[-1]["event"] == "answer"


@pytest.fixture
def notebook() -> Iterator[Callable[[str], str]]:
    """Serves what a notebook shows below a cell, from an address of its own."""
    shown: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = f"<!doctype html><title>notebook</title>{shown[-1]}".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def show(element: str) -> str:
            shown.append(element)
            return f"http://127.0.0.1:{server.server_port}/"

        yield show
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_the_page_of_a_notebook_asks_in_a_browser(
    guarded: RunningServer, notebook: Callable[[str], str]
) -> None:
    """In a frame it may load, and by itself it answers; the user types no token."""
    with (
        Client(f"127.0.0.1:{guarded.port}", token=TOKENS["alice"]) as client,
        client.workbench(show=False) as page,
        workbench(page.address) as bench,
    ):
        bench.write("#prompt-text", PROMPT)
        bench.write("#target-0", " the")
        bench.write("#distractor-0", " and")
        if bench.count("#baseline-0"):
            bench.click("#baseline .remove")
        bench.run()
        assert len(bench.values()) == 1
        assert bench.page.complaints == []
        bench.page.requests.clear()
        bench.page.open(notebook(page.frame()))
        deadline = time.monotonic() + SECONDS
        while f"{page.address}v1/workbench/model" not in bench.page.requests:
            assert time.monotonic() < deadline, bench.page.requests
            bench.page.evaluate("new Promise((done) => setTimeout(done, 50))")
        assert bench.page.complaints == []
