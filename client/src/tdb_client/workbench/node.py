"""One head, neuron or latent: what it writes and reads in the vocabulary, and where it is active."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tdb_client.async_client import AsyncClient
from tdb_client.call_splitting import in_other_words
from tdb_client.debug_result import debug_result
from tdb_client.encoding import PLACES
from tdb_client.errors import CallError, FieldViolation, NodeError
from tdb_client.events import inference_results
from tdb_client.inference import (
    AblationSpec,
    ActivationIndex,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    Loss,
    ProcessingSpec,
)
from tdb_client.model_info import ModelInfo
from tdb_client.nodes import Node, NodeType
from tdb_client.report.data import ends, report_data
from tdb_client.report.rounding import rounded
from tdb_client.results import (
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    InferenceResult,
    named_result,
)
from tdb_client.workbench.body_reader import BodyReader, QuestionError
from tdb_client.workbench.model_and_tokens import token_list
from tdb_client.workbench.questions import Question, question_of
from tdb_client.workbench.route import Line, Lines, Route

N_TOKENS = 20
"""Tokens from each end of what it writes and reads."""
MOST_TEXTS = 32
MOST_NODES = 100
"""Nodes from each end of a question's rankings, among which those of a head are looked for."""
SHORT_PROMPT = "a"
"""Of no matter: at its first token the node is set, for what it writes and reads."""

_SCALARS = {kind: place for kind, place in PLACES.items() if kind == "mlp_neuron" or kind.endswith("latent")}
"""What says how active a node is, and also where it is set."""
_READING: frozenset[NodeType] = frozenset({"mlp_neuron", "mlp_autoencoder_latent", "mlp_transcoder_latent"})
"""Nodes that read the residual stream before an MLP, in whose place an embedding can be put."""
_ADDRESS = re.compile(r"L(\d+)\.([a-z_]+)\.(\d+)")
_SHORT_TYPES = {"head": "attention_head", "neuron": "mlp_neuron"}


@dataclass(frozen=True, slots=True)
class _Asked:
    node: Node
    question: Question | None
    texts: tuple[str, ...]


