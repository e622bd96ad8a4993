"""Callers of every kind, for as long as a soak lasts, and what became of their calls."""

from __future__ import annotations

import json
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import httpx
from tdb_client import Client
from tdb_client.errors import CallError
from tdb_server.gateway.json_requests import debug_request
from tdb_server.gateway.json_responses import batched_response
from tdb_server.gateway.json_text import json_pieces
from transformer_debugger.v1.result_pb2 import NamedResult
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugResponse, StreamDebugResponse
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos import hostile_messages, sound_requests
from tests.chaos.hostile_bodies import golden_bodies, hostile_body
from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT
from tests.chaos.requests import debug_request as message
from tests.running_server import RunningServer

PATIENCE_SECONDS = 120.0
"""A call that has waited for this long is lost."""
UNREAD = message(LONG_PROMPT, k=400)
SLOW_READER_SECONDS = 2.0
NO_ROOM = "NO_ROOM_FOR_ANSWER"
PROMPTS = ("the cat sat on the", " the mat", "the cat", " the" * 8, " the" * 24)
N_NEURONS = 192
TYPED = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "OK"}
TYPED_IN_HTTP = {200, 400, 404, 405, 413, 429}
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """One call and what came of it, both as the JSON API would have them.

    Attributes:
        body: of the request.
        packed: the answer, compressed: there are thousands.
    """

    body: Body
    packed: bytes

    @property
    def answer(self) -> Body:
        """The answer's body."""
        unpacked: Body = json.loads(zlib.decompress(self.packed))
        return unpacked


