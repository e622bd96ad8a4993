"""The workbench on the user's own machine, for notebooks, and for servers that offer no page."""

from __future__ import annotations

import asyncio
import html
import secrets
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar

from tdb_client.async_client import AsyncClient
from tdb_client.connection import Connection
from tdb_client.errors import CancelledCallError
from tdb_client.report.notebook import HEIGHT, display, is_notebook
from tdb_client.workbench.local_http import Handler
from tdb_client.workbench.route import Line, Lines
from tdb_client.workbench.routes import ROUTES

LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 0.25
"""How soon it is seen that the page has gone."""
STOP_SECONDS = 5.0
Result = TypeVar("Result")


class Workbench:
    """A page that asks by clicking, which this program hands out on this machine until it ends.

    Nobody else finds it: it listens on this machine alone, and its address has a secret part.

    Example:
        client.workbench()               # a frame below a notebook's cell, or the web browser
        with client.workbench() as page:
            page.address

    Args:
        connection: how the server is reached.
        priority: of what the page asks.
        port: to listen on; 0 for any that is free.

    Attributes:
        address: of the page.

    Raises:
        OSError: the port cannot be had.
    """

    def __init__(self, connection: Connection, priority: str = "interactive", port: int = 0) -> None:
        secret = secrets.token_urlsafe(24)
        self._server = _Server((LOOPBACK, port), Handler.of(self._ask, secret))
        self.address = f"http://{LOOPBACK}:{self._server.server_port}/{secret}/"
        self._loop = asyncio.new_event_loop()
        self._threads = [
            Thread(target=self._loop.run_forever, name="workbench calls", daemon=True),
            Thread(target=self._server.serve_forever, name="workbench page", daemon=True),
        ]
        for one in self._threads:
            one.start()
        self._client = self._run(_connected(connection, priority)).result()
        self._is_open = True
        self._redirect: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Workbench at {self.address if self._is_open else 'no address: closed'}>"

    def show(self) -> None:
        """Shows the page below the notebook's cell, or else in the web browser."""
        if is_notebook():
            display(self.frame(), repr(self))
            return
        if self._redirect is None:
            self._redirect = _redirect_to(self.address)
        if not webbrowser.open(self._redirect.as_uri()):
            print(f"the workbench is at {self.address}", file=sys.stderr)

    def close(self) -> None:
        """Hands out nothing any more; what is being asked is cancelled."""
        if not self._is_open:
            return
        self._is_open = False
        if self._redirect is not None:
            self._redirect.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._run(self._client.close()).result(STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        for one in self._threads:
            one.join(STOP_SECONDS)
        self._loop.close()

    def frame(self) -> str:
        """The page as an element for a notebook's output."""
        return (
            f'<iframe src="{html.escape(self.address)}" title="transformer debugger workbench"'
            f' allow="clipboard-write" style="width: 100%; height: {HEIGHT}px; border: 1px solid #d5d9df;'
            ' resize: vertical"></iframe>'
        )

    def _ask(self, name: str, asked: Any, has_gone: Callable[[], bool]) -> Generator[Line]:
        """The lines of an answer, in the thread of a connection; ends early when the page has gone."""
        answer = _Answer(ROUTES[name].lines(self._client, asked))
        try:
            while (line := _waited_for(self._run(answer.next_line()), has_gone)) is not None:
                yield line
        finally:
            self._run(answer.close()).result(STOP_SECONDS)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _redirect_to(address: str) -> Path:
    """A page that leads to an address, and that this user alone can read.

    Browsers are given it in place of the address: everybody on a machine can see the command lines of all.
    """
    with tempfile.NamedTemporaryFile(
        "w", prefix="tdb-", suffix=".html", encoding="utf-8", delete=False
    ) as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">\n')
    return Path(file.name)


async def _connected(connection: Connection, priority: str) -> AsyncClient:
    """A client of the running loop."""
    return AsyncClient(
        connection.server,
        timeout=connection.timeout,
        tls=connection.tls,
        token=connection.token,
        max_receive_bytes=connection.max_receive_bytes,
        priority=priority,
    )


class _Answer:
    """An answer of which lines are taken one by one, each by a task of the loop."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._taking: asyncio.Future[Line | None] | None = None

    async def next_line(self) -> Line | None:
        """The next line; None behind the last."""
        self._taking = asyncio.ensure_future(anext(self._lines, None))
        return await self._taking

    async def close(self) -> None:
        """Ends it, and with it the call that it waits for."""
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
        await self._lines.aclose()


class _Server(ThreadingHTTPServer):
    """Says nothing of pages that go away in the middle of an answer."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _waited_for(work: Future[Result], has_gone: Callable[[], bool]) -> Result:
    """What the work comes to.

    Raises:
        CancelledCallError: nobody waits for it any more.
    """
    while True:
        try:
            return work.result(LOOK_SECONDS)
        except TimeoutError:
            if work.done():
                raise
            if has_gone():
                raise CancelledCallError("CANCELLED", "the page has gone") from None
