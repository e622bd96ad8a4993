"""What is written at each token in each layer: sums over all heads and of each MLP, however small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tdb_client.async_client import AsyncClient
from tdb_client.errors import IncompleteResponseError
from tdb_client.inference import HOLD_FINAL_NORM_SCALE, ComponentTotalsSpec
from tdb_client.report.rounding import rounded
from tdb_client.results import ComponentTotalsResult, FloatArray, InferenceResult
from tdb_client.workbench.model_and_tokens import token_list
from tdb_client.workbench.questions import Question, read_question
from tdb_client.workbench.route import Line, Lines, Route

SCALARS = {
    "direct_effect": ("write_to_final_residual_grad", "resid_post_embedding_proj_to_final_residual_grad"),
    "act_times_grad": ("act_times_grad", "token_attribution"),
    "write_norm": ("write_norm", "resid_post_embedding_norm"),
}
"""How derived scalars of whole heads and MLPs end, and those of the embedding."""


async def _layers(client: AsyncClient, question: Question) -> Lines:
    names = [
        name
        for ending, of_embedding in SCALARS.values()
        for name in (of_embedding, f"whole_head_{ending}", f"whole_mlp_{ending}")
    ]
    runs = [
        replace(one, ablate=(*one.ablate, HOLD_FINAL_NORM_SCALE), backward_rule=question.asked.backward_rule)
        for one in question.inference({"layers": ComponentTotalsSpec(names, by_token=True)})
    ]
    answers = await client.infer(runs)
    yield {
        "event": "layers",
        "tokens": token_list(answers[0].prompt),
        "runs": [{scalar: _sums(answer, scalar) for scalar in SCALARS} for answer in answers],
    }


def _sums(answer: InferenceResult, scalar: str) -> Line:
    """Numbers by layer and token; of the embedding by token alone."""
    ending, of_embedding = SCALARS[scalar]
    heads, mlps = _total(answer, f"whole_head_{ending}"), _total(answer, f"whole_mlp_{ending}")
    return {
        "embedding": rounded(_total(answer, of_embedding)),
        "heads": [rounded(layer.sum(axis=-1)) for layer in heads],
        "mlps": [rounded(layer) for layer in mlps],
    }


def _total(answer: InferenceResult, name: str) -> FloatArray:
    found = answer.results.get("layers")
    total = found.totals.get(name) if isinstance(found, ComponentTotalsResult) else None
    if total is None or "sequence_tokens" not in total.dimensions:
        raise IncompleteResponseError(f"the answer does not have {name} by token: the server may be too old")
    return np.asarray(total.array)


LAYERS = Route(read_question, _layers)
