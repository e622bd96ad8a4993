"""What the page asks before any question: which model there is, and how a text is cut."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_client.async_client import AsyncClient
from tdb_client.model_info import ModelInfo
from tdb_client.results import PromptTokens
from tdb_client.token_text import printable, quoted
from tdb_client.workbench.body_reader import BodyReader
from tdb_client.workbench.route import Line, Lines, Route

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


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    add_bos: bool | None


def _read_nothing(body: object) -> None:
    BodyReader(body, ()).check()


def _read_text(body: object) -> _Text:
    reader = BodyReader(body, ("text", "addBos"))
    read = _Text(reader.text("text"), reader.flag("addBos"))
    reader.check()
    return read


async def _model(client: AsyncClient, _: None) -> Lines:
    yield {"model": _described(await client.model_info()), "examples": EXAMPLES}


async def _tokens(client: AsyncClient, asked: _Text) -> Lines:
    tokens = await client.tokenize(asked.text, add_bos=asked.add_bos)
    if asked.add_bos is None and tokens.prompt_adds_bos:  # as a prompt would have it
        tokens = await client.tokenize(asked.text, add_bos=True)
    special = set(tokens.special)
    listed = [one | {"isSpecial": place in special} for place, one in enumerate(token_list(tokens))]
    yield {"tokens": listed, "bosAdded": tokens.bos_added, "count": len(tokens)}


def token_list(tokens: PromptTokens) -> list[Line]:
    """A text's tokens, as the report shows them and in quotes."""
    rows = zip(tokens.token_ids, tokens.tokens, strict=True)
    return [{"id": id_, "text": printable(text), "quoted": quoted(text)} for id_, text in rows]


def _described(model: ModelInfo) -> Line:
    limits = model.limits
    return {
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
    }


MODEL = Route(_read_nothing, _model)
TOKENS = Route(_read_text, _tokens)
