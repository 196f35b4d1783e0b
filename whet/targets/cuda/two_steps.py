"""Reductions of much to little and running sums of long lines, in two steps, so that every
multiprocessor has a part of them."""

from __future__ import annotations

import math

from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, maximum, product
from whet.ops.elementwise import Add, Mul
from whet.ops.movement import Pad, Slice, reshape
from whet.ops.reduce import Cumulative, Reduce
from whet.plan.two_steps import NARROW, in_parts, reduced_axes
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.told import blocks_of, most, usual

FEWEST_ELEMENTS = 1024  # for each result; with less, a second launch costs more than it saves
PARTS = range(4, 1025)
RESULTS_OF_A_BLOCK = 32  # where results lie side by side
LONGEST_SCAN = 64
"""Elements that one thread adds up, one after the other, each from what it stored before."""
PARTS_OF_OPEN_SCANS = 256
MANY_LINES = 1 << 15
"""So many threads have enough to do, each with a line of its own."""


def in_two_steps(value: Value, architecture: Architecture) -> Value | None:
    """A reduction as one of its parts and one of their results, or a running sum likewise; None
    where one step is as good."""
    if value.dtype in NARROW:
        return None
    (x, *_) = value.inputs or (None,)
    if isinstance(value.op, Cumulative) and x is not None:
        return _scanned(value.op, x)
    if not isinstance(value.op, Reduce) or x is None or not x.tensor.is_static or 0 in x.shape:
        return None
    axes = reduced_axes(value.op, x)
    results = math.prod(int(size) for size in value.shape)
    inner = max((a for a, size in enumerate(x.shape) if size != 1), default=-1)
    blocks = results if inner in axes else -(-results // RESULTS_OF_A_BLOCK)
    if math.prod(axes.values()) < FEWEST_ELEMENTS or blocks >= architecture.multiprocessors:
        return None
    return in_parts(value.op, x, PARTS)


def _scanned(op: Cumulative, x: Value) -> Value | None:
    """A running sum or product within parts of lines, each from where the parts before it end (the
    scan in three phases of Sengupta et al., Scan Primitives for GPU Computing, 2007)."""
    axis, size = op.axis, x.shape[op.axis]
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    # A part of an open line is open as well, and usually short.
    is_short = most(size) <= LONGEST_SCAN or usual(size) < LONGEST_SCAN
    if is_short or (usual(size) <= 1024 and usual(product((*before, *after))) >= MANY_LINES):
        return None
    parts: Size
    length: Size
    if isinstance(size, int):
        ideal = min(LONGEST_SCAN, math.isqrt(size))
        likely = sorted(range(ideal // 2, LONGEST_SCAN + 1), key=lambda n: abs(n - ideal))
        length = next((n for n in likely if size % n == 0), ideal)
        parts = -(-size // length)
    else:
        parts = PARTS_OF_OPEN_SCANS
        length = maximum(blocks_of(size, parts), 1)  # parts have an end where lines have none
    missing = parts * length - size
    if missing != 0:
        nothing = (0,) * x.rank
        at_the_end = (*nothing[:axis], missing, *nothing[axis + 1 :])
        x = Pad(nothing, at_the_end)(x, constant(op.kind == "prod", x.dtype))
    x = reshape(x, *before, parts, length, *after)
    within = Cumulative(op.kind, axis + 1, op.exclusive, op.reverse)(x)
    combine = Add() if op.kind == "sum" else Mul()
    ends = _at(within, axis + 1, 0 if op.reverse else length - 1)
    if op.exclusive:
        ends = combine(ends, _at(x, axis + 1, 0 if op.reverse else length - 1))
    start = Cumulative(op.kind, axis, True, op.reverse)(ends)
    y = reshape(combine(start, within), *before, parts * length, *after)
    whole = (*before, size, *after)
    return y if missing == 0 else Slice((0,) * y.rank, whole, (1,) * y.rank)(y)


def _at(x: Value, axis: int, place: Size) -> Value:
    """The elements at one place along an axis, which stays."""
    starts: tuple[Size, ...] = (*(0,) * axis, place, *(0,) * (x.rank - axis - 1))
    sizes = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return Slice(starts, sizes, (1,) * x.rank)(x)
