"""Errors in the words of the command line: what was typed, in place of fields of a request."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tdb_client.errors import CallError, InvalidValueError, NodeError, TdbError
from tdb_client.token_text import quoted

Read = TypeVar("Read")
_FIELD = re.compile(
    r"sub_requests\[\d+\]\.(?:inference_spec\.|processing_specs\[\d+\]\.\w+\.)?(?:loss_fn_config\.)?"
    r"(\w+)(?:\[(\d+)\])?(?:[.\[]\w+\]?)*"
)
_OPTIONS = {
    "prompt": "--prompt",
    "target": "--target",
    "target_tokens": "--target",
    "target_token_ids": "--target-id",
    "distractor": "--distractor",
    "distractor_tokens": "--distractor",
    "distractor_token_ids": "--distractor-id",
    "ablate": "--ablate",
    "nodes": "node",
    "node_ablations": "--ablate",
    "trace": "node",
    "upstream_node_to_trace": "node",
    "downstream": "--downstream",
    "downstream_node_to_trace": "--downstream",
    "k": "-k",
    "top_and_bottom_k": "-k",
    "mlp": "--mlp",
    "component_type_for_mlp": "--mlp",
    "attention": "--attention",
    "component_type_for_attention": "--attention",
    "residual_stream": "--residual-stream",
    "component_types_for_residual_stream": "--residual-stream",
    "hide_early_layers_when_ablating": "--hide-early-layers",
    "add_bos": "--add-bos",
    "backward_rule": "--rule",
    "attention_pattern_gradients": "--attention-pattern-gradients",
    "baseline": "--baseline",
    "baseline_prompts": "--baseline",
    "only_these": "--only-these",
    "place": "--place",
    "activation_location_type": "--place",
    "layer_indices": "--layers",
    "token_indices": "--at",
    "token_index": "--at",
    "tokens": "--tokens",
    "vocab_tokens": "--tokens",
    "vocab_token_ids": "--tokens-id",
    "num_top_tokens": "--top",
    "server": "--server",
    "token": "--token-file",
    "timeout": "--timeout",
    "text": "TEXT",
    "chat": "--chat-file",
    "system": "--system",
}
"""What is typed for a field of the protos, or an attribute of the library's requests."""


@dataclass(frozen=True, slots=True)
class Typed(Generic[Read]):
    """An argument as it was typed, and what it means."""

    text: str
    read: Read


def typed(read: Callable[[str], Read]) -> Callable[[str], Typed[Read]]:
    """A type for argparse that keeps what was typed; what `read` cannot read is a mistake of the user."""

    def read_argument(text: str) -> Typed[Read]:
        try:
            return Typed(text, read(text))
        except NodeError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_argument


def error_text(error: TdbError, options: argparse.Namespace) -> str:
    """What an error says to somebody who typed the options."""
    match error:
        case CallError():
            violations = [
                replace(
                    one,
                    path=_in_words(_field(one.path), options),
                    description=_in_words(one.description, options),
                )
                for one in error.field_violations
            ]
            # The same twice, where a run is compared with another of the same prompt.
            error.field_violations = tuple(dict.fromkeys(violations))
            return str(error)
        case InvalidValueError(path=path) if path in _OPTIONS:
            return f"{_OPTIONS[path]}: {error.description}"
        case NodeError(path=path) if path:  # it begins with the node, which has just been named as typed
            where = _in_words(_field(path), options)
            return f"{where}: {str(error).partition(': ')[2]}"
    return _in_words(str(error), options)


def _field(path: str) -> str:
    """The field of a request, also where the library names an argument of its own."""
    return f"sub_requests[0].{path}" if re.split(r"\W", path)[0] in _OPTIONS else path


def _in_words(text: str, options: argparse.Namespace) -> str:
    """A text with the fields it names replaced: `--ablate 'L1 head 2 @ 3'`."""

    def option(match: re.Match[str]) -> str:
        name, index = _OPTIONS.get(match[1]), match[2]
        if name is None:
            return match[0]
        attribute = match[1] if match[1] == "nodes" else name.lstrip("-").replace("-", "_")
        values: object = getattr(options, attribute, None)
        if isinstance(values, Sequence) and not isinstance(values, str) and index is not None:
            values = values[int(index)] if int(index) < len(values) else None
        elif name not in ("node", "--downstream"):
            values = None  # there is but one
        shown = values.text if isinstance(values, Typed) else values
        words = "" if name == "node" else name
        if isinstance(shown, int):
            return f"{words} {shown}"
        return f"{words} {quoted(shown)}".strip() if isinstance(shown, str) else name

    return _FIELD.sub(option, text)
