"""The engine: a batch of calls in, their results out as soon as each is ready.

    calls -> plan -> cache -> gradients -> derived scalars -> nodes -> tokens -> answers

A batch takes one forward and one backward pass. Logits leave before the backward pass starts; then, call by
call, the top nodes, and last what is scored against those nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from tdb_server.domain.call import Call
from tdb_server.domain.model_info import Site
from tdb_server.domain.results import CallEvent, Finished
from tdb_server.engine.answers import Answers
from tdb_server.engine.backward_pass import backward
from tdb_server.engine.cache import widen, zero_padding
from tdb_server.engine.forward_pass import forward, run_references
from tdb_server.engine.inputs import Inputs
from tdb_server.engine.plan import plan_batch
from tdb_server.engine.preparation import preparation
from tdb_server.engine.rank_tokens import TokenRanker
from tdb_server.engine.rows import Rows
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.engine.stage_clock import StageClock
from tdb_server.errors import Cancelled
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.decoder import Decoder
from tdb_server.model.precision import widened
from tdb_server.model.precomputed import precompute

IsCancelled = Callable[[str], bool]


class Engine:
    """A decoder, its autoencoders and what was computed from their weights once.

    `run` is a pure function of the weights and the calls: a call's results do not depend on its company.

    Attributes:
        model: the decoder and its autoencoders.
        precomputed: what follows from the weights alone.
        kernels: what was tried on this machine, and which ways are used.
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
        # A dictionary of what the MLP adds sees what is set of a transcoder, whichever is named first.
        spliced = sorted(autoencoders, key=lambda one: one.site is not Site.MLP_TRANSCODER)
        wide_decoder = decoder.widened()
        if wide_decoder is not decoder:
            spliced = [widened(one) for one in spliced]
        self.model = SplicedModel(decoder, tuple(spliced))
        self._wide = SplicedModel(wide_decoder, tuple(spliced))
        self.precomputed = precompute(wide_decoder)
        self._ranker = TokenRanker(decoder, excluded_tokens, ranking=ranking)
        self._preparation = preparation(wide_decoder, self.precomputed, self._ranker)
        self.kernels = (self._ranker.kernel,)

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
            is_cancelled: asked between layers, parts and results, with a call's id; a cancelled call gets no
                more events, and when all of them are cancelled the work stops.

        Yields:
            `(call_id, event)`: named results, objective values, and last a `Finished` for every call.
        """

        def check_cancelled() -> None:
            if all(is_cancelled(call.call_id) for call in calls):
                raise Cancelled("every call of the batch was cancelled")

        if not calls:
            return
        model, decoder = self.model, self.model.decoder
        clock = StageClock(decoder.device)
        cancelled: set[str] = set()

        def is_wanted(call_id: str) -> bool:
            if call_id not in cancelled and is_cancelled(call_id):
                cancelled.add(call_id)
            return call_id not in cancelled

        try:
            plan = plan_batch(
                calls, model.autoencoders, decoder.absent_hook_points, n_layers=len(decoder.blocks)
            )
            inputs = Inputs(plan, decoder.device)
            answers = Answers(plan, self._ranker, clock, is_wanted, check_cancelled)
            references = run_references(model, plan, inputs, check_cancelled)
            cache, graph = forward(model, plan, inputs, references, check_cancelled)
            clock.end("forward")
            batch, layers = slice(0, len(plan.rows)), range(len(decoder.blocks))
            rows = Rows(self._wide, self.precomputed, plan, inputs, cache, None, references, batch, layers)
            ranked = answers.rank_logits(rows)
            for call_id, event in answers.logit_results(ranked):
                if is_wanted(call_id):
                    yield call_id, event
            clock.start()
            gradients = backward(self._wide, plan, inputs, cache, graph, references)
            del graph  # which holds all that the way back needed
            widen(cache, gradients)
            zero_padding(cache, inputs)
            clock.end("backward")
            for call_id, event in answers.results_after_backward(rows.after(gradients), gradients, ranked):
                if is_wanted(call_id):
                    if isinstance(event, Finished):
                        event = Finished(clock.seconds(), peak_memory_bytes(decoder.device))
                    yield call_id, event
        except Cancelled:
            return


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process's device (of the process itself on a CPU), in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
