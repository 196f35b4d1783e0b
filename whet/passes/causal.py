"""Masks that hide keys by their places: found in comparisons of positions, or in constants.

A condition on query i and key j that compares sums of i, j and known sizes is a bound on j - i.
Weights are never looked at: a mask that an exporter stored as one stays a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.ir.graph import Constant, Value, constant
from whet.ir.sizes import Size, is_less
from whet.ir.types import INTEGERS
from whet.ops.cast import Cast
from whet.ops.elementwise import Add, And, Less, LessOrEqual, Neg, Not, Sub, Where
from whet.ops.index import Iota
from whet.ops.movement import Broadcast, Reshape, Sizes

Number = Callable[[Value], Any]


@dataclass(frozen=True)
class Places:
    """offset + queries * i + keys * j at query i (the last axis but one) and key j (the last)."""

    offset: Size = 0
    queries: int = 0
    keys: int = 0

    def minus(self, other: Places) -> Places:
        return Places(
            self.offset - other.offset, self.queries - other.queries, self.keys - other.keys
        )


def causal_offset(mask: Value, number: Number) -> tuple[Size, Value | None] | None:
    """c and the rest of the mask, where the mask hides exactly the keys j > i + c from query i.

    Where a finite number hides, each query must see a key, or it would weigh hidden ones.
    """
    if isinstance(mask.op, Constant) and mask.rank >= 2:
        return _of_constant(mask.op.data)
    if not isinstance(mask.op, Where):
        return None
    condition, *sides = mask.inputs
    assert condition is not None
    first, second = (number(side) if side is not None else None for side in sides)
    if first is None or second is None or 0 not in (first, second):
        return None
    low = min(first, second)
    seen = condition if first == 0 else Not()(condition)
    return _of_condition(seen, low, mask.dtype) if low <= HIDING else None


HIDING = -1e4


def _of_constant(data: np.ndarray) -> tuple[Size, None] | None:
    offset = _triangle(data == 0)
    hides = offset is not None and offset >= 0 and (data[data != 0] <= HIDING).all()
    return (offset, None) if hides and offset is not None else None


def _triangle(seen: np.ndarray) -> int | None:
    """c where a constant condition is j <= i + c and not always so, else None."""
    if seen.ndim < 2 or seen.size == 0 or any(size != 1 for size in seen.shape[:-2]) or seen.all():
        return None
    plane = seen.reshape(seen.shape[-2:]).astype(bool)
    offset = int(plane[0].sum()) - 1
    return offset if (plane == np.tri(*plane.shape, offset, dtype=bool)).all() else None


def _of_condition(seen: Value, low: float, dtype: str) -> tuple[Size, Value | None] | None:
    offset = bound_of(seen)
    if offset is not None:
        return (offset, None) if is_less(-1, offset) else None
    if not isinstance(seen.op, And) or low != -np.inf:
        return None
    for part, rest in (seen.inputs, seen.inputs[::-1]):
        assert part is not None
        assert rest is not None
        offset = bound_of(part)
        if offset is not None:
            hidden = constant(low, dtype)
            return offset, Where()(rest, constant(0.0, dtype), hidden)
    return None


def bound_of(seen: Value) -> Size | None:
    """c where the condition is j <= i + c, else None."""
    if isinstance(seen.op, Constant):
        return _triangle(seen.op.data)
    above = non_negative(seen)
    if above is None or (above.queries, above.keys) != (1, -1):
        return None
    return above.offset


def non_negative(condition: Value) -> Places | None:
    """What is at least 0 exactly where the condition holds."""
    match condition.op:
        case Not():
            below = non_negative(_only(condition))
            return below and Places(-1).minus(below)
        case LessOrEqual() | Less():
            a, b = (places(i) for i in condition.inputs)
            if a is None or b is None:
                return None
            return b.minus(a).minus(Places(int(isinstance(condition.op, Less))))
        case Broadcast() | Reshape() if _keeps_last_axes(condition):
            return non_negative(_only(condition))
    return None


def places(value: Value | None) -> Places | None:
    """The sum of positions and sizes that an integer tensor is, or None."""
    if value is None or value.dtype not in INTEGERS:
        return None
    match value.op:
        case Constant(data=data):
            return _of_positions(data)
        case Sizes(sizes=(size,)):
            return Places(size)
        case Iota():
            return Places(0, 0, 1)
        case Cast() if _only(value).dtype in INTEGERS:
            return places(_only(value))
        case Reshape() | Broadcast() if _keeps_last_axes(value):
            return places(_only(value))
        case Reshape():
            return _along(value)
        case Neg():
            x = places(_only(value))
            return x and Places().minus(x)
        case Add() | Sub():
            a, b = map(places, value.inputs)
            if a is None or b is None:
                return None
            return a.minus(b) if isinstance(value.op, Sub) else a.minus(Places().minus(b))
    return None


def _of_positions(data: np.ndarray) -> Places | None:
    """A constant that rises by one along the last axis or the last but one, or is one number."""
    if data.size == 1:
        return Places(int(data.item()))
    axes = [i - data.ndim for i, size in enumerate(data.shape) if size != 1]
    if axes not in ([-1], [-2]) or (np.diff(data.ravel().astype(np.int64)) != 1).any():
        return None
    return Places(int(data.flat[0]), int(axes == [-2]), int(axes == [-1]))


def _along(value: Value) -> Places | None:
    """Positions along one axis, reshaped to lie along another one."""
    x = places(_only(value))
    before, after = (
        [i - len(shape) for i, size in enumerate(shape) if size != 1]
        for shape in (_only(value).shape, value.shape)
    )
    if x is None or before not in ([-1], [-2]) or after not in ([-1], [-2]):
        return None
    rise = x.keys if before == [-1] else x.queries
    return Places(x.offset, rise * (after == [-2]), rise * (after == [-1]))


def _keeps_last_axes(value: Value) -> bool:
    """Whether the last two axes of the result are those of the input, or stretch them."""
    before, after = ((1, 1, *shape)[-2:] for shape in (_only(value).shape, value.shape))
    if isinstance(value.op, Broadcast):
        return all(a in (1, b) for a, b in zip(before, after))
    return before == after


def _only(value: Value) -> Value:
    (x,) = value.inputs
    assert x is not None
    return x
