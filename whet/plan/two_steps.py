"""Reductions of much to little, as one of their parts and one of what these give."""

from __future__ import annotations

import math

from whet.ir.graph import Value
from whet.ops.movement import reshape
from whet.ops.reduce import Reduce

NARROW = ("float16", "bfloat16")
"""Dtypes whose sums are rounded once: they cannot wait in memory for a second step."""


def reduced_axes(op: Reduce, x: Value) -> dict[int, int]:
    """The axes along which something of known sizes is reduced, and how long they are."""
    return {axis: int(x.shape[axis]) for axis in sorted(op.axes) if x.shape[axis] != 1}


def outer_axis(axes: dict[int, int], parts: range) -> int | None:
    """The first axis that has as many elements as there may be parts."""
    return next((axis for axis, size in axes.items() if size in parts), None)


def in_parts(op: Reduce, x: Value, parts: range) -> Value | None:
    """The same in two steps, the second along `parts` elements; None where no axis divides so."""
    axes = reduced_axes(op, x)
    outer = outer_axis(axes, parts)
    if outer is None or len(axes) == 1:
        return _split(op, x, max(axes, key=lambda axis: axes[axis]), parts)
    rest = tuple(axis for axis in op.axes if axis != outer)
    y: Value = Reduce(op.kind, (outer,))(Reduce(op.kind, rest)(x))
    return y


def _split(op: Reduce, x: Value, axis: int, parts: range) -> Value | None:
    """One axis as parts and what they hold."""
    shape, size = x.shape, int(x.shape[axis])
    likely = sorted(parts, key=lambda count: abs(count - math.isqrt(size)))
    count = next((n for n in likely if size % n == 0 and n < size), None)
    if count is None:
        return None
    inner = tuple(a + (a >= axis) for a in op.axes)
    wide = reshape(x, *shape[:axis], count, size // count, *shape[axis + 1 :])
    partial = Reduce(op.kind, inner)(wide)
    kept = (count if a == axis else 1 if a in op.axes else n for a, n in enumerate(shape))
    y: Value = Reduce(op.kind, (axis,))(reshape(partial, *kept))
    return y
