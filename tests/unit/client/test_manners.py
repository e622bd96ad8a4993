"""How `tdb` ends when something is amiss around it: in order, with an exit code and no stack trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.client.fake_service import SLOW, FakeService

Fake = tuple[str, FakeService]
COMMAND = (sys.executable, "-c", "import sys; from tdb_command import main; sys.exit(main())")
DEBUG = ("debug", "--prompt", "When Mary gave to", "--target", " Mary", "--distractor", " John")
NO_TEXT = os.fsdecode(b"a\xff")


def run(
    server: str, *arguments: str, redirections: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command with streams redirected as a shell does it."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "bash", *COMMAND, *arguments],
        env={**os.environ, "TDB_SERVER": server, **environment},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tokenize", NO_TEXT], "TEXT: character 1, '\\udcff', is half of a surrogate pair"),
        (["debug", "--prompt", NO_TEXT, "--target", "x"], "--prompt: character 1"),
        ([*DEBUG[:3], "--target", NO_TEXT], "--target '{NO_TEXT}': character 1"),
        ([*DEBUG, "-k", "9" * 12], "-k: 999999999999 is no number"),
        ([*DEBUG, "--ablate", f"L{'9' * 12} head 1 @ 1"], "--ablate 'L999999999999 head 1 @ 1': 99999"),
        (["info", "--server", NO_TEXT], "--server: character 1"),
        (["info", "--token-file", "{FILE}"], "--token-file: must be one line of ASCII"),
        (["info", "--token-file", "{FOLDER}"], "[Errno 21] Is a directory"),
        (["info", "--tls-ca", "{FOLDER}"], "[Errno 21] Is a directory"),
        ([*DEBUG, "--html", "{FOLDER}"], "cannot write {FOLDER}: Is a directory"),
        ([*DEBUG, "--html", "/dev/full"], "cannot write /dev/full: No space left on device"),
        ([*DEBUG, "--html", "{FOLDER}/a/b.html"], "cannot write {FOLDER}/a/b.html: No such file"),
    ],
)
def test_what_cannot_be_used_is_named(fake: Fake, tmp_path: Path, arguments: list[str], said: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a\xff\n")

    def filled(text: str) -> str:
        shown = NO_TEXT.encode(errors="backslashreplace").decode()
        return (
            text.replace("{FILE}", str(file)).replace("{FOLDER}", str(tmp_path)).replace("{NO_TEXT}", shown)
        )

    done = run(fake[0], *map(filled, arguments))
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().startswith(f"tdb: {filled(said)}")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_output_that_cannot_be_written(fake: Fake, form: list[str]) -> None:
    full = run(fake[0], *DEBUG, *form, redirections="> /dev/full")
    assert (full.returncode, full.stderr.count(b"\n")) == (1, 1)
    assert b"No space left on device" in full.stderr
    closed = run(fake[0], *DEBUG, *form, redirections=">&-")
    assert (closed.returncode, closed.stderr.count(b"\n")) == (1, 1)
    assert b"Bad file descriptor" in closed.stderr
    gone = run(fake[0], *DEBUG, *form, redirections="| true; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED="1")
    assert (gone.returncode, gone.stderr) == (141, b"")


def test_streams_that_are_closed_are_not_taken_by_sockets(fake: Fake) -> None:
    done = run(fake[0], "info", "--json", redirections="<&- 2>&-")
    assert done.returncode == 0
    assert done.stdout.startswith(b"{")
    silent = run("127.0.0.1:1", "info", redirections="2>&-")
    assert (silent.returncode, silent.stdout) == (1, b"")
    assert run("127.0.0.1:1", "info", redirections="2> /dev/full").returncode == 1


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_terminals_that_cannot_print_everything(fake: Fake, form: list[str], locale: dict[str, str]) -> None:
    done = run(fake[0], *DEBUG, *form, **locale)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"L1 head 2" in done.stdout


def test_an_interrupt_while_libraries_are_imported(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)")
    with subprocess.Popen(
        [*COMMAND, "info"], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"")


def test_an_interrupt_while_the_answer_is_awaited(fake: Fake) -> None:
    server, service = fake
    arguments = [*COMMAND, "--server", server, "debug", "--prompt", SLOW, "--target", "x"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not service.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")


def test_what_nobody_foresaw_is_a_line_unless_more_is_asked_for(fake: Fake, tmp_path: Path) -> None:
    breaking = "import tdb_client.cli.json_output as page\npage.debug = lambda results: 1 / 0\n"
    command = [sys.executable, "-c", breaking + COMMAND[2], *DEBUG, "--json"]
    environment = {**os.environ, "TDB_SERVER": fake[0]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("tdb: ZeroDivisionError: division by zero (unforeseen: please report it")
    assert done.stderr.count("\n") == 1
    environment["TDB_TRACEBACK"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
