"""Safetensors files: tensors by name, mapped. https://github.com/huggingface/safetensors (0.5)"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.engine.elements import byte_count, unpack
from whet.engine.plain import Plain, a_list, a_number, entries, from_json, need
from whet.errors import InvalidEngine, InvalidModel
from whet.ir.types import TensorType

MOST_HEADER = 100_000_000  # bytes; the format's own limit
MOST_AXES = 64

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, whose elements are read when asked for."""

    type: TensorType
    data: np.ndarray

    def read(self) -> np.ndarray:
        """The elements: a view of the file wherever that is possible."""
        return unpack(self.data, self.type.dtype, self.type.shape)  # type: ignore[arg-type]


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of that size, with these first nine bytes, can be one."""
    return len(start) >= 9 and start[8:9] == b"{" and 8 + _header_bytes(start) <= size


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """The tensors of a file by name; it is mapped, so do not write to it while they are in use.

    Raises InvalidModel with what is wrong with the file.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 8:
            raise InvalidModel(f"{os.fspath(path)!r} is no safetensors file: it is too short")
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _tensors(np.frombuffer(pages, np.uint8))
    except InvalidEngine as error:
        raise InvalidModel(f"{os.fspath(path)!r} is no safetensors file: {error}") from None


def _header_bytes(start: bytes) -> int:
    return int.from_bytes(start[:8], "little")


def _tensors(data: np.ndarray) -> dict[str, Stored]:
    count = _header_bytes(data[:8].tobytes())
    need(count <= min(MOST_HEADER, data.size - 8), f"its header would have {count} bytes")
    header = from_json(data[8 : 8 + count].tobytes(), "its header")
    need(type(header) is dict, "its header is no record")
    elements = data[8 + count :]
    rows = sorted(
        ((name, *_row(name, row)) for name, row in header.items() if name != "__metadata__"),
        key=lambda row: row[2:],
    )
    end, found = 0, {}
    for name, kind, start, stop in rows:
        need(start == end, f"the tensor {name!r} starts at {start}, not where the last one ends")
        need(stop - start == _byte_count(kind), f"{name!r} is not {kind}")
        need(stop <= elements.size, f"the tensor {name!r} ends after the file does")
        found[name], end = Stored(kind, _aligned(elements[start:stop], kind)), stop
    need(end == elements.size, f"{elements.size - end} bytes belong to no tensor")
    return found


def _row(name: str, row: Plain) -> tuple[TensorType, int, int]:
    keys = {"dtype", "shape", "data_offsets"}
    need(type(row) is dict and row.keys() == keys, f"the tensor {name!r} has no such record")
    dtype: Any = row["dtype"]
    need(type(dtype) is str and dtype in DTYPES, f"the tensor {name!r} has the dtype {dtype!r}")
    sizes = a_list(row["shape"], "a shape")
    need(len(sizes) <= MOST_AXES, f"the tensor {name!r} has {len(sizes)} axes")
    shape = tuple(a_number(size, 0, 1 << 48, "a size") for size in sizes)
    start, stop = entries(row["data_offsets"], 2, "the place of a tensor")
    a_number(start, 0, 1 << 62, "where a tensor starts")
    a_number(stop, start, 1 << 62, "where a tensor ends")
    return TensorType(DTYPES[dtype], shape), start, stop


def _byte_count(kind: TensorType) -> int:
    return byte_count(kind.dtype, tuple(int(size) for size in kind.shape))


def _aligned(data: np.ndarray, kind: TensorType) -> np.ndarray:
    """The bytes where elements may lie: the format does not align them."""
    size = kind.numpy.itemsize
    return data if data.ctypes.data % size == 0 else data.copy()
