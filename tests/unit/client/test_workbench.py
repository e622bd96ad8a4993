"""The workbench on the user's own machine, over the fake service."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
import types
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tdb_client import AsyncClient, Client
from tdb_client.cli import main
from tdb_client.workbench.local_server import Workbench

from tests.unit.client.fake_service import BUSY, REFUSED, SLOW, TOKENS, FakeService

Fake = tuple[str, FakeService]
QUESTION = {"prompt": "When Mary gave to", "target": [" Mary"], "distractor": [" John"]}
JSON = {"Content-Type": "application/json"}
SECONDS = 5.0


@pytest.fixture
def page(fake: Fake) -> Iterator[Workbench]:
    with Client(fake[0], token="secret") as client, client.workbench(show=False) as opened:
        yield opened


def send(
    page: Workbench, method: str, path: str, body: Any = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request below the page's address, in a connection of its own."""
    address = urlsplit(page.address)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
    content = None if body is None else json.dumps(body)
    told = (JSON if body is not None else {}) | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    connection.request(method, path if path.startswith("/") else address.path + path, content, told)
    response = connection.getresponse()
    found = response, response.read()
    connection.close()
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    return found


def asked(page: Workbench, route: str, body: Any) -> tuple[int, list[dict[str, Any]]]:
    response, content = send(page, "POST", f"v1/workbench/{route}", body)
    return response.status, [json.loads(line) for line in content.splitlines()]


def test_the_page_and_its_files(page: Workbench) -> None:
    response, content = send(page, "GET", "")
    assert response.status == 200
    assert b'src="workbench/workbench.js"' in content
    policy = response.getheader("Content-Security-Policy", "")
    assert "script-src 'self'" in policy
    assert "frame-ancestors *" in policy
    _, content = send(page, "GET", "node/L1.head.2")
    assert b'src="../workbench/workbench.js"' in content
    response, content = send(page, "GET", "report/report.css")
    assert response.getheader("Content-Type") == "text/css; charset=utf-8"
    etag = response.getheader("ETag", "")
    again, nothing = send(page, "GET", "report/report.css", If_None_Match=etag)
    assert (again.status, nothing) == (304, b"")
    head, nothing = send(page, "HEAD", "report/report.css")
    assert (head.getheader("Content-Length"), nothing) == (str(len(content)), b"")


@pytest.mark.parametrize(
    "path",
    ["report/data.py", "workbench/../report/report.css", "workbench/", "x", "node", "node/", "node/a/b"],
)
def test_other_paths(page: Workbench, path: str) -> None:
    assert send(page, "GET", path)[0].status == 404


def test_nobody_else_finds_it(page: Workbench) -> None:
    for path in ("/", "/workbench/workbench.js", "/other/", "/%e4/", "/?x=1", "/v1/workbench/model"):
        assert send(page, "GET", path)[0].status == 404
    assert send(page, "POST", "/v1/workbench/model", {})[0].status == 404
    assert send(page, "GET", "", Host="evil.example")[0].status == 421
    assert send(page, "POST", "v1/workbench/model", {}, Origin="http://evil.example")[0].status == 421
    origin = "http://" + urlsplit(page.address).netloc
    assert send(page, "POST", "v1/workbench/model", {}, Origin=origin)[0].status == 200


def test_questions_go_to_the_clients_server(page: Workbench, fake: Fake) -> None:
    _, (line,) = asked(page, "model", {})
    assert line["model"]["name"] == "tiny"
    status, lines = asked(page, "debug", {"question": QUESTION | {"changes": ["L1 head 2 @ -1"]}})
    assert status == 200
    assert [lines[0]["event"], lines[1]["event"], lines[-1]["event"]] == ["started", "progress", "answer"]
    assert [one["value"] for one in lines[-1]["data"]["runs"]] == [3.0, 2.5]
    assert fake[1].metadata[-1]["authorization"] == "Bearer secret"


def test_numbers_for_pairs_are_sent(page: Workbench, fake: Fake) -> None:
    _, (line,) = asked(page, "edges", {"question": QUESTION | {"baseline": ["When John gave to"]}})
    assert [one["score"] for one in line["edges"]] == [-2.5, 0.5]


