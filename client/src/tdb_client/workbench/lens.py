"""What the model would predict after each layer, at some tokens of the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_client.async_client import AsyncClient
from tdb_client.inference import LensSpec
from tdb_client.report.rounding import rounded
from tdb_client.results import LensResult, named_result
from tdb_client.token_text import quoted
from tdb_client.workbench.body_reader import BodyReader
from tdb_client.workbench.model_and_tokens import token_list
from tdb_client.workbench.questions import Question, question_of
from tdb_client.workbench.route import Line, Lines, Route

PLACES = ("resid_post_attn", "resid_post_mlp")
N_TOP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class _Asked:
    question: Question
    at: tuple[int, ...]


def _read(body: object) -> _Asked:
    reader = BodyReader(body, ("question", "at"))
    read = _Asked(question_of(reader), reader.wholes("at"))
    reader.check()
    return read


async def _lens(client: AsyncClient, asked: _Asked) -> Lines:
    objective = asked.question.asked.objective
    tokens = tuple(dict.fromkeys((*objective.target, *objective.distractor)))
    n_top_tokens = min(N_TOP_TOKENS, (await client.model_info()).limits.max_top_and_bottom_k)
    wanted = {place: LensSpec(tokens, n_top_tokens, at=asked.at, place=place) for place in PLACES}
    answers = await client.infer(asked.question.inference(wanted))
    first = named_result(answers[0], PLACES[0], LensResult)
    yield {
        "event": "lens",
        "tokens": token_list(answers[0].prompt),
        "at": list(first.at),
        "wanted": [
            {"id": id_, "quoted": quoted(text), "role": "target" if one in objective.target else "distractor"}
            for one, id_, text in zip(tokens, first.token_ids, first.tokens, strict=True)
        ],
        "runs": [{place: _rows(named_result(one, place, LensResult)) for place in PLACES} for one in answers],
    }


def _rows(found: LensResult) -> list[Line]:
    """A row for the embedding, whose layer is null, and for each layer; in it an entry for each token."""
    return [
        {
            "layer": layer,
            "at": [
                {
                    "top": [
                        [quoted(text), number]
                        for text, number in zip(top.tokens, rounded(top.logits), strict=True)
                    ],
                    "logits": [] if found.logits is None else rounded(found.logits[row, place]),
                }
                for place, top in enumerate(found.top_tokens[row])
            ],
        }
        for row, layer in enumerate((None, *found.layers))
    ]


LENS = Route(_read, _lens)