def node_at(text: str) -> Node:
    """The node of an address, such as `L23.head.3` or `L5.mlp_autoencoder_latent.7`, or of a spelling.

    It is meant at every token; its token says nothing.

    Raises:
        NodeError: there is no page of it.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        node = Node.parse(f"{text} @ 0")
    else:
        kind: Any = _SHORT_TYPES.get(match[2], match[2])
        node = Node(kind, int(match[1]), int(match[3]), 0)
    if node.type != "attention_head" and node.type not in _SCALARS:
        raise NodeError(f"{text!r} is no head, neuron or latent, such as L23.head.3 or L5.neuron.123")
    return node


def _read(body: object) -> _Asked:
    reader = BodyReader(body, ("node", "question", "texts"))
    node, texts = reader.spelled("node", node_at), reader.texts("texts")
    if not reader.text("node"):
        reader.fault("node", "is required", "FIELD_REQUIRED")
    question = None if reader.value("question") is None else question_of(reader)
    for place, text in enumerate(texts):
        if not text:
            reader.fault(f"texts[{place}]", "is empty", "EMPTY_PROMPT")
    if len(texts) > MOST_TEXTS:
        reader.fault("texts", f"has {len(texts)} entries; at most {MOST_TEXTS} are taken", "OUT_OF_RANGE")
    reader.check()
    assert node is not None  # else there are faults
    return _Asked(node, question, texts)


async def _node(client: AsyncClient, asked: _Asked) -> Lines:
    node, model = asked.node, await client.model_info()
    _check_exists(node, model)
    yield {
        "event": "node",
        "spelling": node.component,
        "type": node.type,
        "layer": node.layer,
        "index": node.index,
        "label": model.label(node),
        "link": model.link(node),
        **await _vocabulary(client, node, min(N_TOKENS, model.limits.max_top_and_bottom_k)),
    }
    wanted = _activity(node)
    if asked.question is not None:
        for run, answer in enumerate(await client.infer(asked.question.inference(wanted))):
            yield {"event": "activations", "run": run, **_activations(answer, node)}
    for number, text in enumerate(asked.texts):
        try:
            (answer,) = await client.infer([InferenceSubRequest(text, results=wanted)])
        except CallError as error:
            raise in_other_words(error, partial(_of_text, number)) from None
        yield {"event": "activations", "text": number, **_activations(answer, node)}
    if asked.question is not None and node.type == "attention_head":
        yield await _uses(client, node, asked.question, model)


def _of_text(number: int, path: str) -> str:
    return f"texts[{number}]" if path.endswith("prompt") else path


def _check_exists(node: Node, model: ModelInfo) -> None:
    """Refuses what the model does not have; of latents the server says it."""
    counts = {"attention_head": model.n_heads, "mlp_neuron": model.n_mlp_neurons}
    if not 0 <= (node.layer or 0) < model.n_layers:
        what = f"there is no layer {node.layer}; there are {model.n_layers}, counted from 0"
        raise QuestionError([FieldViolation("node", what, "LAYER_OUT_OF_RANGE")])
    if node.index >= counts.get(node.type, node.index + 1):
        what = f"there is no number {node.index}; there are {counts[node.type]}, counted from 0"
        raise QuestionError([FieldViolation("node", what, "TENSOR_INDEX_OUT_OF_RANGE")])


async def _vocabulary(client: AsyncClient, node: Node, n_tokens: int) -> Line:
    """Tokens that a unit of it raises and lowers, and whose embeddings raise and lower it.

    A head's depend on the prompt, and are told with the nodes of a question.
    """
    told: Line = {"writes": None, "reads": None}
    if node.type == "attention_head":
        return told
    place = _SCALARS[node.type]
    cell = ActivationIndex(place, node.layer, (0, node.index))
    written = DerivedScalarsSpec(place, node.layer, node.index, n_top_tokens=n_tokens)
    asked = [
        InferenceSubRequest(SHORT_PROMPT, ablate=(AblationSpec(cell, 1.0),), results={"writes": written})
    ]
    if node.type in _READING:
        read = DerivedScalarsSpec("vocab_token_write_to_input_direction", n_top_tokens=n_tokens)
        gradient = AblationSpec(replace(cell, pass_type="backward"), 1.0)
        asked.append(
            InferenceSubRequest(SHORT_PROMPT, Loss("zero"), ablate=(gradient,), results={"reads": read})
        )
    try:
        answers = await client.infer(asked)
    except CallError as error:
        raise in_other_words(
            error, lambda path: "node" if path.startswith("sub_requests") else path
        ) from None
    for answer in answers:
        told |= {
            name: ends([named_result(answer, name, DerivedScalarsResult).top_tokens])[0]
            for name in answer.results
        }
    return told


def _activity(node: Node) -> dict[str, ProcessingSpec]:
    if node.type != "attention_head":
        return {"activation": DerivedScalarsSpec(_SCALARS[node.type], node.layer, node.index)}
    return {
        "activation": DerivedScalarsSpec("attn_write_norm_per_sequence_token", node.layer, node.index),
        "pairs": DerivedAttentionScalarsSpec("unflattened_attn_write_norm", node.layer or 0, node.index),
    }


def _activations(answer: InferenceResult, node: Node) -> Line:
    """How active it is at each token; of a head, how much it writes, and for which token most."""
    values = named_result(answer, "activation", DerivedScalarsResult).activations
    attended_to = None
    if node.type == "attention_head":
        pairs = named_result(answer, "pairs", DerivedAttentionScalarsResult).scalars
        attended_to = np.argmax(pairs, axis=1).tolist()
    return {"tokens": token_list(answer.prompt), "values": rounded(values), "attendedTo": attended_to}


async def _uses(client: AsyncClient, node: Node, question: Question, model: ModelInfo) -> Line:
    """The nodes of a head that are among a question's strongest, as the report has them."""
    n_nodes = min(MOST_NODES, model.limits.max_top_and_bottom_k)
    asked = replace(question.asked, k=n_nodes, attention="attention_head")
    async with aclosing(client.stream_debug([asked])) as stream:
        events = [event async for event in stream]

    def line() -> Line:
        (answer,) = inference_results(events)
        result = debug_result(asked, answer)
        rows = [row for row, one in enumerate(result.nodes.nodes) if one.component == node.component]
        data: Any = report_data([result])
        (run,) = data["runs"]
        return {
            "event": "uses",
            "tokens": data["tokens"],
            "nodes": [data["nodes"][row] for row in rows],
            "scalars": {name: [values[row] for row in rows] for name, values in run["scalars"].items()},
            "lists": [run["tokens"][row] for row in rows],
        }

    return await asyncio.to_thread(line)


NODE = Route(_read, _node)
