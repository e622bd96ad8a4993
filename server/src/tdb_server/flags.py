"""Flags of the command line, declared as fields of the dataclasses that hold what was told.

A field says once what its flag is called, takes, means and is without being given: `flag`, `switch`, `paths`
and `group` make such fields. `add_flags` adds those of a dataclass to a parser, each with its environment
variable, and `read_flags` makes the dataclass of what was parsed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tdb_server.domain.limits import MIB

_UNITS = {"KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB}
_AS_IT_IS = object()
Read = TypeVar("Read")


def flag(
    default: object,
    kind: Callable[[str], Any],
    metavar: str,
    text: str,
    *,
    name: str | None = None,
    shown: object = _AS_IT_IS,
    title: str | None = None,
) -> Any:
    """A field with a flag.

    Args:
        default: of the field.
        kind: makes the value of a text, or fails.
        metavar: what the value is called in `--help`.
        text: what it means.
        name: of the flag, where it is not the field's.
        shown: the default as one would type it, where that reads otherwise; None where the text tells it.
        title: of the group of flags that begins here.
    """
    options = {"type": kind, "metavar": metavar, "help": text}
    shown = default if shown is _AS_IT_IS else shown
    return field(default=default, metadata={"options": options, "name": name, "shown": shown, "title": title})


def switch(default: bool, text: str, name: str | None = None) -> Any:
    """A field with a flag that turns the default around; its variable is 1, true, yes or on."""
    options = {"action": "store_const", "const": not default, "help": text}
    return field(default=default, metadata={"options": options, "name": name})


def paths(metavar: str, text: str, name: str) -> Any:
    """A field with paths, whose flag may be given several times; its variable is a list with commas."""
    options = {"action": _Appended, "type": Path, "metavar": metavar, "help": text}
    return field(default=(), metadata={"options": options, "name": name})


def group(kind: Callable[[], Any], title: str | None = None, description: str | None = None) -> Any:
    """A field with a dataclass of flags, which `--help` shows under a title."""
    return field(default_factory=kind, metadata={"kind": kind, "title": title, "description": description})


def add_flags(kind: Any, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Adds the flags of a dataclass to a command. A flag wins over its variable `TDB_SERVER_...`."""
    _add_flags(kind, parser, environment, parser)


def _add_flags(kind: Any, parser: argparse.ArgumentParser, environment: Mapping[str, str], under: Any) -> Any:
    for one in fields(kind):
        told = one.metadata
        if told.get("title"):
            under = parser.add_argument_group(told["title"], told.get("description"))
        if "kind" in told:
            under = _add_flags(told["kind"], parser, environment, under)
        elif told:
            key = _key(one)
            options = _options(one, environment.get(f"TDB_SERVER_{key.upper()}"))
            under.add_argument(f"--{key.replace('_', '-')}", **options)
    return under


def _options(one: Field[Any], variable: str | None) -> dict[str, Any]:
    """What argparse is told of a field's flag."""
    told = one.metadata.get("options") or {"type": _kind_of_limit(one.name), "metavar": "N", **one.metadata}
    if told.get("action") is _Appended:
        return {**told, "default": tuple(map(Path, variable.split(","))) if variable else ()}
    if "const" in told:
        is_on = (variable or "").lower() in ("1", "true", "yes", "on")
        return {**told, "default": is_on != one.default}
    shown = one.metadata.get("shown", one.default)
    text = told["help"] + ("" if shown is None else f" (default: {shown})")
    # argparse puts a default that is a string through the type, so variables are checked as flags are.
    return {**told, "help": text, "default": shown if variable is None else variable}


def _key(one: Field[Any]) -> str:
    """Where argparse puts the value."""
    return (one.metadata.get("name") or one.name).removeprefix("--").replace("-", "_")


def _kind_of_limit(name: str) -> Callable[[str], Any]:
    """Of a field that has nothing but its help: fields of the domain know no flags."""
    if name.endswith("_bytes"):
        return byte_size
    return positive_seconds if name.endswith("_seconds") else at_least(1)


def read_flags(kind: Callable[..., Read], parsed: argparse.Namespace) -> Read:
    """Makes the dataclass; fields without flags get their defaults."""
    values = {}
    for one in fields(kind):  # type: ignore[arg-type]  # no type says that it is a dataclass
        if "kind" in one.metadata:
            values[one.name] = read_flags(one.metadata["kind"], parsed)
        elif one.metadata:
            values[one.name] = getattr(parsed, _key(one))
    return kind(**values)


class _Appended(argparse.Action):
    """What is given for the first time takes the default's place."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, (*(() if before is self.default else before), values))


def at_least(minimum: int) -> Any:
    """Whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}: {text}")
        return value

    parse.__name__ = "integer"
    return parse


def byte_size(text: str) -> int:
    """A number of bytes: `65536`, `64KiB`, `2GiB`."""
    factor = _UNITS.get(text[-3:], 1)
    value = int(text[:-3] if factor > 1 else text) * factor
    if value < 1024:
        raise argparse.ArgumentTypeError(f"must be at least 1024 bytes: {text}")
    return value


def byte_size_or_none(text: str) -> int:
    """The same, or 0."""
    return 0 if text == "0" else byte_size(text)


def milliseconds(text: str) -> float:
    """A finite number of milliseconds, 0 or more; in seconds."""
    return _zero_or_more(text) / 1000


def zero_or_more_seconds(text: str) -> float | None:
    """A finite number of seconds; 0 stands for never, and is None."""
    return _zero_or_more(text) or None


def _zero_or_more(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more: {text}")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0: {text}")
    return value


def positive_seconds(text: str) -> float:
    """A finite number of seconds above 0."""
    return positive_number(text)


def port_number(text: str) -> int:
    """A port, or 0 for a free one."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535: {text}")
    return value


def one_of(*choices: str) -> Any:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}: {text}")
        return text

    return parse


def name_list(text: str) -> tuple[str, ...]:
    """Names, separated by commas."""
    names = tuple(one.strip() for one in text.split(",") if one.strip())
    if not names:
        raise argparse.ArgumentTypeError("must have at least one name")
    return names
