"""Rules by which a transpose moves from an operator's inputs to its result, where that is free.

The other inputs are weights (whose transposes are weight expressions), scalars, or transposed in
the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from whet.ir.graph import Op, Value
from whet.ir.rewrite import Rules, rule_for
from whet.ir.sizes import Size
from whet.ops.contract import MatMul
from whet.ops.movement import (
    Broadcast,
    Concat,
    Gather,
    Pad,
    Reshape,
    Reverse,
    Slice,
    Transpose,
    broadcast_to,
    reshape,
    transpose,
)
from whet.ops.reduce import (
    ArgReduce,
    Cumulative,
    LayerNorm,
    LogSoftmax,
    Reduce,
    RMSNorm,
    Softmax,
)
from whet.passes.axes import Order, carried, gathered_groups, groups, inverse, moves_only_ones
from whet.passes.movement import (
    BROADCASTING,
    only,
    scales_rows_alike,
    transpose_is_reshape,
)


def transposed(value: Value) -> tuple[Value, Order] | None:
    """y and the order where the Value is y transposed, and no weight's expression; else None."""
    if value.is_static or not isinstance(value.op, Transpose):
        return None
    return only(value), value.op.order


def moved_back(x: Value, order: Order) -> Value | None:
    """y such that y transposed by `order` broadcasts as x does, where y is free; else None."""
    if x.rank > len(order):
        return None
    if all(size == 1 for size in x.shape):
        return only(x) if isinstance(x.op, Transpose) else x
    wide = reshape(x, *(1,) * (len(order) - x.rank), *x.shape)
    back = inverse(order)
    if x.is_static:
        return transpose(wide, *back)
    y, first = transposed(wide) or (wide, tuple(range(wide.rank)))
    both = tuple(first[i] for i in back)
    if both == tuple(range(wide.rank)):
        return y
    # A reshape, not a transpose, which would sink in its turn and bring back what was there.
    return reshape(y, *(y.shape[i] for i in both)) if moves_only_ones(y.shape, both) else None


def orders_of(inputs: Sequence[Value | None], rank: int) -> list[Order]:
    """The orders that the inputs with all axes are transposed by."""
    found = [x and transposed(x) for x in inputs]
    return list(dict.fromkeys(f[1] for f in found if f and len(f[1]) == rank))


@rule_for(*BROADCASTING)
def through_elementwise(value: Value) -> Value | None:
    for order in orders_of(value.inputs, value.rank):
        moved = [x and moved_back(x, order) for x in value.inputs]
        if all(x is not None or i is None for x, i in zip(moved, value.inputs)):
            return transpose(value.op(*moved), *order)
    return None


@rule_for(Concat)
def through_concat(value: Value) -> Value | None:
    assert isinstance(value.op, Concat)
    for order in orders_of(value.inputs, value.rank):
        moved = [x and moved_back(x, order) for x in value.inputs]
        if all(x is not None and x.rank == value.rank for x in moved):
            return transpose(Concat(order[value.op.axis])(*moved), *order)
    return None


