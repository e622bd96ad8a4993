"""Numbers there and back: of any shape and type, many in one copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tdb_server.engine.transfers import download, upload

ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.array([0.1, -2.5, np.nan]),
    np.zeros((0, 4), np.int64),
    np.array([2**62 + 1, -(2**63)]),
    np.arange(6.0).reshape(2, 3).T,
]


@pytest.mark.parametrize("arrays", [ARRAYS, ARRAYS[:1], []])
def test_upload(arrays: list[np.ndarray]) -> None:
    found = upload(arrays, torch.device("cpu"))
    assert [one.dtype for one in found] == [torch.from_numpy(one).dtype for one in arrays]
    for tensor, array in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize(
    ("dtype", "on_host"),
    [
        (torch.float32, np.float32),
        (torch.float64, np.float64),
        (torch.bfloat16, np.float32),
        (torch.float16, np.float32),
        (torch.int64, np.int64),
    ],
)
def test_download(dtype: torch.dtype, on_host: type) -> None:
    """Half precision, which numpy does not have or clients do not read, comes as float32."""
    x = torch.tensor([[1.5, -2.0], [0.25, 8.0]]).to(dtype).T
    (found,) = download([x])
    assert found.dtype == on_host
    np.testing.assert_array_equal(found, x.double().numpy())


def test_what_has_a_gradient_is_downloaded_without_it() -> None:
    (found,) = download([torch.ones(2, requires_grad=True) * 3])
    np.testing.assert_array_equal(found, [3, 3])
    assert download([]) == []
