"""When a worker counts as hung. The front looks once a second at its heartbeats and at its process.

There are two bounds. `silence_seconds` is for a process that does nothing at all although it should: it sends
no heartbeats, or is at a batch on a CPU, and the system says that it neither computes nor waits for a
processor or a disk. So a stopped process is found, a deadlock, and a batch or the word of its end that was
lost. `step_seconds` is for all others: it bounds the longest step, a layer or a result, that a worker may
take without a sign of progress.

A machine with too much to do must not lose its workers for it, which would only give it more to do. So time
in which a worker could not get on counts a tenth: in which it waits for a processor or a disk. The same holds
for time in which a worker that loads computes or reads, as some of its steps take minutes: a digest of many
gigabytes is one. And a front that was held up itself counts no more than a moment.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdb_server.pool_settings import WorkerCare
from tdb_server.workers.messages import Activity, Heartbeat
from tdb_server.workers.process_activity import IS_RUNNABLE, WAITS_FOR_DISK, ProcessActivity

LOOK_SECONDS = 1.0
LONGEST_LOOK_SECONDS = 2.0
"""What a look counts at the most, however late it comes."""

IDLE_SHARE = 0.02
"""A process that does nothing uses less of a processor."""

STARVED_SHARE = 0.5
"""A process that could run gets more of a processor, unless others take it away."""

HELD_UP = 0.1
"""What a second counts in which a worker could not get on."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the front knows of a worker at one moment.

    Attributes:
        n_heard: messages that have come from it.
        beat: the last heartbeat; None before the first.
        owes_batch: it was given a batch, and has not said that the batch ended.
        activity: what the system says; None where it says nothing.
    """

    n_heard: int
    beat: Heartbeat | None
    owes_batch: bool
    activity: ProcessActivity | None


class Liveness:
    """Judges one worker from one look to the next."""

    def __init__(self, bounds: WorkerCare) -> None:
        self._bounds = bounds
        self._last: Look | None = None
        self._quiet_seconds = 0.0
        self._stuck_seconds = 0.0

    def fault(self, look: Look, elapsed_seconds: float, *, on_cpu: bool) -> str | None:
        """Judges by another look, so many seconds after the last one.

        Args:
            on_cpu: it computes on the CPU, so that it does nothing while it sleeps.

        Returns:
            What is wrong with the worker, for the log; None while it may be well.
        """
        last, self._last = self._last, look
        if last is None:
            return None
        seconds = min(elapsed_seconds, LONGEST_LOOK_SECONDS)
        beat = look.beat
        is_silent = look.n_heard == last.n_heard
        is_waiting = beat is not None and beat.activity is Activity.WAITING
        has_moved = not is_silent and (beat != last.beat or (is_waiting and not look.owes_batch))
        share = _cpu_share(last, look, elapsed_seconds)
        does_nothing = share is not None and share < IDLE_SHARE and not _wants_to_run(look)
        is_running = beat is not None and beat.activity is Activity.RUNNING
        should_speak = is_silent or (is_running and on_cpu) or (is_waiting and look.owes_batch)
        if has_moved or not (does_nothing and should_speak):
            self._quiet_seconds = 0.0
        else:
            self._quiet_seconds += seconds
        if has_moved:
            self._stuck_seconds = 0.0
        else:
            is_loading = beat is None or beat.activity is Activity.LOADING
            is_starved = share is not None and share < STARVED_SHARE and _wants_to_run(look)
            is_held_up = is_starved or (is_loading and share is not None and not does_nothing)
            self._stuck_seconds += seconds * (HELD_UP if is_held_up else 1.0)
        return self._verdict(is_silent=is_silent)

    def _verdict(self, *, is_silent: bool) -> str | None:
        if self._quiet_seconds >= self._bounds.silence_seconds:
            what = "sends no heartbeat" if is_silent else "does not go on with its batch"
            return f"{what} and does nothing, for {self._quiet_seconds:.0f} s"
        if self._stuck_seconds >= self._bounds.step_seconds:
            return f"has made no progress for {self._stuck_seconds:.0f} s"
        return None


def _cpu_share(last: Look, look: Look, elapsed_seconds: float) -> float | None:
    """Processors that the process has used between two looks; None where nobody knows."""
    if last.activity is None or look.activity is None or elapsed_seconds <= 0:
        return None
    return (look.activity.cpu_seconds - last.activity.cpu_seconds) / elapsed_seconds


def _wants_to_run(look: Look) -> bool:
    return look.activity is not None and look.activity.state in (IS_RUNNABLE, WAITS_FOR_DISK)
