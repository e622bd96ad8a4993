"""Messages over a socket between two processes that trust each other.

A message is pickled with its large arrays left out; they follow as raw bytes, so that a large array is copied
into the socket once and out of it once, and is never part of a larger copy.
"""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any

LARGE_BYTES = 16 * 1024


def send_message(connection: Connection, message: object) -> None:
    """Writes one message; blocks while the other side does not read.

    Raises:
        OSError: the other side is gone.
    """
    arrays: list[pickle.PickleBuffer] = []

    def stays_in(array: pickle.PickleBuffer) -> bool:
        is_small = array.raw().nbytes < LARGE_BYTES
        if not is_small:
            arrays.append(array)
        return is_small

    head = pickle.dumps(message, protocol=5, buffer_callback=stays_in)
    connection.send_bytes(len(arrays).to_bytes(4, "little") + head)
    for array in arrays:
        connection.send_bytes(array.raw())


def receive_message(connection: Connection) -> tuple[Any, int]:
    """Waits for one message.

    Returns:
        The message, and its size in bytes. Its arrays are read-only.

    Raises:
        EOFError, OSError: the other side is gone.
    """
    head = connection.recv_bytes()
    n_arrays = int.from_bytes(head[:4], "little")
    arrays = [connection.recv_bytes() for _ in range(n_arrays)]
    n_bytes = len(head) + sum(len(array) for array in arrays)
    return pickle.loads(memoryview(head)[4:], buffers=arrays), n_bytes
