"""Requests that are long or compressed: read beside the event loop, where they hold up nobody else."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tdb_server.domain.limits import Limits
from tdb_server.errors import FieldViolation, InvalidRequest
from tdb_server.service.caller import current_caller
from tdb_server.service.compressed_requests import is_compressed, message_bytes, unpacked
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.handlers import Convert
from tdb_server.service.message_survey import check_lists

LONG_REQUEST_BYTES = 2 * 1024
"""What is shorter is read in a few milliseconds, whatever it holds."""
MEMORY_FACTOR = 3
"""A long request takes this many times its bytes while it is read: as bytes, as a message, and parsed."""


def is_long(raw: bytes) -> bool:
    """Whether a request is to be read by `read_long`."""
    return len(raw) > LONG_REQUEST_BYTES or is_compressed(raw)


async def read_long(raw: bytes, message: Descriptor, limits: Limits, threads: FairThreads) -> Any:
    """The message that was sent, read in a thread.

    Raises:
        OverLimit: it holds too much, or too many others are being read.
        InvalidRequest: it is none, or cannot be unpacked.
    """

    def read() -> Any:
        content = unpacked(raw)
        check_lists(content, message, limits)
        return parsed(content, GetMessageClass(message).FromString)

    return await threads.run(current_caller().name, MEMORY_FACTOR * message_bytes(raw), read)


def parsed(raw: bytes, deserialize: Convert) -> Any:
    """The message in the bytes of a request, or an error that says more than gRPC would.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return raw if deserialize is None else deserialize(raw)
    except DecodeError:
        description = "the bytes are not a message of the expected type"
        raise InvalidRequest([FieldViolation("", description, "MALFORMED_REQUEST")]) from None
