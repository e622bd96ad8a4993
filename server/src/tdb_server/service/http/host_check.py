"""To which names the server answers, so that web pages of other sites cannot use a browser to ask it.

A page can let its own name stand for this machine's address (DNS rebinding): its requests then name that site
as their host. And a page can send some requests to any site without asking: those carry the page's origin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.service.http.asgi import Application, Message, Receive, Send, answer

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
WILDCARD_ADDRESSES = ("0.0.0.0", "::")
_ANY_ADDRESS = r"\d+\.\d+\.\d+\.\d+|\[[0-9a-f:.]+\]"
MISDIRECTED, FORBIDDEN = 421, 403


class AllowedHosts:
    """Names that requests may be sent to, and whose pages may send them.

    A server that listens on every address of its machine also answers to any address, as it does not know its
    own: no site can be called by another's address.

    Args:
        address: listened on.
        more_names: `*.example.com` stands for all below that one, `*` for every host (but not for pages).

    Attributes:
        origins: regular expression of the origins of pages that may call.
    """

    def __init__(self, address: str, more_names: Sequence[str] = ()) -> None:
        names = [*LOOPBACK_NAMES, *(one for one in more_names if one != "*")]
        if address not in WILDCARD_ADDRESSES:
            names.append(address)
        known = "|".join(_pattern(one) for one in names)
        self.origins = rf"https?://(?:{known})(?::\d+)?"
        also = "|.*" if "*" in more_names else f"|{_ANY_ADDRESS}" if address in WILDCARD_ADDRESSES else ""
        self._host = re.compile(rf"(?:{known}{also})(?::\d+)?", re.IGNORECASE)
        self._origin = re.compile(self.origins, re.IGNORECASE)

    def refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """Why a request with these headers is refused: status and message; None when it is not."""
        for key, value in headers:
            text = value.decode("latin-1")
            if key == b"host" and not self._host.fullmatch(text):
                refused = f"this server does not answer to the host {text[:100]!r}"
                return MISDIRECTED, f"{refused}; see --allowed-hosts"
            if key == b"origin" and not self._origin.fullmatch(text):
                return FORBIDDEN, f"pages of {text[:100]!r} may not call this server; see --allowed-hosts"
        return None


@dataclass(frozen=True, slots=True)
class HostCheck:
    """An ASGI application in front of another: refuses what is sent to other hosts or by other sites."""

    application: Application
    hosts: AllowedHosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        refusal = self.hosts.refusal(scope.get("headers", ()))
        if refusal is None:
            await self.application(scope, receive, send)
            return
        status, message = refusal
        await answer(scope, send, status, b"application/json", json.dumps({"message": message}).encode())


def _pattern(name: str) -> str:
    if name.startswith("*."):
        return r"[^/:@\[\]]+" + re.escape(name[1:])
    return re.escape(f"[{name}]" if ":" in name else name)
