"""What comparing with a baseline costs beside a plain call, and patches in one call beside as many calls.

`python -m benchmarks.comparing`. A server with SmolLM2 is asked for plain `Debug` calls and for the same
under a backward rule with one baseline, in turns and each with prompts of its own. Then a hundred patches of
one prompt are asked for by one `ablate_each`, by as many `Debug` calls, and by as many calls for objectives
alone, in turns too. Ratios are medians of each turn's own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdb_client import Client, DebugSubRequest, InferenceSubRequest, Loss, ModelInfo

from benchmarks.caller import Caller
from benchmarks.cases import K
from benchmarks.latency import PAUSE_SECONDS, median
from benchmarks.models import MODELS
from benchmarks.prompts import Words
from benchmarks.server import running_server

LENGTHS = (16, 64, 256)
RULES = ("relp", "frozen_norms")
N_PATCHES = 100
N_PATCHED_TOKENS = 16
N_THREADS = 2


@dataclass(frozen=True)
class Spent:
    """Seconds of a call: in the engine's stages, and in all, as the caller sees it."""

    engine: float
    whole: float


def debug_call(caller: Caller, words: Words, n_tokens: int, rule: str | None) -> Spent:
    """One call, plain where there is no rule, else with a baseline."""
    prompt, other = words.prompt(n_tokens), words.prompt(n_tokens)
    sub_request = DebugSubRequest.of(prompt.text, prompt.target, prompt.distractor, k=K)
    if rule is not None:
        sub_request = replace(sub_request, backward_rule=rule, baseline=(other.text,))
    call = caller.debug([sub_request])
    spent = call.timings
    engine = spent.forward_seconds + spent.backward_seconds + spent.derive_seconds + spent.score_seconds
    return Spent(engine, call.seconds)


def rule_turns(caller: Caller, words: Words, n_tokens: int, n_turns: int) -> dict[str, list[Spent]]:
    """Every kind of call once a turn, beginning with another one each time; one turn more warms up."""
    kinds: dict[str, str | None] = {"plain": None, **{one: one for one in RULES}}
    spent: dict[str, list[Spent]] = {name: [] for name in kinds}
    for turn in range(-1, n_turns):
        for name in _rotated(list(kinds), turn):
            time.sleep(PAUSE_SECONDS)
            one = debug_call(caller, words, n_tokens, kinds[name])
            if turn >= 0:
                spent[name].append(one)
    return spent


@dataclass(frozen=True)
class Patches:
    """A prompt, and whole heads at its last token to be set to what they are in another."""

    text: str
    loss: Loss
    baseline: str
    nodes: tuple[str, ...]


def make_patches(words: Words, info: ModelInfo) -> Patches:
    """A hundred heads spread over all layers, of a prompt that nobody has seen before."""
    prompt, other = words.prompt(N_PATCHED_TOKENS), words.prompt(N_PATCHED_TOKENS)
    n_heads = info.n_layers * info.n_heads
    places = [divmod(number * n_heads // N_PATCHES, info.n_heads) for number in range(N_PATCHES)]
    nodes = tuple(f"L{layer} whole head {index} @ -1 = baseline" for layer, index in places)
    return Patches(prompt.text, Loss("logit_diff", (prompt.target,), (prompt.distractor,)), other.text, nodes)


def in_one_call(client: Client, patches: Patches) -> None:
    """All by `ablate_each`."""
    client.ablate_each(
        patches.text, patches.loss.target, patches.loss.distractor, patches.nodes, baseline=patches.baseline
    )


def objectives_alone(client: Client, patches: Patches) -> None:
    """A call for each, that gives the objective and nothing else."""
    for node in patches.nodes:
        client.infer(
            [InferenceSubRequest.of(patches.text, patches.loss, ablate=node, baseline=patches.baseline)]
        )


def whole_calls(client: Client, patches: Patches) -> None:
    """A `Debug` call for each."""
    for node in patches.nodes:
        client.debug(
            patches.text,
            patches.loss.target,
            patches.loss.distractor,
            k=K,
            ablate=node,
            baseline=patches.baseline,
        )


WAYS: dict[str, Callable[[Client, Patches], None]] = {
    "one call": in_one_call,
    "objectives": objectives_alone,
    "debug": whole_calls,
}


def patch_turns(client: Client, words: Words, info: ModelInfo, n_turns: int) -> dict[str, list[float]]:
    """Seconds of a hundred patches in every way; a few of each warm up."""
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    for way in WAYS.values():
        patches = make_patches(words, info)
        way(client, replace(patches, nodes=patches.nodes[:4]))
    for turn in range(n_turns):
        patches = make_patches(words, info)
        for name in _rotated(list(WAYS), turn):
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            WAYS[name](client, patches)
            spent[name].append(time.perf_counter() - start)
    return spent


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]


def _ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    return median([one / other for one, other in zip(ones, others, strict=True)])


def main() -> None:
    """Prints both tables and, where wanted, writes every turn as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="smollm2", help="whose server is asked")
    parser.add_argument("--tokens", type=int, nargs="*", default=list(LENGTHS), help="of the prompts")
    parser.add_argument("--turns", type=int, default=15, help="of the calls under rules")
    parser.add_argument("--patch-turns", type=int, default=3, help="of the patches; 0 leaves them out")
    parser.add_argument("--json", type=Path, help="where to write the seconds of every turn")
    options = parser.parse_args()
    model = MODELS[options.model]()
    words = Words(model.tokenizer_folder)
    figures: dict[str, object] = {}
    load = os.getloadavg()[0]
    with running_server(model.folder, device="cpu", n_threads=N_THREADS) as server:
        with Caller(server.address) as caller:
            for n_tokens in options.tokens:
                spent = rule_turns(caller, words, n_tokens, options.turns)
                figures[f"{n_tokens} tokens"] = {
                    name: [(one.engine, one.whole) for one in ones] for name, ones in spent.items()
                }
                plain = spent["plain"]
                engine, whole = (
                    median([getattr(one, part) for one in plain]) for part in ("engine", "whole")
                )
                print(f"{n_tokens} tokens, plain: engine {engine * 1000:.0f} ms, whole {whole * 1000:.0f} ms")
                for rule in RULES:
                    engine = _ratio([one.engine for one in spent[rule]], [one.engine for one in plain])
                    whole = _ratio([one.whole for one in spent[rule]], [one.whole for one in plain])
                    print(
                        f"  {rule:12} with one baseline: engine {engine:.2f}, whole service {whole:.2f}",
                        flush=True,
                    )
        if options.patch_turns:
            with Client(server.address) as client:
                seconds = patch_turns(client, words, client.model_info(), options.patch_turns)
            figures["patches"] = seconds
            print(f"{N_PATCHES} patches of one prompt of {N_PATCHED_TOKENS} tokens")
            for name, ones in seconds.items():
                ratio = _ratio(ones, seconds["one call"])
                print(f"  {name:12} {median(ones):7.2f} s, {ratio:.1f} times one call", flush=True)
    print(f"load before {load:.1f}, after {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
