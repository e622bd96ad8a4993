"""Nodes and their spelling, the same in the library, on the command line and in JSON.

| spelling | node |
| --- | --- |
| `L9 head 6 @ 13 -> 2` | attention head, token 13 attending to token 2 |
| `L9 head 6 @ 13` | attention head at token 13, whatever it attends to |
| `L9 whole head 6 @ 13` | what the head reads at token 13 as one vector |
| `L5 mlp @ 7` | what an MLP adds at token 7 as one vector, of all its neurons |
| `L5 neuron 123 @ 7` | MLP neuron at token 7 |
| `L5 mlp latent 9 @ 7` | latent of the MLP's autoencoder |
| `L5 attention latent 9 @ 7` | latent of attention's autoencoder |
| `L5 post-attn latent 9 @ 7`, `L5 post-mlp latent 9 @ 7` | latent of the residual stream behind either |
| `L5 transcoder latent 9 @ 7` | latent of the MLP's transcoder |
| `L5 latent 9 @ 7` | latent of the only dictionary that is loaded |
| `embedding @ 7` | embedding of a token |
| `L5 layer @ 7` | a whole layer at a token |
| `logit 5335 @ 13` | logit of a vocabulary token |
| `L5 residual channel 9 @ 7` | channel of the residual stream |
| `L5 head 2 qk channel 3 @ 7`, `L5 head 2 v channel 3 @ 7` | channel of a head's query or key, or value |

The arrow points from the token that attends to the token it reads, as in the tables. Tokens count from 0; in
requests negative ones count from the end, so that `@ -1` is the last token. `gradient of` in front names the
gradient at the node rather than its value. Spaces and capitals do not matter, and `→` is read like `->`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tdb_client.errors import NodeError

NodeType = Literal[
    "attention_head",
    "qk_channel",
    "v_channel",
    "mlp_neuron",
    "autoencoder_latent",
    "mlp_autoencoder_latent",
    "attention_autoencoder_latent",
    "resid_post_attn_autoencoder_latent",
    "resid_post_mlp_autoencoder_latent",
    "mlp_transcoder_latent",
    "residual_stream_channel",
    "layer",
    "vocab_token",
    "whole_head",
    "whole_mlp",
]
"""What kind of thing a node is."""

_PHRASES: dict[NodeType, str] = {
    "attention_head": "head",
    "qk_channel": "qk channel",
    "v_channel": "v channel",
    "mlp_neuron": "neuron",
    "autoencoder_latent": "latent",
    "mlp_autoencoder_latent": "mlp latent",
    "attention_autoencoder_latent": "attention latent",
    "resid_post_attn_autoencoder_latent": "post-attn latent",
    "resid_post_mlp_autoencoder_latent": "post-mlp latent",
    "mlp_transcoder_latent": "transcoder latent",
    "residual_stream_channel": "residual channel",
    "layer": "layer",
    "vocab_token": "logit",
    "whole_head": "whole head",
    "whole_mlp": "mlp",
}
_TYPES: dict[str, NodeType] = {phrase: node_type for node_type, phrase in _PHRASES.items()} | {
    "embedding": "layer"
}
_WITHOUT_LAYER = frozenset({"residual channel", "logit", "embedding"})  # need no layer
_WITHOUT_INDEX: frozenset[NodeType] = frozenset({"layer", "whole_mlp"})
_WITH_ATTENDED_TO = frozenset({"head", "residual channel"})
_SPELLING = re.compile(
    r"(?P<gradient>gradient of )?(?:l(?P<layer>NUMBER) )?(?:head (?P<head>NUMBER) (?=qk|v))?"
    r"(?P<phrase>PHRASE)(?: (?P<index>NUMBER))? ?"
    r"@ ?(?P<token>-?NUMBER)(?: ?(?:->|→) ?(?P<attended_to>-?NUMBER))?".replace(
        "NUMBER", r"\d{1,18}"
    ).replace("PHRASE", "|".join(sorted(_TYPES, key=len, reverse=True))),
    re.ASCII,
)
_EXAMPLES = "such as 'L9 head 6 @ -1', 'L9 head 6 @ 13 -> 2', 'L5 neuron 123 @ 7' or 'L5 mlp latent 9 @ 7'"


@dataclass(frozen=True, slots=True)
class Node:
    """One use of a component in one forward pass. `str()` spells it and `Node.parse` reads the spelling.

    Attributes:
        type: what kind of component.
        layer: the layer; None for places without layers (embedding, logits).
        index: which neuron, latent, head, channel or vocabulary token of it; 0 for what has no number.
        token: position in the prompt; of a head, the attended-from token. Negative in requests: from the end.
        attended_to: of a head, the attended-to token; None for all of them.
        head: the head that a query, key or value channel belongs to.
        is_gradient: whether the gradient at the node is meant, and not its value.
    """

    type: NodeType
    layer: int | None
    index: int
    token: int
    attended_to: int | None = None
    head: int | None = None
    is_gradient: bool = False

    @classmethod
    def parse(cls, text: str) -> Node:
        """Reads a node's spelling; see the module.

        Raises:
            NodeError: the text is no node.
        """
        match = _SPELLING.fullmatch(" ".join(text.lower().split()))
        if match is None:
            raise NodeError(f"{text!r} is not a node, {_EXAMPLES}")
        phrase = match["phrase"]
        if match["layer"] is None and phrase not in _WITHOUT_LAYER:
            raise NodeError(f"{text!r} does not say which layer, as in 'L5 ...'")
        if match["layer"] is not None and phrase in {"logit", "embedding"}:
            raise NodeError(f"{text!r} has a layer, but {phrase}s belong to none")
        if (match["index"] is None) != (_TYPES[phrase] in _WITHOUT_INDEX):
            raise NodeError(
                f"{text!r} must {'not have' if match['index'] else 'have'} a number after {phrase!r}"
            )
        if (match["head"] is None) == (phrase in {"qk channel", "v channel"}):
            raise NodeError(f"{text!r} does not fit: a query, key or value channel belongs to a head")
        if match["attended_to"] is not None and phrase not in _WITH_ATTENDED_TO:
            raise NodeError(f"{text!r} has an attended-to token, but only attention has those")
        return cls(
            type=_TYPES[phrase],
            layer=None if match["layer"] is None else int(match["layer"]),
            index=int(match["index"] or 0),
            token=int(match["token"]),
            attended_to=None if match["attended_to"] is None else int(match["attended_to"]),
            head=None if match["head"] is None else int(match["head"]),
            is_gradient=match["gradient"] is not None,
        )

    def __str__(self) -> str:
        arrow = "" if self.attended_to is None else f" -> {self.attended_to}"
        return f"{self.component} @ {self.token}{arrow}"

    @property
    def component(self) -> str:
        """The node without its tokens: `L9 head 6`."""
        parts = ["gradient of"] if self.is_gradient else []
        if self.layer is not None:
            parts.append(f"L{self.layer}")
        if self.head is not None:
            parts.append(f"head {self.head}")
        if self.type == "layer":
            parts.append("embedding" if self.layer is None else "layer")
        elif self.type in _WITHOUT_INDEX:
            parts.append(_PHRASES[self.type])
        else:
            parts.append(f"{_PHRASES[self.type]} {self.index}")
        return " ".join(parts)

    @property
    def is_latent(self) -> bool:
        """Whether it is a latent, of whatever dictionary."""
        return self.type.endswith("latent")

    @property
    def kind(self) -> str:
        """What kind of component, as tables say it: the type, or `embedding` where a layer has no number."""
        return "embedding" if self.type == "layer" and self.layer is None else self.type

    def words(self, tokens: Sequence[str]) -> str:
        """The node with its tokens as text: `L9 head 6, ' to' → ' Mary'`."""
        arrow = "" if self.attended_to is None else f" → {tokens[self.attended_to]!r}"
        return f"{self.component}, {tokens[self.token]!r}{arrow}"

    def resolve(self, n_tokens: int) -> Node:
        """The same node with tokens counted from the start, in a prompt of `n_tokens`.

        Raises:
            NodeError: a negative token lies before the start of the prompt.
        """
        return replace(
            self,
            token=self._from_start(self.token, n_tokens),
            attended_to=None if self.attended_to is None else self._from_start(self.attended_to, n_tokens),
        )

    def _from_start(self, token: int, n_tokens: int) -> int:
        if token < -n_tokens:
            raise NodeError(f"{self}: token {token} does not exist in a prompt of {n_tokens} tokens")
        return token + n_tokens if token < 0 else token


def head(layer: int, head: int, *, token: int, attended_to: int | None = None) -> Node:
    """An attention head at `token`, reading from `attended_to` (needed to trace it, not to ablate it)."""
    return Node("attention_head", layer, head, token, attended_to)


def whole_head(layer: int, head: int, *, token: int) -> Node:
    """An attention head at `token`, with all that it reads."""
    return Node("whole_head", layer, head, token)


def whole_mlp(layer: int, *, token: int) -> Node:
    """An MLP at `token`, with all its neurons."""
    return Node("whole_mlp", layer, 0, token)


def neuron(layer: int, index: int, *, token: int) -> Node:
    """An MLP neuron at `token`."""
    return Node("mlp_neuron", layer, index, token)


def latent(
    layer: int,
    index: int,
    *,
    token: int,
    site: Literal["mlp", "attention", "post-attn", "post-mlp", "transcoder"] | None = None,
) -> Node:
    """A latent at `token`, of the dictionary at a site or of the only one that is loaded."""
    types: dict[str | None, NodeType] = {
        None: "autoencoder_latent",
        "mlp": "mlp_autoencoder_latent",
        "attention": "attention_autoencoder_latent",
        "post-attn": "resid_post_attn_autoencoder_latent",
        "post-mlp": "resid_post_mlp_autoencoder_latent",
        "transcoder": "mlp_transcoder_latent",
    }
    return Node(types[site], layer, index, token)
