"""Reductions of much to little, in two steps, so that every thread has a part of the first one."""

from __future__ import annotations

import math

from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.ops.reduce import Reduce
from whet.plan.two_steps import NARROW, in_parts, outer_axis, reduced_axes

FEW_RESULTS, MANY_ELEMENTS = 7, 1 << 15
FEW_COLUMNS, MANY_ROWS = 1024, 128
PARTS = range(8, 1025)


def in_two_steps(value: Value) -> Value | None:
    """A reduction as one of its parts and one of their results; None where one step is as good."""
    if not isinstance(value.op, Reduce) or value.dtype in NARROW:
        return None
    (x,) = value.inputs
    if x is None or not isinstance(x.type, TensorType) or not x.type.is_static:
        return None
    shape = [int(size) for size in x.shape]
    results = math.prod(int(size) for size in value.shape)
    if 0 in shape or math.prod(shape) < MANY_ELEMENTS:
        return None
    outer = outer_axis(reduced_axes(value.op, x), PARTS)
    if results > FEW_RESULTS and (outer is None or not _is_shared_badly(value.op, shape, results)):
        return None
    return in_parts(value.op, x, PARTS)


def _is_shared_badly(op: Reduce, shape: list[int], results: int) -> bool:
    """Whether threads that share the results would each read parts of all cache lines, most of them
    from the caches of other cores: a few columns of a matrix that one kernel wrote row by row."""
    columns = math.prod(shape[max(op.axes) + 1 :])
    rows = math.prod(shape) // columns
    return columns == results <= FEW_COLUMNS and rows >= MANY_ROWS
