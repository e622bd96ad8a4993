"""One front at a time looks whether the application is there, and deploys it if not.

The lock is an actor with a name, of which a cluster has one at most. It belongs to the front that made it, so
that a front that dies lets go of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError

NAME, NAMESPACE = "deploying", "transformer-debugger"
TRY_SECONDS, WAIT_SECONDS = 0.2, 120.0


class _Lock:
    """Holds a name and does nothing."""


_lock_actor: Any = ray.remote(num_cpus=0)(_Lock)


@contextmanager
def deploying() -> Iterator[None]:
    """Waits until no other front of the cluster is in such a block.

    Raises:
        TimeoutError: another one has been for far longer than it takes.
    """
    lock = None
    latest = time.monotonic() + WAIT_SECONDS
    while lock is None:
        try:
            lock = _lock_actor.options(name=NAME, namespace=NAMESPACE).remote()
        except ActorAlreadyExistsError as error:
            if time.monotonic() > latest:
                raise TimeoutError(f"another server has been deploying for {WAIT_SECONDS:g} s") from error
            time.sleep(TRY_SECONDS)
    try:
        yield
    finally:
        ray.kill(lock)
