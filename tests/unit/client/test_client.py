from __future__ import annotations

import asyncio
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from tdb_client import (
    AblationSpec,
    ActivationIndex,
    AsyncClient,
    Client,
    DeadlineError,
    DebugResult,
    DebugSubRequest,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    Event,
    Finished,
    InferenceSubRequest,
    InternalServerError,
    InvalidRequestError,
    NodeError,
    ResourceExhaustedError,
    Started,
    Tls,
    UnavailableError,
    UnknownNameError,
    UnreachableError,
    Values,
    attention,
    head,
)
from tdb_client.attention import attention_requests
from transformer_debugger.v1.call_pb2 import PRIORITY_INTERACTIVE, PRIORITY_SWEEP

from tests.unit.client.fake_service import (
    BROKEN,
    BUSY,
    NODES,
    REFUSED,
    SLOW,
    TOKENS,
    FakeService,
    debug_results,
)

Fake = tuple[str, FakeService]


def test_debug_answers_with_tables(fake: Fake) -> None:
    server, service = fake
    with Client(server) as client:
        result = client.debug(
            "When Mary gave to", " Mary", " John", ablate=["L1 head 2 @ -1"], request_id="mine"
        )
    assert service.requests[0].text == "When Mary gave to"  # tokenized, to know which token -1 is
    asked = service.requests[1].sub_requests[0]
    assert asked.node_ablations[0].node_index.tensor_indices == [3, 0, 2]
    assert result.call.request_id == "mine"
    assert result.prompt.tokens == TOKENS
    assert result.loss == 2.5
    assert [str(node) for node in result.nodes.nodes] == list(NODES)
    assert result.nodes.words[1] == "L1 head 2, ' to' → ' Mary'"
    np.testing.assert_allclose(result.nodes.direct_effect, [-0.5, 3.5, -1.0, -0.49999, -0.25])
    assert list(result.nodes.strongest()) == [1, 2, 0, 3, 4]
    assert result.nodes.strongest("write_norm")[0] == 0
    assert result.logits.tokens == (" Mary", " [bold]the", " John")
    assert list(result.logits.logits) == [10.5, 9.5, 8.0]
    np.testing.assert_array_equal(result.token_attribution, np.array([0, 1.5, -0.5, np.nan], np.float32))
    assert result.timings.forward_seconds == 0.5
    assert result.peak_memory_bytes == 1000
    upvoted = result.nodes.upvoted_tokens[0]
    assert upvoted is not None
    assert upvoted.top.tokens == (" Mary", " [bold]the")
    assert result.nodes.input_tokens[0] is None


