"""Reading an image at positions that are data: neighbours weighted, what lies outside by rule."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from whet.errors import Error
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, product
from whet.ops.elementwise import (
    Abs,
    And,
    Cast,
    Clip,
    Floor,
    Less,
    LessOrEqual,
    Or,
    Round,
    Where,
)
from whet.ops.index import number, positions
from whet.ops.movement import Gather, reshape, unsqueeze
from whet.ops.reduce import Reduce
from whet.ops.resize import keys

KEYS_A = -0.75  # what PyTorch and ONNX's GridSample take


@dataclass(frozen=True)
class Axis:
    """One axis of the image, and what stands beyond its ends.

    `padding` is "zeros", "border" (the last element) or "reflection" (mirrored at low and high).
    """

    size: Size
    padding: Annotated[str, Literal["zeros", "border", "reflection"]]
    low: Value
    high: Value

    def bounded(self, x: Value) -> Value:
        """A position, brought inside where it lies beyond the ends and the padding says so."""
        if self.padding == "zeros":
            return x
        outside = Or()(Less()(x, self.low), Less()(self.high, x))
        inside = self._clamped(x) if self.padding == "border" else self._reflected(x)
        return Where()(outside, inside, x)

    def _clamped(self, x: Value) -> Value:
        return Clip()(x, constant(0.0, x.dtype), number(self.size, x.dtype) - 1.0)

    def _reflected(self, x: Value) -> Value:
        # An axis of one element has nothing to mirror; its only element is read anyway.
        span = Where()(Less()(self.low, self.high), self.high - self.low, constant(1.0, x.dtype))
        distance, period = Abs()(x - self.low), 2.0 * span
        along = distance - Floor()(distance / period) * period
        return self.low + Where()(Less()(span, along), period - along, along)

    def tap(self, x: Value) -> tuple[Value, Value | None]:
        """The index that a whole position reads, and where it lies inside if that matters."""
        index = Cast("int64")(self._clamped(self.bounded(x)))
        if self.padding != "zeros":
            return index, None
        last = number(self.size, x.dtype) - 1.0
        return index, And()(LessOrEqual()(0.0, x), LessOrEqual()(x, last))

    def taps(self, mode: str, x: Value) -> list[tuple[Value, Value | None, Value | None]]:
        """Index, place inside and weight of each neighbour of a position."""
        if mode == "nearest":
            return [(*self.tap(self.bounded(Round()(x))), None)]
        # As in PyTorch, a cubic's taps are brought inside one by one, its position is not.
        x = x if mode == "cubic" else self.bounded(x)
        low = Floor()(x)
        part = x - low
        if mode == "linear":
            return [(*self.tap(low), 1.0 - part), (*self.tap(low + 1.0), part)]
        if mode == "cubic":
            near = (-1.0, 0.0, 1.0, 2.0)
            return [(*self.tap(low + t), keys(part - t, KEYS_A)) for t in near]
        raise Error(f"there is no interpolation {mode!r}; linear, nearest and cubic are known")


def sample(x: Value, at: Sequence[Value], axes: Sequence[Axis], mode: str) -> Value:
    """x[N, *S, C] read at the positions at[i][N, *P], one for each axis of S: [N, *P, C].

    Positions count elements of the axis; x is a float of the positions' dtype.
    """
    batch, channels = x.shape[0], x.shape[-1]
    rows = reshape(x, batch * product(x.shape[1:-1]), channels)
    image = positions(batch, at[0].rank, 0)
    total: Value | None = None
    for taps in itertools.product(*(axis.taps(mode, p) for axis, p in zip(axes, at))):
        index, inside, weight = image, None, None
        for axis, (i, seen, w) in zip(axes, taps):
            index = index * number(axis.size, "int64") + i
            inside = seen if inside is None else And()(inside, seen)
            weight = w if weight is None else weight * w
        term = Gather(0)(rows, index)
        if inside is not None:
            term = Where()(unsqueeze(inside, inside.rank), term, constant(0.0, term.dtype))
        if weight is not None:
            term = term * unsqueeze(weight, weight.rank)
        total = term if total is None else total + term
    assert total is not None
    return total


def zeros_outside(sizes: Sequence[Size], dtype: str) -> list[Axis]:
    """Axes beyond whose ends stands 0."""
    zero = constant(0.0, dtype)
    return [Axis(size, "zeros", zero, number(size, dtype) - 1.0) for size in sizes]


def masked_max(x: Value, mask: Value, axis: int) -> Value:
    """The greatest of the elements where the mask holds, along an axis that is dropped."""
    lowest = constant(float("-inf"), x.dtype)
    kept = Reduce("max", (axis,))(Where()(mask, x, lowest))
    return reshape(kept, *(s for i, s in enumerate(kept.shape) if i != axis))
