"""How fast the cores are from moment to moment: a virtual machine's are shared with others that nobody sees.

A process of its own does the same little work again and again, on each core in turn, and notes the processor
time that it took. It knows nothing of the service: its answer goes with the moments at which calls come to
what the simulation is told about a real run. It takes about 2 % of the cores.
`python -m benchmarks.scale_cores PATH` samples into a file until it is ended.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.scale_process import Slowness

PAUSE = 0.025
"""Seconds between two samples."""

_chance = random.Random(1)
_RECORDS = [{"id": i, "parts": [_chance.random() for _ in range(4)], "name": f"x{i}"} for i in range(30)]
_ROWS = np.random.default_rng(1).standard_normal((8, 1000)).astype(np.float32)


@dataclass(frozen=True)
class Watch:
    """Samples that are being taken into a file."""

    path: Path

    def last(self, seconds: float) -> np.ndarray:
        """Processor seconds of each sample that was taken that lately, [n]."""
        since = time.monotonic() - seconds
        lines = self.path.read_text().splitlines(keepends=True)
        found = (line.split() for line in lines if line.endswith("\n"))
        return np.array([float(took) for moment, took in found if float(moment) >= since])


@contextmanager
def watched_cores() -> Iterator[Watch]:
    """Samples until the end."""
    with tempfile.TemporaryDirectory(prefix="tdb-bench-") as folder:
        path = Path(folder, "samples")
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.scale_cores", str(path)])
        try:
            while not path.exists():
                time.sleep(PAUSE)
            yield Watch(path)
        finally:
            process.terminate()
            process.wait()


def slowness(samples: np.ndarray, seconds: float, reference: float) -> Slowness:
    """Of the time in which the samples [n] were taken: so many seconds, as many from each core.

    Args:
        reference: processor seconds of a sample on the mean core.
    """
    interval = seconds / len(samples)
    return Slowness(tuple(map(float, samples / reference)), interval, os.cpu_count() or 1)


def _work() -> None:
    """Somewhat like the service's: an interpreter that makes small objects, and short loops over numbers."""
    json.loads(json.dumps(_RECORDS))
    pickle.loads(pickle.dumps(_RECORDS))
    best = np.argpartition(_ROWS, 10, axis=1)[:, :10]
    np.take_along_axis(_ROWS, best, 1).sort()
    (_ROWS @ _ROWS.T).sum()


def _sample(path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    with path.open("w", buffering=1) as file:
        while True:
            for core in cores:
                time.sleep(PAUSE)
                os.sched_setaffinity(0, {core})
                _work()  # what was used last lies in the caches, whatever else the core does
                moment, begun = time.monotonic(), time.thread_time()
                _work()
                file.write(f"{moment} {time.thread_time() - begun}\n")


if __name__ == "__main__":
    _sample(Path(sys.argv[1]))
