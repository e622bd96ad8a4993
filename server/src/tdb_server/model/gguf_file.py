"""Reading GGUF files, llama.cpp's format: what a file, or the parts of a split one, say and hold.

The format holds weights, configuration and tokenizer in one file (github.com/ggml-org/ggml, docs/gguf.md).
Here it is read whole or refused: nothing is computed from it yet.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdb_server.errors import ModelBroken, ModelError, ModelNotFound, UnsupportedModel

VERSIONS = (2, 3)
QUANTIZATION_VERSION = 2
MAX_KEYS, MAX_TENSORS, MAX_ENTRIES = 2**14, 2**20, 2**21
"""In a file, and in one of its arrays. The largest real ones have about 100, 2,000 and 262,144."""
MAX_AXES = 4
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How llama.cpp calls the parts of a split file, counted from 1."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor, not dequantized.

    Attributes:
        name: as in the file, `blk.0.attn_q.weight`.
        shape: rows first, in numbers, not in blocks.
        kind: a `gguf.GGMLQuantizationType`.
        data: its bytes [..., bytes of a row], read from the disk when they are looked at.
    """

    name: str
    shape: tuple[int, ...]
    kind: Any
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class GgufFile:
    """A whole model.

    Attributes:
        path: the file; the first part of a split one.
        metadata: keys and values.
        tensors: of all parts, by name.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Reads what a file says, with all parts of a split one, and finds where its tensors are.

    Raises:
        ModelBroken: the file is damaged or cut off, or its parts contradict each other.
        ModelNotFound: a part of a split file is missing.
        UnsupportedModel: a version, byte order, quantization or kind of file that is not read here.
        ModelError: the package `gguf` is not installed.
    """
    first = _read_one(path)
    kind = first.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(f"{path}: general.type is {kind!r}; only whole models are served")
    paths = _part_paths(first)
    parts = [first, *(_read_one(part) for part in paths[1:])]
    tensors: dict[str, GgufTensor] = {}
    for index, part in enumerate(parts):
        _refuse_contradiction(first, part, index, len(parts))
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise ModelBroken(f"{part.path}: tensor {name} is in an earlier part as well")
            tensors[name] = tensor
    n_tensors = first.metadata.get("split.tensors.count", len(tensors))
    if n_tensors != len(tensors):
        raise ModelBroken(f"{path}: split.tensors.count is {n_tensors}, but {len(tensors)} tensors are there")
    return GgufFile(path, first.metadata, tensors)


def part_paths(path: Path) -> list[Path]:
    """The files that a model is in, by their names alone: with a part, all parts that are there."""
    match = PART.fullmatch(path.name)
    return [part for part in _all_parts(path, int(match["count"])) if part.is_file()] if match else [path]


def model_name(path: Path) -> str:
    """What a file calls its model, without the number of a part."""
    match = PART.fullmatch(path.name)
    return match["name"] if match else path.stem


def _all_parts(path: Path, n_parts: int) -> list[Path]:
    """What all parts of a split file must be called, given one."""
    name = model_name(path)
    return [path.with_name(f"{name}-{number:05}-of-{n_parts:05}.gguf") for number in range(1, n_parts + 1)]


