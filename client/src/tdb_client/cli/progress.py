"""Progress on stderr: of whatever takes longer than a moment, and where stderr is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tdb_client.debug_result import DEBUG_RESULTS
from tdb_client.events import Event, Finished, ResultReady, Started

PATIENCE_SECONDS = 0.5
"""What ends before shows nothing: a bar that only flashes is of no use."""


@contextmanager
def shown_waiting(description: str) -> Iterator[None]:
    """Shows that something takes its time, and takes it away at the end."""
    with _shown() as progress:
        progress.add_task(description, total=None)
        yield


@contextmanager
def shown_progress(n_sub_requests: int) -> Iterator[Callable[[Event], None]]:
    """Shows a bar of the results that have come, and takes it away at the end; yields what takes events."""
    with _shown() as progress:
        task = progress.add_task("waiting for the server", total=None)

        def on_event(event: Event) -> None:
            match event:
                case Started():
                    n_results = n_sub_requests * len(DEBUG_RESULTS)
                    progress.update(task, description="running", total=n_results, completed=0)
                case ResultReady():
                    progress.update(task, advance=1, description=f"received {event.name}")
                case Finished():
                    progress.update(task, description="done")

        yield on_event


@contextmanager
def shown_count(description: str, n_all: int, n_done: int = 0) -> Iterator[Callable[[], None]]:
    """Shows how many of many things are done; yields what is called after each of them."""
    with _shown(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(description, total=n_all, completed=n_done)
        yield lambda: progress.advance(task)


@contextmanager
def _shown(*more: ProgressColumn) -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *more, TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    patience = Timer(PATIENCE_SECONDS, progress.start)
    patience.start()
    try:
        yield progress
    finally:
        patience.cancel()
        patience.join()  # it may be starting at this moment
        progress.stop()
