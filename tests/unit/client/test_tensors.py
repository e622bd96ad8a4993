from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_client import ChecksumError, ResponseError
from tdb_client.tensors import ChunkedTensor, array_from_tensor
from transformer_debugger.v1 import tensor_pb2

from tests.unit.client.fake_service import announce, tensor


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (tensor_pb2.D_TYPE_FLOAT32, "<f4"),
        (tensor_pb2.D_TYPE_FLOAT64, "<f8"),
        (tensor_pb2.D_TYPE_FLOAT16, "<f2"),
        (tensor_pb2.D_TYPE_INT32, "<i4"),
        (tensor_pb2.D_TYPE_INT64, "<i8"),
        (tensor_pb2.D_TYPE_UINT8, "u1"),
        (tensor_pb2.D_TYPE_BOOL, "?"),
    ],
)
def test_elements_keep_their_type_and_value(dtype: int, stored: str) -> None:
    expected = np.array([[0, 1, 2], [3, 4, 5]], stored)
    array = array_from_tensor(tensor_pb2.Tensor(dtype=dtype, shape=[2, 3], data=expected.tobytes()))
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)
    assert not array.flags.writeable


def test_bfloat16_becomes_float32() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7FC0, 0x0000], "<u2")  # 1, -2, nan, 0
    array = array_from_tensor(
        tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_BFLOAT16, shape=[4], data=bits.tobytes())
    )
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.array([1, -2, np.nan, 0], np.float32))
    assert not array.flags.writeable


def test_scalars_and_empty_tensors() -> None:
    assert array_from_tensor(tensor(2.5)).shape == ()
    empty = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[0, 7])
    assert array_from_tensor(empty).shape == (0, 7)


@pytest.mark.parametrize(
    "broken",
    [
        tensor_pb2.Tensor(shape=[1], data=b"1234"),
        tensor_pb2.Tensor(dtype=99, shape=[1], data=b"1234"),
        tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[2], data=b"1234"),
        tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[-1, -1], data=b"1234"),
        tensor_pb2.Tensor(
            dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[1], chunked=tensor_pb2.ChunkedContents(total_bytes=4)
        ),
    ],
)
def test_malformed_tensors_are_refused(broken: tensor_pb2.Tensor) -> None:
    with pytest.raises(ResponseError):
        array_from_tensor(broken)


@given(
    st.lists(st.integers(-1000, 1000), max_size=40), st.integers(1, 200), st.randoms(use_true_random=False)
)
def test_chunks_come_together_in_any_order(
    values: list[int], chunk_bytes: int, shuffle: random.Random
) -> None:
    whole = tensor(values, dtype="<i4")
    chunks = announce(whole, 3, chunk_bytes)
    gathered = ChunkedTensor(whole)
    shuffle.shuffle(chunks)
    for chunk in chunks:
        assert not gathered.is_complete
        gathered.add(chunk)
    assert gathered.is_complete
    np.testing.assert_array_equal(array_from_tensor(whole), np.array(values, "<i4"))


def test_a_changed_byte_is_noticed() -> None:
    whole = tensor([1.0, 2.0, 3.0])
    chunks = announce(whole, 1, 8)
    chunks[1].data = b"\x00\x00\x40\x41"
    gathered = ChunkedTensor(whole)
    gathered.add(chunks[0])
    with pytest.raises(ChecksumError, match="tensor 1 of 12 bytes arrived damaged"):
        gathered.add(chunks[1])


@pytest.mark.parametrize(("offset", "data"), [(8, b"123456789"), (0, b""), (2**40, b"1234"), (4, b"again")])
def test_chunks_that_do_not_fit_are_refused(offset: int, data: bytes) -> None:
    whole = tensor([1.0, 2.0, 3.0, 4.0])
    announce(whole, 1, 8)
    gathered = ChunkedTensor(whole)
    gathered.add(tensor_pb2.TensorChunk(tensor_id=1, offset=4, data=b"once"))
    with pytest.raises(ResponseError, match="does not fit"):
        gathered.add(tensor_pb2.TensorChunk(tensor_id=1, offset=offset, data=data))


def test_overlapping_chunks_never_make_a_tensor() -> None:
    whole = tensor([1.0, 2.0, 3.0])
    announce(whole, 1, 8)
    gathered = ChunkedTensor(whole)
    gathered.add(tensor_pb2.TensorChunk(tensor_id=1, offset=0, data=bytes(8)))
    gathered.add(tensor_pb2.TensorChunk(tensor_id=1, offset=4, data=bytes(8)))
    assert not gathered.is_complete


def test_a_false_size_is_refused_before_memory_is_taken() -> None:
    whole = tensor([1.0])
    whole.chunked.CopyFrom(tensor_pb2.ChunkedContents(tensor_id=1, total_bytes=2**60))
    with pytest.raises(ResponseError, match="is announced with"):
        ChunkedTensor(whole)
