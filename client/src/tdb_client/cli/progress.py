"""Progress on stderr while a stream arrives; nothing when stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tdb_client.debug_result import DEBUG_RESULTS
from tdb_client.events import Event, Finished, ResultReady, Started


@contextmanager
def shown_progress(n_sub_requests: int) -> Iterator[Callable[[Event], None]]:
    """Shows a bar of the results that have come, and takes it away at the end; yields what takes events."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("waiting for the server", total=None)

        def on_event(event: Event) -> None:
            match event:
                case Started():
                    progress.update(task, description="running", total=n_sub_requests * len(DEBUG_RESULTS))
                case ResultReady():
                    progress.update(task, advance=1, description=f"received {event.name}")
                case Finished():
                    progress.update(task, description="done")

        yield on_event
