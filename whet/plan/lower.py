"""Values to expressions: each output element is pulled through the operators, movement becomes
index maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whet.ir.graph import Constant, Op, Value
from whet.ir.sizes import Size, floor_divide, is_less, maximum, minimum, modulo, product, symbol
from whet.ir.types import NUMPY_DTYPES
from whet.ops import contract, elementwise, gather, movement, reduce, window
from whet.ops import index as positions
from whet.ops.cast import FEW_BITS
from whet.ops.reduce import identity
from whet.plan.kernel import (
    Apply,
    Axis,
    Expression,
    Hole,
    Index,
    Let,
    Literal,
    Load,
    Range,
    Reduction,
    Select,
)

Indices = tuple[Size, ...]
Rule = Callable[["Lowering", Value, Indices], Expression]


class Lowering:
    """Pulls elements of Values; those not in `inside` are loaded from buffers, numbered as they are
    met."""

    def __init__(self, inside: Callable[[Value], bool], anchor: Value | None = None) -> None:
        self.inside = inside
        self.anchor = anchor
        self.buffers: dict[Value, int] = {}
        self.memo: dict[tuple[Value, Indices], Expression] = {}
        self.names = itertools.count()

    def pull(self, value: Value, index: Indices) -> Expression:
        """The element of `value` at `index`."""
        key = (value, index)
        if key not in self.memo:
            self.memo[key] = self._pull(value, index)
        return self.memo[key]

    def _pull(self, value: Value, index: Indices) -> Expression:
        if value is self.anchor:
            return Hole(value.dtype)
        literal = literal_of(value)
        if literal is not None:
            return literal
        if not self.inside(value):
            return self.load(value, index)
        if isinstance(
            value.op,
            elementwise.Elementwise | elementwise.Pow | elementwise.Where | elementwise.Cast,
        ):
            args = tuple(
                self.pull(i, broadcast_index(i.shape, value.shape, index))
                for i in value.inputs
                if i is not None
            )
            return Apply(value.op, args, value.dtype)
        return RULES[type(value.op)](self, value, index)

    def load(self, value: Value, index: Indices) -> Expression:
        """A read of a Value that is already in memory."""
        buffer = self.buffers.setdefault(value, len(self.buffers))
        return Load(buffer, flatten(index, value.shape), value.dtype)

    def fresh(self, prefix: str, size: Size) -> tuple[Axis, Size]:
        """A new loop, and its index."""
        name = f"{prefix}{next(self.names)}"
        return Axis(name, size), loop_index(name, size)


def loop_index(name: str, size: Size) -> Size:
    """The index of a loop, known to lie below its size; 0 where the loop runs once."""
    return 0 if size == 1 else symbol(name, 0, size - 1)


def literal_of(value: Value) -> Literal | None:
    """The number that every element of a constant is, or None."""
    if not isinstance(value.op, Constant) or value.op.data.size == 0 or value.dtype == "string":
        return None
    data = value.op.data
    if data.size > 1 and not (data == data.flat[0]).all():
        return None
    if value.dtype in FEW_BITS:  # no target computes with these: it carries them as bits
        return Literal(int(data.view(np.uint8).flat[0]), value.dtype)
    return Literal(
        data.flat[0].item() if data.dtype.kind in "biuf" else float(data.flat[0]), value.dtype
    )


def flatten(index: Indices, shape: Indices) -> Size:
    """The row-major offset of an index."""
    offset: Size = 0
    for i, size in zip(index, shape):
        offset = offset * size + i
    return offset


def unflatten(offset: Size, shape: Indices) -> Indices:
    """The index that has a row-major offset."""
    if 0 in shape:  # nothing lies anywhere
        return (0,) * len(shape)
    index: list[Size] = []
    for axis in range(len(shape)):
        inner = product(shape[axis + 1 :])
        index.append(0 if shape[axis] == 1 else floor_divide(offset, inner))
        offset = modulo(offset, inner)
    return tuple(index)


def broadcast_index(shape: Indices, wide: Indices, index: Indices) -> Indices:
    """Where an element of the broadcast shape lies in a tensor that is stretched to it."""
    skipped = len(wide) - len(shape)
    return tuple(
        _stretched(size, w, i) for size, w, i in zip(shape, wide[skipped:], index[skipped:])
    )


def _stretched(size: Size, wide: Size, i: Size) -> Size:
    if size == 1:
        return 0
    # A size that only a run can tell may turn out to be 1: then the index must stay 0.
    return i if size == wide else i * minimum(size - 1, 1)


def within(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The ranges that are not proved to hold."""
    return tuple((i, n) for i, n in ranges if not (is_less(-1, i) and is_less(i, n)))