def _permuted(sizes: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """Per-axis numbers of a transposed tensor, as those of the tensor before."""
    return tuple(sizes[i] for i in inverse(order))


# How an operator reads on y where it was written for y transposed.
ALONG_AXES: dict[type[Op], Callable[..., Op]] = {
    Reduce: lambda op, order: Reduce(op.kind, tuple(sorted(order[a] for a in op.axes))),
    ArgReduce: lambda op, order: ArgReduce(op.kind, order[op.axis], op.last),
    Cumulative: lambda op, order: Cumulative(op.kind, order[op.axis], op.exclusive, op.reverse),
    Softmax: lambda op, order: Softmax(order[op.axis]),
    LogSoftmax: lambda op, order: LogSoftmax(order[op.axis]),
    Reverse: lambda op, order: Reverse(tuple(sorted(order[a] for a in op.axes))),
    Slice: lambda op, order: Slice(
        _permuted(op.starts, order), _permuted(op.sizes, order), _permuted(op.steps, order)
    ),
    Pad: lambda op, order: Pad(_permuted(op.before, order), _permuted(op.after, order), op.mode),
}


@rule_for(*ALONG_AXES)
def through_axes(value: Value) -> Value | None:
    """Operators that name axes name those of the tensor before."""
    x, *others = value.inputs
    before = transposed(x) if x is not None else None
    if before is None:
        return None
    y, order = before
    op = ALONG_AXES[type(value.op)](value.op, order)
    return transpose(op(y, *others), *order)


@rule_for(Gather)
def through_gather(value: Value) -> Value | None:
    """The axes of the indices stand where the gathered axis stood."""
    x, indices = value.inputs
    assert x is not None
    assert indices is not None
    before = transposed(x)
    if before is None:
        return None
    y, order = before
    assert isinstance(value.op, Gather)
    axis, new = value.op.axis % x.rank, indices.rank
    gathered = order[axis]
    moved = [a if a < gathered else a + new - 1 for a in order]
    moved[axis : axis + 1] = range(gathered, gathered + new)
    return transpose(Gather(gathered)(y, indices), *moved)


@rule_for(LayerNorm, RMSNorm)
def through_norm(value: Value) -> Value | None:
    """The normalised axes are the last ones, before and after."""
    x, *others = value.inputs
    before = transposed(x) if x is not None else None
    assert isinstance(value.op, LayerNorm | RMSNorm)
    kept = tuple(range(value.rank - value.op.axes, value.rank))
    if before is None or before[1][-len(kept) :] != kept or not scales_rows_alike(value):
        return None
    y, order = before
    return transpose(value.op(y, *others), *order)


@rule_for(MatMul)
def through_product(value: Value) -> Value | None:
    """The rows of a left operand may stand in any order where the right one is a single matrix."""
    a, b = value.inputs
    assert a is not None
    assert b is not None
    before = transposed(a)
    if before is None or b.rank != 2 or before[1][-1] != a.rank - 1:
        return None
    y, order = before
    return transpose(value.op(y, b), *order)


@rule_for(MatMul)
def into_weight(value: Value) -> Value | None:
    """A product of merged axes takes them as they stand: the weight's rows change places."""
    a, b = value.inputs
    assert a is not None
    assert b is not None
    if b.rank != 2 or not b.is_static or not isinstance(a.op, Reshape):
        return None
    before = transposed(only(a))
    if before is None:
        return None
    y, order = before
    merged = _merged_last(only(a).shape, a.shape[-1])
    if merged is None:
        return None
    first = len(order) - merged
    rows = sorted(range(first, len(order)), key=lambda i: order[i])
    if rows == list(range(first, len(order))):
        return None
    sizes = only(a).shape[first:]
    weight = reshape(b, *sizes, b.shape[1])
    weight = transpose(weight, *(i - first for i in rows), merged)
    left = transpose(y, *order[:first], *(order[i] for i in rows))
    return value.op(reshape(left, *a.shape), reshape(weight, *b.shape))


def _merged_last(shape: tuple[Size, ...], size: Size) -> int | None:
    """How many last axes of the shape make up one of the given size."""
    total: Size = 1
    for count, axis in enumerate(reversed(shape), 1):
        total = axis * total
        if total == size:
            return count
    return None


@rule_for(Broadcast)
def through_broadcast(value: Value) -> Value | None:
    before = transposed(only(value))
    if before is None:
        return None
    y, order = before
    new = value.rank - y.rank
    wide = (*range(new), *(i + new for i in order))
    return transpose(broadcast_to(y, *_permuted(value.shape, wide)), *wide)


@rule_for(Reshape)
def through_reshape(value: Value) -> Value | None:
    """A reshape that splits axes, or merges ones that are neighbours before the transpose too."""
    before = transposed(only(value))
    if before is None:
        return None
    y, order = before
    after = carried(only(value).shape, value.shape, order)
    if after is None:
        return None
    return transpose(reshape(y, *_permuted(value.shape, after)), *after)


@rule_for(Reshape)
def through_merge(value: Value) -> Value | None:
    """A reshape that merges distant axes: they are brought together where the largest stands."""
    before = transposed(only(value))
    if before is None or carried(only(value).shape, value.shape, before[1]) is not None:
        return None
    y, order = before
    parts = gathered_groups(only(value).shape, value.shape, order)
    if parts is None or parts[1] == tuple(range(value.rank)):
        return None
    together, after = parts
    return transpose(reshape(transpose(y, *together), *_permuted(value.shape, after)), *after)


@rule_for(Transpose)
def interleaved(value: Value) -> Value | None:
    """Parts that are joined, split apart again and transposed are joined along another axis."""
    split = only(value)
    if not isinstance(split.op, Reshape) or not isinstance(only(split).op, Concat):
        return None
    joined = only(split)
    assert isinstance(joined.op, Concat)
    axis, parts = joined.op.axis, [i for i in joined.inputs if i is not None]
    run = next((r for r in groups(joined.shape, split.shape) or [] if r[0] == [axis]), ([], []))
    if len(run[1]) < 2 or split.shape[run[1][0]] != len(parts) or len({p.shape for p in parts}) > 1:
        return None
    assert isinstance(value.op, Transpose)
    order, place = value.op.order, run[1][0]
    one = tuple(1 if i == place else size for i, size in enumerate(split.shape))
    if not moves_only_ones(one, order):
        return None
    pieces = (reshape(p, *(one[i] for i in order)) for p in parts)
    return Concat(order.index(place))(*pieces)


@rule_for(Transpose)
def transposed_parts(value: Value) -> Value | None:
    """A transpose that moves only axes along which each joined part has size 1."""
    joined, order = only(value), value.op.order  # type: ignore[attr-defined]
    if not isinstance(joined.op, Concat):
        return None
    parts = [i for i in joined.inputs if i is not None]
    if not all(moves_only_ones(p.shape, order) for p in parts):
        return None
    pieces = (reshape(p, *(p.shape[i] for i in order)) for p in parts)
    return Concat(order.index(joined.op.axis))(*pieces)


@rule_for(Transpose)
def back_through_reshape(value: Value) -> Value | None:
    """Two transposes around a reshape that merges axes become one before it."""
    merged = only(value)
    if not isinstance(merged.op, Reshape) or not isinstance(only(merged).op, Transpose):
        return None
    assert isinstance(value.op, Transpose)
    before = carried(merged.shape, only(merged).shape, inverse(value.op.order))
    if before is None:
        return None
    return reshape(transpose(only(merged), *inverse(before)), *value.shape)


SINK: Rules = [
    through_elementwise,
    through_concat,
    through_axes,
    through_gather,
    through_norm,
    through_product,
    into_weight,
    through_broadcast,
    through_reshape,
]

SETTLE: Rules = [
    transpose_is_reshape,
    interleaved,
    transposed_parts,
    back_through_reshape,
]
