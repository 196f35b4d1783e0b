"""What a Value is: a tensor of a dtype and a shape, a sequence, or an optional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from whet.errors import TypeMismatch
from whet.ir.sizes import Size

_EXTENSION_DTYPES = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "int4",
    "uint4",
    "int2",
    "uint2",
]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    **{
        name: np.dtype(name)
        for name in ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16"]
    },
    **{name: np.dtype(name) for name in ["uint32", "uint64", "float16", "float32", "float64"]},
    **{name: np.dtype(name) for name in ["complex64", "complex128"]},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _EXTENSION_DTYPES},
    "string": np.dtype(object),
}
"""Every dtype that a tensor may have, by the name that NumPy or ml_dtypes gives it."""

_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}

FLOATS = frozenset(n for n in NUMPY_DTYPES if "float" in n)
SIGNED = frozenset({"int2", "int4", "int8", "int16", "int32", "int64"})
UNSIGNED = frozenset({"uint2", "uint4", "uint8", "uint16", "uint32", "uint64"})
INTEGERS = SIGNED | UNSIGNED
COMPLEX = frozenset({"complex64", "complex128"})


def dtype_name(dtype: Any) -> str:
    """The name of a NumPy or ml_dtypes dtype; raises TypeMismatch for one that no tensor can
    have."""
    dtype = np.dtype(dtype)
    if dtype.kind in "US":
        return "string"
    name = _NAMES.get(dtype.newbyteorder("="))
    if name is None:
        raise TypeMismatch(
            f"no tensor has the dtype {dtype}; one of {', '.join(NUMPY_DTYPES)} is needed"
        )
    return name


@dataclass(frozen=True)
class TensorType:
    """A dtype's name and a shape: one size for each axis, an integer or an expression over named
    sizes."""

    dtype: str
    shape: tuple[Size, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numpy(self) -> np.dtype[Any]:
        return NUMPY_DTYPES[self.dtype]

    @cached_property
    def is_static(self) -> bool:
        return all(isinstance(size, int) for size in self.shape)

    def with_shape(self, *shape: Size) -> TensorType:
        return TensorType(self.dtype, shape)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(dtype, self.shape)


@dataclass(frozen=True)
class UnrankedType:
    """A tensor of which only the dtype is known: a run tells even the number of its axes.

    Elements of sequences and optionals have it, and model inputs without a declared shape;
    operators on
    tensors never see it.
    """

    dtype: str
    none: bool = False
    """The element of a sequence that is known to be empty: it may become any."""

    def __str__(self) -> str:
        return f"{self.dtype}[{'' if self.none else '...'}]"


@dataclass(frozen=True)
class SequenceType:
    """Any number of values of one type; an element's size written `?` differs from one to the
    next."""

    element: Type

    def __str__(self) -> str:
        return f"sequence({self.element})"


@dataclass(frozen=True)
class OptionalType:
    """A value of the element type, or nothing."""

    element: Type

    def __str__(self) -> str:
        return f"optional({self.element})"


Type = TensorType | UnrankedType | SequenceType | OptionalType


def map_sizes(kind: Type, change: Callable[[Size], Size]) -> Type:
    """The type with every size in it replaced; the same object where none changes."""
    match kind:
        case TensorType(dtype=dtype, shape=shape):
            changed = tuple(change(size) for size in shape)
            same = all(a is b for a, b in zip(shape, changed))
            return kind if same else TensorType(dtype, changed)
        case SequenceType(element=element) | OptionalType(element=element):
            inner = map_sizes(element, change)
            return kind if inner is element else type(kind)(inner)
    return kind
