"""Nobody who writes to stderr waits for whoever reads it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tdb_server.queued_stderr import QueuedStream

PIPE_BYTES = 64 * 1024
PATIENCE_SECONDS = 30


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def read_until(reader: int, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        found += os.read(reader, 1 << 16)
    return found


def test_text_comes_out_in_order_with_what_is_no_text_spelt_out(pipe):
    reader, writer = pipe
    stream = QueuedStream(writer)
    for text in ("one\n", "\udcff\n", "øne\n"):
        stream.write(text)
    stream.finish()
    assert os.read(reader, 100) == "one\n\\udcff\nøne\n".encode()


def test_a_full_pipe_holds_nobody_up_and_what_was_dropped_is_told(pipe):
    reader, writer = pipe
    told, has_told = [], threading.Event()
    stream = QueuedStream(writer, max_queued_bytes=PIPE_BYTES)
    stream.on_dropped = lambda n: (told.append(n), has_told.set())
    for index in range(2048):
        stream.write(f"{index:099d}\n")
    stream.finish(0.01)  # gives up
    n_dropped = stream.n_dropped
    assert 0 < n_dropped < 2048
    kept = b""
    while len(kept) < 100 * (2048 - n_dropped):
        kept += os.read(reader, 1 << 16)
    numbers = [int(line) for line in kept.decode().splitlines()]
    assert numbers[0] == 0
    assert numbers == sorted(set(numbers))
    assert has_told.wait(PATIENCE_SECONDS)
    assert sum(told) == n_dropped
    stream.write("again\n")
    assert read_until(reader, b"again\n") == b"again\n"


def test_a_closed_pipe_holds_nobody_up():
    reader, writer = os.pipe()
    os.close(reader)
    stream = QueuedStream(writer)
    stream.write("nobody\n")
    stream.finish(PATIENCE_SECONDS)
    assert stream.n_dropped == 1


PROGRAM = """
import ctypes, logging, sys
from tdb_server.log_format import configure_logging
from tdb_server.queued_stderr import queue_stderr
stream = queue_stderr()
configure_logging("json", logging.INFO)
for index in range(int(sys.argv[1])):
    logging.info("%d %s", index, "x" * 1000)
    ctypes.CDLL(None).dprintf(2, b"%s\\n", b"in C " * 20)
print("done", flush=True)
sys.exit("last words")
"""


@pytest.mark.parametrize("n_lines", [3, 1000])
def test_a_process_ends_in_time_although_nobody_reads(n_lines):
    """Its own lines, those of libraries in C, and the interpreter's last ones."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(n_lines)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.wait(PATIENCE_SECONDS) == 1
    with program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.read() == "done\n"
        lines = program.stderr.read().splitlines()
    assert json.loads(next(line for line in lines if line.startswith("{")))["message"].startswith("0 x")
    if n_lines == 3:
        assert lines[-1] == "last words"
        assert sum(line.startswith("in C") for line in lines) == 3
        assert sum(line.startswith("{") for line in lines) == 3


def test_handlers_of_the_log_write_to_it(pipe):
    reader, writer = pipe
    stream = QueuedStream(writer)
    handler = logging.StreamHandler(stream)
    handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "said", None, None))
    stream.finish()
    assert os.read(reader, 100) == b"said\n"
