"""The engine: a batch of calls in, their results out as soon as each is ready.

A batch takes one forward and one backward pass. Logits leave before the backward pass starts; then, call by
call, the top nodes, and last what is scored against those nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.model_info import KernelChoice
from tdb_server.domain.requests import (
    DerivedScalarsSpec,
    MultipleTopKSpec,
)
from tdb_server.domain.results import CallEvent, Finished, StageSeconds
from tdb_server.errors import Cancelled
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.decoder import Decoder
from tdb_server.scalars.answer import CallAnswer
from tdb_server.scalars.needs import needs_of_calls
from tdb_server.scalars.preparation import preparation
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.run import BatchRun, Row
from tdb_server.scalars.token_scores import TokenScorer
from tdb_server.scalars.weight_facts import weight_facts

IsCancelled = Callable[[str], bool]


class Engine:
    """A decoder, its autoencoders and what was computed from their weights once.

    `run` is a pure function of the weights and the calls: a call's results do not depend on its company.
    """

    _NOTHING_LEFT = object()

    def __init__(
        self,
        decoder: Decoder,
        autoencoders: Sequence[Autoencoder],
        excluded_tokens: Sequence[int] = (),
        ranking: str | None = None,
    ) -> None:
        """Computes what follows from the weights alone, and tries which ways to compute are fast here.

        Args:
            excluded_tokens: token ids that never stand in token lists.
            ranking: how vocabularies are ranked; None for the fastest way on this machine.

        Raises:
            ModelError: that ranking cannot be had here.
        """
        self.decoder = decoder
        self.autoencoders = tuple(autoencoders)
        self._facts = weight_facts(decoder)
        self._scorer = TokenScorer(decoder, excluded_tokens, ranking=ranking)
        self._preparation = preparation(decoder, self._scorer)

    @property
    def kernels(self) -> tuple[KernelChoice, ...]:
        """What was tried, and which ways are used."""
        return (self._scorer.kernel,)

    def prepare(self) -> bool:
        """Makes later calls faster, a little at a time; to be called while there is nothing else to do.

        Returns:
            Whether it did anything: False when nothing is left.
        """
        return next(self._preparation, self._NOTHING_LEFT) is not self._NOTHING_LEFT

    def run(self, calls: Sequence[Call], is_cancelled: IsCancelled) -> Iterator[tuple[str, CallEvent]]:
        """Runs the calls in one batch.

        Args:
            calls: the calls of the batch.
            is_cancelled: asked between layers and between results, with a call's id; a cancelled call
                gets no more events, and when all of them are cancelled the work stops.

        Yields:
            `(call_id, event)`: named results, objective values, and last a `Finished` for every call.
        """
        rows = [Row(one.inference, _logit_tokens(call)) for call in calls for one in call.sub_requests]

        def check_cancelled() -> None:
            if all(is_cancelled(call.call_id) for call in calls):
                raise Cancelled("every call of the batch was cancelled")

        needs = needs_of_calls(calls, self.autoencoders)
        batch = BatchRun(self.decoder, self._facts, self.autoencoders, rows, needs, check_cancelled)
        try:
            batch.forward()
            runs = [RowRun(batch, index) for index in range(len(rows))]
            answers = []
            for call in calls:
                own, runs = runs[: len(call.sub_requests)], runs[len(call.sub_requests) :]
                answers.append(CallAnswer(call, own, self._scorer))
            for answer in _live(answers, is_cancelled):
                for result in answer.logits():
                    yield answer.call.call_id, result
                    if is_cancelled(answer.call.call_id):
                        break
            batch.backward()
            for answer in _live(answers, is_cancelled):
                for event in answer.events():
                    yield answer.call.call_id, event
                    if is_cancelled(answer.call.call_id):
                        break
                else:
                    yield answer.call.call_id, self._finished(batch, answer)
        except Cancelled:
            return

    def _finished(self, batch: BatchRun, answer: CallAnswer) -> Finished:
        seconds = StageSeconds(
            forward=batch.forward_seconds,
            backward=batch.backward_seconds,
            derive=answer.derive_seconds,
            score=answer.score_seconds,
        )
        return Finished(seconds, peak_memory_bytes(self.decoder.device))


def _live(answers: Sequence[CallAnswer], is_cancelled: IsCancelled) -> Iterator[CallAnswer]:
    return (answer for answer in answers if not is_cancelled(answer.call.call_id))


def _logit_tokens(call: Call) -> frozenset[int] | None:
    """The tokens whose logits any sub-request of the call wants; None for all tokens."""
    tokens: set[int] = set()
    for sub_request in call.sub_requests:
        for spec in sub_request.processing.values():
            if isinstance(spec, DerivedScalarsSpec) and spec.derived_scalar is DerivedScalar.LOGITS:
                return None
            if isinstance(spec, MultipleTopKSpec) and any(
                DerivedScalar.LOGITS in one for _, one in spec.groups
            ):
                if spec.token_index is None:
                    return None
                tokens.add(spec.token_index)
    return frozenset(tokens)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process's device (of the process itself on a CPU), in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
