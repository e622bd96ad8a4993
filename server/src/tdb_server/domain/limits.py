"""What a server is willing to do: every limit in force, as `GetModelInfo` reports them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 1024 * 1024
DEFAULT_TOP_AND_BOTTOM_K = 10
LEAST_TOKEN_BYTES = 16
"""Taken for the length of the longest token where a vocabulary has none as long."""


def _limit(default: float | None, text: str) -> Any:
    """A limit, and what it is of, as `--help` says it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that requests are checked against. What is over one is refused, with the limit named.

    `max_prompt_bytes` is looked at before the prompt is cut into tokens; None stands for as many as the
    longest tokens of the vocabulary would take. `max_top_and_bottom_k` also bounds the tokens of a list.
    `max_activation_bytes` is None until the first worker has said how much memory is free beside its model.
    """

    max_prompt_tokens: int | None = _limit(None, "tokens of a prompt (default: the model's context)")
    max_prompt_bytes: int | None = _limit(None, "bytes of a prompt (default: as many as its tokens can have)")
    max_sub_requests: int = _limit(128, "sub-requests of a call")
    max_node_ablations: int = _limit(256, "ablations of a sub-request")
    max_circuit_nodes: int = _limit(4096, "nodes of a circuit")
    max_target_tokens: int = _limit(1024, "entries of each list of target or distractor tokens")
    max_top_and_bottom_k: int = _limit(1000, "nodes from each end of a ranking")
    max_processing_specs: int = _limit(64, "processing specs of a sub-request")
    max_request_bytes: int = _limit(4 * MIB, "bytes of a request")
    max_response_bytes: int = _limit(4 * MIB, "bytes of an answer that is not streamed")
    max_buffered_bytes: int = _limit(
        256 * MIB, "bytes of long requests and answers that wait in memory, all calls together"
    )
    max_spool_bytes: int = _limit(
        2 * 1024 * MIB, "bytes of answers that wait on disk for their readers, all calls together"
    )
    max_concurrent_calls: int = _limit(256, "calls taken up at the same time, waiting ones included")
    max_queue_length: int = _limit(128, "calls that may wait for a worker")
    max_activation_bytes: int | None = _limit(
        None, "estimated bytes of activations and gradients of a call (default: as the device has free)"
    )
    max_call_seconds: float = _limit(300.0, "seconds a call may take, waiting included")
    chunk_bytes: int = _limit(1 * MIB, "bytes of tensor data in one message of a stream")

    @property
    def default_top_and_bottom_k(self) -> int:
        """What a request means that does not say k."""
        return min(DEFAULT_TOP_AND_BOTTOM_K, self.max_top_and_bottom_k)

    def prompt_tokens(self, context_length: int) -> int:
        """The most tokens a prompt may have, given the model's context length."""
        if self.max_prompt_tokens is None:
            return context_length
        return min(self.max_prompt_tokens, context_length)

    def prompt_bytes(self, context_length: int, longest_token_bytes: int) -> int:
        """The most bytes a prompt may have, given the longest token's.

        A tokenizer may drop characters, so that a token may stand for more: there is room for some.
        """
        if self.max_prompt_bytes is not None:
            return self.max_prompt_bytes
        return self.prompt_tokens(context_length) * max(longest_token_bytes, LEAST_TOKEN_BYTES)
