from __future__ import annotations

import shutil
import subprocess

import pytest
from tdb_client.cli import main
from tdb_client.cli.arguments import command_parser
from tdb_client.cli.completion import SHELLS, script
from tdb_client.cli.help_text import EXAMPLES

OPTIONS = ("--prompt", "--ablate", "--hide-early-layers", "--html", "--csv", "--tls-server-name")


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


def run(shell: str, *arguments: str) -> str:
    done = subprocess.run([shell, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def completed_by_bash(line: str) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"{script('bash', command_parser())}\n"
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _tdb; printf '%s\\n' \"${{COMPREPLY[@]}}\""
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
        ("tdb debug --sort ", ["direct_effect", "act_times_grad", "write_norm", "activation"]),
        ("tdb trace --type Q", ["Q", "QK"]),
        ("tdb completion f", ["fish"]),
        ("tdb debug --html ", []),  # readline offers files
        ("tdb --ver", ["--version"]),
    ],
)
def test_bash_offers_what_fits(line: str, offered: list[str]) -> None:
    assert completed_by_bash(line) == offered


@needs("zsh")
def test_zsh_reads_its_script() -> None:
    text = script("zsh", command_parser())
    assert text.startswith("#compdef tdb\n")
    assert run("zsh", "-f", "-c", f"autoload -U compinit; compinit -D\n{text}\necho $_comps[tdb]") == "_tdb\n"


@needs("fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [("tdb do", "doctor"), ("tdb trace --mlp n", "neuron"), ("tdb debug --hi", "--hide-early-layers")],
)
def test_fish_offers_what_fits(line: str, offered: str) -> None:
    text = script("fish", command_parser())
    found = run("fish", "--no-config", "-c", f"{text}\ncomplete -C '{line}'")
    assert found.split("\t")[0] == offered
