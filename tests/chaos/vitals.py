"""What a process holds and uses, as Linux tells it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

IDLE_SHARE = 0.1
IDLE_WINDOW_SECONDS = 0.25
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Vitals:
    """A process at one moment.

    Attributes:
        anonymous_bytes: memory of its own, not backed by files.
        shared_bytes: shared memory that it has touched.
        n_open_files: file descriptors, sockets included.
        n_shared_segments: mappings of files in /dev/shm.
    """

    anonymous_bytes: int
    shared_bytes: int
    n_open_files: int
    n_shared_segments: int


def vitals(pid: int) -> Vitals:
    process = Path(f"/proc/{pid}")
    lines = (process / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return Vitals(
        anonymous_bytes=1024 * int(status["RssAnon"].split()[0]),
        shared_bytes=1024 * int(status["RssShmem"].split()[0]),
        n_open_files=len(list((process / "fd").iterdir())),
        n_shared_segments=(process / "maps").read_text().count(" /dev/shm/"),
    )


def peak_bytes(pid: int) -> int:
    """The most memory that the process has had at once."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def cpu_seconds(pid: int) -> float:
    """Processor time that the process has used, all threads together."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS_PER_SECOND


def cpu_share(pid: int, seconds: float) -> float:
    """The part of one processor that the process uses during the next seconds."""
    before, begun_at = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - begun_at)


def seconds_until_idle(pid: int, at_most: float) -> float:
    """How long the process goes on using over a tenth of a processor; one that computes takes all of it."""
    begun_at = time.monotonic()
    while True:
        seconds = time.monotonic() - begun_at
        if cpu_share(pid, IDLE_WINDOW_SECONDS) < IDLE_SHARE:
            return seconds
        assert seconds < at_most, f"still busy after {seconds:.1f} s"


def title(pid: int) -> bytes:
    """Its command line, as it may have set it; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_running(pid: int) -> bool:
    """False once it has ended, also while nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Fails when it takes longer than this."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.02)