async def test_the_server_may_be_named_by_the_environment(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDB_SERVER", fake[0])
    with Client() as client:
        assert client.model_info().name == "tiny"
    async with AsyncClient() as other:
        assert (await other.model_info()).name == "tiny"


async def test_async_debug_answers_the_same(fake: Fake) -> None:
    server, _ = fake
    words = {"ablate": [head(1, 2, token=-1)], "request_id": "mine"}
    async with AsyncClient(server) as client:
        result = await client.debug("When Mary gave to", " Mary", **words)  # type: ignore[arg-type]
        scalars = await client.infer([InferenceSubRequest("p")])
        assert (await client.model_info()).name == "tiny"
        assert (await client.tokenize("x")).tokens == TOKENS
        assert await client.detokenize([1, 2]) == " Mary gave"
        assert await client.health() == "SERVING"
        assert (await client.estimate([InferenceSubRequest("p")])).activation_bytes == 4321
        events = [event async for event in client.stream_infer([InferenceSubRequest("p")])]
    with Client(server) as client:
        same = client.debug("When Mary gave to", " Mary", **words)  # type: ignore[arg-type]
    assert isinstance(result, DebugResult)
    np.testing.assert_array_equal(result.nodes.direct_effect, same.nodes.direct_effect)
    assert result.nodes.words == same.nodes.words
    assert list(scalars[0].results) == ["attention", "scalars"]
    assert isinstance(events[-1], Finished)


async def test_all_calls_have_the_clients_priority(fake: Fake) -> None:
    server, service = fake
    for words, told in (({}, PRIORITY_INTERACTIVE), ({"priority": "sweep"}, PRIORITY_SWEEP)):
        service.requests.clear()
        with Client(server, **words) as client:  # type: ignore[arg-type]
            client.debug("When Mary gave to", " Mary")
            client.infer([InferenceSubRequest("p")])
        async with AsyncClient(server, **words) as other:  # type: ignore[arg-type]
            await other.debug("When Mary gave to", " Mary")
            await other.infer([InferenceSubRequest("p")])
        assert [one.priority for one in service.requests] == [told] * 4
    for kind in (Client, AsyncClient):
        with pytest.raises(UnknownNameError, match="priority 'urgent'; it is one of interactive, sweep"):
            kind(server, priority="urgent")


def test_the_other_methods(fake: Fake) -> None:
    server, _ = fake
    with Client(server) as client:
        model = client.model_info()
        assert client.tokenize("x").token_ids == (0, 1, 2, 3)
        assert client.detokenize([1, 2]) == " Mary gave"
        assert client.health() == "SERVING"
        assert client.estimate([DebugSubRequest("p", (" Mary",))]).activation_bytes == 1234
        inferred = client.infer([InferenceSubRequest("p"), InferenceSubRequest("q")])
    assert (model.autoencoders[0].k, model.autoencoders[0].input_norm) == (4, "layer_norm")
    assert model.derived_scalars == ("logits", "9999")
    assert model.limits.max_prompt_tokens == 64
    attention, scalars = inferred[1].results.values()
    assert isinstance(attention, DerivedAttentionScalarsResult)
    assert attention.totals_out.maximum[0] == 10
    assert isinstance(scalars, DerivedScalarsResult)
    assert scalars.activations.dtype == np.float64
    assert scalars.normalized_activations is None
    assert scalars.top_tokens is None
    assert inferred[1].loss is None


def test_events_are_told_as_they_come(fake: Fake) -> None:
    seen: list[Event] = []
    with Client(fake[0]) as client:
        client.debug("p", " Mary", trace="L0 neuron 5 @ 3", on_event=seen.append)
    assert isinstance(seen[0], Started)
    assert Values(0, None, 2.75) in seen
    assert isinstance(seen[-1], Finished)


def test_refusals_are_exceptions(fake: Fake) -> None:
    with Client(fake[0]) as client:
        with pytest.raises(InvalidRequestError, match=r"prompt: is a joke; .*target_tokens: is two tokens"):
            client.debug(REFUSED, " Mary")
        with pytest.raises(ResourceExhaustedError) as busy:
            client.debug(BUSY, " Mary")
        with pytest.raises(InternalServerError, match="a fault"):
            list(client.stream_debug([DebugSubRequest(BROKEN, (" Mary",))]))
        with pytest.raises(NodeError, match="token -9 does not exist in a prompt of 4 tokens"):
            client.debug("p", " Mary", ablate=["L1 head 2 @ -9"])
    assert busy.value.reason == "QUEUE_FULL"
    assert busy.value.retry_after == 1.5


async def test_refusals_are_exceptions_in_asyncio_too(fake: Fake) -> None:
    async with AsyncClient(fake[0]) as client:
        with pytest.raises(InvalidRequestError, match="is a joke"):
            await client.debug(REFUSED, " Mary")
        with pytest.raises(DeadlineError):
            await client.debug(SLOW, " Mary", timeout=0.2)
        task = asyncio.create_task(client.debug(SLOW, " Mary"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_deadlines_are_kept(fake: Fake) -> None:
    with Client(fake[0], timeout=0.2) as client, pytest.raises(DeadlineError):
        client.debug(SLOW, " Mary")


def test_a_stream_that_is_closed_is_cancelled(fake: Fake) -> None:
    server, service = fake
    with Client(server) as client:
        requests = [DebugSubRequest("p", (" Mary",))] * 200
        with closing(client.stream_debug(requests)) as events:
            assert isinstance(next(events), Started)
        deadline = time.monotonic() + 5
        while not service.streams_were_whole and time.monotonic() < deadline:
            time.sleep(0.01)
    assert service.streams_were_whole == [False]


def test_calls_are_repeated_while_no_worker_is_ready(fake: Fake) -> None:
    server, service = fake
    service.n_unavailable = 2
    with Client(server) as client:
        assert client.debug("p", " Mary").loss == 3.0
        assert len(service.requests) == 3
        service.n_unavailable = 99
        with pytest.raises(UnavailableError, match="still loading"):
            client.debug("p", " Mary")
        assert len(service.requests) == 7
        service.n_unavailable = 0
        with pytest.raises(InternalServerError):
            client.debug(BROKEN, " Mary")
        assert len(service.requests) == 8  # a fault is not repeated


def test_calls_are_repeated_that_come_while_a_server_closes_its_port(fake: Fake) -> None:
    server, service = fake
    with Client(server) as client:
        service.n_closing = 1
        assert client.debug("p", " Mary").loss == 3.0
        service.n_closing = 1
        assert list(client.stream_debug([DebugSubRequest("p", (" Mary",))]))
    assert len(service.requests) == 4


def test_the_token_goes_with_every_call(fake: Fake) -> None:
    server, service = fake
    with Client(server, token="secret") as client:
        client.model_info()
        client.debug("p", " Mary")
    assert [one["authorization"] for one in service.metadata] == ["Bearer secret"] * 2


def test_tokens_in_clear_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="in clear; use TLS"), Client("far.example:1", token="secret"):
        pass


def test_no_server_is_an_error_of_its_own() -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(UnreachableError, match=r"no server answers at 127\.0\.0\.1:1: "),
    ):
        client.model_info()


def test_certificates_need_their_keys() -> None:
    with pytest.raises(ValueError, match="needs its key"):
        Client("127.0.0.1:1", tls=Tls(cert_file="cert.pem"))


def test_frames_need_pandas(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with Client(fake[0]) as client:
        result = client.debug("p", " Mary")
    with pytest.raises(ImportError, match=r"pip install 'transformer-debugger-client\[pandas\]'"):
        result.to_frame()


def test_frames_have_a_row_per_node(fake: Fake) -> None:
    pytest.importorskip("pandas")
    with Client(fake[0]) as client:
        frame = client.debug("p", " Mary").to_frame()
    assert list(frame["node"]) == list(NODES)
    assert frame["layer"].isna().tolist() == [True, False, False, False, False]
    assert frame["upvoted_tokens"][0] == [" Mary", " [bold]the"]


def test_attention_is_asked_for_as_long_as_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = attention_requests(debug_results(DebugSubRequest.of("p", ablate="L1 head 2 @ -1 = 0.5")), 3)
    assert list(requests[0].results) == ["L1 head 2"]
    index = ActivationIndex("attn_qk_probs", 1, (3, None, 2))  # the last token of four
    assert requests[0].ablate == (AblationSpec(index, 0.5),)
    monkeypatch.setattr(attention, "MAX_CELLS", 15)  # a prompt of four has 16 pairs
    assert attention_requests(debug_results(DebugSubRequest.of("p")), 3) == []
