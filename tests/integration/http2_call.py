"""One gRPC call without gRPC's client, which keeps some trailers to itself: all that the server sent."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived

FRAME_HEADER = struct.Struct(">BI")  # not compressed, and how many bytes follow


@dataclass
class Http2Answer:
    """What came back: headers and trailers, the latter as headers where there is no message."""

    headers: dict[str, bytes] = field(default_factory=dict)
    trailers: dict[str, bytes] = field(default_factory=dict)
    body: bytes = b""


def call(
    port: int,
    method: str,
    request: Message,
    timeout_seconds: float = 30.0,
    headers: Mapping[str, str] | None = None,
) -> Http2Answer:
    """Calls a method, by its full name, of a server on this machine."""
    connection = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    with socket.create_connection(("127.0.0.1", port), timeout_seconds) as wire:
        connection.initiate_connection()
        connection.increment_flow_control_window(2**24)
        stream_id = connection.get_next_available_stream_id()
        connection.send_headers(
            stream_id,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", f"127.0.0.1:{port}"),
                (":path", f"/{method}"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                *(headers or {}).items(),
            ],
        )
        raw = request.SerializeToString()
        connection.send_data(stream_id, FRAME_HEADER.pack(0, len(raw)) + raw, end_stream=True)
        wire.sendall(connection.data_to_send())
        return _answer(connection, wire)


def _answer(connection: H2Connection, wire: socket.socket) -> Http2Answer:
    answer = Http2Answer()
    while received := wire.recv(65536):
        for event in connection.receive_data(received):
            match event:
                case ResponseReceived(headers=headers):
                    answer.headers = _decoded(headers)
                case TrailersReceived(headers=headers):
                    answer.trailers = _decoded(headers)
                case DataReceived(data=data, flow_controlled_length=length, stream_id=stream_id):
                    answer.body += data
                    connection.acknowledge_received_data(length, stream_id)
                case StreamEnded():
                    return answer
        wire.sendall(connection.data_to_send())
    raise ConnectionError("the server hung up")


def _decoded(headers: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    return {key.decode(): value for key, value in headers}
