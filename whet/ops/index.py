"""Positions as data: where elements stand, and where on an axis to read."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from whet.ir.contents import MOST_CONTENTS
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size
from whet.ir.types import NUMPY_DTYPES, TensorType
from whet.ops.elementwise import Cast
from whet.ops.movement import Sizes, reshape


@operator
class Iota(Op):
    """0, 1, 2, … size - 1."""

    size: Size
    dtype: str = "int64"
    computes_sizes: ClassVar[bool] = True

    def infer(self) -> TensorType:
        return TensorType(self.dtype, (self.size,))

    def accepts_all(self) -> bool:
        return True

    def reference(self) -> np.ndarray:
        return np.arange(as_int(self.size)).astype(NUMPY_DTYPES[self.dtype])


@operator
class IotaUpTo(Op):
    """0, 1, 2, … up to a limit that is data; `count` names how many there are."""

    count: Size
    defines_sizes: ClassVar[bool] = True

    def infer(self, limit: TensorType) -> TensorType:
        return TensorType("int64", (self.count,))

    def reference(self, limit: np.ndarray) -> np.ndarray:
        return np.arange(int(limit))


def as_int(size: Size) -> int:
    """A size that the run has bound."""
    assert isinstance(size, int), f"the size {size} is not bound"
    return size


def positions(size: Size, rank: int, axis: int, dtype: str = "int64") -> Value:
    """0 … size - 1 along one axis of a tensor of `rank` axes, the others of size 1."""
    shape = tuple(size if i == axis % rank else 1 for i in range(rank))
    if isinstance(size, int) and size <= MOST_CONTENTS:
        return constant(np.arange(size).reshape(shape), dtype)
    return reshape(Iota(size, dtype)(), *shape)


def number(size: Size, dtype: str) -> Value:
    """A size as a scalar of the dtype."""
    if isinstance(size, int):
        return constant(size, dtype)
    scalar = reshape(Sizes((size,))())
    return scalar if dtype == "int64" else Cast(dtype)(scalar)
