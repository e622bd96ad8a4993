"""Two fronts and one cluster that neither of them started."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.requests import LONG_PROMPT, debug_request, heavy_request
from tests.chaos.vitals import wait_until
from tests.chaos.wire_answers import answer_of_response, difference
from tests.ray.conftest import FLAGS
from tests.ray.shared_ray import START_SECONDS, SharedRay
from tests.running_server import TINY_MODEL, start, stop

N_CALLERS = 4
N_CALLS = 10


def test_fronts_share_replicas_and_come_and_go(
    shared_ray: SharedRay, application: str, replicas: Callable[[], list[int]], tmp_path_factory
):
    where = ("--ray-address", shared_ray.address, "--ray-application", application)
    flags = (*FLAGS, *where, "--workers", "2")
    first = start(tmp_path_factory.mktemp("first"), *flags)
    second = start(tmp_path_factory.mktemp("second"), *flags)
    try:
        wait_until(lambda: len(replicas()) == 2, START_SECONDS)
        before = replicas()
        request = debug_request(LONG_PROMPT, k=20)
        expected = answer_of_response(first.debugger.Debug(request))

        # Both number their calls from 1: what one cancels must not touch the other's.
        def cancel_some() -> None:
            for _ in range(N_CALLS):
                stream = first.debugger.StreamDebug(heavy_request())
                time.sleep(0.2)
                stream.cancel()

        def call_some() -> list[str | None]:
            answers = [second.debugger.Debug(request, timeout=60) for _ in range(N_CALLS)]
            return [difference(answer_of_response(one), expected) for one in answers]

        with ThreadPoolExecutor(N_CALLERS + 1) as callers:
            cancelling = callers.submit(cancel_some)
            calling = [callers.submit(call_some) for _ in range(N_CALLERS)]
            assert [one.result() for one in calling] == [[None] * N_CALLS] * N_CALLERS
            cancelling.result()

        assert first.terminate() == 0
        assert difference(answer_of_response(second.debugger.Debug(request)), expected) is None
        first = start(tmp_path_factory.mktemp("again"), *flags)
        assert difference(answer_of_response(first.debugger.Debug(request)), expected) is None
        assert replicas() == before, "the model stays loaded while fronts come and go"
        _another_model_is_refused(where)
    finally:
        stop(first)
        stop(second)


def _another_model_is_refused(where: Sequence[str]) -> None:
    other = TINY_MODEL.parent / "tiny-llama-c"
    flags = ("--pool", "ray", *where, "--model", str(other), "--port", "0")
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", *flags], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "give another --ray-application" in ended.stderr.splitlines()[-1]
