"""One front at a time looks whether the application is there, and deploys it if not.

The lock is an actor with a name, of which a cluster has one at most. It belongs to the front that made it, so
that a front that dies lets go of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError

_log = logging.getLogger(__name__)
NAME, NAMESPACE = "deploying", "transformer-debugger"
TRY_SECONDS = 0.2


class _Lock:
    """Holds a name and does nothing."""


_lock_actor: Any = ray.remote(num_cpus=0)(_Lock)


@contextmanager
def deploying() -> Iterator[None]:
    """Waits until no other front of the cluster is in such a block. It waits for as long as that takes."""
    lock = None
    is_waiting = False
    while lock is None:
        try:
            lock = _lock_actor.options(name=NAME, namespace=NAMESPACE).remote()
        except ActorAlreadyExistsError:
            if not is_waiting:
                is_waiting = True
                _log.info("another server deploys; this one waits")
            time.sleep(TRY_SECONDS)
    try:
        yield
    finally:
        ray.kill(lock)
