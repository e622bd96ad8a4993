"""What `/openapi.json` says about the workbench's routes.

The client reads these bodies (`tdb_client.workbench`), as the page is served without this server too; here
they are only described, and a test holds the two together.
"""

from __future__ import annotations

from typing import Literal

from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    BackwardRule,
    MlpComponent,
    ResidualStreamComponent,
)
from tdb_server.gateway.json_bodies import Body


class NoFields(Body):
    """An empty object."""


class TextToCut(Body):
    """A text whose tokens are wanted."""

    text: str
    add_bos: bool | None = None
    """Whether the beginning-of-text token stands in front; null for as in a prompt."""


class QuestionLoss(Body):
    """Another objective than the difference of logits after the prompt."""

    name: Literal["logit_diff", "logit_minus_mean", "probs", "log_prob", "kl_from_baseline"] = "logit_diff"
    token: int | None = None
    """The token at which it is taken, from 0; null for the last."""


class Question(Body):
    """Why this token rather than that one? Nodes are spelled as the command `tdb` spells them."""

    prompt: str
    add_bos: bool | None = None
    """Whether the beginning-of-text token stands in front; null for as the model's tokenizer does."""
    target: list[str] | None = None
    distractor: list[str] | None = None
    target_ids: list[int] | None = None
    """The same by vocabulary index."""
    distractor_ids: list[int] | None = None
    baseline: list[str] | None = None
    """Prompts to compare with, of as many tokens."""
    changes: list[str] | None = None
    """Ablations, such as `L23 head 3 @ -1`, `L5 neuron 1 @ 3 * 2` or `L5 mlp @ 2 = baseline`."""
    only_these: list[str] | None = None
    """Nodes that alone are kept, such as `L9 whole head 6`; null keeps all."""
    node_types: list[NodeType] | None = None
    """With `onlyThese`, the types whose other nodes are set."""
    trace: str | None = None
    """A node to explain in place of the loss, such as `L9 head 6 @ 13 -> 2 through Q`."""
    downstream: str | None = None
    """For a trace through V, the node that gives it its direction."""
    mlp: MlpComponent | None = None
    attention: AttentionComponent | None = None
    residual_stream: list[ResidualStreamComponent] | None = None
    rule: BackwardRule | None = None
    """How gradients go back through what is not linear."""
    k: int | None = None
    """Nodes from each end of each ranking; 10 where it is not said."""
    loss: QuestionLoss | None = None
    hide_early_layers: bool | None = None


class Asked(Body):
    """A question."""

    question: Question


class HeadAsked(Asked):
    """A head whose attention is wanted."""

    layer: int
    head: int


class LensAsked(Asked):
    """Tokens at which the lens is wanted."""

    at: list[int] | None = None
    """Tokens of the prompt, -1 for the last, which is what none means."""


class EdgesAsked(Asked):
    """Edges that are wanted; the question has a baseline and no changes."""

    top_k: int | None = None
    """How many; 200 where it is not said."""
    method: Literal["eap", "eap_ig"] = "eap"
    steps: int | None = None
    """For `eap_ig`, how many runs."""


class CircuitAsked(Asked):
    """A circuit that is looked for; the question has no changes."""

    at_most: int | None = None
    """Calls that may measure circuits, as many circuits as the server takes each; 64 where it is not said."""
    faithfulness: float | None = None
    """Share of the objective that it must keep; 0.85 where it is not said."""


class NodeAsked(Body):
    """A head, neuron or latent, and where its activations are wanted."""

    node: str
    """`L23.head.3`, `L5.neuron.123`, `L5.mlp_autoencoder_latent.7`, or as it is spelled in questions."""
    question: Question | None = None
    texts: list[str] | None = None


class Line(Body):
    """One line of the answer. `event` says what it is; docs/workbench.md has every line's other keys."""

    event: str | None = None


class FieldAtFault(Body):
    """What is wrong with one field."""

    field: str
    """Its path in the question, such as `target[0]`."""
    description: str
    reason: str
    """The same by name, such as `NOT_ONE_TOKEN`."""


class FaultMessage(Body):
    """What went wrong; in the middle of lines it is the last of them, whose `event` is `error`."""

    message: str
    violations: list[FieldAtFault]
