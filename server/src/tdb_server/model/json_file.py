"""JSON files that come with models and autoencoders."""

from __future__ import annotations

import json
import logging
import reprlib
from functools import partial
from pathlib import Path
from typing import TypeGuard

from tdb_server.errors import AutoencoderBroken, ModelBroken, TdbError
from tdb_server.model.regular_file import MAX_JSON_BYTES, read_regular

_log = logging.getLogger(__name__)


def read_json_object(
    path: Path, kind: type[TdbError] = AutoencoderBroken, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, object]:
    """The object in a file.

    Of entries of one name with different values a model's last one counts, as in transformers, and the log
    says so; an autoencoder with any is broken.

    Raises:
        TdbError: of the kind that is asked for: there is none, it has more than `max_bytes`, or it is nested
            deeper than Python's stack.
    """
    content = read_regular(path, max_bytes, kind)
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=partial(_last_of_each, path, kind))
    except (ValueError, RecursionError) as error:
        raise kind(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise kind(f"{path}: not a JSON object")
    return found


def is_text(found: object) -> TypeGuard[str]:
    """Whether it is a string that can be sent: JSON can hold half of a surrogate pair, no message can."""
    return isinstance(found, str) and not any("\ud800" <= one <= "\udfff" for one in found)


def _last_of_each(path: Path, kind: type[TdbError], pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    for key, value in pairs:
        if value != found[key] and kind is not ModelBroken:
            raise ValueError(f"{key} is {value!r} and {found[key]!r}")
        if value != found[key]:
            used, unused = reprlib.repr(found[key]), reprlib.repr(value)
            _log.warning("%s: %s stands twice: %s is used, not %s", path, key, used, unused)
    return found
