"""The limits that come with a token, under load."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
from tdb_client import ResourceExhaustedError
from tdb_server.domain.caller import CallerLimits
from tdb_server.service.access.token import token_entry
from transformer_debugger.v1.call_pb2 import PRIORITY_INTERACTIVE, PRIORITY_SWEEP

from tests.integration.tokens import LIMITS, TOKENS, bearer, client_of

LONG = " the" * 60
DEBUG = "/transformer_debugger.v1.TransformerDebuggerService/Debug"


def test_calls_at_the_same_time_under_load(guarded, debug_request):
    """Sixteen at once of one caller: never more than its two at a time, and another caller is not held up."""
    lock, n_open, most_open = threading.Lock(), 0, 0
    outcomes: Counter[str] = Counter()

    def one_call() -> None:
        nonlocal n_open, most_open
        request = debug_request(prompt=LONG, n_sub_requests=4, k=50)
        stream = guarded.debugger.StreamDebug(request, metadata=bearer("one"), timeout=60)
        try:
            assert next(stream).HasField("started")
            with lock:
                n_open += 1
                most_open = max(most_open, n_open)
            time.sleep(0.05)
            with lock:
                n_open -= 1
            list(stream)
            outcomes["OK"] += 1
        except grpc.RpcError as error:
            outcomes[error.code().name] += 1

    with ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(one_call) for _ in range(48)]
        assert guarded.debugger.Debug(debug_request(), metadata=bearer("bob"), timeout=30).sub_responses
        for call in calls:
            call.result()
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert outcomes["OK"] >= 2
    assert most_open <= 2


def test_a_refusal_says_when_to_come_back(guarded, debug_request, refusal):
    request = debug_request(prompt=LONG, n_sub_requests=8, k=1000)
    streams = [guarded.debugger.StreamDebug(request, metadata=bearer("two")) for _ in range(3)]
    deadline = time.monotonic() + 10
    try:
        while not any(one.done() for one in streams):  # which of them comes last is not ours to say
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused = next(one for one in streams if one.done())
        failed = refusal(refused.result)
        assert next(next(one for one in streams if one is not refused)).HasField("started")
    finally:
        for stream in streams:
            stream.cancel()
    assert (failed.code, failed.info.reason, failed.retry_seconds) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CONCURRENT_CALLS",
        1.0,
    )


def test_cancelled_calls_make_room(guarded, debug_request):
    request = debug_request(prompt=LONG, n_sub_requests=8, k=200)
    for _ in range(10):
        stream = guarded.debugger.StreamDebug(request, metadata=bearer("three"), timeout=30)
        next(stream)
        stream.cancel()
        deadline = time.monotonic() + 10
        while True:  # the server learns of it a moment later
            try:
                guarded.debugger.Debug(debug_request(), metadata=bearer("three"), timeout=30)
                break
            except grpc.RpcError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_calls_in_a_minute_under_load(guarded):
    outcomes: Counter[str] = Counter()
    retries: list[float] = []

    def some_calls() -> None:
        with client_of(guarded, "few") as client:
            for _ in range(10):
                try:
                    client.tokenize("the")
                    outcomes["OK"] += 1
                except ResourceExhaustedError as error:
                    retries.append(error.retry_after or 0.0)
                    outcomes[error.reason] += 1

    threads = [threading.Thread(target=some_calls) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"OK": 20, "TOO_MANY_CALLS_PER_MINUTE": 60}
    assert all(0 < seconds <= 60 for seconds in retries)


def test_the_cost_of_a_call(guarded, debug_request, refusal):
    assert guarded.debugger.Debug(debug_request(prompt="the cat"), metadata=bearer("alice"))
    failed = refusal(lambda: guarded.debugger.Debug(debug_request(prompt=LONG), metadata=bearer("small")))
    assert (failed.info.reason, failed.retry_seconds) == ("COST_TOO_HIGH", None)
    with client_of(guarded, "small") as small, client_of(guarded, "alice") as alice:
        assert small.model_info().limits.max_activation_bytes == 200_000
        assert alice.model_info().limits.max_activation_bytes > 200_000


def test_the_priority_of_a_call(guarded, debug_request, refusal):
    with client_of(guarded, "sweeper") as sweeper, client_of(guarded, "alice") as alice:
        assert sweeper.model_info().limits.max_priority == "sweep"
        assert alice.model_info().limits.max_priority == "interactive"
    request = debug_request()
    for priority, caller in ((PRIORITY_SWEEP, "alice"), (PRIORITY_INTERACTIVE, "sweeper")):
        request.priority = priority
        assert guarded.debugger.Debug(request, metadata=bearer(caller), timeout=30).sub_responses
    request.priority = 7
    failed = refusal(lambda: guarded.debugger.Debug(request, metadata=bearer("alice")))
    assert failed.code == grpc.StatusCode.INVALID_ARGUMENT
    assert failed.info.reason == "UNKNOWN_ENUM_VALUE"


def test_cached_tells_of_own_calls_alone(start_server, tmp_path, debug_request, refusal):
    path = tmp_path / "tokens.toml"
    entries = [token_entry(name, TOKENS[name], LIMITS.get(name, CallerLimits())) for name in ("bob", "small")]
    entries += [token_entry(name, TOKENS[name], CallerLimits(), tenant="lab") for name in ("alice", "one")]
    path.write_text("".join(entries))
    server = start_server("--token-file", str(path))
    request = debug_request(prompt="a secret cat")

    def is_cached(name: str) -> bool:
        return server.debugger.Debug(request, metadata=bearer(name), timeout=60).cached

    assert [is_cached(name) for name in ("alice", "bob", "one", "bob")] == [False, False, True, True]
    failed = refusal(lambda: server.debugger.Debug(request, metadata=bearer("small")))
    assert failed.info.reason == "COST_TOO_HIGH"
