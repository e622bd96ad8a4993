"""The command `tdb-server`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from tdb_server.errors import TdbError
from tdb_server.service.app import OtherFace, Parts, serve
from tdb_server.settings import Settings, parse_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with code 1 and one line on stderr when the model cannot be served."""
    version = _version()
    settings = parse_settings(sys.argv[1:] if arguments is None else arguments, version=version)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    try:
        asyncio.run(serve(settings, version, _http_maker(settings)))
    except (TdbError, OSError) as error:
        sys.exit(f"tdb-server: {error}")


def _http_maker(settings: Settings) -> Callable[[Parts], OtherFace] | None:
    """Makes the JSON gateway; it is imported only where it is wanted."""
    if settings.http_port is None:
        return None
    try:
        from tdb_server.gateway.serving import http_server
    except ModuleNotFoundError as error:
        sys.exit(f"tdb-server: --http-port needs `pip install 'transformer-debugger-server[gateway]'`: {error}")
    return http_server


def _version() -> str:
    try:
        return installed_version("transformer-debugger-server")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


if __name__ == "__main__":
    main()
