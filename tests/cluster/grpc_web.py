"""A gRPC-Web call as a browser makes it: messages and trailers in the body of a POST."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import httpx
from google.protobuf.message import Message

FRAME_HEADER = struct.Struct(">BI")
IS_TRAILERS = 0x80


@dataclass(frozen=True)
class WebAnswer:
    """What came back."""

    headers: httpx.Headers
    messages: list[bytes]
    trailers: dict[str, str]

    def __getitem__(self, name: str) -> str:
        """A trailer; those of an answer without a message come as headers."""
        return self.trailers.get(name) or self.headers[name]


def web_call(port: int, method: str, request: Message, **headers: str) -> WebAnswer:
    """Calls a method, by its full name, through the gRPC-Web port of a balancer on this machine."""
    raw = request.SerializeToString()
    response = httpx.post(
        f"http://127.0.0.1:{port}/{method}",
        content=FRAME_HEADER.pack(0, len(raw)) + raw,
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **headers},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    answer = WebAnswer(response.headers, [], {})
    body = response.content
    while body:
        flags, n_bytes = FRAME_HEADER.unpack_from(body)
        content = body[FRAME_HEADER.size : FRAME_HEADER.size + n_bytes]
        body = body[FRAME_HEADER.size + n_bytes :]
        if flags & IS_TRAILERS:
            lines = content.decode().strip().split("\r\n")
            answer.trailers.update((name, value) for name, _, value in (one.partition(":") for one in lines))
        else:
            answer.messages.append(content)
    return answer
