"""The files of a folder of examples, and what each says of itself.

`examples.json` is the index: of which model, of which nodes, how much. A Parquet file for each kind of nodes
has a row for each node, layer by layer; `pieces.parquet` has the tokens of the pieces that examples are of.
Each repeats the index in its own metadata, so that files of different runs are not mixed up. The index is
written last: a folder without it is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.examples.kinds import Amounts, Kind

SCHEMA = 1
INDEX_FILE = "examples.json"
PIECES_FILE = "pieces.parquet"
METADATA_KEY = b"transformer-debugger-examples"


@dataclass(frozen=True, slots=True)
class Index:
    """What a folder is of.

    Attributes:
        model: its name, and
        digest: that of its weights and dictionaries.
        dtype: of the weights that were computed with.
        texts: name and fingerprint of the file of texts.
        seed: of the random pieces.
        n_texts, n_pieces, n_tokens: how many were run; of tokens, those that count.
        n_pairs: pairs of tokens that count.
    """

    model: str
    digest: str
    dtype: str
    amounts: Amounts
    kinds: tuple[Kind, ...]
    texts: str
    seed: int
    n_texts: int
    n_pieces: int
    n_tokens: int
    n_pairs: int

    def to_json(self) -> str:
        """As it stands in files."""
        told = asdict(self)
        told["kinds"] = [_told(one) for one in self.kinds]
        return json.dumps({"schema": SCHEMA, **told}, indent=1)


def kind_file(kind: Kind) -> str:
    """The name of the file with nodes of a kind."""
    return f"{kind.node_type.value}.parquet"


def read_index(text: str | bytes) -> Index:
    """What `to_json` wrote.

    Raises:
        ValueError: it is of another schema, or damaged; says which field.
    """
    told = json.loads(text)
    if not isinstance(told, dict) or told.pop("schema", None) != SCHEMA:
        raise ValueError(f"schema: is not {SCHEMA}, the one that this server reads")
    try:
        kinds = tuple(_kind(one) for one in told.pop("kinds"))
        return Index(kinds=kinds, amounts=Amounts(**told.pop("amounts")), **told)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a field is missing or unknown: {error}") from error


def _told(kind: Kind) -> dict[str, Any]:
    site = None if kind.site is None else kind.site.value
    return {**asdict(kind), "node_type": kind.node_type.value, "site": site}


def _kind(told: Mapping[str, Any]) -> Kind:
    site = None if told["site"] is None else Site(told["site"])
    return Kind(NodeType(told["node_type"]), tuple(told["layers"]), told["n_nodes"], site)