@pytest.mark.parametrize(
    ("prompt", "status", "fields"),
    [(REFUSED, 400, ["prompt", "target"]), (BUSY, 429, []), ("", 400, ["prompt"])],
)
def test_errors(page: Workbench, prompt: str, status: int, fields: list[str]) -> None:
    found, (body,) = asked(page, "debug", {"question": QUESTION | {"prompt": prompt}})
    assert found == status
    assert body["message"]
    assert [one["field"] for one in body["violations"]] == fields


def test_however_much_is_wrong_the_answer_is_short(page: Workbench) -> None:
    status, (body,) = asked(page, "debug", {"question": QUESTION | {"changes": ["nonsense"] * 50_000}})
    assert status == 400
    assert len(body["violations"]) == 100


def test_an_error_in_the_middle_is_the_last_line(page: Workbench, fake: Fake) -> None:
    fake[1].n_broken_off = 1
    status, lines = asked(page, "debug", {"question": QUESTION})
    assert status == 200
    assert (lines[0]["event"], lines[-1]["event"]) == ("started", "error")


def test_a_server_that_is_not_there() -> None:
    with Client("127.0.0.1:1", timeout=SECONDS) as client, client.workbench(show=False) as page:
        status, (body,) = asked(page, "model", {})
    assert status == 503
    assert "no server answers" in body["message"]


def test_bodies_that_cannot_be_read(page: Workbench) -> None:
    address = urlsplit(page.address).path + "v1/workbench/debug"
    for headers, status in (({}, 415), (JSON, 400), (JSON | {"Content-Length": str(2**30)}, 413)):
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(page.address).port, timeout=SECONDS)
        connection.request("POST", address, b"{", headers)
        assert connection.getresponse().status == status
        connection.close()
    assert asked(page, "nothing", {})[0] == 404


def test_going_away_cancels(page: Workbench, fake: Fake) -> None:
    body = json.dumps({"question": QUESTION | {"prompt": SLOW}}).encode()
    address = urlsplit(page.address)
    head = (
        f"POST {address.path}v1/workbench/debug HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", address.port or 0)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: fake[1].requests)
        assert fake[1].streams_were_whole == []
    wait_until(lambda: fake[1].streams_were_whole)
    assert fake[1].streams_were_whole == [False]


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_is_shown_in_the_notebook_or_the_browser(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    with Client(fake[0]) as client, client.workbench() as page:
        (file,) = (Path(urlsplit(one).path) for one in opened)  # and not the address, which others could see
        assert file.stat().st_mode & 0o077 == 0
        assert f'content="0; url={page.address}"' in file.read_text()
        assert repr(page) == f"<Workbench at {page.address}>"
        displayed: list[dict[str, str]] = []
        shell = types.SimpleNamespace(kernel=object())
        ipython = types.SimpleNamespace(get_ipython=lambda: shell)
        output = types.SimpleNamespace(display=lambda shown, raw: displayed.append(shown if raw else {}))
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", output)
        page.show()
    assert len(opened) == 1
    assert not file.exists()
    assert f'src="{page.address}"' in displayed[0]["text/html"]
    assert page.address in displayed[0]["text/plain"]
    assert repr(page) == "<Workbench at no address: closed>"
    page.close()  # once more


async def test_an_async_client_opens_it_too(fake: Fake) -> None:
    async with AsyncClient(fake[0], priority="sweep") as client:
        with client.workbench(show=False) as page:
            assert urlsplit(page.address).hostname == "127.0.0.1"


def test_the_command(fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def wait(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("tdb_client.cli.workbench_command.Event", Interrupted)
    assert main(["workbench", "--server", fake[0], "--no-browser"]) == 0
    assert f"the workbench of {fake[0]} is at http://127.0.0.1:" in capsys.readouterr().out
    assert main(["workbench", "--server", "127.0.0.1:1"]) == 1
    assert "no server answers" in capsys.readouterr().err


def test_every_token_of_the_fake_is_shown(page: Workbench) -> None:
    _, (line,) = asked(page, "tokens", {"text": "x"})
    assert [one["text"] for one in line["tokens"]] == list(TOKENS)
