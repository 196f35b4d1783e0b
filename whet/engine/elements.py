"""Arrays as the bytes that an engine stores: little-endian, row-major, small elements packed."""

from __future__ import annotations

import math
import sys

import numpy as np

from whet.errors import InvalidEngine
from whet.ir.types import NUMPY_DTYPES

BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}
"""Dtypes of less than a byte: several stand in one, the first in the lowest bits."""


def byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    """How many bytes store an array."""
    count = math.prod(shape)
    return -(-count * BITS[dtype] // 8) if dtype in BITS else count * NUMPY_DTYPES[dtype].itemsize


def pack(array: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes that store an array, as uint8; a view of it where it is stored as it is."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype not in BITS:
        if sys.byteorder == "big":
            flat = flat.byteswap()
        return flat.view(np.uint8)
    bits = BITS[dtype]
    each = 8 // bits
    codes = np.zeros(-(-flat.size // each) * each, np.uint8)
    codes[: flat.size] = flat.view(np.uint8) & ((1 << bits) - 1)
    packed = np.zeros(codes.size // each, np.uint8)
    for place in range(each):
        packed |= codes[place::each] << (place * bits)
    return packed


def unpack(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The read-only array that `pack` stored: a view of the bytes wherever that is possible."""
    if dtype in BITS:
        array = _unpack_codes(data, dtype, math.prod(shape)).reshape(shape)
    else:
        array = data.view(NUMPY_DTYPES[dtype]).reshape(shape)
        if sys.byteorder == "big":
            array = array.byteswap()
    if dtype == "bool" and data.size and data.max() > 1:
        raise InvalidEngine("a bool array has elements that are neither 0 nor 1")
    array.setflags(write=False)
    return array


def _unpack_codes(data: np.ndarray, dtype: str, count: int) -> np.ndarray:
    bits = BITS[dtype]
    places = [data >> np.uint8(shift) for shift in range(0, 8, bits)]
    # The upper bits stay 0 even of negative numbers: that is how ml_dtypes writes them itself.
    codes = np.stack(places, -1).reshape(-1)[:count] & np.uint8((1 << bits) - 1)
    return codes.view(NUMPY_DTYPES[dtype])
