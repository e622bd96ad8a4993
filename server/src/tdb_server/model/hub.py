"""Downloading models and dictionaries from Hugging Face's hub."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from tdb_server.errors import ModelError, ModelNotFound
from tdb_server.model.progress import Progress

WANTED_FILES = ("*.safetensors", "*.json", "tokenizer*", "*.model", "merges.txt")
"""Weights in safetensors, configuration and tokenizer; nothing that is pickled, and no code."""


DICTIONARY_FILES = ("*.safetensors", "*.json", "*.yaml", "*.npz", "*.pt")
"""Of dictionaries. Pickled state dicts are read for their numbers alone."""


def download_from_hub(name: str, progress: Progress, inner: str | None = None) -> Path:
    """The folder of a hub model, downloaded where it is not in Hugging Face's cache already.

    Args:
        name: as on the hub, "openai-community/gpt2".
        progress: told how far it is.
        inner: for a dictionary, the folder in the repository that alone is wanted; "" for its own files.

    Raises:
        ModelNotFound: the hub has no such model, does not show it to us, or cannot be reached.
        ModelError: the download broke off.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted: dict[str, Any] = {"allow_patterns": list(WANTED_FILES)}
    if inner is not None:
        prefix = f"{inner}/" if inner else ""
        wanted = {"allow_patterns": [prefix + one for one in DICTIONARY_FILES]}
        if not inner:
            wanted["ignore_patterns"] = ["*/*"]
    try:
        return Path(snapshot_download(name, **wanted, tqdm_class=_reporting_bar(name, progress)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"{name}: no such folder, and no such model on Hugging Face's hub (or it needs a login): {error}"
        ) from error
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise ModelNotFound(
            f"{name}: no such folder, not downloaded before, and Hugging Face's hub cannot be reached"
        ) from error
    except Exception as error:  # the HTTP library below, and so its errors, change between versions
        raise ModelError(f"{name}: the download failed: {error}") from error


def _reporting_bar(name: str, progress: Progress) -> Any:
    """A tqdm class that draws nothing and passes on how many of the bytes have come."""
    from huggingface_hub.utils.tqdm import tqdm

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options |= {"file": io.StringIO(), "disable": False}
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            if self.unit == "B" and self.total:
                progress(f"downloading {name}", min(1.0, self.n / self.total))
            return drawn

    return ReportingBar
