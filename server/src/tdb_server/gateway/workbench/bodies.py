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

    name: Literal["logit_diff", "logit_minus_mean", "probs", "log_prob"] = "logit_diff"
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