@dataclass
class Tally:
    """What became of all calls.

    Attributes:
        outcomes: how often.
        faults: what must not be.
        answered: some of the calls that were answered, evenly over time.
        longest_seconds: of a call that was answered.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    longest_seconds: float = 0.0


class SoakCaller:
    """One client, with connections of its own, that calls in every way there is.

    Args:
        server: whom it calls.
        seed: of its choices.
        n_kept: answers that it keeps.
        disk_is_full: set while there is no room on the disk.
    """

    def __init__(self, server: RunningServer, seed: int, n_kept: int, disk_is_full: threading.Event) -> None:
        self.tally = Tally()
        self._server = RunningServer(
            server.process, server.ready_file, server.port, server.http_port, server.log
        )
        windows_stay_small = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
        self._slow_channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", windows_stay_small)
        self._slow = TransformerDebuggerServiceStub(self._slow_channel)
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}")
        self._tdb = Client(f"127.0.0.1:{server.port}")
        self._chance = random.Random(seed)
        self._n_kept = n_kept
        self._n_answered = 0
        self._disk_is_full = disk_is_full
        self._goldens = golden_bodies()
        ways: dict[Callable[[], str], float] = {
            self._unary: 8,
            self._streamed: 6,
            self._json: 4,
            self._client: 3,
            self._cancelled: 3,
            self._bad_call: 3,
            self._bad_body: 2,
            self.read_slowly: 0.5,
        }
        self._ways, self._weights = list(ways), list(ways.values())

    def keep_calling(self, stops_at: float) -> Tally:
        """Calls until then."""
        with self:
            while time.monotonic() < stops_at:
                (way,) = self._chance.choices(self._ways, self._weights)
                outcome = way()
                self.tally.outcomes[f"{way.__name__.strip('_')}: {outcome}"] += 1
                if outcome.startswith("refused "):
                    time.sleep(0.1)
        return self.tally

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._http, self._tdb, self._slow_channel, self._server.channel):
            one.close()

    def _unary(self) -> str:
        body = self._body()
        return self._asked(
            body, lambda: self._server.debugger.Debug(debug_request(body), timeout=PATIENCE_SECONDS)
        )

    def _streamed(self) -> str:
        body, events = self._body(), []

        def ask() -> DebugResponse:
            for event in self._server.debugger.StreamDebug(debug_request(body), timeout=PATIENCE_SECONDS):
                events.append(event)  # noqa: PERF402 - what came before a failure counts
            return joined(events)

        return self._asked(body, ask, events)

    def read_slowly(self) -> str:
        """What the reader does not take waits on disk."""
        events: list[StreamDebugResponse] = []

        def ask() -> None:
            stream = self._slow.StreamDebug(UNREAD, timeout=PATIENCE_SECONDS)
            for event in stream:
                if not events:
                    time.sleep(SLOW_READER_SECONDS)
                events.append(event)
            told = events[-1].finished.message_count
            if told != len(events):
                self.tally.faults.append(f"{len(events)} of {told} messages")

        return self._asked({}, ask, events)

    def _json(self) -> str:
        body = self._body()
        response = self._http.post("/batched_tdb", json=body, timeout=PATIENCE_SECONDS)
        if response.status_code == 200:
            self._keep(body, response.json())
            return "answered"
        if response.status_code == 503:
            return "refused NO_WORKER_READY"
        if self._disk_is_full.is_set() and "no room" in response.text:
            return f"refused {NO_ROOM}"
        self.tally.faults.append(f"JSON: {response.status_code} {response.text[:300]}")
        return "failed"

    def _client(self) -> str:
        try:
            self._tdb.debug(self._chance.choice(PROMPTS), " the", k=self._chance.choice((3, 30)))
        except CallError as error:
            if error.reason == "WORKER_DIED" or error.reason in {reason for _, reason in self._allowed()}:
                return f"refused {error.reason}"
            self.tally.faults.append(f"client: {error}")
            return "failed"
        return "answered"

    def _cancelled(self) -> str:
        stream = self._server.debugger.StreamDebug(
            debug_request(self._body(LONG_PROMPT, 8)), timeout=PATIENCE_SECONDS
        )
        timer = threading.Timer(self._chance.uniform(0, 0.5), stream.cancel)
        timer.start()
        failed = None
        try:
            for _ in stream:
                pass
        except grpc.RpcError as error:
            failed = error
        timer.join()
        # Cancelled here in the moment in which an error came, a call has what was sent with that.
        if failed is None or failed.code() is grpc.StatusCode.CANCELLED:
            return "as asked"
        why = refused(failed)
        if why.reason == "WORKER_DIED" or (why.code, why.reason) in self._allowed():
            return f"refused {why.reason}"
        self.tally.faults.append(f"cancelled: {why}")
        return "failed"

    def _bad_call(self) -> str:
        sound = hostile_messages.sound_copy(self._chance, sound_requests.debug_requests())
        spoiled = hostile_messages.spoiled(self._chance, sound).SerializeToString()
        raw = hostile_messages.broken_bytes(self._chance, spoiled) if self._chance.random() < 0.5 else spoiled
        method = "/transformer_debugger.v1.TransformerDebuggerService/Debug"
        try:
            self._server.channel.unary_unary(method)(raw, timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            why = refused(error)
            if why.code.name in TYPED and why.reason:
                return "refused by name"
            if (why.code, why.reason) in self._allowed():
                return f"refused {why.reason}"
            self.tally.faults.append(f"bad call: {why}")
            return "failed"
        return "answered"

    def _bad_body(self) -> str:
        path, raw = hostile_body(self._chance, self._goldens)
        headers = {"content-type": "application/json"}
        response = self._http.post(f"/{path}", content=raw, headers=headers, timeout=PATIENCE_SECONDS)
        if response.status_code in {*TYPED_IN_HTTP, 503}:
            return "refused by name"
        self.tally.faults.append(
            f"bad body: {path} {raw[:200]!r} {response.status_code} {response.text[:300]}"
        )
        return "failed"

    def _asked(
        self,
        body: Body,
        ask: Callable[[], DebugResponse | None],
        events: Iterable[StreamDebugResponse] = (),
    ) -> str:
        begun_at = time.monotonic()
        try:
            response = ask()
        except grpc.RpcError as error:
            why = refused(error)
            if (why.code, why.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKER_DIED") and list(events):
                return "ended early"
            if (why.code, why.reason) in self._allowed() and why.retry_seconds is not None:
                return f"refused {why.reason}"
            self.tally.faults.append(str(why))
            return "failed"
        self.tally.longest_seconds = max(self.tally.longest_seconds, time.monotonic() - begun_at)
        if response is not None:
            self._keep(body, as_body(response))
        return "answered"

    def _allowed(self) -> set[tuple[grpc.StatusCode, str]]:
        """How a sound call may be refused: before it was accepted, or for want of room."""
        allowed = {(grpc.StatusCode.UNAVAILABLE, "NO_WORKER_READY")}
        if self._disk_is_full.is_set():
            allowed.add((grpc.StatusCode.RESOURCE_EXHAUSTED, NO_ROOM))
        return allowed

    def _body(self, prompt: str = "", n_sub_requests: int = 0) -> Body:
        """A request that hardly another caller makes."""
        neurons = self._chance.sample(range(N_NEURONS), self._chance.choice((0, 1, 2)))
        one = {
            "prompt": prompt or self._chance.choice(PROMPTS),
            "targetTokens": [" the"],
            "topAndBottomKForNodeTable": self._chance.randrange(1, 40),
            "nodeAblations": [
                {
                    "nodeIndex": {
                        "nodeType": "mlp_neuron",
                        "layerIndex": 1,
                        "tensorIndices": [1, neuron],
                    },
                    "value": 0.0,
                }
                for neuron in neurons
            ],
        }
        return {"subRequests": [one] * (n_sub_requests or self._chance.choice((1, 1, 2)))}

    def _keep(self, body: Body, answer: Body) -> None:
        """Keeps answers, each with the same chance whenever it comes."""
        self._n_answered += 1
        answered = Answered(body, zlib.compress(json.dumps(answer).encode(), 1))
        if len(self.tally.answered) < self._n_kept:
            self.tally.answered.append(answered)
        elif (place := self._chance.randrange(self._n_answered)) < self._n_kept:
            self.tally.answered[place] = answered


def as_body(response: DebugResponse) -> Body:
    """An answer as the JSON API gives it."""
    body: Body = json.loads(b"".join(json_pieces(batched_response(response))))
    return body


def joined(events: Iterable[StreamDebugResponse]) -> DebugResponse:
    """What a call that is not streamed would have answered."""
    response, results = DebugResponse(), dict[tuple[int, str], NamedResult]()
    for event in events:
        match event.WhichOneof("event"):
            case "started":
                for tokens in event.started.sub_requests:
                    response.sub_responses.add(token_ids=tokens.token_ids, token_strings=tokens.token_strings)
            case "values":
                of = response.sub_responses[event.values.sub_request_index]
                of.loss = event.values.loss
            case "result":
                key = event.result.sub_request_index, event.result.result.name
                results.setdefault(key, NamedResult()).MergeFrom(event.result.result)
    for (index, _), result in results.items():
        response.sub_responses[index].results.append(result)
    return response
