"""What the command `tdb-server` does once it runs."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from tdb_server.errors import ConfigurationBroken
from tdb_server.examples.progress_lines import ExamplesProgress
from tdb_server.examples_settings import ExamplesSettings
from tdb_server.log_format import configure_logging
from tdb_server.model.progress import no_progress
from tdb_server.queued_stderr import queue_stderr
from tdb_server.security_settings import NewToken
from tdb_server.service.access.token import new_token, token_entry
from tdb_server.service.app import MakeHttp, serve
from tdb_server.settings import DictionaryReport, Settings, parse_settings
from tdb_server.telemetry_settings import LOG_LEVELS
from tdb_server.workers.engine_loading import dictionary_report
from tdb_server.workers.example_run import make_examples


def run(arguments: Sequence[str]) -> None:
    """Serves until told to stop, makes a token or examples, or tells of dictionaries.

    Exits by itself when the command line makes no sense.

    Raises:
        TdbError: the model cannot be served.
        OSError: a port or a file cannot be had.
    """
    version = _version()
    settings = parse_settings(arguments, version=version)
    if isinstance(settings, NewToken):
        _make_token(settings)
        return
    if isinstance(settings, ExamplesSettings):
        configure_logging("text", logging.INFO)
        _make_examples(settings)
        return
    if isinstance(settings, DictionaryReport):
        lines = dictionary_report(settings.folders, settings.model, no_progress)
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    queue_stderr()
    configure_logging(settings.telemetry.log_format, LOG_LEVELS[settings.telemetry.log_level])
    asyncio.run(serve(settings, version, _http_maker(settings)))


def _make_token(wanted: NewToken) -> None:
    """The token for its owner to stderr, what the server keeps of it to stdout."""
    token = new_token()
    sys.stderr.write(f"the token of {wanted.name}, shown only now: {token}\n")
    sys.stdout.write(token_entry(wanted.name, token, wanted.limits, wanted.weight, wanted.tenant))


def _make_examples(settings: ExamplesSettings) -> None:
    _need_pyarrow("examples")
    index = make_examples(settings, ExamplesProgress())
    counts = f"{index.n_texts} texts, {index.n_tokens} tokens"
    sys.stdout.write(f"{settings.out}: examples from {counts}; serve them with --examples {settings.out}\n")


def _need_pyarrow(option: str) -> None:
    try:
        import pyarrow as pa  # noqa: F401
    except ModuleNotFoundError as error:
        needed = "pip install 'transformer-debugger-server[examples]'"
        raise ConfigurationBroken(f"{option} needs `{needed}`: {error}") from error


def _http_maker(settings: Settings) -> MakeHttp | None:
    """Makes the JSON gateway; it is imported only where it is wanted."""
    if settings.http_port is None:
        return None
    try:
        from tdb_server.gateway.app import http_server
    except ModuleNotFoundError as error:
        needed = "pip install 'transformer-debugger-server[gateway]'"
        raise ConfigurationBroken(f"--http-port needs `{needed}`: {error}") from error
    return http_server


def _version() -> str:
    try:
        return installed_version("transformer-debugger-server")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"
