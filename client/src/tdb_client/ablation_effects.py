"""How much each of many nodes matters: the objective alone, with one node ablated at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tdb_client.call_splitting import in_other_words
from tdb_client.errors import CallError, IncompleteResponseError, NodeError
from tdb_client.inference import InferenceSubRequest, Loss
from tdb_client.interventions import Ablation
from tdb_client.node_table import imported_pandas
from tdb_client.number_text import number
from tdb_client.objective_words import objective_words
from tdb_client.results import CallInfo, InferenceResult, LossTokens, PromptTokens

if TYPE_CHECKING:
    import pandas as pd

_PATH = re.compile(
    r"sub_requests\[(\d+)\]\.inference_spec\.(?:loss_fn_config\.)?(\w+)(\[\d+\])?(\.[\w.\[\]]+)?"
)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AblationEffects:
    """The objective without ablation, and with each node ablated by itself.

    Example:
        effects = client.ablate_each(prompt, " Mary", " John", ["L23 head 3 @ -1", "L20 head 0 @ -1"])
        effects.objective                 # 6.12
        effects.change                    # with each of them ablated: array([-2.93, -1.22])
        effects.to_frame().nsmallest(5, "change")

    Attributes:
        call: the first of the calls that were made, and which model.
        prompt: the prompt's tokens.
        loss: what is measured.
        loss_tokens: its targets and distractors.
        objective: its value without ablation.
        ablations: the nodes in the order asked for, tokens counted from the start, and what each was set to.
        ablated: the objective with each of them ablated [n].
    """

    call: CallInfo
    prompt: PromptTokens
    loss: Loss
    loss_tokens: LossTokens | None
    objective: float
    ablations: tuple[Ablation, ...]
    ablated: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ablations)

    def __repr__(self) -> str:
        return f"<AblationEffects: {self.objective_name} = {number(self.objective)}, {len(self)} nodes>"

    @property
    def change(self) -> npt.NDArray[np.float64]:
        """How much the objective changes with each ablation [n]: negative where the node raised it."""
        return self.ablated - self.objective

    @property
    def objective_name(self) -> str:
        """What is measured, in words: `logit ' Mary' - ' John'`."""
        return objective_words(self.loss, self.loss_tokens)

    @property
    def words(self) -> tuple[str, ...]:
        """The nodes with their tokens as text: `L9 head 6, ' to' → ' Mary'`."""
        return tuple(one.node.words(self.prompt.tokens) for one in self.ablations)

    def to_frame(self) -> pd.DataFrame:
        """A pandas frame with a row per node: what was done to it, `objective` and `change`.

        `value_type` says whether it was set to `value`, multiplied by it, or otherwise, as in Ablation.

        Raises:
            ImportError: pandas is not installed.
        """
        pd = imported_pandas()
        nodes = [one.node for one in self.ablations]
        return pd.DataFrame(
            {
                "node": [str(node) for node in nodes],
                "words": list(self.words),
                "type": [node.kind for node in nodes],
                "layer": pd.array([node.layer for node in nodes], dtype="Int64"),
                "index": [node.index for node in nodes],
                "token": [node.token for node in nodes],
                "attended_to": pd.array([node.attended_to for node in nodes], dtype="Int64"),
                "value": [one.value for one in self.ablations],
                "value_type": [one.value_type for one in self.ablations],
                "objective": self.ablated,
                "change": self.change,
            }
        )


def whole_request(
    prompt: str,
    loss: Loss,
    nodes: tuple[Ablation, ...],
    add_bos: bool | None,
    baseline: tuple[str, ...] = (),
) -> InferenceSubRequest:
    """All nodes in one sub-request, which is never sent: to count their tokens and to be taken apart.

    Raises:
        NodeError: something is no node.
    """
    for i, one in enumerate(nodes):
        if not isinstance(one, Ablation):
            raise NodeError(f"nodes[{i}]: {one!r} is no node to ablate, such as 'L9 head 6 @ -1'")
    return InferenceSubRequest(prompt, loss, ablate=nodes, add_bos=add_bos, baseline=baseline)


def requests_for_each(whole: InferenceSubRequest) -> list[InferenceSubRequest]:
    """A sub-request without ablation, then one for each of them; all ask for the objective alone."""
    return [replace(whole, ablate=()), *(replace(whole, ablate=(one,)) for one in whole.ablate)]


def effects(whole: InferenceSubRequest, answers: Sequence[InferenceResult]) -> AblationEffects:
    """Reads the answers to `requests_for_each`.

    Raises:
        IncompleteResponseError: one has no objective.
    """
    losses = [one.loss for one in answers if one.loss is not None]
    if whole.loss is None or len(losses) < len(answers):
        raise IncompleteResponseError("an answer has no objective")
    plain = answers[0]
    ablations = tuple(one for one in whole.ablate if isinstance(one, Ablation))
    n_tokens = len(plain.prompt)
    return AblationEffects(
        call=plain.call,
        prompt=plain.prompt,
        loss=whole.loss,
        loss_tokens=plain.loss_tokens,
        objective=losses[0],
        ablations=tuple(replace(one, node=one.node.resolve(n_tokens)) for one in ablations),
        ablated=np.array(losses[1:], np.float64),
    )


def in_words_of_nodes(error: CallError) -> CallError:
    """The error in terms of `ablate_each`: `nodes[3]` in place of a field of the fifth sub-request."""

    def rename(match: re.Match[str]) -> str:
        number, name, index = int(match[1]), match[2], match[3] or ""
        return f"nodes[{number - 1}]" if name == "ablation_specs" else name + index

    return in_other_words(error, lambda text: _PATH.sub(rename, text))
