"""What a server is willing to do: every limit in force, as `GetModelInfo` reports them."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
DEFAULT_TOP_AND_BOTTOM_K = 10
LEAST_TOKEN_BYTES = 16
"""Taken for the length of the longest token where a vocabulary has none as long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that requests are checked against. What is over one is refused, with the limit named.

    Attributes:
        max_prompt_tokens: tokens of a prompt; None for the model's context length.
        max_prompt_bytes: bytes of a prompt as UTF-8, looked at before it is cut into tokens; None for as many
            as the longest tokens of the vocabulary would take.
        max_sub_requests: sub-requests of a call.
        max_node_ablations: ablations of a sub-request.
        max_target_tokens: entries of each list of target or distractor tokens.
        max_top_and_bottom_k: nodes from each end of a ranking, and tokens from each end of a token list.
        max_processing_specs: processing specs of a sub-request.
        max_request_bytes: bytes of a request.
        max_buffered_bytes: bytes of long requests and of answers that wait in the server's memory, all calls
            together.
        max_spool_bytes: bytes of answers that wait on disk, all calls together.
        max_response_bytes: bytes of an answer that is not streamed.
        max_concurrent_calls: calls that are taken up at the same time, waiting ones included.
        max_queue_length: calls that may wait for a worker.
        max_activation_bytes: estimated bytes of activations and gradients of a call.
        max_call_seconds: seconds a call may take, waiting included.
        chunk_bytes: bytes of tensor data in one message of a stream.
    """

    max_prompt_tokens: int | None = None
    max_prompt_bytes: int | None = None
    max_sub_requests: int = 32
    max_node_ablations: int = 256
    max_target_tokens: int = 1024
    max_top_and_bottom_k: int = 1000
    max_processing_specs: int = 64
    max_request_bytes: int = 4 * MIB
    max_response_bytes: int = 4 * MIB
    max_buffered_bytes: int = 256 * MIB
    max_spool_bytes: int = 2 * 1024 * MIB
    max_concurrent_calls: int = 256
    max_queue_length: int = 128
    max_activation_bytes: int = 8 * 1024 * MIB
    max_call_seconds: float = 300.0
    chunk_bytes: int = 1 * MIB

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
