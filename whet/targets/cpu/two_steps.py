"""Reductions of much to little, in two steps, so that every thread has a part of the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.ir.graph import Value
from whet.ir.sizes import Size
from whet.ir.types import TensorType
from whet.ops.movement import reshape
from whet.ops.reduce import Reduce

FEW_RESULTS, MANY_ELEMENTS = 7, 1 << 15
FEW_COLUMNS, MANY_ROWS = 1024, 128
PARTS = range(8, 1025)
NARROW = ("float16", "bfloat16")
"""Dtypes whose sums are rounded once: they cannot wait in memory for a second step."""


def in_two_steps(value: Value) -> Value | None:
    """A reduction as one of its parts and one of their results; None where one step is as good."""
    op = value.op
    if not isinstance(op, Reduce):
        return None
    (x,) = value.inputs
    if x is None or not isinstance(x.type, TensorType):
        return None
    if not x.type.is_static or value.dtype in NARROW or 0 in x.shape:
        return None
    shape = _numbers(x.shape)
    count = {axis: shape[axis] for axis in op.axes if shape[axis] != 1}
    results = math.prod(_numbers(value.shape))
    if math.prod(shape) < MANY_ELEMENTS:
        return None
    outer = next((axis for axis, size in sorted(count.items()) if size in PARTS), None)
    if results > FEW_RESULTS and (outer is None or not _is_shared_badly(op, shape, results)):
        return None
    if outer is not None and len(count) > 1:
        rest = tuple(axis for axis in op.axes if axis != outer)
        y: Value = Reduce(op.kind, (outer,))(Reduce(op.kind, rest)(x))
        return y
    return _split(op, x, shape, max(count, key=lambda axis: count[axis]))


def _is_shared_badly(op: Reduce, shape: tuple[int, ...], results: int) -> bool:
    """Whether threads that share the results would each read parts of all cache lines, most of them
    from the caches of other cores: a few columns of a matrix that one kernel wrote row by row."""
    columns = math.prod(shape[max(op.axes) + 1 :])
    rows = math.prod(shape) // columns
    return columns == results <= FEW_COLUMNS and rows >= MANY_ROWS


def _numbers(shape: Sequence[Size]) -> tuple[int, ...]:
    return tuple(size for size in shape if isinstance(size, int))


def _split(op: Reduce, x: Value, shape: tuple[int, ...], axis: int) -> Value | None:
    """One axis as parts and what they hold."""
    size = shape[axis]
    candidates = sorted(PARTS, key=lambda parts: abs(parts - math.isqrt(size)))
    parts = next((p for p in candidates if size % p == 0 and p < size), None)
    if parts is None:
        return None
    inner = tuple(a + (a >= axis) for a in op.axes)
    wide = reshape(x, *shape[:axis], parts, size // parts, *shape[axis + 1 :])
    partial = Reduce(op.kind, inner)(wide)
    kept = (parts if a == axis else 1 if a in op.axes else n for a, n in enumerate(shape))
    y: Value = Reduce(op.kind, (axis,))(reshape(partial, *kept))
    return y
