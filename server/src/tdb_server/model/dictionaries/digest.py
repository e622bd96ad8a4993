"""What tells dictionaries apart: all that the numbers of an answer depend on, digested while it is read.

Tensors are digested as they are stored, before any arithmetic, which may round in another way on another
machine. What is not read does not count: other files of the folder, training's statistics, labels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.model.dictionaries.stored import StoredLayer

if TYPE_CHECKING:
    from hashlib import _Hash

_PART_BYTES = 1 << 22
"""What is copied at a time: tensors may lie in memory in another order than that of their numbers."""


def add_settings(digest: _Hash, settings: Mapping[str, object]) -> None:
    """Digests the settings of a folder, in whatever order they stand."""
    digest.update(f"{sorted(settings.items())!r}\n".encode())


def add_tensor(digest: _Hash, name: str, tensor: Tensor) -> None:
    """Digests a tensor of any type: its name, type, shape and bytes."""
    digest.update(f"{name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
    row_bytes = max(1, math.prod(tensor.shape[1:]) * tensor.element_size())
    stored = tensor.detach() if tensor.dim() else tensor.detach()[None]
    for rows in torch.split(stored, max(1, _PART_BYTES // row_bytes)):
        in_order = rows.clone(memory_format=torch.contiguous_format)
        digest.update(in_order.view(torch.uint8).numpy().data)


def with_dictionaries(weights_digest: str, by_site: Mapping[Site, Sequence[StoredLayer]]) -> str:
    """The digest of a model and of the dictionaries loaded with it, in whatever order they were named.

    Labels and links are shown, and no number depends on them: they do not count.

    Args:
        weights_digest: of the model, which it stays where there are no dictionaries.
        by_site: as `read_dictionaries` gives them.
    """
    facts = [
        str((str(one.place), one.is_centred, one.weights.top_k, one.weights.norms_inputs, one.content))
        for layers in by_site.values()
        for one in layers
    ]
    if not facts:
        return weights_digest
    return hashlib.sha256("\n".join((weights_digest, *sorted(facts))).encode()).hexdigest()
