"""The workbench over HTTP on the user's own machine: Python's own server, a thread for each connection."""

from __future__ import annotations

import json
import re
import select
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from secrets import compare_digest
from typing import Any

from tdb_client.errors import TdbError
from tdb_client.workbench.body_reader import QuestionError
from tdb_client.workbench.faults import Fault, fault
from tdb_client.workbench.files import File, content_security_policy, page, static_files
from tdb_client.workbench.route import Line
from tdb_client.workbench.routes import ROUTES

Ask = Callable[[str, Any, Callable[[], bool]], Generator[Line]]
"""Asks by a route's name and what it has read; told how to find out whether the page has gone."""

MAX_BODY_BYTES = 4 * 2**20
IDLE_SECONDS = 120.0
PREFIX = "v1/workbench/"
POLICY = content_security_policy("* vscode-webview:")
"""Notebooks of any address may frame the page: nobody else knows its own."""
_NODE = re.compile(r"node/[^/]+")
_STATUSES = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "FAILED_PRECONDITION": HTTPStatus.BAD_REQUEST,
    "UNAUTHENTICATED": HTTPStatus.FORBIDDEN,  # the token is the client's: the page need not ask for one
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "DEADLINE_EXCEEDED": HTTPStatus.REQUEST_TIMEOUT,
    "UNIMPLEMENTED": HTTPStatus.NOT_IMPLEMENTED,
}
_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=list).encode


class Handler(BaseHTTPRequestHandler):
    """One connection. Pages elsewhere get nothing: they know neither the secret nor this host's name.

    Args:
        ask: asks the server.
        secret: what every address begins with.
        args: as the base class has them.
    """

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def __init__(self, ask: Ask, secret: str, *args: Any) -> None:
        self._ask = ask
        self._secret = secret
        super().__init__(*args)

    @classmethod
    def of(cls, ask: Ask, secret: str) -> Callable[..., Handler]:
        """What makes one for each connection."""
        return partial(cls, ask, secret)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class names it
        """Nothing: the terminal is the user's."""

    def do_GET(self) -> None:
        """The page and its files."""
        path = self._path()
        if path is None:
            return
        is_page = path == "" or _NODE.fullmatch(path) is not None
        found = page(path.count("/")) if is_page else static_files().get(path)
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        else:
            self._send_file(found, {"Content-Security-Policy": POLICY} if is_page else {})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """A question."""
        path = self._path()
        if path is None:
            return
        name = path.removeprefix(PREFIX)
        if not path.startswith(PREFIX) or name not in ROUTES:
            self._refuse(HTTPStatus.NOT_FOUND, "no such question")
            return
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "must be application/json")
            return
        told = self.headers.get("Content-Length", "")
        if not told.isdecimal() or int(told) > MAX_BODY_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY_BYTES} bytes, or no length"
            )
            return
        content = self.rfile.read(int(told))
        try:
            asked = ROUTES[name].read(json.loads(content))
        except QuestionError as error:
            self._send_fault(fault(error))
        except (ValueError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST, "is not JSON")
        else:
            self._answer(name, asked)

    def _answer(self, name: str, asked: Any) -> None:
        """Sends lines as they come; the connection ends with the last."""
        has_begun = False
        try:
            with closing(self._ask(name, asked, self._has_gone)) as lines:
                for line in lines:
                    if not has_begun:
                        self._begin(HTTPStatus.OK, {"Content-Type": "application/x-ndjson"})
                        has_begun = True
                    self._send_line(line)
        except TdbError as error:
            told = fault(error)
            if has_begun:
                self._send_line({"event": "error", **told.body})
            else:
                self._send_fault(told)
        finally:
            self.close_connection = True

    def _send_line(self, line: Line) -> None:
        self.wfile.write(f"{_encoded(line)}\n".encode())
        self.wfile.flush()

    def _has_gone(self) -> bool:
        """Whether the page has closed the connection, on which it sends nothing more of its own."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _path(self) -> str | None:
        """The path behind the secret; None where the request is refused, with an answer sent."""
        port = self.connection.getsockname()[1]
        own = [f"{host}:{port}" for host in ("127.0.0.1", "localhost")]
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in own or origin not in (None, *(f"http://{one}" for one in own)):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this is another host")
            return None
        secret, _, path = self.path.partition("?")[0].lstrip("/").partition("/")
        if not compare_digest(secret.encode("utf-8", "replace"), self._secret.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
            return None
        return path

    def _send_file(self, file: File, headers: Mapping[str, str]) -> None:
        if self.headers.get("If-None-Match") == file.etag:
            self._begin(HTTPStatus.NOT_MODIFIED, file.headers)
            return
        length = {"Content-Length": str(len(file.content))}
        self._begin(HTTPStatus.OK, {**file.headers, **headers, **length})
        if self.command != "HEAD":
            self.wfile.write(file.content)

    def _send_fault(self, told: Fault) -> None:
        status = _STATUSES.get(told.status, HTTPStatus.INTERNAL_SERVER_ERROR)
        if told.status == "RESOURCE_EXHAUSTED":
            waits = told.retry_after is not None
            status = HTTPStatus.TOO_MANY_REQUESTS if waits else HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        self._send_json(status, told.body)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # its body, if it has one, is not read
        self._send_json(status, {"message": message, "violations": []})

    def _send_json(self, status: HTTPStatus, body: Mapping[str, object]) -> None:
        content = _encoded(body).encode()
        self._begin(status, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection or ("Content-Length" not in headers and status is HTTPStatus.OK):
            self.send_header("Connection", "close")
        self.end_headers()
