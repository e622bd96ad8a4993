"""Requests that come compressed, with gzip.

gRPC would unpack them on the event loop, where one of 4 MiB holds up everybody else for 20 ms. So it is told
to leave that to us, who first look at what size a request says it has.
"""

from __future__ import annotations

import zlib

from tdb_server.errors import FieldViolation, InvalidRequest

NO_DECOMPRESSION = (
    ("grpc.per_message_decompression", 0),
    # Without compression, or with gzip: what is sent otherwise, gRPC refuses and says what it takes.
    ("grpc.compression_enabled_algorithms_bitset", 1 << 0 | 1 << 2),
)
"""Options of the gRPC core that leave decompression to this module."""
_BEGINNING = b"\x1f\x8b"
"""First bytes of gzip's output (RFC 1952). No message begins with them: protobuf has no fields of kind 7."""
_GZIP = 16 + zlib.MAX_WBITS


def is_compressed(raw: bytes) -> bool:
    """Whether the bytes of a request have to be unpacked."""
    return raw.startswith(_BEGINNING)


def message_bytes(raw: bytes) -> int:
    """Size of the message in the bytes of a request; of a compressed one as it says itself, at its end."""
    return int.from_bytes(raw[-4:], "little") if is_compressed(raw) else len(raw)


def unpacked(raw: bytes) -> bytes:
    """The message in the bytes of a request. Other threads can run meanwhile.

    Raises:
        InvalidRequest: it cannot be unpacked, or has another size than it says.
    """
    if not is_compressed(raw):
        return raw
    n_bytes, unpacking = message_bytes(raw), zlib.decompressobj(_GZIP)
    try:
        message = unpacking.decompress(raw, n_bytes + 1)
    except zlib.error:
        message = b""
    if not unpacking.eof or unpacking.unused_data or len(message) != n_bytes:
        raise InvalidRequest([FieldViolation("", "the bytes cannot be unpacked", "MALFORMED_REQUEST")])
    return message
