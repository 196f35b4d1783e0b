"""The elements of stored tensors: raw bytes, typed fields, external files, sparse ones."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np

from whet.errors import InvalidModel
from whet.frontends.onnx.model import Tensor
from whet.ir.types import NUMPY_DTYPES, TensorType

# Which field holds the elements that are not raw; int32_data takes what is not named here, as bits.
FIELDS = {
    "float32": "float_data",
    "complex64": "float_data",
    "float64": "double_data",
    "complex128": "double_data",
    "int64": "int64_data",
    "uint32": "uint64_data",
    "uint64": "uint64_data",
}
NARROW = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}
MOST_DENSE = 1 << 30  # bytes of the dense form of a sparse tensor


def elements(proto: Any, kind: TensorType, folder: pathlib.Path | None) -> np.ndarray:
    """The array that a TensorProto holds or points to; raises InvalidModel where they do not
    fit."""
    shape = tuple(int(d) for d in kind.shape)
    count = math.prod(shape)
    if proto.data_location == proto.EXTERNAL:
        flat = external(proto, kind, count, folder)
    elif kind.dtype == "string":
        flat = np.array([_string(s) for s in proto.string_data], object)
    elif proto.HasField("raw_data"):
        flat = from_bytes(np.frombuffer(proto.raw_data, np.uint8), kind.dtype, count, proto.name)
    else:
        try:
            flat = typed(proto, kind.dtype, count)
        except (ValueError, OverflowError) as error:
            raise InvalidModel(f"tensor {proto.name!r} ({kind}) cannot be read: {error}") from None
    if flat.size != count:
        raise InvalidModel(
            f"tensor {proto.name!r} ({kind}) holds {flat.size} elements, not {count}"
        )
    return flat.reshape(shape)


def _string(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def typed(proto: Any, dtype: str, count: int) -> np.ndarray:
    """The elements in the field for this dtype."""
    field = FIELDS.get(dtype, "int32_data")
    numpy = NUMPY_DTYPES[dtype]
    if field == "float_data":
        return np.array(proto.float_data, np.float32).view(numpy)
    if field == "double_data":
        return np.array(proto.double_data, np.float64).view(numpy)
    if field != "int32_data":
        return np.array(getattr(proto, field), np.dtype(field.split("_")[0])).astype(numpy)
    words = np.array(proto.int32_data, np.int32)
    if dtype in ("int32", "bool"):
        return words.astype(numpy)
    if dtype in NARROW:
        return unpack(words.astype(np.uint8), dtype, count)
    # Narrow integers are numbers in the field, floats are bits; the low bits are both.
    return words.astype(f"u{numpy.itemsize}").view(numpy)


def from_bytes(raw: np.ndarray, dtype: str, count: int, name: str) -> np.ndarray:
    """The elements that little-endian bytes hold."""
    needed = (count * NARROW.get(dtype, NUMPY_DTYPES[dtype].itemsize * 8) + 7) // 8
    if raw.size != needed:
        raise InvalidModel(
            f"tensor {name!r} of {count} {dtype} elements needs {needed} bytes, it has {raw.size}"
        )
    if dtype in NARROW:
        return unpack(raw, dtype, count)
    return little_endian(raw, NUMPY_DTYPES[dtype])


def little_endian(raw: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Bytes as elements; a copy only where this machine counts the other way."""
    if dtype.itemsize == 1 or np.little_endian:
        return raw.view(dtype)
    part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    swapped = raw.reshape(-1, part)[:, ::-1]
    return np.ascontiguousarray(swapped).reshape(-1).view(dtype)


def unpack(raw: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """Elements of less than a byte each, the first in the lowest bits."""
    bits = NARROW[dtype]
    mask = (1 << bits) - 1
    parts = np.stack([(raw >> shift) & mask for shift in range(0, 8, bits)], -1)
    codes = parts.reshape(-1)[:count].astype(np.uint8)
    if dtype.startswith("int"):
        signed = codes.astype(np.int8)
        return np.where(signed > mask >> 1, signed - (mask + 1), signed).astype(NUMPY_DTYPES[dtype])
    if dtype.startswith("uint"):
        return codes.astype(NUMPY_DTYPES[dtype])
    return codes.view(NUMPY_DTYPES[dtype])


def external(proto: Any, kind: TensorType, count: int, folder: pathlib.Path | None) -> np.ndarray:
    """The elements in a file beside the model, mapped; a location outside its folder is refused."""
    entries = {e.key: e.value for e in proto.external_data}
    where = str(entries.get("location", ""))
    what = f"tensor {proto.name!r} ({kind})"
    if kind.dtype == "string":
        raise InvalidModel(f"{what} lies in the file {where!r}; strings cannot be stored outside")
    if folder is None:
        raise InvalidModel(
            f"{what} lies in the file {where!r}; build from the model's path instead"
        )
    path = _beside(folder, where, what)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError:
        raise InvalidModel(f"{what} lies in {where!r} at an offset that is no number") from None
    needed = (count * NARROW.get(kind.dtype, kind.numpy.itemsize * 8) + 7) // 8
    if length not in (-1, needed) or offset < 0 or path.stat().st_size < offset + needed:
        raise InvalidModel(
            f"{what} needs {needed} bytes at {offset} of {where!r}, which has not them"
        )
    raw = np.memmap(path, np.uint8, "r", offset, (needed,)) if needed else np.zeros(0, np.uint8)
    return from_bytes(raw, kind.dtype, count, proto.name)


def _beside(folder: pathlib.Path, where: str, what: str) -> pathlib.Path:
    try:
        path = (folder / where).resolve()
        if path.is_relative_to(folder) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):
        pass  # a name with a NUL, a loop of links: no file either
    raise InvalidModel(f"{what} lies in {where!r}, which is no file in the model's folder")


def dense(values: Tensor, indices: Tensor, kind: TensorType) -> np.ndarray:
    """A sparse tensor with its zeros: indices are positions of the flat tensor, or one row for
    each element."""
    shape = tuple(int(d) for d in kind.shape)
    if math.prod(shape) * kind.numpy.itemsize > MOST_DENSE:
        raise InvalidModel(f"sparse tensor {values.name!r} ({kind}) is too large to be made dense")
    array = np.zeros(shape, kind.numpy)
    where = indices.read().astype(np.int64)
    try:
        places = tuple(where.T) if where.ndim == 2 else np.unravel_index(where, shape)
        if any(np.any(place < 0) for place in places) or len(places) != len(shape):
            raise IndexError("an index is negative or has too few numbers")
        array[places] = values.read()
    except (IndexError, ValueError) as error:
        raise InvalidModel(f"sparse tensor {values.name!r} ({kind}): {error}") from None
    return array
