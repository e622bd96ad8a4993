"""Debug requests as text to copy: commands, a Python program, and the message as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from google.protobuf.json_format import MessageToDict

from tdb_client.circuit_nodes import WHOLE_NODE_TYPES
from tdb_client.encoding import debug_request
from tdb_client.inference import Token
from tdb_client.requests import DebugSubRequest, resolve

SERVICE = "transformer_debugger.v1.TransformerDebuggerService"
_PLAIN_ARGUMENTS = (
    "k",
    "mlp",
    "attention",
    "hide_early_layers",
    "add_bos",
    "backward_rule",
    "attention_pattern_gradients",
    "loss",
    "token_lists",
)
_DEFAULTS = {one.name: one.default for one in fields(DebugSubRequest)}


def commands(requests: Sequence[DebugSubRequest]) -> str:
    """The calls of `tdb` that show the same runs, a line each. With ablations one call shows two.

    Args:
        requests: the sub-requests of a call: one, or two to compare.
    """
    first, last = requests[0], requests[-1]
    compared = replace(last, ablate=(), hide_early_layers=first.hide_early_layers)
    return command(last) if len(requests) == 1 or first == compared else "\n".join(map(command, requests))


def command(request: DebugSubRequest) -> str:
    """The call of `tdb` that asks the same. With ablations it also runs without them."""
    words = ["tdb", "debug"] if request.trace is None else ["tdb", "trace", str(request.trace)]
    words += _option("--downstream", *([] if request.downstream is None else [str(request.downstream)]))
    words += _option("--prompt", request.prompt)
    loss = request.objective
    if loss.direction is not None or loss.target_weights:
        return "# tdb has no flags for such a loss: see the program in Python"
    for option, tokens in (("--target", loss.target), ("--distractor", loss.distractor)):
        words += _option(option, *(one for one in tokens if isinstance(one, str)))
        words += _option(f"{option}-id", *(str(one) for one in tokens if not isinstance(one, str)))
    if request.loss is not None:
        words += [] if loss.name == "logit_diff" else _option("--loss", loss.name)
        words += [] if loss.token is None else _option("--at", str(loss.token))
    words += _option("--ablate", *map(str, request.ablate))
    for name, option in (("k", "-k"), ("mlp", "--mlp"), ("attention", "--attention")):
        if getattr(request, name) != _DEFAULTS[name]:
            words += _option(option, str(getattr(request, name)))
    words += _option("--residual-stream", *request.residual_stream)
    words += _option("--baseline", *request.baseline)
    if request.only_these is not None:
        words += _option("--only-these", *map(str, request.only_these)) or ["--only-these"]
        if request.node_types != WHOLE_NODE_TYPES:
            words += _option("--node-types", *request.node_types)
    if request.backward_rule != "gradient":
        words += _option("--rule", request.backward_rule)
    switches = {
        "--hide-early-layers": request.hide_early_layers,
        "--attention-pattern-gradients": request.attention_pattern_gradients,
        "--no-token-lists": not request.token_lists,
        "--add-bos": request.add_bos is True,
        "--no-add-bos": request.add_bos is False,
    }
    return shlex.join([*words, *(switch for switch, is_set in switches.items() if is_set)])


def program(requests: Sequence[DebugSubRequest]) -> str:
    """A Python program that asks the same.

    Args:
        requests: the sub-requests of a call: one, or two to compare.
    """
    names = {
        "Client": True,
        "DebugSubRequest": len(requests) > 1,
        "Loss": any(one.loss is not None for one in requests),
        "ResidualDirection": any(one.objective.direction is not None for one in requests),
    }
    if len(requests) == 1:
        asking = f"    result = client.debug({_call(requests[0], 8)}    )\nprint(result)\n"
    else:
        listed = "".join(f"        DebugSubRequest.of({_call(one, 12)}        ),\n" for one in requests)
        asking = f"    before, after = client.debug_many([\n{listed}    ])\nprint(before)\nprint(after)\n"
    imported = ", ".join(name for name, is_used in names.items() if is_used)
    return f"from tdb_client import {imported}\n\nwith Client() as client:\n{asking}"


def message(requests: Sequence[DebugSubRequest], n_tokens: int) -> str:
    """The body of the gRPC call for all sub-requests, as JSON that `buf curl --data` takes.

    Args:
        requests: the sub-requests of the call.
        n_tokens: length of the prompts, from whose end nodes may count.
    """
    lengths = {(one.prompt, one.add_bos): n_tokens for one in requests}
    body = MessageToDict(debug_request([resolve(one, lengths) for one in requests]))
    return json.dumps(body, indent=2, ensure_ascii=False)


def _option(name: str, *values: str) -> list[str]:
    """An option and its values; a value that looks like an option itself is tied to the name."""
    if any(value.startswith("-") for value in values):
        return [f"{name}={value}" for value in values]
    return [name, *values] if values else []


def _call(request: DebugSubRequest, n_spaces: int) -> str:
    """The arguments of a call, a line each."""
    return "\n" + "".join(f"{' ' * n_spaces}{one},\n" for one in _arguments(request))


def _arguments(request: DebugSubRequest) -> Iterator[str]:
    """What `Client.debug` is given, without what it assumes by itself."""
    yield repr(request.prompt)
    if request.target:
        yield _one_or_list(request.target)
    if request.distractor:
        yield f"distractor={_one_or_list(request.distractor)}"
    if request.ablate:
        yield f"ablate={_one_or_list([str(one) for one in request.ablate])}"
    for name in ("trace", "downstream"):
        if (trace := getattr(request, name)) is not None:
            yield f"{name}={str(trace)!r}"
    for name in _PLAIN_ARGUMENTS:
        if (value := getattr(request, name)) != _DEFAULTS[name]:
            yield f"{name}={value!r}"
    if request.residual_stream:
        yield f"residual_stream={_one_or_list(request.residual_stream)}"
    if request.baseline:
        yield f"baseline={_one_or_list(request.baseline)}"
    if request.only_these is not None:
        yield f"only_these={[str(one) for one in request.only_these]!r}"
        if request.node_types != WHOLE_NODE_TYPES:
            yield f"node_types={list(request.node_types)!r}"


def _one_or_list(words: Sequence[Token]) -> str:
    return repr(words[0] if len(words) == 1 else list(words))