def _part_paths(first: GgufFile) -> list[Path]:
    """The paths of all parts, in order. As with llama.cpp, the first one is the file that is opened."""
    path, metadata = first.path, first.metadata
    unknown = sorted(key for key in metadata if key.startswith("split.") and key not in SPLIT_KEYS)
    if unknown:
        raise UnsupportedModel(f"{path}: key {unknown[0]} is not known")
    for key in SPLIT_KEYS:
        value = metadata.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelBroken(f"{path}: {key} must be a whole number, not {value!r}")
    n_parts, index = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if n_parts < 2:
        if index:
            raise ModelBroken(f"{path}: split.no is {index}, but split.count is {n_parts}")
        return [path]
    match = PART.fullmatch(path.name)
    if match is None or (int(match["number"]), int(match["count"])) != (index + 1, n_parts):
        expected = f"NAME-{index + 1:05}-of-{n_parts:05}.gguf"
        raise ModelBroken(
            f"{path}: by split.no and split.count this is part {index + 1} of {n_parts}, so it must be "
            f"called {expected} for the other parts to be found"
        )
    paths = _all_parts(path, n_parts)
    if index:
        raise UnsupportedModel(
            f"{path}: this is part {index + 1} of {n_parts}; name the first one, {paths[0]}, and the others "
            "are read with it"
        )
    for part in paths:
        if not part.is_file():
            raise ModelNotFound(f"{path}: {part.name} is missing; all {n_parts} parts must lie side by side")
    return paths


def _refuse_contradiction(first: GgufFile, part: GgufFile, index: int, n_parts: int) -> None:
    """Later parts say of themselves which they are, and nothing that the first one does not say."""
    expected = first.metadata | {"split.no": index}
    for key, value in part.metadata.items():
        if n_parts > 1 and key != "general.alignment" and expected.get(key) != value:
            raise ModelBroken(
                f"{part.path}: {key} is {reprlib.repr(value)}, but by the first part "
                f"({first.path.name}) it is {reprlib.repr(expected.get(key))}"
            )
    if n_parts > 1 and "split.no" not in part.metadata:
        raise ModelBroken(f"{part.path}: split.no is missing, so this is not part {index + 1} of {n_parts}")


def _read_one(path: Path) -> GgufFile:
    _refuse_other_formats(path)
    reader_class = _reader_class(path)
    try:
        reader = reader_class(path)
        fields = reader.fields.items()
        metadata = {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}
    except (ValueError, IndexError, KeyError, OSError, OverflowError, RecursionError) as error:
        raise ModelBroken(f"{path}: not a readable GGUF file: {error}") from error
    is_quantized = any(tensor.kind.name.startswith(("Q", "IQ")) for tensor in reader.found)
    version = metadata.get("general.quantization_version", QUANTIZATION_VERSION)
    if is_quantized and version != QUANTIZATION_VERSION:
        raise UnsupportedModel(
            f"{path}: general.quantization_version is {version!r}; only {QUANTIZATION_VERSION} is read"
        )
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.found})