def _transpose(lowering: Lowering, value: Value, index: Indices) -> Expression:
    (x,) = value.inputs
    source: list[Size] = [0] * len(index)
    for place, axis in enumerate(value.op.order):  # type: ignore[attr-defined]
        source[axis] = index[place]
    return lowering.pull(x, tuple(source))  # type: ignore[arg-type]


def _reshape(lowering: Lowering, value: Value, index: Indices) -> Expression:
    (x,) = value.inputs
    assert x is not None
    return lowering.pull(x, reshaped_index(index, value.shape, x.shape))


def reshaped_index(index: Indices, shape: Indices, source: Indices) -> Indices:
    """Where an element of a reshaped tensor lies in the tensor before, run of axes by run of
    axes."""
    result: list[Size] = []
    a = b = 0
    while b < len(source):
        a_end, b_end = a, b + 1
        left, right = product(()), source[b]
        while left != right and (a_end < len(shape) or b_end < len(source)):
            if a_end < len(shape) and (b_end == len(source) or _is_behind(left, right)):
                left, a_end = left * shape[a_end], a_end + 1
            else:
                right, b_end = right * source[b_end], b_end + 1
        if left != right:  # symbolic sizes that only the whole product matches
            a_end, b_end = len(shape), len(source)
        offset = flatten(index[a:a_end], shape[a:a_end])
        result += unflatten(offset, source[b:b_end])
        a, b = a_end, b_end
    return tuple(result)


def _is_behind(left: Size, right: Size) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    quotient = floor_divide(right, left)
    return quotient * left == right


def _broadcast(lowering: Lowering, value: Value, index: Indices) -> Expression:
    (x,) = value.inputs
    assert x is not None
    return lowering.pull(x, broadcast_index(x.shape, value.shape, index))


def _slice(lowering: Lowering, value: Value, index: Indices) -> Expression:
    op = value.op
    assert isinstance(op, movement.Slice) and value.inputs[0] is not None
    return lowering.pull(
        value.inputs[0],
        tuple(start + i * step for start, i, step in zip(op.starts, index, op.steps)),
    )


def _pad(lowering: Lowering, value: Value, index: Indices) -> Expression:
    op, (x, fill) = value.op, value.inputs
    assert isinstance(op, movement.Pad) and x is not None and fill is not None
    source = tuple(i - b for i, b in zip(index, op.before))
    if op.mode == "constant":
        ranges = within(list(zip(source, x.shape)))
        inside = lowering.pull(x, source)
        if not ranges:
            return inside
        return Select(ranges, inside, lowering.pull(fill, (0,) * fill.rank), value.dtype)
    sides = zip(source, x.shape, op.before, op.after)
    folded = tuple(
        i if (b, a) == (0, 0) or not within([(i, n)]) else _FOLD[op.mode](i, n)
        for i, n, b, a in sides
    )
    return lowering.pull(x, folded)


def _reflect(i: Size, n: Size) -> Size:
    period = maximum((n - 1) * 2, 1)  # all places of one element are that element
    i = modulo(i, period)
    return minimum(i, period - i)


_FOLD: dict[str, Callable[[Size, Size], Size]] = {
    "edge": lambda i, n: minimum(maximum(i, 0), n - 1),
    "wrap": modulo,
    "reflect": _reflect,
}


def _concat(lowering: Lowering, value: Value, index: Indices) -> Expression:
    axis = value.op.axis % value.rank  # type: ignore[attr-defined]
    parts = [i for i in value.inputs if i is not None]
    starts: list[Size] = [0]
    for part in parts:
        starts.append(starts[-1] + part.shape[axis])
    result: Expression | None = None
    for part, start in reversed(list(zip(parts, starts))):
        at = (*index[:axis], index[axis] - start, *index[axis + 1 :])
        element = lowering.pull(part, at)
        if result is None:
            result = element
            continue
        # Parts are tried from the front, so an index behind a part's end is the only way out of it.
        ranges = within([(index[axis], start + part.shape[axis])])
        result = Select(ranges, element, result, value.dtype) if ranges else element
    assert result is not None
    return result


