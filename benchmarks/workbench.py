"""What the front does for the workbench's page once a worker has answered: `python -m benchmarks.workbench`.

A server with SmolLM2 is asked once for each length, without and with a change, and its messages are kept with
the times at which they came. Then they are handed over again and again at the same pace, in this process, to
the gateway alone: measured is from the last message until the last byte of the page's answer has been sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tdb_client.connection import Connection
from tdb_client.encoding import debug_request
from tdb_client.workbench.routes import ROUTES
from tdb_server.domain.budget import Budget
from tdb_server.domain.limits import Limits
from tdb_server.gateway.http_calls import HttpCalls
from tdb_server.gateway.workbench.routes import workbench_endpoints
from tdb_server.service.access.access import Access
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.front_memory import keep_what_is_loaded
from tdb_server.service.open_calls import OpenCalls
from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest, GetModelInfoResponse
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceServicer, ModelServiceStub
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, StreamDebugResponse
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceServicer

from benchmarks.caller import CALL_SECONDS, MAX_RECEIVE_BYTES, SERVICE
from benchmarks.machine import OthersLoad, machine_facts
from benchmarks.models import MODELS, BenchModel
from benchmarks.prompts import Words
from benchmarks.server import running_server
from benchmarks.table import table

LENGTHS = (30, 300, 1000)
CHANGES = ("L9 head 3 @ 5",)
PACE_SECONDS = 0.3
"""Of the end of a stream: what came before is handed over at once."""
MEMORY_BYTES = 2**31
MS = 1000.0


@dataclass(frozen=True)
class Recorded:
    """A question of the page, and the messages that answered it, each with the second at which it came."""

    n_tokens: int
    body: dict[str, Any]
    messages: Sequence[tuple[float, bytes]]


class Replayed(TransformerDebuggerServiceServicer, ModelServiceServicer):
    """The services that the gateway asks: they answer with what `recorded` has."""

    def __init__(self, info: GetModelInfoResponse) -> None:
        self._info = info
        self.recorded: Recorded | None = None
        self.ended = 0.0
        self.ended_processor = 0.0

    async def GetModelInfo(self, request: GetModelInfoRequest, context: Any) -> GetModelInfoResponse:  # noqa: N802
        """See the protos."""
        return self._info

    async def StreamDebug(  # noqa: N802
        self, request: DebugRequest, context: Any
    ) -> AsyncIterator[StreamDebugResponse]:
        """See the protos."""
        assert self.recorded is not None
        times, contents = zip(*self.recorded.messages, strict=True)
        messages = [StreamDebugResponse.FromString(one) for one in contents]
        start = time.perf_counter() - max(0.0, times[-1] - PACE_SECONDS)
        for due, message in zip(times, messages, strict=True):
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - start)))
            self.ended, self.ended_processor = time.perf_counter(), time.process_time()
            yield message


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.workbench", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, help="lengths (default: all)")
    parser.add_argument("--turns", type=int, default=9, help="of each question (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the server (default: %(default)s)")
    options = parser.parse_args()
    facts, load = machine_facts("cpu", options.threads), OthersLoad()
    info, questions = recorded(MODELS["smollm2"](), options.tokens, options.threads)
    keep_what_is_loaded()  # as the front does
    rows = asyncio.run(measured(Replayed(info), questions, options.turns))
    header = ["tokens", "changes", "messages, kB", "answer, kB", "median, ms", "shortest", "processor"]
    print(table(header, rows, n_left=0))
    print(f"\n{facts['cpu']}, commit {facts['commit']}; others used {load.share():.0%} of the cores")


def recorded(
    model: BenchModel, lengths: Sequence[int], n_threads: int
) -> tuple[GetModelInfoResponse, list[Recorded]]:
    """What a server answers to questions of these lengths, without and with a change."""
    words, found = Words(model.tokenizer_folder), []
    with running_server(model.folder, device="cpu", n_threads=n_threads) as server:
        channel = Connection(server.address, max_receive_bytes=MAX_RECEIVE_BYTES).open()
        call = channel.unary_stream(f"{SERVICE}/StreamDebug", DebugRequest.SerializeToString, bytes)
        for n_tokens in lengths:
            for changes in ((), CHANGES):
                prompt = words.prompt(n_tokens)
                question = {
                    "prompt": prompt.text,
                    "target": [prompt.target],
                    "distractor": [prompt.distractor],
                }
                body = {"question": question | {"changes": list(changes)}}
                asked = ROUTES["debug"].read(body).sub_requests
                start = time.perf_counter()
                stream = call(debug_request(asked), timeout=CALL_SECONDS)
                messages = [(time.perf_counter() - start, one) for one in stream]
                found.append(Recorded(n_tokens, body, messages))
        info = ModelServiceStub(channel).GetModelInfo(GetModelInfoRequest())
        channel.close()
    return info, found


async def measured(services: Replayed, questions: Sequence[Recorded], n_turns: int) -> list[list[str]]:
    """A row for each question: sizes in kB, then milliseconds."""
    memory = Budget(MEMORY_BYTES, "bodies", "BUFFERS_FULL")
    guard = CallGuard(Limits(), OpenCalls(), Access())
    calls = HttpCalls(guard, FairThreads(memory), memory, max_body_seconds=CALL_SECONDS)
    names = {"TransformerDebuggerService": services, "ModelService": services}
    application = calls.at(workbench_endpoints(names, calls)["v1/workbench/debug"])
    rows = []
    for one in questions:
        services.recorded = one
        seconds, processor_seconds = [], []
        for _ in range(n_turns):
            content = await answered(application, one.body)
            seconds.append(time.perf_counter() - services.ended)
            processor_seconds.append(time.process_time() - services.ended_processor)
            if json.loads(content.splitlines()[-1])["event"] != "answer":
                raise RuntimeError(content[-1000:].decode())
        n_message_bytes = sum(len(content) for _, content in one.messages)
        numbers = [n_message_bytes / 1e3, len(content) / 1e3]
        numbers += [MS * float(at) for at in (np.median(seconds), min(seconds), np.median(processor_seconds))]
        n_changes = len(one.body["question"]["changes"])
        rows.append([str(one.n_tokens), str(n_changes), *(f"{number:.0f}" for number in numbers)])
    return rows


async def answered(application: Any, body: dict[str, Any]) -> bytes:
    """Asks as a browser does, and takes the whole answer."""
    unread = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if unread:
            return unread.pop()
        return await asyncio.get_running_loop().create_future()  # the page stays

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/workbench/debug",
        "headers": [(b"content-type", b"application/json")],
    }
    await application(scope, receive, send)
    return b"".join(one.get("body", b"") for one in sent)


if __name__ == "__main__":
    main()
