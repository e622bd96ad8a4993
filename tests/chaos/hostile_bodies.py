"""JSON bodies that mean no good: golden requests with values replaced, broken text, absurd shapes."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.hostile_messages import broken_bytes

GOLDENS = Path(__file__).parents[1] / "golden" / "tiny-a"
ENDPOINTS = (
    "batched_tdb",
    "batched",
    "derived_scalars",
    "derived_attention_scalars",
    "multiple_top_k_derived_scalars",
    "v1/edges",
)
LOSS = {"name": "log_prob", "targetTokens": [" the"], "tokenIndex": -1}
COMPARED = {"prompt": "the cat sat on the", "baselinePrompts": ["the cat sat on of"], "lossFnConfig": LOSS}
CIRCUIT = {"nodeTypes": ["whole_head", "whole_mlp"], "nodes": [{"nodeType": "whole_mlp", "layerIndex": 1}]}
LENS = {"specType": "lens_request_spec", "vocabTokens": [" the"], "tokenIndices": [-1, 0], "numTopTokens": 3}
PLACE = {"activationLocationType": "attn.qk_logits", "layerIndices": [0, 2], "passType": "backward"}
RUN = {**COMPARED, "onlyThese": CIRCUIT, "backwardRule": "relp", "attentionPatternGradients": True}
OURS: tuple[tuple[str, Any], ...] = (
    (
        "v1/edges",
        {"subRequests": [{**COMPARED, "method": "eap_ig", "steps": 2, "topK": 9, "wholeMatrix": True}]},
    ),
    (
        "batched",
        {
            "inferenceSubRequests": [
                {
                    "inferenceRequestSpec": RUN,
                    "processingRequestSpecByName": {"lens": LENS, "place": PLACE},
                }
            ]
        },
    ),
)
"""What the reference has not: endpoints with sound bodies."""
SCALARS = (None, True, False, 0, -1, 1, 2, 3, 59, 60, 10**6, 2**31, -(2**31) - 1, 2**63, 10**400)
NUMBERS = (0.5, -0.0, 1e300, 1e-320, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", " the", "the cat sat on the", "x" * 5_000, "\0", "\ud800", "🧨", "NaN", "1", "true")
NAMES = ("resid.delta_mlp", "mlp_neuron", "act_times_grad", "specType")
LISTS: tuple[Any, ...] = ([], [[]], [None], [0, 0], [0, 0, 0], ["All", 0], [1] * 3_000)
OBJECTS: tuple[Any, ...] = ({}, {"": ""}, {"specType": "x"}, {"$ref": "#"})
VALUES: tuple[Any, ...] = (*SCALARS, *NUMBERS, *TEXTS, *NAMES, *LISTS, *OBJECTS)
PATHS = ("", "docs", "batched_tdb/", "BATCHED_TDB", "../etc/passwd", "%2e%2e/", "model_info/x", "x" * 3_000)
DEPTHS = (50, 900, 5_000, 100_000)


def golden_bodies() -> Sequence[tuple[str, Any]]:
    """Endpoints with sound bodies: the reference's, and of what it has not."""
    goldens = [json.loads(gzip.decompress(path.read_bytes())) for path in sorted(GOLDENS.glob("*.json.gz"))]
    return [*((golden["endpoint"], golden["request"]) for golden in goldens), *OURS * (len(goldens) // 8)]


def hostile_body(chance: random.Random, goldens: Sequence[tuple[str, Any]]) -> tuple[str, bytes]:
    """A path and what is posted to it."""
    endpoint, sound = chance.choice(goldens)
    kinds: Sequence[Callable[[], tuple[str, bytes]]] = (
        lambda: (endpoint, _encoded(_spoiled(chance, sound))),
        lambda: (endpoint, _encoded(_spoiled(chance, sound))),
        lambda: (endpoint, _encoded(_spoiled(chance, sound))),
        lambda: (chance.choice(ENDPOINTS), _encoded(sound)),
        lambda: (endpoint, broken_bytes(chance, _encoded(sound))),
        lambda: (endpoint, _encoded(chance.choice(VALUES))),
        lambda: (endpoint, _nested(chance)),
        lambda: (chance.choice(PATHS), _encoded(sound)),
    )
    return chance.choice(kinds)()


def _encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


def _spoiled(chance: random.Random, sound: Any) -> Any:
    """Replaces, drops, doubles or renames a few things anywhere in a body."""
    body = copy.deepcopy(sound)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        holder = chance.choice(_holders(body))
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key = chance.choice(keys)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("x", key.upper(), "specType", ""))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder *= chance.choice((2, 50))
            case _:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
    return body


def _holders(body: Any) -> list[Any]:
    """All objects and lists in a body, itself included."""
    if not isinstance(body, dict | list):
        return []
    found = [body]
    for one in body.values() if isinstance(body, dict) else body:
        found += _holders(one)
    return found


def _nested(chance: random.Random) -> bytes:
    depth = chance.choice(DEPTHS)
    left, right = chance.choice((("[", "]"), ('{"subRequests":', "}"), ('{"subRequests":[', "]}")))
    return (left * depth + "1" + right * chance.choice((0, depth))).encode()