def _gather(lowering: Lowering, value: Value, index: Indices) -> Expression:
    data, indices = value.inputs
    assert data is not None and indices is not None
    axis = value.op.axis % data.rank  # type: ignore[attr-defined]
    chosen = lowering.pull(indices, index[axis : axis + indices.rank])

    def at(i: Size) -> Expression:
        return lowering.pull(data, (*index[:axis], i, *index[axis + indices.rank :]))

    return _let(lowering, chosen, data.shape[axis], at)


def _let(
    lowering: Lowering, chosen: Expression, limit: Size, at: Callable[[Size], Expression]
) -> Expression:
    """What `at` makes of an index that is data, on an axis of `limit`."""
    if isinstance(chosen, Literal) and isinstance(limit, int) and -limit <= chosen.value < limit:
        return at(int(chosen.value) % limit)
    name, i = lowering.fresh("g", limit)
    if limit == 1:
        i = symbol(name.name, 0, 0)
    body = at(i)
    return Let(name.name, chosen, limit, body, body.dtype)


def _gather_elements(lowering: Lowering, value: Value, index: Indices) -> Expression:
    data, indices = value.inputs
    assert data is not None and indices is not None
    axis = value.op.axis % data.rank  # type: ignore[attr-defined]

    def at(i: Size) -> Expression:
        return lowering.pull(data, (*index[:axis], i, *index[axis + 1 :]))

    return _let(lowering, lowering.pull(indices, index), data.shape[axis], at)


def _gather_nd(lowering: Lowering, value: Value, index: Indices) -> Expression:
    data, indices = value.inputs
    assert data is not None and indices is not None
    depth, batch = indices.shape[-1], value.op.batch  # type: ignore[attr-defined]
    lead, rest = index[: indices.rank - 1], index[indices.rank - 1 :]

    def at(place: Indices) -> Expression:
        axis = len(place)
        if axis == batch + depth:
            return lowering.pull(data, (*place, *rest))
        chosen = lowering.pull(indices, (*lead, axis - batch))
        return _let(lowering, chosen, data.shape[axis], lambda i: at((*place, i)))

    return at(index[:batch])


def _iota(lowering: Lowering, value: Value, index: Indices) -> Expression:
    position = Index(index[0])
    if value.dtype == "int64":
        return position
    return Apply(elementwise.Cast(value.dtype), (position,), value.dtype)


def _sizes(lowering: Lowering, value: Value, index: Indices) -> Expression:
    sizes = value.op.sizes  # type: ignore[attr-defined]
    if not sizes:
        return Literal(0, "int64")
    result: Expression = Index(sizes[-1])
    for place in range(len(sizes) - 2, -1, -1):
        ranges = within([(index[0], place + 1)])
        result = (
            Select(ranges, Index(sizes[place]), result, "int64") if ranges else Index(sizes[place])
        )
    return result


def _reduce(lowering: Lowering, value: Value, index: Indices) -> Expression:
    op, (x,) = value.op, value.inputs
    assert isinstance(op, reduce.Reduce) and x is not None
    axes, source = [], list(index)
    for axis in op.axes:
        loop, source[axis] = lowering.fresh("r", x.shape[axis])
        axes.append(loop)
    return reduction(op.kind, axes, lowering.pull(x, tuple(source)), value.dtype)


def reduction(kind: str, axes: Sequence[Axis], body: Expression, dtype: str) -> Expression:
    """A Reduction without the loops that run once; the body itself where none is left."""
    kept = tuple(a for a in axes if a.size != 1)
    return Reduction(kind, kept, body, dtype) if kept else body


