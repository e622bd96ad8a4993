"""Which way of ranking a vocabulary is the fastest here: tried when a worker starts.

A processor's flags say which instructions it has, not for which shapes and types a library has a kernel
that uses them: without one, oneDNN multiplies 8-bit integers in a plain loop, a thousand times slower than
floats, and without VNNI its sums overflow. So every way is run on the vocabulary itself beside the plain one,
and used only where it is right and faster. A trial is soon over: products grow in steps, and the first that
takes longer than the plain way takes for everything ends it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from tdb_server.domain.model_info import KernelChoice, KernelOutcome, KernelTrial
from tdb_server.engine.quantized_scores import (
    MAX_DIRECTIONS,
    PADDED_TO,
    Int8Product,
    onednn_int8_product,
    plain_int8_product,
)
from tdb_server.engine.token_ranking import ExactRanking, RankedTokens
from tdb_server.engine.vocabulary_search import VocabularySearch
from tdb_server.errors import ModelError

Ranking = ExactRanking | VocabularySearch
"""A way to rank a vocabulary."""
EXACT, INT8 = "exact", "int8"
RANKINGS: dict[str, Callable[[Tensor, Tensor | None], Ranking]] = {
    EXACT: ExactRanking,
    INT8: VocabularySearch,
}
"""Every way to rank a vocabulary [V, d], less excluded token ids, by its name; the plain one first."""
MANY_TOKENS = 8192
"""Below, scoring every token is fast enough."""
N_DIRECTIONS = 128
"""Directions that are ranked along to try a way."""
_N_TURNS = 5
_K = 10
T = TypeVar("T")
_log = logging.getLogger(__name__)


def choose_ranking(
    vocabulary: Tensor,
    excluded: Tensor | None,
    directions: Tensor,
    wanted: str | None = None,
    product: Int8Product = onednn_int8_product,
) -> tuple[Ranking, KernelChoice]:
    """The fastest right way to rank a vocabulary on this machine.

    Args:
        vocabulary: the tokens' vectors [V, d].
        excluded: token ids that are never ranked.
        directions: such as will be ranked along, to try with [at most N_DIRECTIONS, d].
        wanted: one of `RANKINGS`, used if it is right, however slow; None for the fastest.
        product: how the search computes quantized scores.

    Raises:
        ModelError: what is wanted cannot be had here.
    """
    exact = ExactRanking(vocabulary, excluded)
    is_possible = vocabulary.device.type == "cpu" and vocabulary.dtype == torch.float32
    if wanted == INT8 and not is_possible:
        kind = f"{vocabulary.dtype} on {vocabulary.device}"
        raise ModelError(f"ranking {INT8} is for torch.float32 on a CPU, not {kind}", "KERNEL_UNUSABLE")
    if not is_possible or wanted == EXACT or (wanted is None and len(vocabulary) < MANY_TOKENS):
        trials: tuple[KernelTrial, ...] = (KernelTrial(EXACT, None, KernelOutcome.CHOSEN),)
        return exact, KernelChoice("rank_tokens", EXACT, wanted is not None, trials)

    def rank_exactly() -> RankedTokens[Tensor]:
        return exact.rank(directions, _K)

    expected, exact_seconds = _timed(rank_exactly)
    limit = exact_seconds / len(directions) if wanted is None else float("inf")
    seconds = None
    try:
        outcome = try_product(vocabulary, limit, product)
        if outcome is KernelOutcome.CHOSEN:
            search = VocabularySearch(vocabulary, excluded, product)
            found, seconds = _timed(lambda: search.rank(directions, _K))
            for _ in range(_N_TURNS):  # in turns, since what else runs here slows both
                exact_seconds = min(exact_seconds, _timed(rank_exactly)[1])
                seconds = min(seconds, _timed(lambda: search.rank(directions, _K))[1])
            if not _is_same(found, expected):
                outcome = KernelOutcome.WRONG
            elif wanted is None and seconds >= exact_seconds:
                outcome = KernelOutcome.SLOWER
    except RuntimeError:  # torch's way to say that an operation is not there
        _log.warning("ranking %s does not work here", INT8, exc_info=True)
        outcome = KernelOutcome.FAILED
    is_chosen = outcome is KernelOutcome.CHOSEN
    if wanted == INT8 and not is_chosen:
        raise ModelError(f"ranking {INT8} {outcome.value} on this processor", "KERNEL_UNUSABLE")
    of_exact = KernelOutcome.SLOWER if is_chosen else KernelOutcome.CHOSEN
    trials = KernelTrial(EXACT, exact_seconds, of_exact), KernelTrial(INT8, seconds, outcome)
    chosen = INT8 if is_chosen else EXACT
    return search if is_chosen else exact, KernelChoice("rank_tokens", chosen, wanted is not None, trials)


def try_product(vocabulary: Tensor, limit_per_direction: float, product: Int8Product) -> KernelOutcome:
    """Whether products of 8-bit integers are right and take no longer than that, in every shape that is used.

    Numbers are the largest there are, of one sign in each row: where sums can overflow, these do.
    """
    n_tokens, d_model = vocabulary.shape
    tokens = torch.full((n_tokens, d_model), 255, dtype=torch.uint8)
    tokens[1::2] = 1
    directions = torch.full((MAX_DIRECTIONS, d_model), 127, dtype=torch.int8)
    directions[1::2] = -127
    shapes = [(n_rows, PADDED_TO) for n_rows in (16, 128, 1024, 8192) if n_rows < n_tokens]
    shapes += [(n_tokens, m) for m in range(PADDED_TO, MAX_DIRECTIONS + 1, PADDED_TO)]
    for n_rows, m in shapes:
        scales = torch.full((m,), 1 / (200 * d_model))  # the largest product comes out as 81
        compute = partial(product, tokens[:n_rows], directions[:m], scales, torch.int8)
        found, seconds = _timed(compute)
        expected = plain_int8_product(tokens[:2], directions[:m], scales, torch.int8)
        if not all(bool((found[sign::2] == expected[sign]).all()) for sign in (0, 1)):
            return KernelOutcome.WRONG
        # The first time machine code is made, and something else may have been in the way.
        if seconds > limit_per_direction * m and _timed(compute)[1] > limit_per_direction * m:
            return KernelOutcome.STOPPED
    return KernelOutcome.CHOSEN


def _timed(compute: Callable[[], T]) -> tuple[T, float]:
    """What is computed, and the seconds it took."""
    started_at = time.perf_counter()
    return compute(), time.perf_counter() - started_at


def _is_same(found: RankedTokens[Tensor], expected: RankedTokens[Tensor]) -> bool:
    """Whether scores agree as closely as two ways of adding up floats do."""
    ends = (found.high, expected.high), (found.low, expected.low)
    return all(torch.allclose(one, other, 1e-4, 1e-5 * float(other.abs().max())) for one, other in ends)
