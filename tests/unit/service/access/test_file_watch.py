"""Files are looked at by a thread, again and again, and at once when somebody says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from tdb_server.service.access import file_watch
from tdb_server.service.access.file_watch import FileReader

PATIENCE_SECONDS = 30
Start = Callable[..., FileReader]


@pytest.fixture
def start(monkeypatch) -> Iterator[Start]:
    started: list[FileReader] = []

    def start_one(*looks: Callable[[], None], seconds: float) -> FileReader:
        monkeypatch.setattr(file_watch, "SECONDS_BETWEEN_LOOKS", seconds)
        started.append(FileReader(looks))
        started[-1].start()
        return started[-1]

    yield start_one
    for one in started:
        one.stop()


def test_it_looks_at_once_when_told_to(start):
    looked = threading.Semaphore(0)
    reader = start(looked.release, seconds=3600)
    assert looked.acquire(timeout=PATIENCE_SECONDS)
    reader.look_now()
    assert looked.acquire(timeout=PATIENCE_SECONDS)


def test_a_look_that_fails_is_no_reason_not_to_look_again(start, caplog):
    looked = threading.Semaphore(0)

    def fail() -> None:
        raise RuntimeError("odd")

    start(fail, looked.release, seconds=0.01)
    for _ in range(3):
        assert looked.acquire(timeout=PATIENCE_SECONDS)
    assert "odd" in caplog.text


def test_who_has_no_files_needs_no_thread(start):
    before = threading.active_count()
    start(seconds=3600)
    assert threading.active_count() == before
