"""The search for the few heads and MLPs that do most of it, told step by step."""

from __future__ import annotations

from contextlib import aclosing

from tdb_client.async_client import AsyncClient
from tdb_client.circuit import MAX_CALLS, Circuit, CircuitStep
from tdb_client.circuit_search import CircuitQuestion
from tdb_client.report.rounding import finite
from tdb_client.workbench.body_reader import BodyReader
from tdb_client.workbench.debugging import circuit_numbers
from tdb_client.workbench.questions import question_of, refuse_changes
from tdb_client.workbench.route import Line, Lines, Route


def _read(body: object) -> CircuitQuestion:
    reader = BodyReader(body, ("question", "atMost", "faithfulness"))
    asked = question_of(reader).asked
    refuse_changes(reader, asked, "a circuit is looked for in the model as it is")
    if asked.loss is not None:
        reader.fault("loss", "a circuit keeps a difference of logits after the prompt", "FIELD_NOT_ALLOWED")
    faithfulness, n_calls = reader.number("faithfulness", 0.85), reader.whole("atMost", MAX_CALLS) or 0
    if not 0 < faithfulness <= 1:
        reader.fault("faithfulness", f"must be above 0 and at most 1, not {faithfulness}", "OUT_OF_RANGE")
    if n_calls < 1:
        reader.fault("atMost", "must be 1 or more", "OUT_OF_RANGE")
    reader.check()
    return CircuitQuestion(
        asked.prompt,
        asked.target,
        asked.distractor,
        asked.baseline,
        asked.add_bos,
        faithfulness,
        max_calls=n_calls,
    )


async def _circuit(client: AsyncClient, question: CircuitQuestion) -> Lines:
    best: CircuitStep | None = None
    async with aclosing(client.stream_circuit(question)) as search:
        async for found in search:
            if isinstance(found, Circuit):
                yield _circuit_line(found)
                continue
            best = _better(question, best, found.steps)
            if best is not None:
                points = [[len(one), finite(one.faithfulness)] for one in found.steps]
                yield {"event": "step", "calls": found.n_calls, "points": points, **_step(best)}


def _better(
    question: CircuitQuestion, best: CircuitStep | None, found: tuple[CircuitStep, ...]
) -> CircuitStep | None:
    """The smallest that is faithful enough, or else the nearest to the whole objective."""
    known = [*found, *([] if best is None else [best])]
    enough = [one for one in known if one.faithfulness >= question.faithfulness]
    if enough:
        return min(enough, key=len)
    return min(known, key=lambda one: abs(1 - one.faithfulness), default=None)


def _step(step: CircuitStep) -> Line:
    nodes = sorted(step.nodes, key=lambda one: (one.layer, one.type, one.index))
    return {
        "size": len(step),
        **circuit_numbers(step.values),
        "nodes": [str(one) for one in nodes],
    }


def _circuit_line(circuit: Circuit) -> Line:
    estimates = dict(circuit.ranking)
    return {
        "event": "circuit",
        **_step(circuit.best),
        "isFaithful": circuit.is_faithful,
        "wanted": circuit.wanted,
        "share": circuit.share,
        "nComponents": circuit.n_components,
        "nMeasured": circuit.n_measured,
        "estimates": [finite(estimates.get(one)) for one in circuit.nodes],
        "path": [_step(one) for one in circuit.path],
    }


CIRCUIT = Route(_read, _circuit)
