"""Serves the gateway over HTTP on the event loop that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: stopping is for the whole program to decide."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals alone."""
        yield


class HttpServer:
    """An HTTP server that is started and stopped by its owner.

    Args:
        application: what answers.
        host: address to listen on.
        port: port to listen on; 0 picks one.
        grace_seconds: how long open requests may take once the server stops.
        tls: for HTTPS; None for HTTP.
    """

    def __init__(
        self,
        application: ASGIApp,
        host: str,
        port: int,
        grace_seconds: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address = (host, port)
        config = uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            ssl_context_factory=None if tls is None else lambda *_: tls,
            server_header=False,
            http="h11",  # also where another parser happens to be installed
            ws="none",
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listens; returns when requests are taken.

        Raises:
            OSError: the port cannot be had.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise OSError(f"cannot serve HTTP on {host}:{port}")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Takes no more requests and lets the open ones end."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving
