"""The unit for systemd: understood, closed up, and about a server that exists."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.deploy.known_variables import settings_of

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "tdb-server.service"
MOST_EXPOSED = 2.5
"""systemd's own measure, from 0 to 10."""


def read_unit() -> configparser.ConfigParser:
    """Keys that are given several times are joined by a space."""

    class Joined(dict[str, object]):
        def __setitem__(self, key: str, value: object) -> None:
            if isinstance(value, list) and isinstance(self.get(key), list):
                value = [*self[key], *value]  # type: ignore[misc]
            super().__setitem__(key, value)

    unit = configparser.ConfigParser(dict_type=Joined, interpolation=None, strict=False)  # type: ignore[arg-type]
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(UNIT)
    return unit


def test_systemd_understands_it(tmp_path: Path) -> None:
    for name in ("opt/tdb/bin/tdb-server", "bin/kill"):
        (program := tmp_path / name).parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    (units := tmp_path / "etc/systemd/system").mkdir(parents=True)
    for name in (
        "network-online.target",
        "multi-user.target",
        "sysinit.target",
        "basic.target",
        "shutdown.target",
    ):
        (units / name).write_text("[Unit]\nDescription=stands in for systemd's own\n")
    shutil.copy(UNIT, units)
    verified = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", "--recursive-errors=yes", UNIT.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_it_is_closed_up() -> None:
    security = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            f"--threshold={round(MOST_EXPOSED * 10)}",
            str(UNIT),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    print("\n" + security.stdout.splitlines()[-1])
    assert security.returncode == 0, security.stdout


def test_its_variables_are_flags_and_its_patience_is_longer_than_the_servers() -> None:
    service = read_unit()["Service"]
    variables = dict(one.split("=", 1) for one in shlex.split(service["Environment"]))
    settings = settings_of(variables)
    assert settings.telemetry.log_format == "json"
    assert service["TimeoutStopSec"].endswith("s")
    assert float(service["TimeoutStopSec"][:-1]) > settings.grace_seconds


def test_the_server_says_itself_when_it_is_ready_and_that_it_lives() -> None:
    service = read_unit()["Service"]
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert service["TimeoutStartSec"] == "infinity"
    assert float(service["WatchdogSec"].removesuffix("s")) >= 20
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