def _arg_reduce(lowering: Lowering, value: Value, index: Indices) -> Expression:
    op, (x,) = value.op, value.inputs
    assert isinstance(op, reduce.ArgReduce) and x is not None
    axis = op.axis % x.rank
    if x.shape[axis] == 1:
        return Literal(0, "int64")
    loop, i = lowering.fresh("r", x.shape[axis])
    body = lowering.pull(x, (*index[:axis], i, *index[axis + 1 :]))
    return Reduction(f"arg{op.kind}" + ("_last" if op.last else ""), (loop,), body, "int64")


def _pool(lowering: Lowering, value: Value, index: Indices) -> Expression:
    op, (x,) = value.op, value.inputs
    assert isinstance(op, window.Pool) and x is not None
    axes, source, ranges = [], [index[0]], []
    for axis, (kernel, stride, dilation, before) in enumerate(
        zip(op.kernel, op.strides, op.dilations, op.before), start=1
    ):
        loop, k = lowering.fresh("r", kernel)
        axes.append(loop)
        at = index[axis] * stride + k * dilation - before
        source.append(at)
        ranges.append((at, x.shape[axis]))
    element = lowering.pull(x, (*source, index[-1]))
    if outside := within(ranges):
        fill = identity(op.kind, NUMPY_DTYPES[value.dtype])
        element = Select(outside, element, Literal(_number(fill), value.dtype), value.dtype)
    return reduction(op.kind, axes, element, value.dtype)


def _number(x: Any) -> int | float | bool:
    x = np.asarray(x)
    return x.item() if x.dtype.kind in "biuf" else float(x)


def _matmul(lowering: Lowering, value: Value, index: Indices) -> Expression:
    a, b = value.inputs
    assert a is not None and b is not None
    loop, k = lowering.fresh("r", a.shape[-1])
    lead = index[:-2]
    left = lowering.pull(a, (*broadcast_index(a.shape[:-2], value.shape[:-2], lead), index[-2], k))
    right = lowering.pull(b, (*broadcast_index(b.shape[:-2], value.shape[:-2], lead), k, index[-1]))
    return reduction("sum", [loop], _times(left, right, value.dtype), value.dtype)


def _convolution(lowering: Lowering, value: Value, index: Indices) -> Expression:
    op, (x, w) = value.op, value.inputs
    assert isinstance(op, contract.Convolution) and x is not None and w is not None
    axes, source, taps, ranges = [], [index[0]], [index[-1]], []
    for axis in range(1, x.rank - 1):
        i = axis - 1
        loop, k = lowering.fresh("r", w.shape[axis])
        axes.append(loop)
        at = index[axis] * op.strides[i] + k * op.dilations[i] - op.before[i]
        source.append(at)
        taps.append(k)
        ranges.append((at, x.shape[axis]))
    loop, channel = lowering.fresh("r", w.shape[-1])
    axes.append(loop)
    group = floor_divide(index[-1], w.shape[0] // op.groups)
    element = lowering.pull(x, (*source, group * w.shape[-1] + channel))
    if outside := within(ranges):
        element = Select(outside, element, Literal(_zero(x.dtype), x.dtype), x.dtype)
    weight = lowering.pull(w, (*taps, channel))
    return reduction("sum", axes, _times(element, weight, value.dtype), value.dtype)


def _zero(dtype: str) -> int | float:
    return 0.0 if "float" in dtype else 0


def _times(a: Expression, b: Expression, dtype: str) -> Expression:
    """a*b in the dtype of the sum that it goes into."""
    a, b = (e if e.dtype == dtype else Apply(elementwise.Cast(dtype), (e,), dtype) for e in (a, b))
    return Apply(elementwise.Mul(), (a, b), dtype)


RULES: dict[type[Op], Rule] = {
    movement.Sizes: _sizes,
    movement.Reshape: _reshape,
    movement.Transpose: _transpose,
    movement.Broadcast: _broadcast,
    movement.Slice: _slice,
    movement.Pad: _pad,
    movement.Concat: _concat,
    movement.Gather: _gather,
    gather.GatherElements: _gather_elements,
    gather.GatherND: _gather_nd,
    positions.Iota: _iota,
    reduce.Reduce: _reduce,
    reduce.ArgReduce: _arg_reduce,
    window.Pool: _pool,
    contract.MatMul: _matmul,
    contract.Convolution: _convolution,
}
"""Operators that a loop nest can hold, beside the elementwise ones."""
