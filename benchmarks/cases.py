"""What is asked: the kinds of debug request, all with k = 15, and the lengths they are measured at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tdb_client import DebugSubRequest, ModelInfo, Trace, head, neuron

from benchmarks.prompts import Prompt, Words

K = 15
LENGTHS = (16, 64, 256)
LONGEST = 1_000


@dataclass(frozen=True)
class Case:
    """A kind of request.

    Attributes:
        name: as `--only` takes it.
        title: for people.
        sub_requests: makes the call's sub-requests for a prompt.
        n_rows: sub-requests of the call, which is the floor's batch.
        lengths: tokens of the prompts.
        with_latents: whether the server must have an autoencoder.
    """

    name: str
    title: str
    sub_requests: Callable[[Prompt, ModelInfo, Words], Sequence[DebugSubRequest]]
    n_rows: int = 1
    lengths: tuple[int, ...] = LENGTHS
    with_latents: bool = False


def _plain(prompt: Prompt, _: ModelInfo, __: Words) -> list[DebugSubRequest]:
    return [DebugSubRequest.of(prompt.text, prompt.target, prompt.distractor, k=K)]


def _ablated(prompt: Prompt, model: ModelInfo, words: Words) -> list[DebugSubRequest]:
    """The prompt as it is, and with a head in the middle of the model switched off at the last token."""
    ablated = head(model.n_layers // 2, words.below(model.n_heads), token=len(prompt.token_ids) - 1)
    return [
        *_plain(prompt, model, words),
        DebugSubRequest.of(prompt.text, prompt.target, prompt.distractor, k=K, ablate=ablated),
    ]


def _neuron(prompt: Prompt, model: ModelInfo, words: Words) -> list[DebugSubRequest]:
    traced = neuron(_deep(model), words.below(model.n_mlp_neurons), token=len(prompt.token_ids) - 1)
    return [DebugSubRequest.of(prompt.text, prompt.target, prompt.distractor, k=K, trace=traced)]


def _head(prompt: Prompt, model: ModelInfo, words: Words) -> list[DebugSubRequest]:
    """What a head copies to the last token from the middle of the prompt, in the loss's direction."""
    n_tokens = len(prompt.token_ids)
    traced = head(_deep(model), words.below(model.n_heads), token=n_tokens - 1, attended_to=n_tokens // 2)
    return [DebugSubRequest.of(prompt.text, prompt.target, prompt.distractor, k=K, trace=Trace(traced, "V"))]


def _latents(prompt: Prompt, _: ModelInfo, __: Words) -> list[DebugSubRequest]:
    return [DebugSubRequest.of(prompt.text, prompt.target, prompt.distractor, k=K, mlp="autoencoder_latent")]


def _deep(model: ModelInfo) -> int:
    """A layer that has most of the model before it."""
    return 3 * model.n_layers // 4


CASES = (
    Case("plain", "plain", _plain, lengths=(*LENGTHS, LONGEST)),
    Case("ablated", "plain + ablated", _ablated, n_rows=2),
    Case("neuron", "trace of a neuron", _neuron),
    Case("head", "trace of a head through V", _head),
    Case("latents", "MLP latents + heads", _latents, with_latents=True),
)
