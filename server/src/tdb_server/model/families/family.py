"""What a model family is: a way to read its configuration, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdb_server.model.config import DecoderConfig
from tdb_server.model.families.entries import Block
from tdb_server.model.families.weight_names import WeightNames


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        configure: from the content of `config.json` to the decoder's configuration.
        names: what its checkpoints call the weights.
    """

    configure: Callable[[Block], DecoderConfig]
    names: WeightNames
