"""Ray's processes, found among the descendants of the process that started Ray."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from tests.chaos.vitals import is_running, title


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    children: dict[int, list[int]] = defaultdict(list)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children[int(after_name[1])].append(int(process.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (below := children[waiting.pop()])
        found += below
    return found


def replica_pids(pid: int, application: str = "") -> list[int]:
    """The replicas among the descendants of a server, or of a Ray cluster, that are not dead.

    Args:
        pid: of the server or the cluster.
        application: whose replicas; empty for those of all.
    """
    sign = b"ServeReplica:" + application.encode()
    return [one for one in descendants(pid) if sign in title(one) and is_running(one)]
