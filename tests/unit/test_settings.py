from __future__ import annotations

from pathlib import Path

import pytest
from tdb_server.domain.limits import Limits
from tdb_server.scheduling_settings import Scheduling
from tdb_server.settings import Settings, parse_settings


def test_defaults_are_those_of_the_dataclasses():
    assert parse_settings(["serve"], {}) == Settings()


def test_flags_win_over_variables():
    environment = {
        "TDB_SERVER_PORT": "1",
        "TDB_SERVER_MAX_SUB_REQUESTS": "7",
        "TDB_SERVER_AUTOENCODER": "a,b",
    }
    told = parse_settings(["serve", "--port", "2"], environment)
    assert (told.port, told.limits.max_sub_requests) == (2, 7)
    assert told.autoencoders == (Path("a"), Path("b"))
    assert parse_settings(["serve", "--autoencoder", "c"], environment).autoencoders == (Path("c"),)


def test_switches():
    assert parse_settings(["serve", "--no-reflection"], {}).reflection is False
    assert parse_settings(["serve"], {"TDB_SERVER_NO_REFLECTION": "1"}).reflection is False
    assert parse_settings(["serve"], {"TDB_SERVER_NO_REFLECTION": "0"}).reflection is True


@pytest.mark.parametrize(
    ("flags", "devices"),
    [
        (["--workers", "2"], ("auto", "auto")),
        (["--devices", "cuda:0, cpu"], ("cuda:0", "cpu")),
        (["--devices", "cuda:0,cuda:1", "--workers", "3"], ("cuda:0", "cuda:1", "cuda:0")),
    ],
)
def test_workers_are_dealt_out_over_devices(flags, devices):
    assert parse_settings(["serve", *flags], {}).worker_devices == devices


def test_bytes_with_units():
    told = parse_settings(["serve", "--chunk-bytes", "64KiB", "--max-activation-bytes", "2GiB"], {})
    assert told.limits == Limits(chunk_bytes=65536, max_activation_bytes=2 * 1024**3)


def test_how_calls_share_the_workers():
    told = parse_settings(["serve", "--max-wait-milliseconds", "2.5", "--cache-bytes", "0"], {})
    assert told.scheduling == Scheduling(max_wait_seconds=0.0025, cache_bytes=0)


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (["--port", "70000"], {}),
        (["--workers", "0"], {}),
        (["--dtype", "float8"], {}),
        (["--chunk-bytes", "1"], {}),
        (["--chunk-bytes", "0"], {}),
        (["--max-wait-milliseconds", "-1"], {}),
        (["--max-call-seconds", "nan"], {}),
        (["--devices", ","], {}),
        ([], {"TDB_SERVER_PORT": "many"}),
    ],
)
def test_nonsense_is_refused(flags, environment, capsys):
    with pytest.raises(SystemExit) as exited:
        parse_settings(["serve", *flags], environment)
    assert exited.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_examples_are_shown_over_http(capsys):
    with pytest.raises(SystemExit) as exited:
        parse_settings(["serve", "--examples", "folder"], {})
    assert exited.value.code == 2
    assert capsys.readouterr().err == "tdb-server: --examples are shown over HTTP: give --http-port too\n"


@pytest.mark.parametrize(
    "flags", [["--k", "0"], ["--context", "1"], ["--nodes", "layer"], ["--lowest", "-1"]]
)
def test_nonsense_about_examples_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as exited:
        parse_settings(["examples", *flags], {})
    assert exited.value.code == 2
    assert f"error: argument {flags[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["examples", "--help"], ["--version"]]
)
def test_help_and_version(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        parse_settings(arguments, {}, version="1.2.3")
    assert exited.value.code == 0
    assert capsys.readouterr().out


def test_every_limit_has_its_flag(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["serve", "--help"], {})
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in Limits.__slots__)
