from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any, Self

import pytest
from google.protobuf.json_format import Parse
from hypothesis import given
from hypothesis import strategies as st
from tdb_client import Ablation, DebugSubRequest, Trace, head, neuron
from tdb_client.cli.arguments import parse
from tdb_client.cli.commands import _sub_request, _traced
from tdb_client.encoding import debug_request
from tdb_client.report import request_text
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
token_ids = st.integers(0, 2**31 - 1)
token_lists = st.tuples(st.lists(texts, max_size=2), st.lists(token_ids, max_size=2)).map(
    lambda pair: (*pair[0], *pair[1])
)
nodes = st.builds(neuron, st.integers(0, 40), st.integers(0, 9), token=st.integers(-9, 9)) | st.builds(
    head, st.integers(0, 40), st.integers(0, 9), token=st.integers(5, 9), attended_to=st.integers(0, 5)
)
ablations = st.builds(Ablation, nodes, st.floats(-1e3, 1e3))


def traces(node: Any) -> Trace:
    return Trace(node, "QK" if node.type == "attention_head" else None)


requests = st.builds(
    DebugSubRequest,
    texts,
    token_lists,
    token_lists,
    k=st.integers(1, 50),
    ablate=st.lists(ablations, max_size=2).map(tuple),
    trace=st.none() | nodes.map(traces),
    mlp=st.sampled_from(["neuron", "autoencoder_latent"]),
    attention=st.sampled_from(["attention_head", "autoencoder_latent"]),
    residual_stream=st.lists(st.sampled_from(["post_attn_latent", "post_mlp_latent"])).map(tuple),
    hide_early_layers=st.booleans(),
    add_bos=st.none() | st.booleans(),
)


@given(requests)
def test_the_command_asks_the_same(request: DebugSubRequest) -> None:
    words = shlex.split(request_text.command(request))
    assert words.pop(0) == "tdb"
    options = parse(words)
    asked = _sub_request(options)
    if request.trace is not None:
        asked = DebugSubRequest(
            **{name: getattr(asked, name) for name in asked.__dataclass_fields__}
            | {"trace": _traced(options)}
        )
    assert asked == replace(request, top_k_sums=False)  # which nothing of what it prints needs


class Listener:
    """Takes the client's place in a program."""

    asked: DebugSubRequest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def debug(self, *arguments: Any, **named: Any) -> None:
        type(self).asked = DebugSubRequest.of(*arguments, **named)


@given(requests)
def test_the_program_asks_the_same(request: DebugSubRequest) -> None:
    imported = "from tdb_client import Client\n"
    program = request_text.program([request])
    assert program.startswith(imported)
    exec(compile(program.removeprefix(imported), "program", "exec"), {"Client": Listener})
    assert Listener.asked == request


def test_the_program_is_short() -> None:
    request = DebugSubRequest.of("a prompt", " Mary", ablate="L1 head 2 @ -1")
    assert request_text.program([request]).splitlines()[-6:] == [
        "    result = client.debug(",
        "        'a prompt',",
        "        ' Mary',",
        "        ablate='L1 head 2 @ -1',",
        "    )",
        "print(result)",
    ]


class Pair(Listener):
    """Takes the client's place where two are compared."""

    def debug_many(self, requests: list[DebugSubRequest]) -> tuple[DebugSubRequest, DebugSubRequest]:
        first, second = requests
        return first, second


@given(requests, requests)
def test_the_program_asks_for_both(first: DebugSubRequest, second: DebugSubRequest) -> None:
    imported = "from tdb_client import Client, DebugSubRequest\n"
    program = request_text.program([first, second])
    assert program.startswith(imported)
    found: dict[str, Any] = {"Client": Pair, "DebugSubRequest": DebugSubRequest, "print": lambda _: None}
    exec(compile(program.removeprefix(imported), "program", "exec"), found)
    assert (found["before"], found["after"]) == (first, second)


def test_commands_show_both_runs() -> None:
    plain = DebugSubRequest.of("p", " Mary")
    ablated = replace(plain, ablate=(Ablation.parse("L1 head 2 @ -1"),), hide_early_layers=True)
    kept = DebugSubRequest.of("p", " Mary", only_these=["L1 mlp"])
    assert request_text.commands([plain]) == request_text.command(plain)
    assert request_text.commands([plain, ablated]) == request_text.command(ablated)  # which runs both
    assert request_text.commands([plain, kept]).splitlines() == [
        "tdb debug --prompt p --target ' Mary'",
        "tdb debug --prompt p --target ' Mary' --only-these 'L1 mlp'",
    ]


def test_the_message_is_that_of_the_call() -> None:
    plain = DebugSubRequest.of("a prompt", " Mary")
    ablated = DebugSubRequest.of("a prompt", " Mary", ablate="L1 head 2 @ -1", k=3)
    text = request_text.message([plain, ablated], n_tokens=4)
    resolved = DebugSubRequest.of("a prompt", " Mary", ablate="L1 head 2 @ 3", k=3)
    assert Parse(text, DebugRequest()) == debug_request([plain, resolved])
    assert json.loads(text)["subRequests"][1]["topAndBottomK"] == 3


@pytest.mark.parametrize("downstream", ["L1 neuron 3 @ 2", "L1 head 0 @ 3 -> 2 through Q"])
def test_downstream_nodes_are_part_of_the_command(downstream: str) -> None:
    request = DebugSubRequest.of("p", trace="L1 head 2 @ 3 -> 1 through V", downstream=downstream)
    options = parse(shlex.split(request_text.command(request))[1:])
    assert options.downstream.read == request.downstream
    assert f"downstream={downstream!r}" in request_text.program([request])
