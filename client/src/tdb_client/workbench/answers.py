"""What the page is answered: lines of JSON, made of what a client reads."""

from __future__ import annotations

from collections.abc import Sequence

from tdb_client.debug_result import DEBUG_RESULTS, DebugResult
from tdb_client.events import Started, Values
from tdb_client.inference import Token
from tdb_client.model_info import ModelInfo
from tdb_client.report.data import report_data
from tdb_client.requests import DebugSubRequest
from tdb_client.results import CircuitValues, PromptTokens
from tdb_client.token_text import loss_words, printable, quoted

Line = dict[str, object]


def model_line(model: ModelInfo) -> Line:
    """The model, what can be asked of it, and prompts to begin with."""
    limits = model.limits
    return {
        "model": {
            "name": model.name,
            "digest": model.digest,
            "family": model.family,
            "nLayers": model.n_layers,
            "nHeads": model.n_heads,
            "nKeyValueHeads": model.n_key_value_heads,
            "dModel": model.d_model,
            "nNeurons": model.n_mlp_neurons,
            "vocabularySize": model.vocab_size,
            "contextLength": model.context_length,
            "dtype": model.dtype,
            "addsBos": model.adds_bos,
            "hasChatTemplate": model.chat_template is not None,
            "dictionaries": [
                {
                    "site": one.site,
                    "nLatents": one.n_latents,
                    "layers": list(one.layers),
                    "activation": one.activation,
                    "k": one.k,
                    "argument": one.debug_argument,
                }
                for one in model.autoencoders
            ],
            "limits": {
                "promptTokens": limits.max_prompt_tokens,
                "promptBytes": limits.max_prompt_bytes,
                "k": limits.max_top_and_bottom_k,
                "changes": limits.max_node_ablations,
                "onlyThese": limits.max_circuit_nodes,
                "targets": limits.max_target_tokens,
                "seconds": limits.max_call_seconds,
            },
            "version": model.server_version,
            "hasExamples": False,
        },
        "examples": EXAMPLES,
    }


EXAMPLES = [
    {
        "title": "Who gets the drink?",
        "prompt": "When Mary and John went to the store, John gave a drink to",
        "target": [" Mary"],
        "distractor": [" John"],
        "baseline": ["When John and Mary went to the store, Mary gave a drink to"],
    },
]
"""Questions to begin with; their names are single tokens of most vocabularies."""


def tokens_line(tokens: PromptTokens) -> Line:
    """A text's tokens."""
    special = set(tokens.special)
    rows = zip(tokens.token_ids, tokens.tokens, strict=True)
    return {
        "tokens": [
            {"id": id_, "text": printable(text), "quoted": quoted(text), "isSpecial": place in special}
            for place, (id_, text) in enumerate(rows)
        ],
        "bosAdded": tokens.bos_added,
        "count": len(tokens),
    }


def started_line(started: Started) -> Line:
    """The call was taken up."""
    prompt = started.prompts[-1]
    rows = zip(prompt.token_ids, prompt.tokens, strict=True)
    return {
        "event": "started",
        "requestId": started.call.request_id,
        "queueSeconds": round(started.queue_seconds, 3),
        "cached": started.cached,
        "tokens": [{"id": id_, "text": printable(text), "quoted": quoted(text)} for id_, text in rows],
    }


def progress_line(n_done: int, n_wanted: int, what: str) -> Line:
    """So many results have come of so many."""
    return {"event": "progress", "done": n_done, "of": n_wanted, "what": what}


def values_line(asked: Sequence[DebugSubRequest], started: Started, values: Sequence[Values]) -> Line:
    """The objective of each run, which comes before most of the rest.

    Args:
        asked: the sub-requests.
        started: how the call began.
        values: of each sub-request, in their order.
    """
    return {
        "event": "values",
        "objective": _objective(asked[-1], started),
        "runs": [
            {
                "value": one.loss if request.trace is None else one.traced_value,
                "circuit": None if one.circuit is None else _circuit(one.circuit),
            }
            for request, one in zip(asked, values, strict=True)
        ],
    }


def answer_line(results: Sequence[DebugResult]) -> Line:
    """The whole answer: what the report draws."""
    return {"event": "answer", "data": report_data(results)}


def expected_results(asked: Sequence[DebugSubRequest]) -> int:
    """How many named results will come, totals among them, which older servers leave out."""
    return (len(DEBUG_RESULTS) + 1) * len(asked)


def _circuit(circuit: CircuitValues) -> Line:
    return {
        "faithfulness": circuit.faithfulness,
        "ofPrompt": circuit.of_prompt,
        "ofBaseline": circuit.of_baseline,
    }


def _objective(asked: DebugSubRequest, started: Started) -> str:
    if asked.trace is not None:
        return asked.trace.words(started.prompts[-1].tokens)
    loss = asked.objective
    return loss_words(loss.name, _words(loss.target), _words(loss.distractor))


def _words(tokens: Sequence[Token]) -> list[str]:
    return [quoted(one) if isinstance(one, str) else f"token {one}" for one in tokens]
