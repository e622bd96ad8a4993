"""Tensors of the wire as numpy arrays: little-endian, row-major, whole or in chunks; and repeated numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import google_crc32c
import numpy as np
import numpy.typing as npt
from transformer_debugger.v1.tensor_pb2 import DType, Tensor, TensorChunk

from tdb_client.errors import ChecksumError, ResponseError
from tdb_client.results import FloatArray, IntArray

Array = npt.NDArray[np.generic]

_STORED: dict[int, np.dtype[np.generic]] = {
    DType.D_TYPE_FLOAT32: np.dtype("<f4"),
    DType.D_TYPE_FLOAT64: np.dtype("<f8"),
    DType.D_TYPE_FLOAT16: np.dtype("<f2"),
    DType.D_TYPE_BFLOAT16: np.dtype("<u2"),
    DType.D_TYPE_INT32: np.dtype("<i4"),
    DType.D_TYPE_INT64: np.dtype("<i8"),
    DType.D_TYPE_UINT8: np.dtype("u1"),
    DType.D_TYPE_BOOL: np.dtype("?"),
}


def array_from_tensor(tensor: Tensor) -> Array:
    """The tensor's elements as a read-only array of its shape. bfloat16, which numpy lacks, becomes float32.

    Raises:
        ResponseError: the contents do not fit type and shape, or are still to come.
    """
    shape = tuple(tensor.shape)
    expected = tensor_bytes(tensor)
    if tensor.WhichOneof("contents") == "chunked":
        raise ResponseError("a tensor came without its chunks")
    if len(tensor.data) != expected:
        raise ResponseError(
            f"a tensor of shape {list(shape)} has {len(tensor.data)} bytes in place of {expected}"
        )
    array = np.frombuffer(tensor.data, _STORED[tensor.dtype]).reshape(shape)
    if tensor.dtype == DType.D_TYPE_BFLOAT16:
        array = (array.astype("<u4") << np.uint32(16)).view("<f4")
        array.flags.writeable = False
    return array


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that the elements of a tensor take, by its type and shape.

    Raises:
        ResponseError: the type is unknown or a size negative.
    """
    if tensor.dtype not in _STORED:
        raise ResponseError(f"a tensor has the unknown type {tensor.dtype}")
    if any(size < 0 for size in tensor.shape):
        raise ResponseError(f"a tensor has the shape {list(tensor.shape)}")
    return math.prod(tensor.shape) * _STORED[tensor.dtype].itemsize


class ChunkedTensor:
    """Gathers the chunks of an announced tensor, in whatever order they come, and fills it in at the end."""

    def __init__(self, tensor: Tensor) -> None:
        """Starts with the announcement.

        Raises:
            ResponseError: the announced size is not that of type and shape.
        """
        self._tensor = tensor
        self._announced = tensor.chunked
        if self._announced.total_bytes != tensor_bytes(tensor):
            raise ResponseError(
                f"tensor {self.tensor_id} of shape {list(tensor.shape)} is announced with"
                f" {self._announced.total_bytes} bytes"
            )
        self._bytes = bytearray(self._announced.total_bytes)
        self._chunks: dict[int, int] = {}  # offset: end
        if self.is_complete:  # announced with no bytes
            self._fill_in()

    @property
    def tensor_id(self) -> int:
        """The number that the chunks carry."""
        return self._announced.tensor_id

    @property
    def is_complete(self) -> bool:
        """Whether every byte has come."""
        reached = 0
        for offset, end in sorted(self._chunks.items()):
            if offset != reached:
                return False
            reached = end
        return reached == len(self._bytes)

    def add(self, chunk: TensorChunk) -> None:
        """Takes a chunk; with the last one the tensor is checked and filled in.

        Raises:
            ResponseError: the chunk lies outside the tensor or came twice.
            ChecksumError: all bytes have come, but changed.
        """
        end = chunk.offset + len(chunk.data)
        if end > len(self._bytes) or not chunk.data or chunk.offset in self._chunks:
            raise ResponseError(
                f"a chunk of tensor {self.tensor_id} does not fit: bytes {chunk.offset} to {end}"
            )
        self._bytes[chunk.offset : end] = chunk.data
        self._chunks[chunk.offset] = end
        if self.is_complete:
            self._fill_in()

    def _fill_in(self) -> None:
        data = bytes(self._bytes)
        if google_crc32c.value(data) != self._announced.crc32c:
            raise ChecksumError(f"tensor {self.tensor_id} of {len(data)} bytes arrived damaged")
        self._tensor.data = data  # takes the announcement's place


def integers(numbers: Sequence[int]) -> IntArray:
    """A read-only array of them."""
    array = np.array(numbers, np.int64)
    array.flags.writeable = False
    return array


def floats(numbers: Sequence[float]) -> FloatArray:
    """A read-only array of them."""
    array = np.array(numbers, np.float32)
    array.flags.writeable = False
    return array
