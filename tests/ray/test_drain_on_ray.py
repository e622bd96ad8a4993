"""SIGTERM: what runs and waits is finished, then Ray ends with the server that started it."""

from __future__ import annotations

import grpc

from tests.chaos.draining import draining
from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import is_running, title, wait_until
from tests.ray.processes import descendants, replica_pids

N_CALLS = 4
STOP_SECONDS = 15.0


def test_running_and_waiting_calls_are_finished(start_with_own_ray):
    server = start_with_own_ray("--grace-seconds", "60", "--max-batch-tokens", "1")
    below = descendants(server.process.pid)
    n_before = reading(server, "grpc_server_call_started_total")
    streams = [server.debugger.StreamDebug(debug_request(LONG_PROMPT, k=100)) for _ in range(N_CALLS)]
    unary = [server.debugger.Debug.future(debug_request(LONG_PROMPT, k=50)) for _ in range(N_CALLS)]
    wait_until(lambda: reading(server, "grpc_server_call_started_total") >= n_before + 2 * N_CALLS)

    with draining(server):
        late = server.debugger.Debug.future(debug_request())
        why = refused(late.exception())
    assert (why.code, why.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    for stream in streams:
        events = [event.WhichOneof("event") for event in stream]
        assert events[-1] == "finished"
    assert {len(one.result().sub_responses) for one in unary} == {1}
    assert server.process.wait(timeout=STOP_SECONDS) == 0
    assert not server.ready_file.exists()
    wait_until(lambda: not any(is_running(pid) for pid in below), STOP_SECONDS)


def test_ray_ends_when_the_front_is_killed(start_with_own_ray):
    """Replicas and the daemons at once; two small agents of Ray's look for a minute whether it comes back."""
    server = start_with_own_ray()
    below = [pid for pid in descendants(server.process.pid) if b"Agent" not in title(pid)]
    assert set(replica_pids(server.process.pid)) <= set(below)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in below), STOP_SECONDS)
