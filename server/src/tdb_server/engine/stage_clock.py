"""How long the stages of a batch take."""

from __future__ import annotations

from time import perf_counter

import torch

from tdb_server.domain.results import StageSeconds


class StageClock:
    """Measures stages that follow each other. A GPU marks their ends itself: nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        """Starts."""
        self._is_gpu = device.type == "cuda" and torch.cuda.is_available()
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []
        self.start()

    def start(self) -> None:
        """What was since the last mark belongs to no stage."""
        self._mark(None)

    def end(self, stage: str) -> None:
        """What was since the last mark belongs to a stage, one of the names in `StageSeconds`."""
        self._mark(stage)

    def seconds(self) -> StageSeconds:
        """What each stage took; to be asked when its numbers are on the host."""
        found: dict[str, float] = {}
        for (_, begun), (stage, ended) in zip(self._marks, self._marks[1:], strict=False):
            if stage is not None:
                found[stage] = found.get(stage, 0.0) + _between(begun, ended)
        return StageSeconds(**found)

    def _mark(self, stage: str | None) -> None:
        if self._is_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, perf_counter()))


def _between(begun: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    if isinstance(begun, float) or isinstance(ended, float):
        return float(ended) - float(begun)  # type: ignore[arg-type]
    ended.synchronize()
    milliseconds: float = begun.elapsed_time(ended)
    return milliseconds / 1000
