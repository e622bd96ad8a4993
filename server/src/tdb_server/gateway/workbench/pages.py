"""The page and its files over HTTP. Anybody may have them, as they say nothing of the model."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tdb_client.workbench.files import File, content_security_policy, no_such_page, page, static_files

Answer = Callable[[Request], Awaitable[Response]]
VARY = {"Vary": "Accept"}
_QUALITY = re.compile(r"[01](\.\d*)?")


def page_routes(described: Answer) -> list[Route]:
    """The page at `/` and at every node's address, and the files that it asks for.

    Args:
        described: what clients get at `/` that want no page.
    """

    async def root(request: Request) -> Response:
        if wants_page(request.headers.get("accept", "")):
            return _answered(request, page(), _page_headers())
        response = await described(request)
        response.headers.update(VARY)
        return response

    async def node(request: Request) -> Response:
        return _answered(request, page(depth=1), _page_headers())

    async def file(request: Request) -> Response:
        found = static_files().get(request.url.path.lstrip("/"))
        if found is None:
            raise HTTPException(404)
        return _answered(request, found, {})

    return [
        Route("/", root),
        Route("/node/{name}", node),
        Route("/workbench/{name}", file),
        Route("/report/{name}", file),
    ]


def not_found(request: Request, message: str) -> Response:
    """What an address that does not exist answers: browsers a page that leads home, others a message."""
    if not wants_page(request.headers.get("accept", "")):
        return JSONResponse({"message": message}, 404, VARY)
    path: bytes = request.scope["raw_path"]  # as it was sent: in it `%2F` begins no folder
    found = no_such_page(path.count(b"/") - 1)
    return Response(found.content, 404, found.headers | _page_headers())


def wants_page(accept: str) -> bool:
    """Whether a client would rather have a page than JSON, by its header: browsers name pages first."""
    qualities = dict(_media_range(one) for one in accept.split(","))
    of_page = qualities.get("text/html", 0.0)
    return of_page > 0 and of_page >= qualities.get("application/json", 0.0)


def _media_range(text: str) -> tuple[str, float]:
    """What is accepted, and how much it is wanted; nonsense is not wanted at all."""
    name, *parameters = text.split(";")
    quality = next((one.strip()[2:] for one in parameters if one.strip().lower().startswith("q=")), "1")
    return name.strip().lower(), float(quality) if _QUALITY.fullmatch(quality) else 0.0


def _page_headers() -> dict[str, str]:
    return {"Content-Security-Policy": content_security_policy(), **VARY}


def _answered(request: Request, file: File, headers: dict[str, str]) -> Response:
    headers = file.headers | headers
    kept = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if file.etag in kept:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers)
