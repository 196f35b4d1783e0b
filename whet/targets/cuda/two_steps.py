"""Reductions of much to little, in two steps, so that every multiprocessor has a part of them."""

from __future__ import annotations

import math

from whet.ir.graph import Value
from whet.ops.movement import reshape
from whet.ops.reduce import Reduce
from whet.targets.cuda.architecture import Architecture

FEWEST_ELEMENTS = 1024  # for each result; with less, a second launch costs more than it saves
PARTS = range(4, 1025)
RESULTS_OF_A_BLOCK = 32  # where results lie side by side
NARROW = ("float16", "bfloat16")
"""Dtypes whose sums are rounded once: they cannot wait in memory for a second step."""


def in_two_steps(value: Value, architecture: Architecture) -> Value | None:
    """A reduction as one of its parts and one of their results; None where one step is as good."""
    op = value.op
    if not isinstance(op, Reduce) or value.dtype in NARROW:
        return None
    (x,) = value.inputs
    if x is None or not x.tensor.is_static or 0 in x.shape:
        return None
    shape = [int(n) for n in x.shape]
    axes = {a: shape[a] for a in op.axes if shape[a] != 1}
    results = math.prod(int(n) for n in value.shape)
    inner = max((a for a, n in enumerate(shape) if n != 1), default=-1)
    blocks = results if inner in axes else -(-results // RESULTS_OF_A_BLOCK)
    if math.prod(axes.values()) < FEWEST_ELEMENTS or blocks >= architecture.multiprocessors:
        return None
    outer = next((a for a, n in sorted(axes.items()) if n in PARTS), None)
    if outer is not None and len(axes) > 1:
        rest = tuple(a for a in op.axes if a != outer)
        y: Value = Reduce(op.kind, (outer,))(Reduce(op.kind, rest)(x))
        return y
    return _split(op, x, shape, max(axes, key=lambda a: axes[a]))


def _split(op: Reduce, x: Value, shape: list[int], axis: int) -> Value | None:
    """One axis as parts and what they hold."""
    size = shape[axis]
    likely = sorted(PARTS, key=lambda parts: abs(parts - math.isqrt(size)))
    parts = next((p for p in likely if size % p == 0 and p < size), None)
    if parts is None:
        return None
    inner = tuple(a + (a >= axis) for a in op.axes)
    wide = reshape(x, *shape[:axis], parts, size // parts, *shape[axis + 1 :])
    partial = Reduce(op.kind, inner)(wide)
    kept = (parts if a == axis else 1 if a in op.axes else n for a, n in enumerate(shape))
    y: Value = Reduce(op.kind, (axis,))(reshape(partial, *kept))
    return y
