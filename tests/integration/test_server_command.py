"""How `tdb-server` ends when something is amiss around it: in order, with an exit code and no stack trace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.failing_starts import serve_and_fail
from tests.running_server import TINY_MODEL

COMMAND = (sys.executable, "-m", "tdb_server")


def run(*arguments: object, shell_redirections: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command with streams redirected as a shell does it."""
    script = f'exec "$@" {shell_redirections}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that Python's own reader gives up on."""
    folder = tmp_path_factory.mktemp("models") / "deep"
    shutil.copytree(TINY_MODEL, folder)
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    return folder


def test_an_unforeseen_error_while_loading_is_one_line_that_names_the_model(deep_model: Path) -> None:
    ended = serve_and_fail("--model", str(deep_model), "--workers", "2")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"tdb-server: {deep_model}")
    assert "maximum recursion depth" in ended.stderr


def test_the_stack_trace_is_in_the_log_for_those_who_ask(deep_model: Path) -> None:
    ended = run("serve", "--port", 0, "--model", deep_model, "--log-level", "debug")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"tdb-server: {deep_model}")


def test_standard_streams_may_be_closed(deep_model: Path) -> None:
    ended = run("serve", "--port", 0, "--model", deep_model, shell_redirections="<&- >&- 2>&-")
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("target", [">&-", ">/dev/full"])
def test_a_token_that_nobody_can_read_is_no_success(target: str) -> None:
    ended = run("token", "alice", shell_redirections=target)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("tdb-server: ")


def test_a_reader_that_has_seen_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([*COMMAND, "token", "alice"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert ended.returncode == 141
    assert len(ended.stderr.splitlines()) == 1


def test_names_that_are_no_text() -> None:
    ended = serve_and_fail("--model", os.fsdecode(b"/no/such/\xff"))
    assert ended.returncode == 1
    assert ended.stderr == "tdb-server: /no/such/\\udcff: no such file or folder\n"


def test_an_interrupt_while_libraries_are_imported(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [*COMMAND, "serve"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"")
