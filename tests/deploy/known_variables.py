"""Whether variables that files in deploy/ set are flags that the server has, with values that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from io import StringIO

from tdb_server.settings import Settings, parse_settings

PREFIX = "TDB_SERVER_"


def settings_of(variables: Mapping[str, str]) -> Settings:
    """What the server makes of them. It exits where a value makes no sense; an unknown name fails here."""
    known = _help_text()
    for name in variables:
        if name.startswith(PREFIX):
            flag = "--" + name.removeprefix(PREFIX).lower().replace("_", "-")
            assert f"{flag} " in known or f"{flag}\n" in known, f"{name} is no variable of the server"
    settings = parse_settings(["serve"], variables)
    assert isinstance(settings, Settings)
    return settings


def _help_text() -> str:
    said = StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        parse_settings(["serve", "--help"], {})
    return said.getvalue()
