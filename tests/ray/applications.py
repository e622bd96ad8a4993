"""Takes applications away from a Ray that tests share. Run as a program, it is the one that talks to Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.ray.shared_ray import SharedRay


@dataclass(frozen=True)
class Applications:
    """What is deployed on one Ray, through a process that stays connected to it."""

    process: subprocess.Popen[str]

    def delete(self, name: str) -> None:
        """Ends an application's replicas, and waits until they are gone. It need not exist."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{name}\n", "Ray does not delete an application"


@contextmanager
def running_applications(ray: SharedRay) -> Iterator[Applications]:
    """Connects to Ray, for as long as the block lasts."""
    command = [sys.executable, "-m", "tests.ray.applications", ray.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Applications(process)


def main() -> None:
    import ray
    from ray import serve

    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
    for line in sys.stdin:
        serve.delete(line.strip())
        print(line.strip(), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
