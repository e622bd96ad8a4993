"""What one head attends to, and what it writes for having done so, at every pair of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_client.async_client import AsyncClient
from tdb_client.inference import DerivedAttentionScalarsSpec
from tdb_client.report.rounding import rounded_causal_rows
from tdb_client.results import DerivedAttentionScalarsResult, named_result
from tdb_client.workbench.body_reader import BodyReader
from tdb_client.workbench.model_and_tokens import token_list
from tdb_client.workbench.questions import Question, question_of
from tdb_client.workbench.route import Lines, Route


@dataclass(frozen=True, slots=True)
class _Asked:
    question: Question
    layer: int
    head: int


def _read(body: object) -> _Asked:
    reader = BodyReader(body, ("question", "layer", "head"))
    read = _Asked(question_of(reader), reader.required("layer"), reader.required("head"))
    reader.check()
    return read


async def _attention(client: AsyncClient, asked: _Asked) -> Lines:
    wanted = {
        "pattern": DerivedAttentionScalarsSpec("attn_qk_probs", asked.layer, asked.head),
        "writeNorm": DerivedAttentionScalarsSpec("unflattened_attn_write_norm", asked.layer, asked.head),
    }
    answers = await client.infer(asked.question.inference(wanted))
    yield {
        "event": "attention",
        "layer": asked.layer,
        "head": asked.head,
        "tokens": token_list(answers[0].prompt),
        "runs": [
            {
                name: rounded_causal_rows(named_result(one, name, DerivedAttentionScalarsResult).scalars)
                for name in wanted
            }
            for one in answers
        ],
    }


ATTENTION = Route(_read, _attention)
