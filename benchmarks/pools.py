"""What workers on Ray cost beside workers of this machine: `python -m benchmarks.pools`.

Two servers hold the same tiny model, so that nearly all of a call is the way there and back. Their calls take
turns, in changing order, each with a prompt of its own. Needs what `make ray-test` installs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tdb_client import DebugSubRequest

from benchmarks.caller import Caller, TimedCall
from benchmarks.machine import OthersLoad, machine_facts
from benchmarks.prompts import Words
from benchmarks.server import running_server
from benchmarks.table import table

MODEL = Path(__file__).parent.parent / "tests" / "fixtures" / "tiny-a"
POOLS = {"local": (), "Ray": ("--pool", "ray")}
N_TOKENS = 8
K = 5
N_WARM_UPS = 20
MS = 1000.0
OTHERS = "share_of_cores_used_by_others"


@dataclass(frozen=True)
class Latency:
    """Calls of one kind to workers of one pool, in seconds.

    Attributes:
        p50, p95: of whole calls.
        first_p50, first_p95: until the first result.
        around_p50, around_p95: of what is left of a call when the engine's own time is taken off.
    """

    pool: str
    call: str
    n_calls: int
    p50: float
    p95: float
    first_p50: float
    first_p95: float
    around_p50: float
    around_p95: float


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.pools", description=__doc__)
    parser.add_argument("--turns", type=int, default=300, help="calls of each kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    facts, load = machine_facts("cpu", n_threads=1), OthersLoad()
    latencies = measure(options.turns)
    facts[OTHERS] = load.share()
    print(latency_table(latencies))
    print(f"\n{facts['cpu']}, {facts['cores']} cores; others used a share of {facts[OTHERS]:.2f} of them")
    if options.json is not None:
        measured = [dataclasses.asdict(one) for one in latencies]
        options.json.write_text(json.dumps({"machine": facts, "latencies": measured}, indent=1))


def measure(n_turns: int) -> list[Latency]:
    """Both pools side by side, on one thread each."""
    calls: dict[tuple[str, str], list[TimedCall]] = {}
    words = Words(MODEL)
    with ExitStack() as stack:
        kinds: list[tuple[str, str, Callable[[Sequence[DebugSubRequest]], TimedCall]]] = []
        for pool, flags in POOLS.items():
            server = stack.enter_context(running_server(MODEL, *flags, device="cpu", n_threads=1))
            caller = stack.enter_context(Caller(server.address))
            kinds += [(pool, "Debug", caller.debug), (pool, "StreamDebug", caller.stream_debug)]
        for turn in range(N_WARM_UPS + n_turns):
            for pool, name, call in kinds if turn % 2 else reversed(kinds):
                prompt = words.prompt(N_TOKENS)
                timed = call([DebugSubRequest.of(prompt.text, prompt.target, prompt.distractor, k=K)])
                if turn >= N_WARM_UPS:
                    calls.setdefault((pool, name), []).append(timed)
    return [_latency(pool, name, timed) for (pool, name), timed in sorted(calls.items(), key=_by_call)]


def latency_table(latencies: Sequence[Latency]) -> str:
    """Milliseconds."""
    header = ["call", "pool", "p50", "p95", "first p50", "p95", "around the engine p50", "p95"]
    cells = [
        [one.call, one.pool]
        + [
            f"{MS * seconds:.1f}"
            for seconds in (
                *(one.p50, one.p95, one.first_p50, one.first_p95),
                *(one.around_p50, one.around_p95),
            )
        ]
        for one in latencies
    ]
    return table(header, cells, n_left=2)


def _latency(pool: str, call: str, timed: Sequence[TimedCall]) -> Latency:
    percentiles = [
        float(value)
        for seconds in (
            [one.seconds for one in timed],
            [one.first_result_seconds for one in timed],
            [one.seconds - _engine_seconds(one) for one in timed],
        )
        for value in np.percentile(seconds, (50, 95))
    ]
    return Latency(pool, call, len(timed), *percentiles)


def _engine_seconds(call: TimedCall) -> float:
    one = call.timings
    return one.forward_seconds + one.backward_seconds + one.derive_seconds + one.score_seconds


def _by_call(one: tuple[tuple[str, str], list[TimedCall]]) -> tuple[str, str]:
    (pool, call), _ = one
    return call, pool.swapcase()


if __name__ == "__main__":
    main()
