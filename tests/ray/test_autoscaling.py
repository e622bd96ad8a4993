"""Replicas follow the load, up and down again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.metrics_page import reading
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import wait_until

N_CALLERS = 6
UP_SECONDS, DOWN_SECONDS = 60.0, 60.0
SCALING = ("--ray-max-workers", "2", "--ray-upscale-seconds", "1", "--ray-downscale-seconds", "3")


def test_replicas_go_up_under_load_and_down_after(start_on_ray, replicas):
    server = start_on_ray(*SCALING, "--max-batch-tokens", "1")
    assert reading(server, "tdb_worker_ready") == 1
    answered: list[int] = []
    is_loaded = True

    def keep_calling() -> None:
        while is_loaded:
            answered.append(
                len(server.debugger.Debug(debug_request(LONG_PROMPT, k=20), timeout=60).sub_responses)
            )

    begun_at = time.monotonic()
    with ThreadPoolExecutor(N_CALLERS) as callers:
        running = [callers.submit(keep_calling) for _ in range(N_CALLERS)]
        try:
            wait_until(lambda: reading(server, "tdb_worker_ready") == 2, UP_SECONDS)
            up_seconds = time.monotonic() - begun_at
            assert len(replicas()) == 2
            time.sleep(2.0)
        finally:
            is_loaded = False
        for one in running:
            one.result()
    begun_at = time.monotonic()
    wait_until(lambda: reading(server, "tdb_worker_ready") == 1, DOWN_SECONDS)
    down_seconds = time.monotonic() - begun_at
    wait_until(lambda: len(replicas()) == 1, DOWN_SECONDS)
    print(f"\na replica more {up_seconds:.1f} s after the load began, gone {down_seconds:.1f} s after")
    assert set(answered) == {1}
    server.debugger.Debug(debug_request(), timeout=10)
