"""What the service itself costs: a call that computes nothing, and a large tensor on its way.

The tensor is the logits of a short prompt, all of them: 53 tokens times the vocabulary is a little more than
10 MiB, and cheap to compute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from tdb_client import Client, InferenceSubRequest, Loss, ModelInfo, MultipleTopKSpec

from benchmarks.caller import Caller
from benchmarks.prompts import Words

TENSOR_BYTES = 10 * 2**20
N_TOKENIZED = 64


@dataclass(frozen=True)
class Transport:
    """Medians.

    Attributes:
        tokenize_p50: seconds of a `Tokenize` round trip of 64 tokens.
        tokenize_p95: the same, of the slow ones.
        tensor_bytes: of the tensor that was streamed.
        tensor_p50: seconds from its announcement to its last chunk, checksum checked.
        bytes_per_second: the tensor's, with the median time.
    """

    model: str
    tokenize_p50: float
    tokenize_p95: float
    tensor_bytes: int
    tensor_p50: float
    bytes_per_second: float


def measure_transport(
    address: str, model: str, words: Words, info: ModelInfo, n_round_trips: int, n_streams: int
) -> Transport:
    """Round trips one after the other, then streams one after the other."""
    tokenize_p50, tokenize_p95 = np.percentile(_tokenize(address, words, n_round_trips), (50, 95))
    n_tokens = -(-TENSOR_BYTES // (4 * info.vocab_size))
    with Caller(address) as caller:
        streamed = [caller.stream_tensors(_all_logits(words, n_tokens)) for _ in range(n_streams + 1)][1:]
    n_bytes = streamed[0].n_bytes
    seconds = float(np.median([one.seconds for one in streamed]))
    return Transport(model, float(tokenize_p50), float(tokenize_p95), n_bytes, seconds, n_bytes / seconds)


def _tokenize(address: str, words: Words, n_round_trips: int) -> list[float]:
    """What each round trip took, through the client library; the first ones are warm-up."""
    texts = [words.prompt(N_TOKENIZED).text for _ in range(n_round_trips)]
    seconds = []
    with Client(address) as client:
        for text in texts:
            start = time.perf_counter()
            client.tokenize(text)
            seconds.append(time.perf_counter() - start)
    return seconds[n_round_trips // 10 :]


def _all_logits(words: Words, n_tokens: int) -> InferenceSubRequest:
    """Asks for the sum of the logits over nothing, that is for the logits."""
    prompt = words.prompt(n_tokens)
    logits = MultipleTopKSpec({"logits": ("logits",)}, k=1, keep=("sequence_tokens", "vocab_size"))
    return InferenceSubRequest(prompt.text, Loss("zero"), results={"logits": logits})
