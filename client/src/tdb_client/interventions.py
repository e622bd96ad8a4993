"""What a run can change or explain at a node: ablations and traces, each with a spelling."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from tdb_client.errors import NodeError
from tdb_client.nodes import Node

AttentionTraceType = Literal["Q", "K", "QK", "V"]
"""What lets the gradient into a traced head: the query, the key, both, or the value."""

_TRACE = re.compile(r"(?P<node>.*?)( through (?P<through>qk|q|k|v))?(?P<post> post act)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ablation:
    """Sets a node's activation and lets everything after it change; spelled as the node, `= 2.5` unless 0.

    Of a head the whole row is set: what its token attends to, whichever attended-to token the node names.
    """

    node: Node
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Ablation:
        """Reads an ablation's spelling, such as `L9 head 6 @ -1` or `L5 neuron 123 @ 7 = 2.5`.

        Raises:
            NodeError: the text is no node, or the value no finite number.
        """
        node, equals, value = text.partition("=")
        try:
            number = float(value) if equals else 0.0
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise NodeError(f"{value.strip()!r} is not a finite number to set {node.strip()} to")
        return cls(Node.parse(node), number)

    def __str__(self) -> str:
        return str(self.node) + (f" = {repr(self.value).removesuffix('.0')}" if self.value else "")


@dataclass(frozen=True, slots=True)
class Trace:
    """Makes a node, not the loss, the objective. Spelled as the node, then `through Q` (K, QK, V) for heads.

    Attributes:
        node: a neuron, a latent or a head with its attended-to token.
        through: for heads, what lets the gradient through.
        post_act: whether the node counts after its activation function; spelled `post act`. Only to infer.
    """

    node: Node
    through: AttentionTraceType | None = None
    post_act: bool = False

    @classmethod
    def parse(cls, text: str) -> Trace:
        """Reads a trace's spelling, such as `L9 head 6 @ 13 -> 2 through V`.

        Raises:
            NodeError: the text is no trace.
        """
        match = _TRACE.fullmatch(" ".join(text.lower().split()))
        assert match is not None  # any text matches
        through = match["through"] and match["through"].upper()
        return cls(
            Node.parse(match["node"]), cast(AttentionTraceType | None, through), match["post"] is not None
        )

    def __str__(self) -> str:
        through = "" if self.through is None else f" through {self.through}"
        return f"{self.node}{through}{' post act' if self.post_act else ''}"

    def words(self, tokens: Sequence[str]) -> str:
        """The trace with the node's tokens as text: `L9 head 6, ' to' → ' Mary', through Q`.

        Raises:
            NodeError: a token does not exist in this prompt.
        """
        through = "" if self.through is None else f", through {self.through}"
        return self.node.resolve(len(tokens)).words(tokens) + through
