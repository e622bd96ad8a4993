"""Workers are stopped, not killed, again and again, and no call that was accepted is lost."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.metrics_page import reading
from tests.chaos.requests import VARIED_REQUESTS
from tests.chaos.vitals import wait_until
from tests.chaos.wire_answers import answer_of_response, difference

RECOVERY_SECONDS = 90.0
PATIENCE_SECONDS = 120.0
SILENCE_SECONDS = 3
N_CALLERS = 4


def test_stopped_workers_are_replaced_and_their_calls_answered(start_watched, extent):
    server = start_watched("--workers", "2", "--worker-silence-seconds", str(SILENCE_SECONDS))
    wait_until(lambda: reading(server, "tdb_worker_ready") == 2, RECOVERY_SECONDS)
    undisturbed = [answer_of_response(server.debugger.Debug(request)) for request in VARIED_REQUESTS]
    n_stops = 1 if extent.kill_seconds < 60 else 6

    def answers_once_more(seed: int) -> list[str | None]:
        which = seed % len(VARIED_REQUESTS)
        answer = answer_of_response(server.debugger.Debug(VARIED_REQUESTS[which], timeout=PATIENCE_SECONDS))
        return difference(answer, undisturbed[which])

    for _ in range(n_stops):
        stopped = server.worker_pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        begun_at = time.monotonic()
        with ThreadPoolExecutor(N_CALLERS) as callers:
            assert list(callers.map(answers_once_more, range(3 * N_CALLERS))) == [None] * 3 * N_CALLERS
        wait_until(lambda stopped=stopped: stopped not in server.worker_pids(), RECOVERY_SECONDS)
        print(f"\nreplaced {time.monotonic() - begun_at:.1f} s after it was stopped")
        wait_until(lambda: reading(server, "tdb_worker_ready") == 2, RECOVERY_SECONDS)
    assert reading(server, "tdb_worker_restarts_total") == n_stops
