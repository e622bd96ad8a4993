"""Everything at once, for long: calls of all kinds, bad ones too, while workers die and the disk is full.

Nothing is wrong, nothing is lost, and memory stays as it is. What was answered meanwhile is then asked again
by a caller who is alone.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tdb_server.gateway.json_requests import debug_request

from tests.chaos.metrics_page import reading
from tests.chaos.soak_callers import NO_ROOM, Answered, SoakCaller, as_body
from tests.chaos.vitals import peak_bytes, vitals, wait_until
from tests.golden.compare import differences
from tests.running_server import RunningServer

N_CALLERS = 6
N_WORKERS = 2
SILENCE_SECONDS = 3
RECOVERY_SECONDS = 90.0
MOST_IN_A_FILE = 128 * 1024
"""While the disk is full: less than an answer that waits, more than the log has."""
MAX_PEAK_BYTES = 512 * 2**20
MAX_GROWTH = 1.1
SAMPLE_SECONDS = 0.5
SETTLED_SECONDS = 600.0
"""In less than that every thread has not yet had its largest answer, and memory says little."""


def test_soak(start_watched, extent):
    flags = (
        "--workers",
        str(N_WORKERS),
        "--worker-silence-seconds",
        str(SILENCE_SECONDS),
        "--http-port",
        "0",
    )
    server = start_watched(*flags, "--chunk-bytes", "64KiB")
    front = server.process.pid
    wait_until(lambda: reading(server, "tdb_worker_ready") == N_WORKERS, RECOVERY_SECONDS)
    n_files = vitals(front).n_open_files
    disk_is_full, is_over, memory = threading.Event(), threading.Event(), list[int]()

    stops_at = time.monotonic() + extent.soak_seconds
    n_kept = extent.n_compared // N_CALLERS + 1
    callers = [SoakCaller(server, seed, n_kept, disk_is_full) for seed in range(N_CALLERS)]
    with ThreadPoolExecutor(N_CALLERS + 3) as threads:
        calling = [threads.submit(one.keep_calling, stops_at) for one in callers]
        filling = threads.submit(_fill_disk, server, extent.soak_seconds, disk_is_full, is_over)
        killing = threads.submit(_keep_killing, server, stops_at, extent.soak_kill_every_seconds)
        threads.submit(_note_memory, front, memory, is_over)
        try:
            tallies = [one.result() for one in calling]
            n_struck, n_without_room = killing.result(), filling.result()
        finally:
            is_over.set()

    outcomes = sum((one.outcomes for one in tallies), Counter[str]())
    quarter = len(memory) // 4
    growth = statistics.median(memory[-quarter:]) / statistics.median(memory[quarter : 2 * quarter])
    print(f"\n{outcomes.total()} calls in {extent.soak_seconds:g} s, {n_struck} workers killed or stopped:")
    print("\n".join(f"  {outcome:32} {number}" for outcome, number in sorted(outcomes.items())))
    print(f"{n_without_room} more found no room on the disk")
    print(f"longest call {max(one.longest_seconds for one in tallies):.1f} s; memory of the front")
    print(f"{max(memory) / 2**20:.0f} MiB at the most, at the end times {growth:.2f} of its second quarter")
    assert [fault for one in tallies for fault in one.faults] == []
    assert n_without_room > 0, "else the disk was never full"
    assert peak_bytes(front) < MAX_PEAK_BYTES

    # One that was stopped last counts as ready until that is found out.
    wait_until(lambda: reading(server, "tdb_worker_restarts_total") == n_struck, RECOVERY_SECONDS)
    wait_until(lambda: reading(server, "tdb_worker_ready") == N_WORKERS, RECOVERY_SECONDS)
    wait_until(lambda: _n_open_calls(server) == 0, 30)
    wait_until(lambda: vitals(front).n_open_files <= n_files, 30)
    answered = [answered for one in tallies for answered in one.answered]
    assert len(answered) >= min(extent.n_compared, outcomes.total() // 4)
    assert [fault for one in answered[: extent.n_compared] if (fault := _differs(server, one))] == []
    print(f"{min(len(answered), extent.n_compared)} answers are what a caller gets who is alone")
    assert growth < MAX_GROWTH or extent.soak_seconds < SETTLED_SECONDS


def _differs(server: RunningServer, answered: Answered) -> str | None:
    """How an answer differs from one to the same request alone."""
    alone = as_body(server.debugger.Debug(debug_request(answered.body), timeout=60))
    what = differences({"request": answered.body, "response": alone}, answered.answer)
    what += differences({"request": answered.body, "response": answered.answer}, alone)
    return f"{answered.body}: {what[:3]}" if what else None


def _keep_killing(server: RunningServer, stops_at: float, every_seconds: float) -> int:
    """Kills workers, and stops every third, which is found out; each only once. Returns how many."""
    chance, struck = random.Random(0), set[int]()
    while time.monotonic() + every_seconds < stops_at:
        time.sleep(every_seconds)
        unharmed = sorted({*server.worker_pids()} - struck)
        if unharmed:
            struck.add(worker := chance.choice(unharmed))
            os.kill(worker, signal.SIGSTOP if len(struck) % 3 == 0 else signal.SIGKILL)
    return len(struck)


def _fill_disk(
    server: RunningServer, soak_seconds: float, disk_is_full: threading.Event, is_over: threading.Event
) -> int:
    """Lets no file grow for a while, in the middle: the system says so as it does of a full disk.

    Unlike a file system of its own that takes no rights, and nothing is left behind.

    Returns:
        How many answers found no room.
    """
    front, full_seconds = server.process.pid, min(60.0, soak_seconds / 4)
    is_over.wait(soak_seconds / 2 - full_seconds / 2)
    before, n_without_room = resource.prlimit(front, resource.RLIMIT_FSIZE), 0
    disk_is_full.set()
    resource.prlimit(front, resource.RLIMIT_FSIZE, (MOST_IN_A_FILE, before[1]))
    ends_at = time.monotonic() + full_seconds
    with SoakCaller(server, N_CALLERS, 0, disk_is_full) as reader:
        while time.monotonic() < ends_at or not n_without_room:
            n_without_room += reader.read_slowly() == f"refused {NO_ROOM}"
            assert time.monotonic() < ends_at + RECOVERY_SECONDS
    resource.prlimit(front, resource.RLIMIT_FSIZE, before)
    if not is_over.wait(10):  # for those whose answers were about to wait
        disk_is_full.clear()
    assert reader.tally.faults == []
    return n_without_room


def _note_memory(front: int, memory: list[int], is_over: threading.Event) -> None:
    while not is_over.wait(SAMPLE_SECONDS):
        memory.append(vitals(front).anonymous_bytes)


def _n_open_calls(server: RunningServer) -> float:
    started = reading(server, "grpc_server_call_started_total")
    return started - reading(server, "grpc_server_call_duration_seconds_count")
