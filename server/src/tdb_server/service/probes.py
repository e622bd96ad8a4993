"""`/livez` and `/readyz`, in front of any HTTP application: what Kubernetes, balancers and people ask.

Both ask for no token and count as no calls, and are answered by the event loop, so that an answer shows that
it turns. `/livez` is all that: whoever gets none in time may start the server anew. `/readyz` says whether
calls would be taken, as gRPC's health does: 503 while the model is loading, while there is no worker, and
when the server stops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ALIVE, READY = "/livez", "/readyz"


class Probes:
    """An ASGI application that answers the two and leaves all else to another.

    Args:
        application: the other.
        is_ready: whether calls would be taken now.
    """

    def __init__(self, application: Application, is_ready: Callable[[], bool]) -> None:
        self._application = application
        self._is_ready = is_ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] not in (ALIVE, READY):
            await self._application(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(scope, send, 405, b"only GET\n", [(b"allow", b"GET, HEAD")])
        elif scope["path"] == ALIVE or self._is_ready():
            await _answer(scope, send, 200, b"ok\n")
        else:
            await _answer(scope, send, 503, b"not ready\n", [(b"retry-after", b"1")])


async def _answer(
    scope: Scope, send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    general = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*general, *(headers or ())]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
