"""Nodes that alone are kept in a run, the other nodes of their types being set to the baseline's, or to 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tdb_client.errors import NodeError
from tdb_client.nodes import Node, NodeType

WHOLE_NODE_TYPES: tuple[NodeType, ...] = ("whole_head", "whole_mlp")
"""Together they are all that a layer adds to the residual stream."""

_ANY_TOKEN = 0


@dataclass(frozen=True, slots=True)
class CircuitNode:
    """A node, or a component at every token: spelled as a node, `L9 whole head 6 @ -1`, or without its token.

    Attributes:
        type: what kind of component.
        layer: the layer.
        index: which head, neuron or latent of it; 0 for MLPs.
        token: position in the prompt, negative from its end; None for every token.
    """

    type: NodeType
    layer: int
    index: int = 0
    token: int | None = None

    @classmethod
    def parse(cls, text: str) -> CircuitNode:
        """Reads the spelling, such as `L9 whole head 6`, `L5 mlp @ -1` or `L5 neuron 123`.

        Raises:
            NodeError: the text is neither a node nor a component with a layer.
        """
        if "@" in text:
            return cls.of(Node.parse(text))
        try:
            return replace(cls.of(Node.parse(f"{text} @ {_ANY_TOKEN}")), token=None)
        except NodeError:
            raise NodeError(
                f"{text!r} is no part of a circuit, such as 'L9 whole head 6' or 'L5 mlp @ -1'"
            ) from None

    @classmethod
    def of(cls, node: Node) -> CircuitNode:
        """The same node.

        Raises:
            NodeError: it has no layer, a token that it attends to, or is a gradient.
        """
        if node.layer is None or node.attended_to is not None or node.head is not None or node.is_gradient:
            raise NodeError(f"{node} cannot be part of a circuit; whole heads, MLPs, neurons and latents can")
        return cls(node.type, node.layer, node.index, node.token)

    def __str__(self) -> str:
        return str(self._node) if self.token is not None else self._node.component

    def resolve(self, n_tokens: int) -> CircuitNode:
        """The same with its token counted from the start, in a prompt of `n_tokens`.

        Raises:
            NodeError: the token lies before the start of the prompt.
        """
        return self if self.token is None else CircuitNode.of(self._node.resolve(n_tokens))

    @property
    def _node(self) -> Node:
        return Node(self.type, self.layer, self.index, _ANY_TOKEN if self.token is None else self.token)


CircuitWords: TypeAlias = "CircuitNode | Node | str"
"""Part of a circuit in plain words: itself, a node, or the spelling of either."""


def circuit_nodes(words: CircuitWords | Sequence[CircuitWords] | None) -> tuple[CircuitNode, ...] | None:
    """Parts of a circuit in plain words, or one of them; None stands for no circuit at all.

    Raises:
        NodeError: a spelling cannot be read, or something is no part of a circuit.
    """
    if words is None:
        return None
    several = [words] if isinstance(words, str) or not isinstance(words, Iterable) else words
    return tuple(map(_circuit_node, several))


def _circuit_node(words: object) -> CircuitNode:
    match words:
        case str():
            return CircuitNode.parse(words)
        case Node():
            return CircuitNode.of(words)
        case CircuitNode():
            return words
    raise NodeError(f"{words!r} is no part of a circuit, such as 'L9 whole head 6' or 'L5 mlp @ -1'")
