"""What a run can change or explain at a node: ablations and traces, each with a spelling."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, TypeAlias, cast

from tdb_client.errors import NodeError
from tdb_client.nodes import Node

AttentionTraceType = Literal["Q", "K", "QK", "V"]
"""What lets the gradient into a traced head: the query, the key, both, or the value."""

AblationValueType = Literal["number", "baseline", "scale", "add"]
"""What an activation is set to: a number, what it is in the baseline prompts, or itself times or plus one."""

AblationWords: TypeAlias = "Ablation | Node | str"
"""An ablation in plain words: itself, a node to set to 0, or the spelling of either."""

TraceWords: TypeAlias = "Trace | Node | str"
"""A trace in plain words: itself, a node that is no head, or the spelling of either."""

_ABLATION = re.compile(r"(?P<node>[^=*+]*)(?:(?P<sign>[=*+])(?P<value>.*))?", re.DOTALL)
_VALUE_TYPES: dict[str, AblationValueType] = {"=": "number", "*": "scale", "+": "add"}
_TRACE = re.compile(r"(?P<node>.*?)( through (?P<through>qk|q|k|v))?(?P<post> post act)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ablation:
    """Sets a node's activation and lets everything after it change.

    | spelling | what is done |
    | --- | --- |
    | `L5 neuron 123 @ 7` | it is set to 0 |
    | `L5 neuron 123 @ 7 = 2.5` | to a number |
    | `L5 neuron 123 @ 7 = baseline` | to what it is in the baseline prompts (their mean): a patch |
    | `L5 neuron 123 @ 7 * 0.5` | it is multiplied |
    | `L5 neuron 123 @ 7 + 2` | a number is added, which may be negative: `+ -2` |

    Of a head with an attended-to token (`@ 9 -> 2`) that pair alone is set. Of a head without (`@ 9`) it is
    the whole row: what its token pays to each token up to it. Other attention stays as it is, so that a row
    need not add up to 1 any more. `= baseline` replaces what the head reads from there, attention times
    value; of whole heads and MLPs, which are vectors, numbers are meant for each of their channels.

    Attributes:
        node: the node.
        value: the number; 0 with `baseline`.
        value_type: what is done with it.
    """

    node: Node
    value: float = 0.0
    value_type: AblationValueType = "number"

    def __post_init__(self) -> None:
        _read_node(self)
        if self.value_type == "baseline" and self.value != 0:
            raise NodeError(f"{self.node} cannot be set to the baseline's and to {self.value} as well")

    @classmethod
    def parse(cls, text: str) -> Ablation:
        """Reads an ablation's spelling, such as `L9 head 6 @ -1` or `L5 neuron 123 @ 7 = 2.5`.

        Raises:
            NodeError: the text is no node, or the value no finite number.
        """
        match = _ABLATION.fullmatch(text)
        assert match is not None  # any text matches
        node, sign, value = match["node"], match["sign"], (match["value"] or "").strip()
        if sign is None:
            return cls(Node.parse(node))
        if sign == "=" and value.lower() == "baseline":
            return cls(Node.parse(node), value_type="baseline")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            done = {"=": "set", "*": "multiply", "+": "add to"}[sign]
            what = f"to {done} {node.strip()} {'to' if sign == '=' else 'by' if sign == '*' else ''}".rstrip()
            raise NodeError(f"{value!r} is not a finite number {what}")
        return cls(Node.parse(node), number, _VALUE_TYPES[sign])

    def __str__(self) -> str:
        return f"{self.node}{self.change}"

    @property
    def change(self) -> str:
        """What is spelled behind the node, such as ` = 2.5` or ` * 0.5`; nothing where it is set to 0."""
        number = repr(float(self.value)).removesuffix(".0")
        match self.value_type:
            case "baseline":
                return " = baseline"
            case "scale":
                return f" * {number}"
            case "add":
                return f" + {number}"
        return f" = {number}" if self.value else ""

    @property
    def is_row(self) -> bool:
        """Whether it sets all that a head's token attends to."""
        return self.node.type == "attention_head" and self.node.attended_to is None


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

    def __post_init__(self) -> None:
        _read_node(self)

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


def _read_node(new: Any) -> None:
    """Reads the spelling where a new ablation or trace was given that in place of a node."""
    if isinstance(new.node, str):
        object.__setattr__(new, "node", Node.parse(new.node))


def ablations(words: object) -> tuple[Any, ...]:
    """Ablations in plain words, or one of them, as Ablations; what is more exact stays as it is.

    Raises:
        NodeError: a spelling cannot be read, or something is no ablation.
    """
    several = words if isinstance(words, Iterable) and not isinstance(words, str) else [words]
    return tuple(_ablation(one) for one in several)


def _ablation(words: object) -> object:
    if isinstance(words, str):
        return Ablation.parse(words)
    if not is_dataclass(words):
        raise NodeError(f"{words!r} is no ablation, such as 'L9 head 6 @ -1' or 'L5 neuron 123 @ 7 = 2.5'")
    return Ablation(words) if isinstance(words, Node) else words


def traces_towards_loss(trace: Trace, downstream: Trace | None) -> bool:
    """Whether a trace needs the loss: only a value traced with no downstream node does, for its direction."""
    return trace.through == "V" and downstream is None


def as_trace(words: TraceWords | None) -> Trace | None:
    """A trace in plain words as a Trace.

    Raises:
        NodeError: the spelling cannot be read.
    """
    if isinstance(words, str):
        return Trace.parse(words)
    if words is not None and not isinstance(words, Trace | Node):
        raise NodeError(
            f"{words!r} is no trace, such as 'L5 neuron 123 @ 7' or 'L9 head 6 @ 13 -> 2 through Q'"
        )
    return Trace(words) if isinstance(words, Node) else words


def read_words(sub_request: Any) -> None:
    """Reads nodes that a new sub-request names in plain words; it is frozen, and nobody has seen it yet."""
    object.__setattr__(sub_request, "ablate", ablations(sub_request.ablate))
    for name in ("trace", "downstream"):
        object.__setattr__(sub_request, name, as_trace(getattr(sub_request, name)))