def _refuse_other_formats(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ModelBroken(f"{path}: cannot be read: {error}") from error
    if start[:4] != b"GGUF" or len(start) < 8:
        raise ModelBroken(f"{path}: not a GGUF file: it does not start with GGUF and a version")
    version, swapped = int.from_bytes(start[4:], "little"), int.from_bytes(start[4:], "big")
    if version not in VERSIONS:
        if swapped in (1, *VERSIONS):
            raise UnsupportedModel(f"{path}: a big-endian GGUF file, of which the numbers are not read here")
        raise UnsupportedModel(f"{path}: version {version} of GGUF is not read; 2 and 3 are")


def _reader_class(path: Path) -> Any:
    """The package's reader, which minds the end of the file and the kinds of tensors that can be dequantized.

    The package's own goes on reading nothing behind the end of a damaged file, for as many elements as an
    array claims to have, and makes objects of hundreds of bytes for every one of them.
    """
    try:
        import gguf
    except ImportError:
        raise ModelError(
            f"{path}: GGUF files need the package gguf: pip install transformer-debugger-server[demo]"
        ) from None

    class Reader(gguf.GGUFReader):
        found: list[GgufTensor]

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise IndexError(f"cut off: it ends after {len(self.data)} bytes, but {end} are needed")
            return super()._get(offset, dtype, count, override_order)

        def _build_fields(self, offs: int, count: int) -> Any:
            _refuse_more(count, MAX_KEYS, "keys")
            return super()._build_fields(offs, count)

        def _build_tensor_info(self, offs: int, count: int) -> Any:
            _refuse_more(count, MAX_TENSORS, "tensors")
            return super()._build_tensor_info(offs, count)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            return _array(self._get, self.data, orig_offs)

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            self.found = [_tensor(path, self.data, start_offs, field) for field in fields]
            _refuse_overlap(path, fields, self.found)

    return Reader


def _array(get: Any, data: Any, begin: int) -> tuple[int, list[Any], list[int], list[Any]]:
    """Bytes, parts, which parts hold entries, and types: of an array, as the package's reader keeps them."""
    from gguf import GGUFReader, GGUFValueType

    kind = GGUFValueType(int(get(begin, np.uint32)[0]))
    count = int(get(begin + 4, np.uint64)[0])
    _refuse_more(count, MAX_ENTRIES, "entries of an array")
    types, end = [GGUFValueType.ARRAY, kind], begin + 12
    if kind == GGUFValueType.STRING:
        get(end, np.uint64, count)  # each has a length, at the least
        file = memoryview(data)
        texts = []
        for _ in range(count):
            start = end + 8
            end = start + int.from_bytes(file[end:start], "little")
            if end > len(file):
                raise IndexError(f"cut off: it ends after {len(file)} bytes, but {end} are needed")
            texts.append(file[start:end])
        return end - begin, texts, list(range(count)), types
    if kind not in GGUFReader.gguf_scalar_to_np:
        raise ValueError(f"an array of {kind.name}, which no model has")
    values = get(end, GGUFReader.gguf_scalar_to_np[kind], count)
    return 12 + values.nbytes, [values], [0], types


def _refuse_more(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise ValueError(f"it claims to have {count} {what}; at most {limit} are read")


def _tensor(path: Path, file: Any, start: int, field: Any) -> GgufTensor:
    """The tensor of a field, given where the data of tensors begin in the file."""
    import gguf

    _, name, _, dimensions, kind, offset = field.parts
    decoded = str(bytes(name), "utf-8")
    if len(dimensions) > MAX_AXES:
        raise ModelBroken(f"{path}: {decoded} has {len(dimensions)} axes, which no tensor has")
    shape = tuple(int(n) for n in reversed(dimensions))  # GGUF lists the fastest axis first
    try:
        quantization = gguf.GGMLQuantizationType(int(kind[0]))
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), quantization)
    except (ValueError, KeyError, NotImplementedError):
        names = {one.value: one.name for one in gguf.GGMLQuantizationType}
        stored_as = names.get(int(kind[0]), f"type {int(kind[0])}")
        raise UnsupportedModel(f"{path}: {decoded} is stored as {stored_as}, not read here") from None
    if not shape or min(shape) < 1 or shape[-1] % block_size:
        raise ModelBroken(f"{path}: {decoded} has shape {list(shape)} in blocks of {block_size}")
    begin = start + int(offset[0])
    row_bytes = shape[-1] // block_size * block_bytes
    end = begin + math.prod(shape[:-1]) * row_bytes
    if end > len(file):
        found = f"ends after {len(file)} bytes, but {decoded} ends at {end}"
        raise ModelBroken(f"{path}: {found}: the file was cut off")
    return GgufTensor(decoded, shape, quantization, file[begin:end].reshape(*shape[:-1], row_bytes))


def _refuse_overlap(path: Path, fields: list[Any], tensors: list[GgufTensor]) -> None:
    places = sorted(
        (int(field.parts[-1][0]), tensor.data.nbytes, tensor.name)
        for field, tensor in zip(fields, tensors, strict=True)
    )
    for (begin, n_bytes, name), (next_begin, _, next_name) in pairwise(places):
        if begin + n_bytes > next_begin:
            raise ModelBroken(f"{path}: tensors {name} and {next_name} lie in the same place")
    twice = [name for name, n in Counter(tensor.name for tensor in tensors).items() if n > 1]
    if twice:
        raise ModelBroken(f"{path}: tensor {twice[0]} is there twice")
