"""`/livez` and `/readyz`, in front of any HTTP application: what Kubernetes, balancers and people ask.

Both ask for no token and count as no calls, and are answered by the event loop, so that an answer shows that
it runs. `/livez` says no more: a server that does not answer it in time may be restarted. `/readyz` says
whether calls would be taken, as gRPC's health does: 503 while the model is loading, while there is no worker,
and when the server stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdb_server.service.http.asgi import Application, Message, Receive, Send, answer

ALIVE, READY = "/livez", "/readyz"


@dataclass(frozen=True, slots=True)
class Probes:
    """An ASGI application that answers the two and leaves all else to another."""

    application: Application
    is_ready: Callable[[], bool]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] not in (ALIVE, READY):
            await self.application(scope, receive, send)
            return
        status, body, headers = 200, b"ok\n", [(b"cache-control", b"no-store")]
        if scope["method"] not in ("GET", "HEAD"):
            status, body, headers = 405, b"only GET\n", [*headers, (b"allow", b"GET, HEAD")]
        elif scope["path"] == READY and not self.is_ready():
            status, body, headers = 503, b"not ready\n", [*headers, (b"retry-after", b"1")]
        await answer(scope, send, status, b"text/plain; charset=utf-8", body, headers)
