"""Movement that does nothing, repeats or undoes itself: reshapes, transposes, slices, joins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.ir.graph import Constant, Value
from whet.ir.rewrite import Rules, number, rule, rule_for
from whet.ir.sizes import Size, floor_divide, is_less, modulo, product
from whet.ops.cast import Cast
from whet.ops.contract import MatMul
from whet.ops.elementwise import Elementwise, Pow, Where
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
    slice_axis,
    transpose,
)
from whet.ops.quantize import Dequantize, Quantize
from whet.ops.reduce import LayerNorm, RMSNorm, Softmax
from whet.passes.axes import groups

BROADCASTING = (Elementwise, Where, Pow, Cast, Quantize, Dequantize)
"""Operators whose every element depends on the same element of the inputs, which broadcast."""


def only(value: Value) -> Value:
    """The one input of an operator that has one."""
    (x,) = value.inputs
    assert x is not None
    return x


@rule_for(Reshape, Broadcast)
def same_shape(value: Value) -> Value | None:
    x = only(value)
    return x if x.shape == value.shape else None


@rule(lambda x, s, t: Reshape(s)(Reshape(t)(x)))
def reshape_of_reshape(x: Value, s: tuple[Size, ...]) -> Value:
    return reshape(x, *s)


@rule(lambda x, s, t: Broadcast(s)(Broadcast(t)(x)))
def broadcast_of_broadcast(x: Value, s: tuple[Size, ...]) -> Value:
    return broadcast_to(x, *s)


@rule(lambda x, p, q: Transpose(p)(Transpose(q)(x)))
def transpose_of_transpose(x: Value, p: tuple[int, ...], q: tuple[int, ...]) -> Value:
    return transpose(x, *(q[i] for i in p))


@rule_for(Transpose)
def transpose_is_reshape(value: Value) -> Value | None:
    """Where only axes of size 1 change places, the elements stay in order."""
    x = only(value)
    kept = [axis for axis in value.op.order if x.shape[axis] != 1]  # type: ignore[attr-defined]
    return reshape(x, *value.shape) if kept == sorted(kept) else None


@rule_for(*BROADCASTING)
def broadcast_after(value: Value) -> Value | None:
    """An operator that broadcasts by itself is applied before a broadcast, to fewer elements."""
    inputs = tuple(
        only(i) if i is not None and isinstance(i.op, Broadcast) else i for i in value.inputs
    )
    if all(a is b for a, b in zip(inputs, value.inputs)):
        return None
    shapes = [i.shape for i in inputs if i is not None]
    return broadcast_to(value.op(*inputs), *value.shape) if _fit(shapes, value.shape) else None


def _fit(shapes: Sequence[tuple[Size, ...]], shape: tuple[Size, ...]) -> bool:
    """Whether every size is provably 1 or that of the axis it belongs to."""
    aligned = [(1,) * (len(shape) - len(s)) + s for s in shapes]
    return all(a in (1, b) for sizes in aligned for a, b in zip(sizes, shape))


@rule_for(Slice)
def slice_of_everything(value: Value) -> Value | None:
    x, op = only(value), value.op
    assert isinstance(op, Slice)
    nothing = op.sizes == x.shape and not any(op.starts) if _are_known(op.starts) else False
    return x if nothing and all(s == 1 or n == 1 for s, n in zip(op.steps, op.sizes)) else None


def _are_known(sizes: tuple[Size, ...]) -> bool:
    return all(isinstance(size, int) for size in sizes)


@rule(lambda x, a, b, c, d, e, f: Slice(a, b, c)(Slice(d, e, f)(x)))
def slice_of_slice(
    x: Value,
    a: tuple[Size, ...],
    b: tuple[Size, ...],
    c: tuple[int, ...],
    d: tuple[Size, ...],
    f: tuple[int, ...],
) -> Value:
    starts = tuple(first + start * step for first, start, step in zip(d, a, f))
    return Slice(starts, b, tuple(s * t for s, t in zip(c, f)))(x)


@rule_for(Slice)
def slice_of_concat(value: Value) -> Value | None:
    """A slice that lies within one of the joined parts is a slice of that part."""
    joined, op = only(value), value.op
    assert isinstance(op, Slice)
    if not isinstance(joined.op, Concat):
        return None
    axis = joined.op.axis
    first, step = op.starts[axis], op.steps[axis]
    last = first + (op.sizes[axis] - 1) * step
    low, high = (first, last) if step > 0 else (last, first)
    begin: Size = 0
    for part in joined.inputs:
        assert part is not None
        end = begin + part.shape[axis]
        if not is_less(low, begin) and is_less(begin - 1, low) and is_less(high, end):
            starts = tuple(s - begin if i == axis else s for i, s in enumerate(op.starts))
            return Slice(starts, op.sizes, op.steps)(part)
        begin = end
    return None


@rule_for(Slice)
def slice_of_split(value: Value) -> Value | None:
    """A slice of an axis that a reshape split off in front is one of the whole axis, reshaped."""
    split, op = only(value), value.op
    assert isinstance(op, Slice)
    cut = [i for i in range(value.rank) if op.sizes[i] != split.shape[i]]
    if not isinstance(split.op, Reshape) or len(cut) != 1 or any(s != 1 for s in op.steps):
        return None
    x, axis = only(split), cut[0]
    run = next((r for r in groups(x.shape, split.shape) or [] if axis in r[1]), ([], []))
    if len(run[0]) != 1 or run[1][0] != axis:
        return None
    inner = product(split.shape[i] for i in run[1][1:])
    part = slice_axis(x, run[0][0], op.starts[axis] * inner, op.sizes[axis] * inner)
    return reshape(part, *value.shape)


@rule_for(Slice)
def slice_of_merge(value: Value) -> Value | None:
    """A slice of merged axes that takes whole rows is one of the first of them, reshaped."""
    merged, op = only(value), value.op
    assert isinstance(op, Slice)
    cut = [i for i in range(value.rank) if op.sizes[i] != merged.shape[i]]
    if not isinstance(merged.op, Reshape) or len(cut) != 1 or any(s != 1 for s in op.steps):
        return None
    x, axis = only(merged), cut[0]
    run = next((r for r in groups(x.shape, merged.shape) or [] if r[1] == [axis]), ([], []))
    if len(run[0]) < 2:
        return None
    inner = product(x.shape[i] for i in run[0][1:])
    if modulo(op.starts[axis], inner) != 0 or modulo(op.sizes[axis], inner) != 0:
        return None
    start, size = floor_divide(op.starts[axis], inner), floor_divide(op.sizes[axis], inner)
    return reshape(slice_axis(x, run[0][0], start, size), *value.shape)


@rule_for(Reshape)
def reshape_and_back(value: Value) -> Value | None:
    """Rows that are merged, each treated alike, and split again as before need neither reshape."""
    chain, v = [], only(value)
    while not isinstance(v.op, Reshape):
        if not _treats_rows_alike(v):
            return None
        chain.append(v)
        v = _rows(v)
    x = only(v)
    lead = value.shape[:-1]
    if not chain or not lead or x.shape[: len(lead)] != lead or 0 in x.shape:
        return None
    if product(x.shape[len(lead) :]) != v.shape[-1]:
        return None
    x = reshape(x, *lead, v.shape[-1])
    for step in reversed(chain):
        op = Softmax(len(lead)) if isinstance(step.op, Softmax) else step.op
        x = op(*(x if i is _rows(step) else i for i in step.inputs))
    return x if x.shape == value.shape else None


def _rows(value: Value) -> Value:
    """The input that has the rows."""
    return next(i for i in value.inputs if i is not None and i.rank == value.rank)


def _treats_rows_alike(value: Value) -> bool:
    """Whether row i depends on row i of one input, and otherwise on vectors and matrices."""
    if value.rank < 2:
        return False
    if isinstance(value.op, MatMul):
        x, w = value.inputs
        return x is not None and w is not None and x.rank == value.rank and w.rank == 2
    if isinstance(value.op, LayerNorm | RMSNorm):
        return value.op.axes == 1 and scales_rows_alike(value)
    if isinstance(value.op, Softmax):
        return value.op.axis in (-1, value.rank - 1)
    if not isinstance(value.op, BROADCASTING):
        return False
    wide = [i for i in value.inputs if i is not None and i.rank > 1]
    return len(wide) == 1 and wide[0].shape == value.shape


def scales_rows_alike(norm: Value) -> bool:
    """Whether scale and bias of a norm vary along the normalised axes alone."""
    axes = norm.op.axes  # type: ignore[attr-defined]
    return all(p is None or p.rank <= axes for p in norm.inputs[1:])


@rule_for(Concat)
def concat_of_one(value: Value) -> Value | None:
    """Parts without elements are left out, and what joins one part is that part."""
    assert isinstance(value.op, Concat)
    axis = value.op.axis
    parts = tuple(i for i in value.inputs if i is not None and i.shape[axis] != 0)
    if len(parts) == 1:
        return parts[0]
    if not parts or len(parts) == len(value.inputs):
        return None
    return Concat(axis)(*parts)


@rule_for(Concat)
def concat_of_neighbours(value: Value) -> Value | None:
    """Slices of one Value that follow each other are joined to one slice."""
    assert isinstance(value.op, Concat)
    axis, parts = value.op.axis, list(value.inputs)
    for i in range(len(parts) - 1):
        joined = _join(parts[i], parts[i + 1], axis)
        if joined is not None:
            parts[i : i + 2] = [joined]
            return parts[0] if len(parts) == 1 else Concat(axis)(*parts)
    return None


def _join(a: Value | None, b: Value | None, axis: int) -> Value | None:
    if a is None or b is None or not (isinstance(a.op, Slice) and isinstance(b.op, Slice)):
        return None
    p, q = a.op, b.op
    if a.inputs != b.inputs or p.steps != q.steps:
        return None
    if any(
        i != axis and (p.starts[i], p.sizes[i]) != (q.starts[i], q.sizes[i]) for i in range(a.rank)
    ):
        return None
    if p.starts[axis] + p.sizes[axis] * p.steps[axis] != q.starts[axis]:
        return None
    sizes = tuple(s + q.sizes[i] if i == axis else s for i, s in enumerate(p.sizes))
    return Slice(p.starts, sizes, p.steps)(only(a))


@rule_for(Pad)
def pad_by_nothing(value: Value) -> Value | None:
    assert isinstance(value.op, Pad)
    return value.inputs[0] if all(s == 0 for s in (*value.op.before, *value.op.after)) else None


@rule(lambda x, v, a, b, c, d: Pad(a, b, "constant")(Pad(c, d, "constant")(x, v), v))
def pad_of_pad(
    x: Value,
    v: Value,
    a: tuple[Size, ...],
    b: tuple[Size, ...],
    c: tuple[Size, ...],
    d: tuple[Size, ...],
) -> Value:
    before = tuple(s + t for s, t in zip(a, c))
    return Pad(before, tuple(s + t for s, t in zip(b, d)))(x, v)


@rule(lambda x, a, b: Reverse(a)(Reverse(b)(x)))
def reverse_of_reverse(x: Value, a: tuple[int, ...], b: tuple[int, ...]) -> Value:
    axes = tuple(sorted(set(a) ^ set(b)))
    return Reverse(axes)(x) if axes else x


@rule(lambda x, i, axis: Gather(axis)(x, number(i)))
def gather_of_one(x: Value, i: int, axis: int, root: Value) -> Value | None:
    """At one known index it is a slice."""
    axis = axis % x.rank
    size = x.shape[axis]
    index = i if i >= 0 else size + i
    if not (is_less(-1, index) and is_less(index, size)):
        return None
    if product(root.shape) != floor_divide(product(x.shape), size):
        return None
    return reshape(slice_axis(x, axis, index, 1), *root.shape)


@rule_for(Gather)
def gather_in_a_row(value: Value) -> Value | None:
    """At known indices that rise by a constant step it is a slice."""
    x, indices = value.inputs
    assert x is not None
    assert indices is not None
    assert isinstance(value.op, Gather)
    axis = value.op.axis % x.rank
    size = x.shape[axis]
    if not isinstance(indices.op, Constant) or indices.rank != 1 or not isinstance(size, int):
        return None
    rows = np.where(indices.op.data < 0, indices.op.data + size, indices.op.data)
    steps = np.unique(np.diff(rows))
    if len(rows) < 2 or len(steps) != 1 or not steps[0] or rows.min() < 0 or rows.max() >= size:
        return None
    return slice_axis(x, axis, int(rows[0]), len(rows), int(steps[0]))


MOVEMENT: Rules = [
    same_shape,
    reshape_of_reshape,
    broadcast_of_broadcast,
    transpose_of_transpose,
    broadcast_after,
    slice_of_everything,
    slice_of_slice,
    slice_of_concat,
    slice_of_split,
    slice_of_merge,
    reshape_and_back,
    concat_of_one,
    concat_of_neighbours,
    pad_by_nothing,
    pad_of_pad,
    reverse_of_reverse,
    gather_of_one,
    gather_in_a_row,
]
