"""The same arithmetic on NumPy arrays and on Values: a step's meaning and its lowering in one."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.ir.graph import Op, Value, constant
from whet.ir.sizes import Size, floor_divide
from whet.ops.elementwise import Where
from whet.ops.movement import reshape, slice_axis, transpose


def apply(op: Op, *inputs: Any) -> Any:
    """The operator on Values, or its reference on arrays."""
    return op(*inputs) if isinstance(inputs[0], Value) else op.reference(*inputs)


def like(x: float, other: Any) -> Any:
    """A scalar of the same kind and dtype as `other`."""
    return constant(x, other.dtype) if isinstance(other, Value) else np.asarray(x, other.dtype)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, b elsewhere; b may be a number."""
    b = like(b, a) if isinstance(b, int | float) else b
    return Where()(condition, a, b) if isinstance(condition, Value) else np.where(condition, a, b)


def cut(x: Any, start: Size, size: Size) -> Any:
    """Elements start … start + size of the last axis."""
    if isinstance(x, Value):
        return slice_axis(x, -1, start, size)
    return x[..., start : start + size]


def parts(x: Any, count: int) -> list[Any]:
    """The last axis in equal parts."""
    size = floor_divide(x.shape[-1], count)
    return [cut(x, i * size, size) for i in range(count)]


def row(x: Any, index: int) -> Any:
    """x[index] of the first axis, without that axis."""
    if isinstance(x, Value):
        return reshape(slice_axis(x, 0, index, 1), *x.shape[1:])
    return x[index]


def shaped(x: Any, *shape: Size) -> Any:
    """x under another shape."""
    return reshape(x, *shape) if isinstance(x, Value) else x.reshape(shape)


def turned(x: Any, *order: int) -> Any:
    """x with its axes in another order."""
    return transpose(x, *order) if isinstance(x, Value) else x.transpose(order)
