"""A file that tells whoever started the server that it is ready, and on which ports."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def ready_file(path: Path | None, ports: Mapping[str, int]) -> Iterator[None]:
    """The file is there, complete, for as long as the context lasts.

    Args:
        path: where; None for no file.
        ports: what it says, such as `{"grpc_port": 50051}`.
    """
    if path is None:
        yield
        return
    # Written beside and renamed, so that nobody ever reads half of it.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(dict(ports)) + "\n")
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
