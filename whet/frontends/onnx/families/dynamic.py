"""Slice, Reshape and Range where the numbers they take are data: computed in the graph, then
named as sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, product
from whet.ir.types import FLOATS
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops.index import Iota, number
from whet.ops.reduce import Reduce

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading

MOST_AXES = 16  # of a shape that is data


def dynamic_slice(x: Value, start: Value, end: Value, axis: int, step: int, node: Reading) -> Value:
    """x[start:end:step] along an axis as Python has it, for scalars that are data and a step
    above 0."""
    size = x.shape[axis]
    start, end = _from_front(start, size), _from_front(end, size)
    room = ew.Max()(end - start, constant(0, "int64"))
    count = ew.Div()(room + (step - 1), constant(step, "int64"))
    (first,) = node.counts(start, f"start{axis}")
    (length,) = node.counts(count, f"length{axis}")
    return mv.slice_axis(x, axis, first, length, step)


def _from_front(index: Value, size: Size) -> Value:
    """An index counted from the front and kept within the axis."""
    length = number(size, "int64")
    index = ew.Cast("int64")(mv.reshape(index))
    index = ew.Where()(ew.Less()(index, constant(0, "int64")), index + length, index)
    return ew.Min()(ew.Max()(index, constant(0, "int64")), length)


def has_known_length(shape: Value) -> bool:
    """Whether a shape that is data says how many axes there are."""
    return shape.rank == 1 and isinstance(shape.shape[0], int) and shape.shape[0] <= MOST_AXES


def dynamic_reshape(x: Value, shape: Value, keeps_zeros: bool, node: Reading) -> Value:
    """x under a shape that is data: 0 copies x's size unless zeros are kept, -1 takes what is
    left."""
    wanted = ew.Cast("int64")(shape)
    if not keeps_zeros:
        wanted = _copied(wanted, x.shape)
    unknown = ew.Equal()(wanted, constant(-1, "int64"))
    others = Reduce("prod", (0,))(ew.Where()(unknown, constant(1, "int64"), wanted))
    rest = ew.Div()(number(product(x.shape), "int64"), others)
    return mv.reshape(x, *node.counts(ew.Where()(unknown, rest, wanted), "the shape"))


def _copied(wanted: Value, sizes: Sequence[Size]) -> Value:
    """The shape with x's sizes where it has zeros."""
    (length,) = wanted.shape
    assert isinstance(length, int)
    own = (*sizes, *(0,) * length)[:length]
    return ew.Where()(ew.Equal()(wanted, constant(0, "int64")), mv.Sizes(own)(), wanted)


def dynamic_range(start: Value, limit: Value, delta: Value, node: Reading) -> Value:
    """start, start + delta, … before limit."""
    if start.dtype in FLOATS:
        first, last, step = (ew.Cast("float64")(v) for v in (start, limit, delta))
        steps = ew.Ceil()((last - first) / step)
    else:
        steps = _steps(start, limit, delta)
    steps = ew.Max()(ew.Cast("int64")(steps), constant(0, "int64"))
    (count,) = node.counts(steps, "count")
    return Iota(count, start.dtype)() * delta + start


def _steps(start: Value, limit: Value, delta: Value) -> Value:
    """(limit - start) / delta rounded up, of integers: whatever the signs, no step for the wrong
    way."""
    zero, one = constant(0, start.dtype), constant(1, start.dtype)
    way = limit - start
    towards = ew.Where()(ew.Less()(zero, delta), delta - one, delta + one)
    right = ew.Equal()(ew.Less()(zero, way), ew.Less()(zero, delta))
    return ew.Where()(right, ew.Div()(way + towards, delta), zero)
