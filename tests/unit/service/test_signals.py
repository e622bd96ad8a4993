"""What SIGHUP does: to a service, behind a terminal, and under nohup."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

PROGRAM = """
import asyncio, pathlib, signal, sys
from tdb_server.service.signals import signals_handled
if sys.argv[2] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
said = pathlib.Path(sys.argv[1])
def say(word):
    with said.open("a") as file:
        file.write(word + "\\n")
async def main():
    with signals_handled(lambda: say("reloaded")) as stopped:
        say("started")
        await stopped.wait()
    say("stopped")
asyncio.run(main())
"""
PATIENCE_SECONDS = 30


class Program:
    """A process without a terminal, or with one that the test can close."""

    def __init__(self, said, *, terminal: bool, way: str) -> None:
        self._said = said
        self._master: int | None = None
        arguments = [sys.executable, "-c", PROGRAM, str(said), way]
        if terminal:
            self.pid, self._master = pty.fork()
            if self.pid == 0:
                os.execv(sys.executable, arguments)
        else:
            self._process = subprocess.Popen(arguments, start_new_session=True, stdin=subprocess.DEVNULL)
            self.pid = self._process.pid

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        if self._master is None:
            self._process.wait()
        else:
            os.waitpid(self.pid, 0)

    def close_terminal(self) -> None:
        assert self._master is not None
        os.close(self._master)

    def has_said(self, *words: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (said := self._said.read_text().split() if self._said.exists() else []) != list(words):
            assert time.monotonic() < deadline, said
            time.sleep(0.02)


@pytest.fixture
def start(tmp_path) -> Iterator:
    started: list[Program] = []

    def start_one(**options) -> Program:
        started.append(Program(tmp_path / "said", **options))
        started[-1].has_said("started")
        return started[-1]

    yield start_one
    for one in started:
        one.end()


def test_a_service_reads_its_files_again(start):
    program = start(terminal=False, way="plain")
    os.kill(program.pid, signal.SIGHUP)
    program.has_said("started", "reloaded")
    os.kill(program.pid, signal.SIGTERM)
    program.has_said("started", "reloaded", "stopped")


def test_a_closed_terminal_stops_it_in_order(start):
    program = start(terminal=True, way="plain")
    program.close_terminal()
    program.has_said("started", "stopped")


def test_under_nohup_a_closed_terminal_is_no_reason_to_stop(start):
    program = start(terminal=True, way="nohup")
    program.close_terminal()
    program.has_said("started", "reloaded")
