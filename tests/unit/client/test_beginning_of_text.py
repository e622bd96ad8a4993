"""The token that begins a text: asked for, counted, and a warning where numbers may not count it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from tdb_client import (
    AblationSpec,
    ActivationIndex,
    AsyncClient,
    Client,
    DebugSubRequest,
    InferenceSubRequest,
    MultipleTopKSpec,
    TokenCountWarning,
    Trace,
    head,
    neuron,
)
from tdb_client.attention import attention_requests
from tdb_client.cli import main
from tdb_client.encoding import debug_request, infer_request
from tdb_client.report.data import report_data
from tdb_client.requests import tokens_from_start
from tdb_client.token_counting import N_PROMPTS

from tests.unit.client.fake_service import FakeService, debug_results

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]
DEBUG = ["debug", "--prompt", "p", "--target", " Mary"]


@pytest.fixture
def adding(fake: Fake) -> Fake:
    """A service whose model begins prompts."""
    fake[1].adds_bos = True
    return fake


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_requests_say_it_only_when_told(add_bos: bool | None) -> None:
    debug = debug_request([DebugSubRequest.of("p", " Mary", add_bos=add_bos)]).sub_requests[0]
    infer = infer_request([InferenceSubRequest("p", add_bos=add_bos)]).sub_requests[0].inference_spec
    for message in (debug, infer):
        assert message.HasField("add_bos") == (add_bos is not None)
        assert message.add_bos == bool(add_bos)


@pytest.mark.parametrize(("add_bos", "last"), [(None, 4), (True, 3), (False, 3)])
async def test_tokens_count_from_the_end_of_the_prompt_as_it_is_run(
    adding: Fake, add_bos: bool | None, last: int
) -> None:
    words: dict[str, Any] = {"ablate": "L0 neuron 5 @ -1", "add_bos": add_bos}
    with Client(adding[0]) as client:
        client.debug("p", " Mary", **words)
    async with AsyncClient(adding[0]) as other:
        await other.debug("p", " Mary", **words)
    for tokenize, debug in (adding[1].requests[:2], adding[1].requests[2:]):
        assert tokenize.HasField("add_bos") == (add_bos is not None)
        assert debug.sub_requests[0].node_ablations[0].node_index.tensor_indices == [last, 5]


def test_one_prompt_both_ways_is_two_calls(adding: Fake) -> None:
    both = [DebugSubRequest.of("p", " Mary", ablate="L0 neuron 5 @ -1", add_bos=one) for one in (None, False)]
    with Client(adding[0]) as client:
        client.debug_many(both)
    asked = [one.sub_requests[0] for one in adding[1].requests if hasattr(one, "sub_requests")]
    assert [one.node_ablations[0].node_index.tensor_indices[0] for one in asked] == [4, 3]


def test_answers_say_it(adding: Fake) -> None:
    with Client(adding[0]) as client:
        assert client.debug("p", " Mary").prompt.bos_added
        assert not client.debug("p", " Mary", add_bos=False).prompt.bos_added
        info = client.model_info()
        assert (info.adds_bos, info.bos_token_id, info.bos_token) == (True, 1, "<s>")
        tokens = client.tokenize("p")
        assert (tokens.bos_added, tokens.prompt_adds_bos) == (False, True)
        assert client.tokenize("p", add_bos=True).bos_added
        client.detokenize([1], add_bos=True)
    assert adding[1].requests[-1].add_bos


Calls = Callable[[Client], object]


def at(token: int, **more: Any) -> Calls:
    return lambda client: client.debug("p", " Mary", ablate=head(1, 2, token=token), **more)


QUIET: dict[str, list[Calls]] = {
    "from the end": [at(-1)],
    "no number": [lambda client: client.debug("p", " Mary")],
    "said": [at(3, add_bos=True)],
    "said not": [at(3, add_bos=False)],
    "counted as an answer": [lambda client: client.debug("p", " Mary"), at(3)],
    "counted as its tokens": [lambda client: client.tokenize("p", add_bos=True), at(3)],
    "for the server to refuse": [at(99)],
}


@pytest.mark.parametrize("name", QUIET)
def test_no_warning(adding: Fake, name: str) -> None:
    with Client(adding[0]) as client, warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in QUIET[name]:
            call(client)


def test_no_warning_where_there_is_no_such_token(fake: Fake) -> None:
    with Client(fake[0]) as client, warnings.catch_warnings():
        warnings.simplefilter("error")
        client.tokenize("p")
        at(3)(client)


WARNED: dict[str, list[Calls]] = {
    "never seen": [at(3)],
    "counted without": [lambda client: client.tokenize("p"), at(3)],
    "run without": [at(3, add_bos=False), at(3)],
    "another prompt": [lambda client: client.debug("q", " Mary"), at(3)],
}


@pytest.mark.parametrize("name", WARNED)
def test_warnings(adding: Fake, name: str) -> None:
    *before, last = WARNED[name]
    with Client(adding[0]) as client:
        for call in before:
            call(client)
        with pytest.warns(TokenCountWarning, match=r"puts 'When' in front of prompts.*: 3 is ' to'\. Say"):
            last(client)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            last(client)  # the answer has shown how tokens count


async def test_async_warns_as_well(adding: Fake) -> None:
    async with AsyncClient(adding[0]) as client:
        with pytest.warns(TokenCountWarning):
            await client.debug("p", " Mary", trace="L0 neuron 5 @ 3")


def test_a_warning_where_earlier_answers_had_one(fake: Fake) -> None:
    with Client(fake[0]) as client:
        at(3, add_bos=True)(client)
        with pytest.warns(TokenCountWarning, match=r"puts no beginning-of-text token.* 3 is ' to'\."):
            at(3)(client)


def test_old_prompts_are_forgotten(adding: Fake) -> None:
    with Client(adding[0]) as client:
        client.debug("p", " Mary")
        shown = client._counting
        for number in range(N_PROMPTS):
            shown.showed(str(number), client.tokenize("q"))
        assert len(shown._shown) <= N_PROMPTS
        with pytest.warns(TokenCountWarning):
            at(3)(client)


def test_where_sub_requests_have_numbers() -> None:
    debug = DebugSubRequest.of(
        "p", ablate=["L1 head 2 @ 3", "L1 head 2 @ -1"], trace="L1 head 2 @ -1 -> 5 through Q"
    )
    assert sorted(tokens_from_start(debug)) == [3, 5]
    infer = InferenceSubRequest(
        "p",
        trace=Trace(neuron(0, 5, token=1)),
        ablate=(
            AblationSpec(ActivationIndex("mlp_post_act", 1, (2, None))),
            AblationSpec(ActivationIndex("mlp_post_act", 1, (None, 7))),
        ),
        results={"last": MultipleTopKSpec({}, token=-1), "one": MultipleTopKSpec({}, token=6)},
    )
    assert sorted(tokens_from_start(infer)) == [1, 2, 6]


def test_attention_is_asked_for_in_the_same_prompt() -> None:
    results = debug_results(DebugSubRequest.of("p", " Mary", add_bos=True))
    assert [one.add_bos for one in attention_requests(results, 2)] == [True]


def test_the_report_asks_outright(adding: Fake) -> None:
    with Client(adding[0]) as client:
        result = client.debug("p", " Mary", ablate="L0 neuron 5 @ -1")
    request: Any = report_data([result])["request"]
    assert "--add-bos" in request["command"]
    assert "add_bos=True" in request["program"]
    assert json.loads(request["message"])["subRequests"][0]["addBos"] is True


def test_the_command(adding: Fake, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDB_SERVER", adding[0])
    ablate = ["--ablate", "L1 head 2 @ 3"]
    assert main([*DEBUG, *ablate, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("tdb: warning: this model puts 'When' in front of prompts")
    assert said.err.count("\n") == 1
    assert [one["result"]["bos_added"] for one in json.loads(said.out)["sub_requests"]] == [True, True]
    for flag, add_bos in (("--add-bos", True), ("--no-add-bos", False)):
        assert main([*DEBUG, *ablate, flag, "--json"]) == 0
        said = capsys.readouterr()
        assert not said.err
        assert json.loads(said.out)["sub_requests"][1]["request"]["add_bos"] is add_bos
    assert main(["tokenize", "p"]) == 0
    assert "is @ 0, and each of these one further" in capsys.readouterr().out
    assert main(["tokenize", "p", "--add-bos"]) == 0
    assert "one further" not in capsys.readouterr().out
    assert main(["tokenize", "p", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["bos_added"], printed["prompt_adds_bos"]) == (False, True)
    assert main(["info"]) == 0
    assert "'<s>' (1), in front of prompts" in capsys.readouterr().out
