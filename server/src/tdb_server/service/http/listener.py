"""An HTTP server on the event loop that runs already, whose connections have bounds in number and time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Generator
from functools import partial

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from tdb_server.security_settings import Security
from tdb_server.service.listening import MAX_HEAD_BYTES

LAST_BYTES_SECONDS = 1
"""How long what is left may take when the server stops: its calls have had their time."""
KEEP_ALIVE_SECONDS = 75.0
"""Connections are kept longer than proxies usually keep them, so that proxies are the ones to end them."""


class HttpListener:
    """An HTTP server that is started and stopped by its owner.

    Args:
        application: an ASGI application, which answers.
        host: address to listen on.
        port: port to listen on; 0 picks one.
        security: what connections may do.
        tls: for HTTPS; None for HTTP.
        serves: what is served, for messages.
    """

    def __init__(
        self,
        application: object,
        host: str,
        port: int,
        security: Security,
        tls: ssl.SSLContext | None = None,
        serves: str = "HTTP",
    ) -> None:
        self._address = (host, port)
        self._serves = serves
        config = uvicorn.Config(
            application,  # type: ignore[arg-type]  # uvicorn's own types for ASGI are stricter than Starlette's
            lifespan="off",
            log_config=None,
            log_level="error",  # else every bad request is a line
            access_log=False,
            ssl_context_factory=None if tls is None else lambda *_: tls,
            server_header=False,
            headers=[("X-Content-Type-Options", "nosniff")],  # of every answer: no text is taken for a script
            http=H11Protocol,  # also where another parser happens to be installed
            ws="none",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=max(1, round(min(KEEP_ALIVE_SECONDS, security.max_connection_idle_seconds))),
            timeout_graceful_shutdown=LAST_BYTES_SECONDS,
        )
        self._server = _Server(config, security)
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listens; returns when requests are taken.

        Raises:
            OSError: the port cannot be had.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise OSError(f"cannot serve {self._serves} on {host}:{port}: {error}") from error
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise OSError(f"cannot serve {self._serves} on {host}:{port}")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Takes no more requests, lets the last bytes of answers go, and closes all connections."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._server.abort_all()


class _Server(uvicorn.Server):
    """uvicorn with our connections, and without its signal handlers: when to stop is not for it to decide."""

    def __init__(self, config: uvicorn.Config, security: Security) -> None:
        super().__init__(config)
        self._security = security
        self._n_by_address: Counter[str] = Counter()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections, each with a protocol of ours."""
        loop = asyncio.get_running_loop()
        tls = self.config.ssl
        self.servers = [
            await loop.create_server(
                partial(_Connection, self.config, self.server_state, self._security, self._n_by_address),
                sock=one,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self._security.max_head_seconds,
            )
            for one in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals alone."""
        yield

    def abort_all(self) -> None:
        """Ends connections that did not end by themselves."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Connection(H11Protocol):
    """A connection that is ended when it is one too many, and when its client takes too long.

    uvicorn itself ends those that stay without a further request (`timeout_keep_alive`). Ended here are those
    whose first request never comes, whose head is not finished, or whose client does not take what is sent.
    How long a body may take is for the application.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        security: Security,
        n_by_address: Counter[str],
    ) -> None:
        super().__init__(config, server_state, app_state={})
        self._security = security
        self._n_by_address = n_by_address
        self._address = ""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or closes it at once."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._n_by_address[self._address] += 1
        n_connections, n_of_address = len(self.connections), self._n_by_address[self._address]
        allowed = self._security
        if n_connections > allowed.max_connections or n_of_address > allowed.max_connections_per_address:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._n_by_address[self._address] -= 1
        if not self._n_by_address[self._address]:
            del self._n_by_address[self._address]
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Begins to wait for a head with the first bytes that belong to no request."""
        if not self._is_answering and self._head_timer is None:
            self._await_head()
        super().data_received(data)

    def handle_events(self) -> None:
        """Stops waiting for a head once it has come."""
        super().handle_events()
        if self._is_answering and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_response_complete(self) -> None:
        """The answer is written, though its client may not have taken it."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._await_head()  # refused before its body was there; the rest is thrown away
        if self.transport.get_write_buffer_size() and self._write_timer is None:
            self._await_written()

    def pause_writing(self) -> None:
        """The client does not keep up."""
        super().pause_writing()
        if self._write_timer is None:
            self._await_written()

    def resume_writing(self) -> None:
        """The client has taken some."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    @property
    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._security.max_head_seconds, self.transport.abort)

    def _await_written(self) -> None:
        def abort_unless_written() -> None:
            self._write_timer = None
            if self.transport.get_write_buffer_size():
                self.transport.abort()

        self._write_timer = self.loop.call_later(self._security.max_body_seconds, abort_unless_written)
