"""When the front takes a worker for hung, told by what it sees second by second."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tdb_server.pool_settings import WorkerCare
from tdb_server.workers.liveness import Liveness, Look
from tdb_server.workers.messages import Activity, Heartbeat
from tdb_server.workers.process_activity import ProcessActivity, process_activity

BOUNDS = WorkerCare(silence_seconds=10, step_seconds=120)
MANY_SECONDS = 5000


@dataclass
class Watched:
    """A worker of which the test says, second by second, what it does."""

    on_cpu: bool = True
    activity: Activity | None = Activity.WAITING
    owes_batch: bool = False
    beats: bool = True
    steps: bool = False
    state: str = "S"
    cpu_share: float = 0.0
    has_proc: bool = True
    elapsed_seconds: float = 1.0
    n_heard: int = 0
    n_steps: int = 0
    cpu_seconds: float = 0.0
    liveness: Liveness = field(default_factory=lambda: Liveness(BOUNDS))

    def second(self) -> str | None:
        self.n_heard += self.beats
        self.n_steps += self.steps
        self.cpu_seconds += self.cpu_share * self.elapsed_seconds
        beat = None if self.activity is None else Heartbeat(self.activity, self.n_steps)
        seen = ProcessActivity(self.state, self.cpu_seconds) if self.has_proc else None
        look = Look(self.n_heard, beat, self.owes_batch, seen)
        return self.liveness.fault(look, self.elapsed_seconds, on_cpu=self.on_cpu)

    def seconds_until_hung(self) -> int | None:
        self.second()
        return next((n for n in range(1, MANY_SECONDS) if self.second()), None)


RUNNING = {"activity": Activity.RUNNING, "owes_batch": True}


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"steps": True, "cpu_share": 1.0},  # prepares token lists
        RUNNING | {"steps": True, "cpu_share": 2.0, "state": "R"},
        RUNNING | {"steps": True, "on_cpu": False},
        {"activity": Activity.LOADING, "steps": True},  # waits for a sibling
        {"has_proc": False},
    ],
)
def test_workers_that_do_what_they_should_are_left_alone(what):
    assert Watched(**what).seconds_until_hung() is None


@pytest.mark.parametrize(
    "what",
    [
        {"beats": False, "state": "T"},
        RUNNING | {"beats": False, "state": "T"},
        RUNNING | {"beats": False, "state": "T", "on_cpu": False},
        {"activity": Activity.LOADING, "beats": False, "state": "T"},
        {"activity": None, "beats": False, "state": "T"},  # stopped before its first word
        RUNNING,  # a deadlock: it beats, and sleeps
        {"owes_batch": True},  # waits for a batch, or the word of its end was lost
        {"beats": False, "state": "Z"},
    ],
)
def test_one_that_does_nothing_although_it_should_is_found_soon(what):
    assert Watched(**what).seconds_until_hung() == 10


@pytest.mark.parametrize(
    "what",
    [
        RUNNING | {"cpu_share": 1.0, "state": "R"},  # computes for ever
        RUNNING | {"beats": False, "cpu_share": 1.0, "state": "R"},  # and lets no other thread run
        RUNNING | {"on_cpu": False},  # waits for a GPU
        {"activity": Activity.LOADING},  # waits for nobody knows what
        RUNNING | {"has_proc": False},
        {"has_proc": False, "beats": False},
    ],
)
def test_a_step_has_a_bound_of_its_own(what):
    assert Watched(**what).seconds_until_hung() == 120


@pytest.mark.parametrize(
    "what",
    [
        RUNNING | {"cpu_share": 0.01, "state": "R"},  # the machine has others to serve
        RUNNING | {"cpu_share": 0.0, "state": "D"},  # its memory lies on a disk
        {"activity": None, "beats": False, "state": "D"},  # libraries come from afar
        {"activity": Activity.LOADING, "cpu_share": 1.0, "state": "R"},  # a digest of many gigabytes
    ],
)
def test_a_worker_that_cannot_get_on_has_ten_times_as_long(what):
    found = Watched(**what).seconds_until_hung()
    assert found is not None
    assert 1195 <= found <= 1205


def test_a_front_that_was_held_up_blames_nobody():
    watched = Watched(beats=False, elapsed_seconds=600.0)
    watched.second()
    assert watched.second() is None
    watched.beats, watched.elapsed_seconds = True, 1.0
    assert watched.seconds_until_hung() is None


def test_a_word_in_time_is_enough():
    watched = Watched(**RUNNING)
    for _ in range(50):
        watched.steps = False
        assert not any(watched.second() for _ in range(9))
        watched.steps = True
        assert watched.second() is None


def activity_once(pid: int, is_it: Callable[[ProcessActivity], bool]) -> ProcessActivity:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = process_activity(pid)
        assert found is not None
        if is_it(found):
            return found
        time.sleep(0.01)
    raise AssertionError(found)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_what_the_system_says_of_a_process():
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert activity_once(spinning.pid, lambda one: one.cpu_seconds > 0.1).state == "R"
        spinning.send_signal(signal.SIGSTOP)
        activity_once(spinning.pid, lambda one: one.state == "T")
    finally:
        spinning.kill()
        spinning.wait()
    assert process_activity(spinning.pid) is None
