"""Scripts that let shells complete `tdb`, made from the command line itself so that they keep up with it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from string import Template

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or an argument without a name, as shells complete it.

    Attributes:
        names: `--sort`, or `-h` and `--help`; empty for an argument.
        text: what its help says.
        choices: the values it may have; empty when any text goes.
        metavar: what its value is called; empty when it takes none.
    """

    names: tuple[str, ...]
    text: str
    choices: tuple[str, ...]
    metavar: str

    @property
    def is_file(self) -> bool:
        """Whether its value is a file."""
        return self.metavar == "FILE"


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or with no name what stands before one."""

    name: str
    text: str
    options: tuple[Option, ...]


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The completion script for a shell of SHELLS."""
    makers: dict[str, Callable[[Command, list[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    commands = [
        Command(one.dest, one.help or "", _options(group.choices[one.dest]))
        for group in _actions(parser)
        if isinstance(group, argparse._SubParsersAction)  # noqa: SLF001 - argparse describes itself no other way
        for one in group._choices_actions  # noqa: SLF001
    ]
    return makers[shell](Command("", "", _options(parser)), commands)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001


def _options(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(one.option_strings),
            one.help or "",
            tuple(map(str, one.choices or ())),
            "" if one.nargs == 0 else str(one.metavar or one.dest).upper(),
        )
        for one in _actions(parser)
        if not isinstance(one, argparse._SubParsersAction)  # noqa: SLF001
    )


def _bash(root: Command, commands: list[Command]) -> str:
    names = [one.name for one in commands]
    words = [_bash_case("''", [*_bash_words(root), *names])]
    words += [_bash_case(one.name, _bash_words(one)) for one in commands]
    named = [
        (one.name, name, option)
        for one in (root, *commands)
        for option in one.options
        for name in option.names
    ]
    takes_text = {name for _, name, option in named if option.metavar and not option.choices}
    return _filled(
        "completion.bash",
        commands="|".join(names),
        words="\n".join(words),
        values="\n".join(
            _bash_case(f"{command},{name}", option.choices)
            for command, name, option in named
            if option.choices
        ),
        texts="|".join(sorted(takes_text)),
    )


def _bash_words(command: Command) -> list[str]:
    """What may come next: options, and the choices of an argument."""
    return [word for option in command.options for word in option.names or option.choices]


def _bash_case(pattern: str, words: Iterable[str]) -> str:
    return f"        {pattern}) words={shlex.quote(' '.join(words))} ;;"


def _zsh(root: Command, commands: list[Command]) -> str:
    described = " ".join(shlex.quote(f"{one.name}:{one.text}") for one in commands)
    cases = [
        f"        {one.name}) _arguments -S {' '.join(map(_zsh_spec, one.options))} ;;" for one in commands
    ]
    options = " ".join(_zsh_spec(one) for one in root.options)
    return _filled("completion.zsh", described=described, options=options, cases="\n".join(cases))


def _zsh_spec(option: Option) -> str:
    """One option as `_arguments` reads it: '(-h --help)'{-h,--help}'[text]', and what its value may be."""
    text = option.text.replace("[", "(").replace("]", ")")
    metavar = option.metavar.replace(":", "\\:")
    value = f":{metavar}:" if metavar else ""
    if option.choices:
        value += f"({' '.join(option.choices)})"
    elif option.is_file:
        value += "_files"
    if not option.names:
        return shlex.quote(f"1{value}")
    if len(option.names) == 1:
        return shlex.quote(f"*{option.names[0]}[{text}]{value}")
    alike = " ".join(option.names)
    return " ".join(shlex.quote(f"({alike}){name}[{text}]{value}") for name in option.names)


def _fish(root: Command, commands: list[Command]) -> str:
    lines = ["# Completion of tdb for fish.", "complete -c tdb -f"]
    lines += [_fish_line("__fish_use_subcommand", option) for option in root.options if option.names]
    for one in commands:
        lines.append(f"complete -c tdb -n __fish_use_subcommand -a {one.name} -d {_fish_quoted(one.text)}")
    for one in commands:
        condition = f"'__fish_seen_subcommand_from {one.name}'"
        lines += [_fish_line(condition, option) for option in one.options]
    return "\n".join(line for line in lines if line) + "\n"


def _fish_line(condition: str, option: Option) -> str:
    if not option.names and not option.choices:
        return ""
    words = ["complete -c tdb -n", condition]
    words += [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.choices:
        words += ["-x" if option.names else "", f"-a {_fish_quoted(' '.join(option.choices))}"]
    elif option.metavar:
        words.append("-r -F" if option.is_file else "-x")
    words.append(f"-d {_fish_quoted(option.text)}")
    return " ".join(filter(None, words))


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _filled(name: str, **parts: str) -> str:
    return Template(files("tdb_client.cli").joinpath(name).read_text(encoding="utf-8")).substitute(parts)
