"""Small JSON files that come with weights."""

from __future__ import annotations

import json
from pathlib import Path

from tdb_server.errors import AutoencoderBroken
from tdb_server.model.regular_file import MAX_JSON_BYTES, read_regular


def read_json_object(path: Path) -> dict[str, object]:
    """The object in a file.

    Raises:
        AutoencoderBroken: there is none, it is too large, or an entry stands twice with different values.
    """
    content = read_regular(path, MAX_JSON_BYTES, AutoencoderBroken)
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise AutoencoderBroken(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise AutoencoderBroken(f"{path}: not a JSON object")
    return found


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    for key, value in pairs:
        if value != found[key]:
            raise ValueError(f"{key} is {value!r} and {found[key]!r}")
    return found
