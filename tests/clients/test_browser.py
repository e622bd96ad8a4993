"""The example page in a real browser, which reaches a real server through Envoy. Run by `make clients`."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.vectors.make import VECTOR
from tests.clients.cancellations import cancelled_calls, has_one_more
from tests.integration.browser import Page, opened
from tests.running_server import RunningServer

pytestmark = [pytest.mark.clients, pytest.mark.slow]
PAGE = VECTOR.parents[1] / "browser"
ENVOY = Path(sys.executable).with_name("envoy")
START_SECONDS = 30.0
ANSWER_SECONDS = 60.0


@pytest.fixture(scope="module")
def proxy(small_chunks: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of Envoy with the example's configuration, but for the ports."""
    folder = tmp_path_factory.mktemp("envoy")
    port = free_port()
    configuration = (PAGE / "envoy.yaml").read_text()
    for example, used in (("port_value: 8080", port), ("port_value: 50051", small_chunks.port)):
        assert configuration.count(example) == 1
        configuration = configuration.replace(example, f"port_value: {used}")
    (folder / "envoy.yaml").write_text(configuration)
    with (folder / "envoy.log").open("wb") as log:
        command = [ENVOY, "-c", folder / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"]
        process = subprocess.Popen(command, stderr=log)
    try:
        wait_until_open(port, process, folder / "envoy.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves the examples and says nothing."""

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, with the vector file beside it, and a copy with a wrong number in it."""
    folder = tmp_path_factory.mktemp("site") / "page"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules"))
    vector = json.loads(VECTOR.read_text())
    (folder / "debug.json").write_text(json.dumps(vector))
    vector["answers"][1]["sums"][-1]["values"][-1] += 0.001
    (folder / "wrong.json").write_text(json.dumps(vector))
    handler = functools.partial(Files, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def page() -> Iterator[Page]:
    with opened(PAGE / "index.html") as page:
        yield page


def explain(page: Page, site: str, proxy: str, vector: str) -> str:
    """Visits the page, clicks its button, and returns what its last line says at the end."""
    page.complaints.clear()  # of the file that the browser opened with, which finds no server
    page.send("Page.navigate", url=f"{site}/?proxy={proxy}&vector={vector}")
    loaded = "document.readyState === 'complete' ? done() : addEventListener('load', () => done())"
    page.evaluate(f"new Promise((done) => {loaded})")
    page.evaluate("document.querySelector('button').click()")
    deadline = time.monotonic() + ANSWER_SECONDS
    while not (status := text(page, "#status")):
        assert time.monotonic() < deadline, "the page did not come to an end"
        time.sleep(0.1)
    return status


def text(page: Page, selector: str) -> str:
    shown: str = page.evaluate(f"document.querySelector({selector!r}).innerText")
    return shown


def test_page_explains(
    page: Page, site: str, proxy: str, small_chunks: RunningServer, tmp_path: Path
) -> None:
    vector = json.loads(VECTOR.read_text())
    n_cancelled = cancelled_calls(small_chunks)
    status = explain(page, site, proxy, "debug.json")
    page.screenshot(tmp_path / "page.png")
    assert status == "All as in debug.json."
    assert text(page, "#model") == "tiny-a: 3 layers of 4 heads"
    rows = text(page, "#nodes").splitlines()
    assert [row.split("\t")[-1] for row in rows] == [
        one["node"] for one in vector["answers"][0]["nodes"][:10]
    ]
    for one in vector["refused"]["fieldViolations"]:
        assert one["field"] in text(page, "#violations")
    assert text(page, "#cancelled") == "The call ended with CANCELLED."
    assert page.complaints == []
    assert has_one_more(small_chunks, n_cancelled)


def test_page_sees_a_number_that_is_wrong(page: Page, site: str, proxy: str) -> None:
    assert explain(page, site, proxy, "wrong.json").startswith("Failed: ")
