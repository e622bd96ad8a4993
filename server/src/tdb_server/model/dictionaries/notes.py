"""What people have said of latents: labels in a file beside the weights, and links to pages about them.

    folder/labels.json    {"9": "names of cities"}, or where a folder holds several layers {"5": {"9": ".."}}
    "link"                in `config.json` or `cfg.json`: an address in which {layer} and {latent} are put in
    "neuronpedia_id"      in SAELens's `cfg.json`: "gpt2-small/5-res-jb"

Nothing is fetched: labels and addresses are handed on to clients as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tdb_server.domain.model_info import LatentNotes
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.dictionaries.stored import StoredLayer
from tdb_server.model.json_file import is_text, read_json_object
from tdb_server.model.regular_file import is_there

LABELS = "labels.json"
MAX_LABELS_BYTES = 2**21
"""Of all labels together: they travel with every answer to what is served, of which clients take 4 MiB."""
_ENTRY_BYTES = 16
"""What a label takes beside its text, at the most."""
_LINK = re.compile(r"https?://[!#-&(-;=?-~]{1,2048}")
"""ASCII without quotes, angle brackets and what cannot be printed."""
_NEURONPEDIA_ID = re.compile(r"[\w.-]+/[\w.-]+")


def add_notes(folder: Path, layers: Sequence[StoredLayer]) -> list[StoredLayer]:
    """The layers with the notes on their latents.

    Raises:
        AutoencoderBroken: labels or a link are not what they should be.
    """
    labels = _labels(folder, layers)
    link = _link(folder)
    noted = []
    for layer in layers:
        index = layer.place.layer_index
        link_of_layer = link.replace("{layer}", str(index)) if link else ""
        has_notes = link_of_layer or labels.get(index)
        notes = LatentNotes(index, link_of_layer, labels.get(index, {})) if has_notes else None
        noted.append(replace(layer, notes=notes))
    return noted


def _link(folder: Path) -> str | None:
    """The address of a latent's page, with {latent} for its number."""
    for path in (folder / "cfg.json", folder / "config.json"):
        config = read_json_object(path) if is_there(path) else {}
        metadata = config.get("metadata")
        known = {**(metadata if isinstance(metadata, dict) else {}), **config}
        link, page = known.get("link"), known.get("neuronpedia_id")
        if link is None and page is not None:
            if not isinstance(page, str) or not _NEURONPEDIA_ID.fullmatch(page):
                raise AutoencoderBroken(f"{path}: neuronpedia_id {page!r} is not like gpt2-small/5-res-jb")
            link = f"https://www.neuronpedia.org/{page}/{{latent}}"
        if link is not None:
            if not isinstance(link, str) or not _LINK.fullmatch(link) or "{latent}" not in link:
                raise AutoencoderBroken(f"{path}: link {link!r} is no http address with {{latent}} in it")
            return link
    return None


def _labels(folder: Path, layers: Sequence[StoredLayer]) -> dict[int, dict[int, str]]:
    """Labels by layer and latent."""
    path = folder / LABELS
    if not is_there(path):
        return {}
    labels_by_layer = read_json_object(path)
    if not any(isinstance(one, dict) for one in labels_by_layer.values()):
        if len(layers) != 1:
            raise AutoencoderBroken(f'{path}: of which layer? Of several: {{"LAYER": {{"LATENT": "label"}}}}')
        labels_by_layer = {str(layers[0].place.layer_index): labels_by_layer}
    by_layer = {str(one.place.layer_index): one for one in layers}
    found: dict[int, dict[int, str]] = {}
    for layer, labels in labels_by_layer.items():
        if layer not in by_layer or not isinstance(labels, dict):
            raise AutoencoderBroken(f"{path}: {layer!r} is no layer of this folder with labels of its own")
        n_latents = len(by_layer[layer].weights.latent_bias)
        found[int(layer)] = _of_layer(path, labels, n_latents)
    return found


def check_labels(layers: Sequence[StoredLayer]) -> None:
    """Counts the labels of all dictionaries that are loaded.

    Raises:
        AutoencoderBroken: they are too many to travel.
    """
    n_bytes = 0
    for layer in layers:
        for label in layer.notes.labels.values() if layer.notes else ():
            n_bytes += len(label.encode()) + _ENTRY_BYTES
        if n_bytes > MAX_LABELS_BYTES:
            raise AutoencoderBroken(f"{layer.path}: labels of more than {MAX_LABELS_BYTES} bytes in all")


def _of_layer(path: Path, labels: Mapping[str, object], n_latents: int) -> dict[int, str]:
    found = {}
    for latent, label in labels.items():
        if not latent.isdecimal() or len(latent) > 9 or int(latent) >= n_latents:
            raise AutoencoderBroken(f"{path}: {latent!r} is none of the latents 0 to {n_latents - 1}")
        if not is_text(label):
            raise AutoencoderBroken(f"{path}: the label of {latent} is {label!r}, not a text")
        found[int(latent)] = label
    return found
