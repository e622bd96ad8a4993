"""What the scale model is fed with: the figures of one worker, its front and a caller, from closed loops.

Everything is processor time, which does not depend on who else waits for a core, over how slow the cores were
just then. So what is shared and what waits is left to the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tdb_client.decoding import timings
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugResponse

from benchmarks.scale_cluster import Figures
from benchmarks.scale_cores import Watch
from benchmarks.scale_runs import Kind, Spent, closed_loop, validation
from benchmarks.server import BenchServer

N_CALLERS = (1, 3, 8)
N_VALIDATED = 200
N_SMOOTHED = 4


@dataclass(frozen=True, eq=False)
class Loop:
    """A closed loop, or calls that the front only checked.

    Attributes:
        n_callers: at the same time.
        n_calls: answered.
        spent: on all of them.
        samples: how slow the cores were meanwhile.
        model_seconds: that a batch took to go through the model, as a mean; 0 where there was none.
    """

    n_callers: int
    n_calls: int
    spent: Spent
    samples: np.ndarray
    model_seconds: float = 0.0


def closed_loops(kind: Kind, running: BenchServer, watch: Watch, seconds: float) -> list[Loop]:
    """First calls that are only checked, then loops of ever more callers, who get ever larger batches.

    Args:
        seconds: of each loop.
    """
    checked = validation(kind, running, N_VALIDATED)
    loops = [Loop(1, N_VALIDATED, checked, watch.last(checked.seconds))]
    for n_callers in N_CALLERS:
        answers, spent = closed_loop(kind, running, n_callers, seconds)
        samples = watch.last(spent.seconds)
        calls = [timings(DebugResponse.FromString(answer).timings) for answer in answers]
        model_seconds = float(np.mean([one.forward_seconds + one.backward_seconds for one in calls]))
        loops.append(Loop(n_callers, len(calls), spent, samples, model_seconds))
    return loops


def figures(loops: Sequence[Loop], reference: float) -> Figures:
    """All loops together.

    Args:
        reference: seconds of a sample on the mean core.
    """
    slowness = {loop: _slowness(loop.samples) / reference for loop in loops}
    validations = [loop for loop in loops if not loop.spent.n_batches]
    batched = [loop for loop in loops if loop.spent.n_batches]
    sizes = [loop.spent.mean_batch for loop in batched]
    worker = [loop.spent.worker / loop.spent.n_batches / slowness[loop] for loop in batched]
    per_call, fixed = np.polyfit(sizes, worker, 1)
    shared_per_call, _ = np.polyfit(sizes, [loop.model_seconds / slowness[loop] for loop in batched], 1)
    before = _per_call([loop.spent.front for loop in validations], validations, slowness)
    main_thread = _per_call([loop.spent.main_thread for loop in batched], batched, slowness)
    whole_front = _per_call([loop.spent.front for loop in batched], batched, slowness)
    found = Figures(
        shared_fixed=float(fixed),
        shared_per_call=float(shared_per_call),
        own=float(per_call - shared_per_call),
        front_before=before,
        front_reading=whole_front - main_thread,
        front_after=main_thread - before,
        caller=_per_call([loop.spent.caller for loop in batched], batched, slowness),
        elsewhere=0.0,
    )
    lone = [loop for loop in batched if loop.n_callers == 1]
    whole = _per_call([loop.spent.seconds for loop in lone], lone, slowness)
    return replace(found, elsewhere=whole - found.lone_call)


def _slowness(samples: np.ndarray) -> float:
    """Of calls that follow each other: while the cores are fast there are more of them, so a harmonic mean.

    Args:
        samples: [n]; the mean of a few in a row, of all cores, is what several threads meet.
    """
    smooth = np.convolve(samples, np.full(N_SMOOTHED, 1 / N_SMOOTHED), "valid")
    return 1 / float((1 / smooth).mean())


def _per_call(seconds: Sequence[float], loops: Sequence[Loop], slowness: Mapping[Loop, float]) -> float:
    """On a mean core."""
    return sum(seconds) / sum(loop.n_calls * slowness[loop] for loop in loops)
