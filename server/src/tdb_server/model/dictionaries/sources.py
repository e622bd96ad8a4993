"""Where dictionaries come from: a folder, or a folder of a repository on Hugging Face's hub."""

from __future__ import annotations

import re
from pathlib import Path

from tdb_server.errors import AutoencoderBroken
from tdb_server.model.hub import download_from_hub
from tdb_server.model.progress import Progress
from tdb_server.model.regular_file import is_there

_HUB_FOLDER = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)((?:/[\w-][\w.=-]*)*)")


def dictionary_folder(path: Path, progress: Progress) -> Path:
    """The folder that is meant, downloaded where it is a name on the hub.

    Args:
        path: a folder, or `owner/repository` or `owner/repository/some/folder` on the hub, where just the
            files of that folder are downloaded.
        progress: told how far it is.

    Raises:
        ModelNotFound: neither is there, or the network is missing.
        ModelError: the download broke off.
        AutoencoderBroken: the repository has no such folder.
    """
    match = None if is_there(path) else _HUB_FOLDER.fullmatch(str(path))
    if match is None:
        return path
    name, inner = match[1], match[2].lstrip("/")
    folder = download_from_hub(name, progress, inner) / inner
    if not folder.is_dir():
        raise AutoencoderBroken(
            f"{path}: no such folder, and {name} on Hugging Face's hub has no folder {inner}"
        )
    return folder
