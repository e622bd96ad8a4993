"""The command `tdb-server`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from tdb_server.errors import TdbError
from tdb_server.log_format import configure_logging
from tdb_server.security_settings import NewToken
from tdb_server.service.access.token import new_token, token_entry
from tdb_server.service.app import OtherFace, Parts, serve
from tdb_server.settings import Settings, parse_settings
from tdb_server.telemetry_settings import LOG_LEVELS


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with code 1 and one line on stderr when the model cannot be served."""
    version = _version()
    settings = parse_settings(sys.argv[1:] if arguments is None else arguments, version=version)
    if isinstance(settings, NewToken):
        _make_token(settings)
        return
    configure_logging(settings.telemetry.log_format, LOG_LEVELS[settings.telemetry.log_level])
    try:
        asyncio.run(serve(settings, version, _http_maker(settings)))
    except (TdbError, OSError) as error:
        sys.exit(f"tdb-server: {error}")


def _make_token(wanted: NewToken) -> None:
    """The token for its owner to stderr, what the server keeps of it to stdout."""
    token = new_token()
    sys.stderr.write(f"the token of {wanted.name}, shown only now: {token}\n")
    entry = token_entry(wanted.name, token, wanted.limits, wanted.weight, wanted.tenant)
    sys.stdout.write(entry)


def _http_maker(settings: Settings) -> Callable[[Parts], OtherFace] | None:
    """Makes the JSON gateway; it is imported only where it is wanted."""
    if settings.http_port is None:
        return None
    try:
        from tdb_server.gateway.serving import http_server
    except ModuleNotFoundError as error:
        sys.exit(
            f"tdb-server: --http-port needs `pip install 'transformer-debugger-server[gateway]'`: {error}"
        )
    return http_server


def _version() -> str:
    try:
        return installed_version("transformer-debugger-server")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


if __name__ == "__main__":
    main()
