"""Flags of the command line, each with its environment variable, and the kinds of value they take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdb_server.domain.limits import MIB

_UNITS = {"KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB}


class Flags:
    """Adds flags to a parser, each with its environment variable as the default.

    Args:
        parser: of the command that has the flags.
        environment: where `TDB_SERVER_...` variables are looked up.
    """

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment
        self._group: Any = parser

    def group(self, title: str, description: str | None = None) -> None:
        """Begins a group: flags that are added from now on are shown under this title."""
        self._group = self._parser.add_argument_group(title, description)

    def add(self, flag: str, kind: Any, default: object, metavar: str, text: str) -> None:
        """A flag with a value of a kind: a function that makes the value of a text, or fails."""
        # argparse puts a default that is a string through `kind`, so variables are checked as flags are.
        told = self._variable(flag)
        shown = "" if default is None else f" (default: {default})"
        self._group.add_argument(
            flag, type=kind, default=default if told is None else told, metavar=metavar, help=text + shown
        )

    def add_repeated(self, flag: str, metavar: str, text: str) -> None:
        """A flag with a path that may be given several times; its variable is a list with commas."""
        told = self._variable(flag)
        self._group.add_argument(flag, type=Path, action="append", metavar=metavar, help=text)
        self._parser.set_defaults(
            **{f"{flag[2:]}_variable": [Path(one) for one in told.split(",")] if told else []}
        )

    def add_switch(self, flag: str, text: str) -> None:
        """A flag without a value; its variable is 1, true, yes or on."""
        is_on = (self._variable(flag) or "").lower() in ("1", "true", "yes", "on")
        self._group.add_argument(flag, action="store_true", default=is_on, help=text)

    def _variable(self, flag: str) -> str | None:
        return self._environment.get("TDB_SERVER_" + flag[2:].replace("-", "_").upper())


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
    """A finite number of milliseconds, 0 or more."""
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


def zero_or_more_seconds(text: str) -> float:
    """A finite number of seconds, 0 or more."""
    return milliseconds(text)


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
