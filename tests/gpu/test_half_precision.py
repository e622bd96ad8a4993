"""bfloat16 has three digits: an answer in it is near the one in float32, and not the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from tdb_server.domain.results import MultipleTopKResult

from tests.golden.test_goldens_in_process import engine
from tests.gpu.calls import SITES, calls_of_every_kind
from tests.property.requests import Answer, answers_of_calls

MEDIAN_ERROR, MOST_ERROR = 0.02, 0.2
"""Of a sum, by its norm: the median, and nine of ten. The others are sums of large numbers that cancel."""


@pytest.mark.parametrize("fixture", ["tiny-a", "tiny-llama-c"])
def test_bfloat16_is_near_float32(fixture: str, device: str) -> None:
    exact, rounded = (
        [
            one
            for call in answers_of_calls(engine(fixture, SITES, device, dtype), calls_of_every_kind())
            for one in call
        ]
        for dtype in ("float32", "bfloat16")
    )
    losses = [(one.loss, other.loss) for one, other in zip(exact, rounded, strict=True)]
    assert all(
        other == (None if one is None else pytest.approx(one, rel=0.02, abs=0.1)) for one, other in losses
    )
    errors = [
        np.linalg.norm(other - one) / np.linalg.norm(one)
        for one, other in zip(_sums(exact), _sums(rounded), strict=True)
        if np.linalg.norm(one) > 0
    ]
    median, most = np.percentile(errors, (50, 90))
    print(
        f"\n{fixture}: {len(errors)} sums, the median off by {median:.4f}, nine of ten by {most:.4f} at most"
    )
    assert 0 < median < MEDIAN_ERROR
    assert most < MOST_ERROR


def _sums(answers: list[Answer]) -> Iterator[npt.NDArray[np.float64]]:
    for answer in answers:
        result = answer.results["componentSumsForTokenDisplay"]
        assert isinstance(result, MultipleTopKResult)
        for group in result.groups.values():
            for one in group.sums.values():
                yield np.asarray(one.array, dtype=np.float64)
