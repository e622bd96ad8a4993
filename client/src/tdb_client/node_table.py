"""The tables of a debug answer: the nodes that matter, and the likeliest next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tdb_client.nodes import Node
from tdb_client.results import AttendedToTokens, FloatArray, IntArray, TopTokens

if TYPE_CHECKING:
    import pandas as pd

NodeScalar = Literal["write_norm", "act_times_grad", "direct_effect", "activation"]
"""The four scalars of a node."""


@dataclass(frozen=True, slots=True, eq=False)
class NodeTable:
    """The nodes that matter, in the order the server chose them. Every attribute has an entry per node [n].

    Example:
        for row in result.nodes.strongest("act_times_grad")[:10]:
            print(result.nodes.words[row], result.nodes.act_times_grad[row])

    Attributes:
        nodes: the nodes.
        words: the nodes with their tokens as text, such as `L9 head 6, ' to' → ' Mary'`.
        write_norm: how much each writes to the residual stream; keeps the activation's sign.
        act_times_grad: estimated total effect on the objective, through everything downstream.
        direct_effect: effect of the write itself on the objective.
        activation: activation; of a head, its attention.
        upvoted_tokens: vocabulary tokens whose logits the write raises and lowers.
        input_tokens: for neurons and MLP latents, tokens whose embedding excites them.
        query_tokens: for heads, tokens that excite them through the query.
        key_tokens: for heads, tokens that excite them through the key.
        attended_to: for active attention latents, the attended-to tokens that excite them.
        labels: what somebody has called latents, in one line; None of other nodes, and where the server says
            nothing. Strangers wrote them: they explain nothing that was computed.
        links: http or https addresses of pages about latents, or None.
    """

    nodes: tuple[Node, ...]
    words: tuple[str, ...]
    write_norm: FloatArray
    act_times_grad: FloatArray
    direct_effect: FloatArray
    activation: FloatArray
    upvoted_tokens: Sequence[TopTokens | None]
    input_tokens: Sequence[TopTokens | None]
    query_tokens: Sequence[TopTokens | None]
    key_tokens: Sequence[TopTokens | None]
    attended_to: tuple[AttendedToTokens | None, ...]
    labels: tuple[str | None, ...]
    links: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    def scalar(self, name: NodeScalar) -> FloatArray:
        """One of the four scalars by name [n]."""
        scalars = {
            "write_norm": self.write_norm,
            "act_times_grad": self.act_times_grad,
            "direct_effect": self.direct_effect,
            "activation": self.activation,
        }
        return scalars[name]

    def strongest(self, by: NodeScalar = "direct_effect") -> IntArray:
        """Row numbers, largest magnitude of a scalar first [n]."""
        return np.argsort(-np.abs(self.scalar(by)), kind="stable")

    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas frame, a row per node; token lists are lists of strings, best first.

        A column `label` is there where a node has one.

        Example:
            frame = result.to_frame()
            frame[frame["type"] == "attention_head"].nlargest(5, "direct_effect")

        Raises:
            ImportError: pandas is not installed.
        """
        pd = imported_pandas()
        frame = pd.DataFrame(
            {
                "node": [str(node) for node in self.nodes],
                "words": list(self.words),
                "type": [node.kind for node in self.nodes],
                "layer": pd.array([node.layer for node in self.nodes], dtype="Int64"),
                "index": [node.index for node in self.nodes],
                "token": [node.token for node in self.nodes],
                "attended_to": pd.array([node.attended_to for node in self.nodes], dtype="Int64"),
                "write_norm": self.write_norm,
                "act_times_grad": self.act_times_grad,
                "direct_effect": self.direct_effect,
                "activation": self.activation,
                "upvoted_tokens": _top_of_each(self.upvoted_tokens),
                "input_tokens": _top_of_each(self.input_tokens),
                "query_tokens": _top_of_each(self.query_tokens),
                "key_tokens": _top_of_each(self.key_tokens),
            }
        )
        if any(self.labels):
            frame = frame.assign(label=pd.array(self.labels, dtype="string"))
        return frame


@dataclass(frozen=True, slots=True, eq=False)
class LogitTable:
    """Logits of the likeliest tokens after the current token, largest first.

    With several sub-requests, the tokens that are among the likeliest of any of them.
    """

    tokens: tuple[str, ...]
    token_ids: IntArray
    logits: FloatArray

    def __len__(self) -> int:
        return len(self.tokens)


def imported_pandas() -> Any:
    """The module pandas.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        install = "pip install 'transformer-debugger-client[pandas]'"
        raise ImportError(f"to_frame needs pandas: {install}") from error
    return pd


def _top_of_each(scored: Sequence[TopTokens | None]) -> list[list[str]]:
    return [[] if one is None else list(one.top.tokens) for one in scored]
