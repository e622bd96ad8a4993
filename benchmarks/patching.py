"""How well act x grad foretells what patching does, under each backward rule.

`python -m benchmarks.patching`. A node is patched by setting it to what it is in a baseline prompt, the
same with the two names exchanged. What that takes from the objective is what the node does. Act x grad says
so without patching anything, for all nodes at once, as far as the model is linear between the two prompts.
For each rule the two are compared over all whole heads and all whole MLPs of SmolLM2 on twenty prompts:
Pearson's correlation, of each prompt's nodes, and the mean over prompts. Nodes are components (at all
tokens together) or, with `--each-token`, components at single tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tdb_server.domain.call import Call
from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    BackwardRule,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    ValueType,
)
from tdb_server.domain.results import MultipleTopKResult, NamedResult, ObjectiveValues
from tdb_server.engine.engine import Engine
from tdb_server.model.decoder import Decoder
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.model.weights import load_decoder

from benchmarks.models import smollm2

TEMPLATES = (
    "When {0} and {1} went to the store, {1} gave a drink to",
    "After {0} and {1} sat down at the table, {1} passed the salt to",
    "While {0} and {1} were working at the office, {1} handed the report to",
    "Then {0} and {1} had a long argument, and afterwards {1} said sorry to",
)
NAMES = (("Mary", "John"), ("Tom", "Anna"), ("James", "Mark"), ("Sarah", "Paul"), ("Peter", "Laura"))
SCALARS = {
    "heads": (DerivedScalar.WHOLE_HEAD_ACT_TIMES_GRAD, HookPoint.ATTN_V_OUT),
    "MLPs": (DerivedScalar.WHOLE_MLP_ACT_TIMES_GRAD, HookPoint.RESID_DELTA_MLP),
}
EVERY_NODE = 10**6
N_ROWS = 64
"""Patches that are run at once."""


def question(tokenizer: Tokenizer, template: str, names: tuple[str, str]) -> InferenceSpec:
    """A prompt that goes on with the first name, the one with exchanged names as its baseline."""
    prompt, baseline = (tuple(tokenizer.encode(template.format(*one))) for one in (names, names[::-1]))
    if len(prompt) != len(baseline):
        raise ValueError(f"{names} do not have as many tokens as each other")
    target, distractor = (tokenizer.encode_continuation(f" {name}") for name in names)
    loss = LossConfig(LossName.LOGIT_DIFF, (target[0],), (distractor[0],))
    return InferenceSpec(prompt, loss, ablations=(HOLD_FINAL_NORM_SCALE,), baselines=(baseline,))


def foretold(engine: Engine, run: InferenceSpec, *, each_token: bool) -> dict[str, np.ndarray]:
    """Act x grad of all nodes of each kind, in order."""
    config = engine.model.decoder.config
    wanted = {
        name: MultipleTopKSpec(((GroupId.SINGLETON, (scalar,)),), EVERY_NODE)
        for name, (scalar, _) in SCALARS.items()
    }
    found = {}
    for _, event in engine.run([Call("", (InferenceSubRequest(run, wanted),))], lambda _: False):
        if isinstance(event, NamedResult):
            assert isinstance(event.result, MultipleTopKResult)
            n_components = config.n_heads if event.name == "heads" else 1
            numbers = np.zeros((config.n_layers, len(run.token_ids), n_components))
            (group,) = event.result.groups.values()
            for node, number in zip(event.result.nodes, group.activations.tolist(), strict=True):
                numbers[node.layer_index, *node.tensor_indices] = number
            found[event.name] = (numbers if each_token else numbers.sum(axis=1)).ravel()
    return found


def patches(decoder: Decoder, run: InferenceSpec, name: str, *, each_token: bool) -> Iterator[AblationSpec]:
    """What sets each node of a kind to what it is in the baseline, in the same order."""
    hook_point = SCALARS[name][1]
    tokens: Sequence[int | None] = range(len(run.token_ids)) if each_token else [None]
    heads: Sequence[int | None] = range(decoder.config.n_heads) if name == "heads" else [None]
    for layer, token, head in itertools.product(range(decoder.config.n_layers), tokens, heads):
        indices = (token, head, None) if name == "heads" else (token, None)
        yield AblationSpec(ActivationIndex(hook_point, layer, indices), 0.0, ValueType.BASELINE)


def effects(engine: Engine, run: InferenceSpec, specs: Sequence[AblationSpec]) -> np.ndarray:
    """What each patch takes from the objective."""
    (whole,) = losses(engine, run, [()])
    found = [
        loss
        for start in range(0, len(specs), N_ROWS)
        for loss in losses(engine, run, [(one,) for one in specs[start : start + N_ROWS]])
    ]
    return whole - np.array(found)


def losses(engine: Engine, run: InferenceSpec, altered: Sequence[tuple[AblationSpec, ...]]) -> list[float]:
    """The objective of one prompt under several sets of patches, as rows of one batch."""
    rows = [
        InferenceSubRequest(InferenceSpec(run.token_ids, run.loss, ablations=one, baselines=run.baselines))
        for one in altered
    ]
    found = [0.0] * len(rows)
    for _, event in engine.run([Call("", tuple(rows))], lambda _: False):
        if isinstance(event, ObjectiveValues):
            assert event.loss is not None
            found[event.sub_request_index] = event.loss
    return found


def main() -> None:
    """Prints the table and, where asked, writes each prompt's correlations as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--each-token", action="store_true", help="nodes are components at single tokens")
    parser.add_argument("--kinds", nargs="+", choices=SCALARS, default=list(SCALARS), help="of nodes")
    parser.add_argument("--prompts", type=int, default=len(TEMPLATES) * len(NAMES), help="how many")
    parser.add_argument("--json", type=Path, help="where to write each prompt's correlations")
    options = parser.parse_args()
    model = smollm2()
    decoder, tokenizer = load_decoder(model.folder, "cpu", torch.float32), Tokenizer(model.tokenizer_folder)
    engine = Engine(decoder, [])
    correlations: dict[str, dict[str, list[float]]] = {
        kind: {rule.value: [] for rule in BackwardRule} for kind in options.kinds
    }
    begun = time.monotonic()
    for template, names in list(itertools.product(TEMPLATES, NAMES))[: options.prompts]:
        run = question(tokenizer, template, names)
        for kind in options.kinds:
            specs = list(patches(decoder, run, kind, each_token=options.each_token))
            measured = effects(engine, run, specs)
            for rule in BackwardRule:
                under_rule = replace(run, backward_rule=rule)
                estimated = foretold(engine, under_rule, each_token=options.each_token)[kind]
                correlations[kind][rule.value].append(float(np.corrcoef(estimated, measured)[0, 1]))
    n_prompts = min(options.prompts, len(TEMPLATES) * len(NAMES))
    seconds = time.monotonic() - begun
    print(f"Pearson's correlation of act x grad with patching, {n_prompts} prompts, {seconds:.0f} s")
    for kind, by_rule in correlations.items():
        for rule, found in by_rule.items():
            numbers = f"mean {np.mean(found):6.3f}  least {min(found):6.3f}  most {max(found):6.3f}"
            print(f"{kind:6} {rule:14} {numbers}")
    if options.json:
        options.json.write_text(json.dumps(correlations, indent=1))


if __name__ == "__main__":
    main()
