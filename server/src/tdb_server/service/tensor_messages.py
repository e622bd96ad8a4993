"""Arrays on the wire: little-endian, row-major, unpadded, with the meaning of each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformer_debugger.v1 import activation_pb2, tensor_pb2
from transformer_debugger.v1.tensor_pb2 import Tensor

from tdb_server.domain.node import Dimension
from tdb_server.service.enum_names import DIMENSIONS

_D_TYPES: dict[str, tensor_pb2.DType.ValueType] = {
    "<f4": tensor_pb2.D_TYPE_FLOAT32,
    "<f8": tensor_pb2.D_TYPE_FLOAT64,
    "<f2": tensor_pb2.D_TYPE_FLOAT16,
    "<i4": tensor_pb2.D_TYPE_INT32,
    "<i8": tensor_pb2.D_TYPE_INT64,
    "|u1": tensor_pb2.D_TYPE_UINT8,
    "|b1": tensor_pb2.D_TYPE_BOOL,
}
_NUMPY_TYPES: dict[int, np.dtype[Any]] = {number: np.dtype(name) for name, number in _D_TYPES.items()}
D_TYPES_BY_NAME = {
    "float32": tensor_pb2.D_TYPE_FLOAT32,
    "float64": tensor_pb2.D_TYPE_FLOAT64,
    "float16": tensor_pb2.D_TYPE_FLOAT16,
    "bfloat16": tensor_pb2.D_TYPE_BFLOAT16,
}
"""What a model may compute in, by its name. NumPy has no bfloat16: results are given as float32."""


def put_tensor(message: Tensor, array: npt.NDArray[Any], dimensions: Sequence[Dimension]) -> None:
    """Puts an array into a message.

    Args:
        message: an empty one.
        array: any layout, any byte order.
        dimensions: what each axis runs over.
    """
    _put(message, array, [DIMENSIONS.numbers[one] for one in dimensions])


def put_node_tensor(message: Tensor, array: npt.NDArray[Any]) -> None:
    """Puts one number per node of a result [n] into a message."""
    _put(message, array, [activation_pb2.DIMENSION_NODES])


def put_edge_tensor(message: Tensor, array: npt.NDArray[Any]) -> None:
    """Puts one number per writer and reader [writers, readers] into a message."""
    _put(message, array, [activation_pb2.DIMENSION_EDGE_WRITERS, activation_pb2.DIMENSION_EDGE_READERS])


def tensor_array(message: Tensor) -> npt.NDArray[Any]:
    """The array of a message whose elements are in it."""
    return np.frombuffer(message.data, dtype=_NUMPY_TYPES[message.dtype]).reshape(tuple(message.shape))


def _put(
    message: Tensor, array: npt.NDArray[Any], dims: Sequence[activation_pb2.Dimension.ValueType]
) -> None:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    message.dtype = _D_TYPES[little.dtype.str]
    message.shape.extend(array.shape)
    message.dims.extend(dims)
    message.data = little.tobytes()
