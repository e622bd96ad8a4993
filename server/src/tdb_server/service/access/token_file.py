"""The file of tokens that may call. It is read again when it changes.

    [[token]]
    name = "alice"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    max_concurrent_calls = 4       # these six may be left out
    calls_per_minute = 60
    max_activation_bytes = 1073741824
    max_priority = "sweep"
    weight = 2.0
    tenant = "physics"

A file that cannot be read, or makes no sense, changes nothing: the tokens before it stay in force and the log
says why. An empty file is taken for one that is just being written; `token = []` lets nobody in. So does a
file that is gone at two looks in a row: it was removed on purpose, as to replace a file does not take that
long.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tdb_server.domain.caller import Caller, CallerLimits
from tdb_server.domain.priority import Priority
from tdb_server.errors import ConfigurationBroken
from tdb_server.model.regular_file import read_regular
from tdb_server.security_settings import token_name
from tdb_server.service.access.file_watch import MAX_FILE_BYTES, stamp_of
from tdb_server.service.access.token import LIMIT_KEYS, token_digest

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
LOOKS_UNTIL_GONE = 2
_KEYS = {"name", "sha256", "max_priority", "weight", "tenant", *LIMIT_KEYS}
_PRIORITIES = {one.value: one for one in Priority}


class Token(NamedTuple):
    """What is kept of a token: whose it is, and its SHA-256."""

    caller: Caller
    digest: bytes


class TokenFile:
    """The tokens in force, as the file says.

    Raises:
        ConfigurationBroken: the file cannot be read or makes no sense.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._n_looks_gone = 0
        self._fault = ""
        self._stamp = stamp_of((path,))
        self._tokens = read_tokens(path)

    def caller_of(self, token: str) -> Caller | None:
        """Whose token it is; None when nobody's.

        Every entry is compared in full, so that the time taken says nothing about which came close.
        """
        digest = token_digest(token)
        callers = [known.caller for known in self._tokens if hmac.compare_digest(known.digest, digest)]
        return callers[0] if callers else None

    def look(self) -> None:
        """Reads the file again if it has changed. For a thread that may wait; `caller_of` does not."""
        if _is_gone(self._path):
            self._n_looks_gone += 1
            if self._n_looks_gone == LOOKS_UNTIL_GONE:
                self._tokens = ()
                _log.error("token file %s is gone; nobody may call until there is one again", self._path)
        else:
            self._n_looks_gone = 0
        before, self._stamp = self._stamp, stamp_of((self._path,))
        if (self._stamp == before and not self._fault) or self._n_looks_gone:
            return
        try:
            self._tokens = read_tokens(self._path)
        except ConfigurationBroken as error:  # tried again at the next look: a disk may have been busy
            if error.message != self._fault:
                _log.error("%s; the tokens read before stay in force", error.message)
            self._fault = error.message
        else:
            self._fault = ""
            _log.info("%s: %d tokens are in force", self._path, len(self._tokens))


def _is_gone(path: Path) -> bool:
    """Whether there is no such file; not where a folder or a file server does not let us look."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Reads a token file.

    Raises:
        ConfigurationBroken: it cannot be read or makes no sense.
    """
    try:
        text = read_regular(path, MAX_FILE_BYTES, ConfigurationBroken).decode("utf-8")
        if not text.strip():
            raise ValueError("it is empty; `token = []` would let nobody in")
        return _tokens(tomllib.loads(text))
    except (OSError, ValueError, argparse.ArgumentTypeError) as error:
        raise ConfigurationBroken(f"token file {path}: {error}") from error


def _tokens(content: Mapping[str, object]) -> tuple[Token, ...]:
    entries = content.get("token")
    if set(content) != {"token"} or not isinstance(entries, list):
        raise ValueError("it must consist of [[token]] entries")
    tokens = tuple(_token(entry, f"entry {index}") for index, entry in enumerate(entries, 1))
    names, digests = {token.caller.name for token in tokens}, {token.digest for token in tokens}
    if min(len(names), len(digests)) < len(tokens):
        raise ValueError("names and hashes must differ between entries")
    return tokens


def _token(entry: object, where: str) -> Token:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a table")
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"{where} has unknown keys: {', '.join(sorted(unknown))}")
    name, digest = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{where} must have a name, and as sha256 64 hexadecimal digits")
    tenant = token_name(str(entry["tenant"])) if "tenant" in entry else None
    limits, weight = _limits(entry, where), _weight(entry, where)
    return Token(Caller(token_name(name), limits, weight, tenant, has_token=True), bytes.fromhex(digest))


def _limits(entry: Mapping[str, object], where: str) -> CallerLimits:
    limits: dict[str, int] = {}
    for key in LIMIT_KEYS:
        value = entry.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}: {key} must be a whole number above 0")
        if key in entry:
            limits[key] = value
    priority = _PRIORITIES.get(str(entry.get("max_priority", Priority.INTERACTIVE.value)))
    if priority is None:
        raise ValueError(f"{where}: max_priority must be one of {', '.join(_PRIORITIES)}")
    return CallerLimits(**limits, max_priority=priority)


def _weight(entry: Mapping[str, object], where: str) -> float:
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"{where}: weight must be a finite number above 0")
    return float(weight)
