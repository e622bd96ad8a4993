"""A worker killed on the GPU is replaced, and takes its memory with it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.chaos.metrics_page import reading
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import wait_until
from tests.chaos.wire_answers import answer_of_response, difference
from tests.gpu.memory import SLACK_BYTES, taken_bytes
from tests.running_server import StartServer, stop

N_CALLERS = 16
RECOVERY_SECONDS, FREED_SECONDS = 60.0, 10.0
REQUEST = debug_request(LONG_PROMPT, k=20)


def test_a_killed_worker_is_replaced_and_leaves_no_memory_behind(start_on_gpu: StartServer) -> None:
    at_first = taken_bytes()
    server = start_on_gpu("--device", "auto")
    (worker,) = server.worker_pids()
    expected = answer_of_response(server.debugger.Debug(REQUEST))
    with_one_worker = taken_bytes()

    calls = [server.debugger.Debug.future(REQUEST, timeout=RECOVERY_SECONDS) for _ in range(N_CALLERS)]
    time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    for one in calls:
        assert difference(answer_of_response(one.result()), expected) is None
    (successor,) = server.worker_pids()
    assert successor != worker
    assert b"tdb-worker:cuda" in Path(f"/proc/{successor}/cmdline").read_bytes()
    assert reading(server, "tdb_worker_restarts_total") == 1

    assert with_one_worker > at_first
    wait_until(lambda: taken_bytes() <= with_one_worker + SLACK_BYTES, FREED_SECONDS)
    stop(server)
    wait_until(lambda: taken_bytes() <= at_first + SLACK_BYTES, FREED_SECONDS)
