from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import shtab
from tdb_client.cli import main
from tdb_client.cli.arguments import SHELLS, command_parser
from tdb_client.cli.help_text import EXAMPLES

OPTIONS = ("--prompt", "--ablate", "--hide-early-layers", "--html", "--csv", "--tls-server-name")


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


def script(shell: str) -> str:
    return shtab.complete(command_parser(), shell)


def run(shell: str, *arguments: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run([shell, *arguments], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def completed_by_bash(line: str) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"{script('bash')}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        f"_shtab_tdb tdb '{words[-1]}' '{words[-2]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    return run("bash", "--norc", "-c", program).split()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_there(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for command in EXAMPLES:
        assert command in text
    for option in OPTIONS:
        assert (option.removeprefix("--") if shell == "fish" else option) in text


@needs("bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tdb de", ["debug"]),
        ("tdb --server x:1 tr", ["trace"]),
        ("tdb debug --pro", ["--prompt"]),
        ("tdb activations --place mlp_p", ["mlp_pre_act", "mlp_post_act", "mlp_post_ln_scale"]),
        ("tdb debug --sort ", ["direct_effect", "act_times_grad", "write_norm", "activation"]),
        ("tdb trace --type Q", ["Q", "QK"]),
        ("tdb completion f", ["fish"]),
        ("tdb trace --prompt ", []),
        ("tdb --ver", ["--version"]),
    ],
)
def test_bash_offers_what_fits(line: str, offered: list[str]) -> None:
    assert completed_by_bash(line) == offered


@needs("bash")
def test_bash_offers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").touch()
    monkeypatch.chdir(tmp_path)
    assert completed_by_bash("tdb debug --html ") == ["report.html"]
    assert completed_by_bash("tdb --tls-ca rep") == ["report.html"]


@needs("zsh")
def test_zsh_reads_its_script() -> None:
    text = script("zsh")
    assert text.startswith("#compdef tdb\n")
    program = 'autoload -U compinit; compinit -D; eval "$SCRIPT"; echo $_comps[tdb]'
    assert run("zsh", "-f", "-c", program, SCRIPT=text) == "_shtab_tdb\n"


@needs("fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [("tdb do", "doctor"), ("tdb trace --mlp n", "neuron"), ("tdb debug --hi", "--hide-early-layers")],
)
def test_fish_offers_what_fits(line: str, offered: str) -> None:
    found = run("fish", "--no-config", "-c", f"{script('fish')}\ncomplete -C '{line}'")
    assert found.split("\t")[0] == offered
