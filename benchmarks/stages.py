"""Where a call's time goes inside the engine, without a server: `python -m benchmarks.stages --help`.

Engine and floor take turns in this process, each with prompts that nobody has seen before. On a GPU the run
also says how often a call waits for the device, and on which lines; a kernel that nobody waits for costs a
call little but the time to launch it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.requests import AttentionComponent, DebugSubRequest, MlpComponent
from tdb_server.domain.results import Finished, NamedResult
from tdb_server.engine.engine import Engine
from tdb_server.engine.ranking_trial import RANKINGS
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.streaming import StreamWriter
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.messages import Configuration
from transformer_debugger.v1.transformer_debugger_service_pb2 import StreamDebugResponse

from benchmarks.cases import LENGTHS, LONGEST, K
from benchmarks.floor import Floor
from benchmarks.latency import median
from benchmarks.models import MODELS
from benchmarks.operations import operations, synchronizing_lines
from benchmarks.prompts import Prompt, Words
from benchmarks.table import table

N_THREADS = 2
CHUNK_BYTES = 2**20
STAGES = ("forward", "backward", "derive", "score")


@dataclass
class Turns:
    """Seconds of every turn at one length: of the floor, of the whole call, and of its parts."""

    n_tokens: int
    floor: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    serialize: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    def cells(self) -> list[str]:
        """A row of the table: medians in milliseconds, and the median of each turn's ratio."""
        stages = [median(self.stages[stage]) for stage in STAGES]
        total, serialize = median(self.total), median(self.serialize)
        ratio = median([one / floor for one, floor in zip(self.total, self.floor, strict=True)])
        times = [median(self.floor), total, *stages, total - sum(stages), serialize]
        return [str(self.n_tokens), *(f"{seconds * 1e3:.1f}" for seconds in times), f"{ratio:.2f}"]


class Caller:
    """Asks an engine in this process for what a plain debug call computes."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    def ask(self, prompt: Prompt) -> tuple[Finished, list[NamedResult]]:
        """Runs one call to its end."""
        question = DebugSubRequest(
            prompt.token_ids, (prompt.target_id,), (prompt.distractor_id,),
            MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, K,
        )  # fmt: skip
        call = Call("1", (inference_sub_request(question),))
        events = [event for _, event in self._engine.run([call], lambda _: False)]
        (finished,) = (one for one in events if isinstance(one, Finished))
        return finished, [one for one in events if isinstance(one, NamedResult)]

    def serialize(self, prompt: Prompt, results: Sequence[NamedResult]) -> None:
        """Makes the bytes of the results, as the front does for a stream."""
        writer = StreamWriter(StreamDebugResponse, self._tokenizer, [prompt.token_ids], CHUNK_BYTES)
        for result in results:
            for message in writer.result(result):
                message.SerializeToString()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for, and prints it."""
    lengths = ",".join(map(str, (*LENGTHS, LONGEST)))
    parser = argparse.ArgumentParser("python -m benchmarks.stages", description=__doc__)
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="gpt2", help="which model (default: %(default)s)")
    add("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--dtype", default="float32", help="type to compute in (default: %(default)s)")
    add("--tokens", type=_numbers, default=lengths, help="lengths of the prompts (default: %(default)s)")
    add("--turns", type=int, default=9, help="turns that count, after two that do not (default: 9)")
    add("--operations", type=_numbers, default="16,64", metavar="TOKENS",
        help="lengths at which operations are counted; empty for none (default: %(default)s)")  # fmt: skip
    add("--ranking", choices=sorted(RANKINGS), help="how tokens are ranked (default: the faster)")
    options = parser.parse_args(arguments)
    model = MODELS[options.model]()
    floor = Floor(model.folder, options.device, getattr(torch, options.dtype), N_THREADS, tf32=False)
    where = options.device, 0, options.dtype, N_THREADS
    configuration = Configuration(str(model.folder), (), *where, ranking=options.ranking)
    engine, ready = load_engine(configuration, lambda _stage, _fraction: None)
    caller, words = Caller(engine, Tokenizer(ready.tokenizer_folder)), Words(model.tokenizer_folder)
    rows = [_measure(caller, floor, words, n_tokens, options.turns).cells() for n_tokens in options.tokens]
    header = ["T", "floor", "call", *STAGES, "rest", "serialize", "ratio"]
    print(f"{model.name}, {options.dtype}, {ready.device}, torch {torch.__version__}: milliseconds\n")
    print(table(header, rows))
    print("\n".join(map(str, engine.kernels)))
    for n_tokens in options.operations:
        prompt = words.prompt(n_tokens)
        print(f"\n{n_tokens} tokens, one call\n\n{operations(lambda: caller.ask(words.prompt(n_tokens)))}")  # noqa: B023
        print(f"\n{synchronizing_lines(lambda: caller.ask(prompt))}")  # noqa: B023


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",") if one]


def _measure(caller: Caller, floor: Floor, words: Words, n_tokens: int, n_turns: int) -> Turns:
    turns = Turns(n_tokens)
    for number in range(-2, n_turns):
        floor_seconds = floor.seconds([words.prompt(n_tokens)])
        prompt = words.prompt(n_tokens)
        start = time.perf_counter()
        finished, results = caller.ask(prompt)
        answered = time.perf_counter()
        caller.serialize(prompt, results)
        serialized = time.perf_counter()
        if number < 0:
            continue
        turns.floor.append(floor_seconds)
        turns.total.append(answered - start)
        turns.serialize.append(serialized - answered)
        for stage in STAGES:
            turns.stages[stage].append(getattr(finished.seconds, stage))
    return turns


if __name__ == "__main__":
    main()
