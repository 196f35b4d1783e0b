"""Scales, shifts and padding around convolutions and matrix products become part of them.

Batch normalisation reads as x * factor + offset over weights. Everything here is an expression
over weights that stays in the graph: the engine computes it when it loads, so that weights can be
exchanged.
"""

from __future__ import annotations

from dataclasses import replace

from whet.ir.graph import Graph, Pattern, Value, constant
from whet.ir.rewrite import Built, number, once, rewrite, rule, static, such
from whet.ir.sizes import Size
from whet.ir.types import FLOATS
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Add, Neg
from whet.ops.movement import Pad, Reshape, Slice, Transpose, broadcast_to, reshape, transpose
from whet.ops.reduce import Reduce, narrowed, widened
from whet.ops.window import Pool
from whet.passes.axes import groups, inverse
from whet.passes.movement import only


def fold_weights(graph: Graph) -> Graph:
    """Affine operators behind a contraction, scales and zero padding before it, go into it."""
    return rewrite(graph, RULES)


def is_contraction(value: Value) -> bool:
    """Whether it multiplies by weights, in floating point."""
    op = value.op
    if not isinstance(op, Convolution | MatMul) or op.accumulate is not None:
        return False
    return value.dtype in FLOATS and value.inputs[1] is not None and value.inputs[1].is_static


def contraction(hole: Pattern) -> Pattern:
    """Matches a product with weights that nothing else reads."""
    return once(such(hole, is_contraction))


def _operands(y: Value) -> tuple[Value, Value]:
    x, w = y.inputs
    assert x is not None
    assert w is not None
    return x, w


def per_channel(f: Value, y: Value) -> Value | None:
    """f as a vector where it varies along the last axis of y alone, else None."""
    if f.rank > y.rank or any(size != 1 for size in f.shape[:-1]):
        return None
    if not f.rank:
        return reshape(f, 1)
    return reshape(f, f.shape[-1]) if f.shape[-1] in (1, y.shape[-1]) else None


def multiplied(w: Value, f: Value) -> Value:
    """w * f, rounded once, in w's dtype."""
    return narrowed(widened(w) * widened(f), w)


MOVES = (Reshape, Transpose, Slice)


def is_moved_contraction(value: Value) -> bool:
    """Whether it is a product with weights, perhaps plus a bias, in another shape or order."""
    if not isinstance(value.op, MOVES):
        return False
    while isinstance(value.op, MOVES):
        value = only(value)
    if isinstance(value.op, Add):
        x, b = value.inputs
        return x is not None and b is not None and b.is_static and is_contraction(x)
    return is_contraction(value)


def before_movement(f: Value, moved: Value) -> Value | None:
    """What broadcasts to the input of a movement as f does to its result, or None."""
    if f.rank > moved.rank:
        return None
    x = only(moved)
    wide = reshape(f, *(1,) * (moved.rank - f.rank), *f.shape)
    if isinstance(moved.op, Slice):
        whole = zip(wide.shape, x.shape, moved.shape, moved.op.steps)
        return wide if all(f == 1 or (a == b and step == 1) for f, a, b, step in whole) else None
    if isinstance(moved.op, Transpose):
        return transpose(wide, *inverse(moved.op.order))
    runs = groups(x.shape, moved.shape)
    if runs is None:
        return None
    stretched: list[Size] = [1] * moved.rank
    narrow: list[Size] = [1] * x.rank
    for inputs, outputs in runs:
        if any(wide.shape[i] != 1 for i in outputs):
            for i in outputs:
                stretched[i] = moved.shape[i]
            for i in inputs:
                narrow[i] = x.shape[i]
    return reshape(broadcast_to(wide, *stretched), *narrow)


@rule(
    lambda m, f: once(such(m, is_moved_contraction)) * static(f),
    lambda m, f: once(such(m, is_moved_contraction)) + static(f),
)
def affine_before_movement(m: Value, f: Value, root: Value) -> Built:
    """Behind a transposed convolution, movement stands between the product and its bias."""
    if m.shape != root.shape:
        return "the operand stretches the result"
    moved = before_movement(f, m)
    if moved is None or per_channel_of(moved, only(m)) is None:
        return "the operand varies along other axes than the channels"
    return m.op(root.op(only(m), moved))


def per_channel_of(f: Value, x: Value) -> Value | None:
    """f as it stands before all movement, where it varies along the channels alone; else None."""
    while isinstance(x.op, MOVES):
        below = before_movement(f, x)
        if below is None:
            return None
        f, x = below, only(x)
    return per_channel(f, x)


@rule(lambda y, f: contraction(y) * static(f))
def scale_after(y: Value, f: Value) -> Built:
    x, w = _operands(y)
    scale = per_channel(f, y)
    if scale is None:
        return "the factor varies along other axes than the channels"
    if isinstance(y.op, MatMul):
        return y.op(x, multiplied(w, scale))
    return y.op(x, multiplied(w, reshape(scale, *scale.shape, *(1,) * (w.rank - 1))))


@rule(lambda y, f: contraction(y) / static(f))
def divide_after(y: Value, f: Value) -> Built:
    """A division of weights by weights: once, when the engine loads."""
    return scale_after.build(y, 1 / widened(f))


@rule(lambda y, c: contraction(y) * number(c))
def number_after(y: Value, c: float) -> Built:
    return scale_after.build(y, constant(c, widened(y).dtype))


@rule(lambda y, b, f: once(contraction(y) + static(b)) * static(f))
def scale_after_shift(y: Value, b: Value, f: Value) -> Value | None:
    return y * f + multiplied(b, f) if per_channel(f, y) is not None else None


@rule(lambda y, b, f: once(contraction(y) + static(b)) / static(f))
def divide_after_shift(y: Value, b: Value, f: Value) -> Value | None:
    return y / f + b / f if per_channel(f, y) is not None else None


@rule(lambda y, b: contraction(y) - static(b))
def minus_shift(y: Value, b: Value) -> Value:
    return y + Neg()(b)


@rule(lambda y, a, b: once(contraction(y) + static(a)) - static(b))
def shift_minus_shift(y: Value, a: Value, b: Value) -> Value:
    return y + (a - b)


@rule(lambda y, a, b: once(contraction(y) + static(a)) + static(b))
def shift_twice(y: Value, a: Value, b: Value) -> Value:
    return y + (a + b)


@rule(
    lambda x, f, w, s, d, b, a, g: Convolution(s, d, b, a, g, None)(once(x * static(f)), static(w))
)
def scale_before(x: Value, f: Value, w: Value, g: int, root: Value) -> Built:
    """Channels times a factor: zero padding stays zero. Groups see each their own channels."""
    if x.shape != root.inputs[0].shape:  # type: ignore[union-attr]
        return "the factor stretches the input"
    scale = per_channel(f, x)
    if scale is None:
        return "the factor varies along other axes than the channels"
    return root.op(x, _scaled_inputs(w, broadcast_to(scale, x.shape[-1]), g))


@rule(
    lambda x, c, w, s, d, b, a, g: Convolution(s, d, b, a, g, None)(once(x * number(c)), static(w))
)
def number_before(x: Value, c: float, w: Value, root: Value) -> Built:
    if x.shape != root.inputs[0].shape:  # type: ignore[union-attr]
        return "the factor stretches the input"
    return root.op(x, multiplied(w, constant(c, widened(w).dtype)))


def _scaled_inputs(w: Value, scale: Value, groups: int) -> Value:
    """w[O, *K, C/groups] with input channel c times scale[c]."""
    if groups == 1:
        return multiplied(w, scale)
    out, *kernel, channels = w.shape
    grouped = reshape(w, groups, out // groups, *kernel, channels)
    factor = reshape(scale, groups, 1, *(1,) * len(kernel), channels)
    return reshape(multiplied(grouped, factor), *w.shape)


@rule(lambda x, t, w, s, d, b, a: Convolution(s, d, b, a, 1, None)(once(x + static(t)), static(w)))
def shift_before(
    x: Value, t: Value, w: Value, b: tuple[Size, ...], a: tuple[Size, ...], root: Value
) -> Built:
    """Channels plus an offset: a bias, unless padding puts zeros beside the shifted elements."""
    if any(size != 0 for size in (*b, *a)):
        return "the convolution pads with zeros"
    if x.shape != root.inputs[0].shape:  # type: ignore[union-attr]
        return "the offset stretches the input"
    if is_contraction(x):
        return "the offset is the bias of another contraction"
    shift = per_channel(t, x)
    if shift is None:
        return "the offset varies along other axes than the channels"
    axes = tuple(range(1, w.rank))
    bias = Reduce("sum", axes)(widened(w) * widened(shift))
    return root.op(x, w) + narrowed(reshape(bias, w.shape[0]), w)


@rule(
    lambda x, v, p, q, w, s, d, b, a, g, c: Convolution(s, d, b, a, g, c)(
        Pad(p, q, "constant")(x, number(v)), w
    )
)
def pad_into_convolution(
    x: Value, w: Value, v: float, p: tuple[Size, ...], q: tuple[Size, ...], root: Value
) -> Built:
    if v != 0 or any(size != 0 for size in (p[0], p[-1], q[0], q[-1])):
        return "it pads with other than zeros, or other axes than the spatial ones"
    op = root.op
    assert isinstance(op, Convolution)
    before = tuple(i + j for i, j in zip(op.before, p[1:-1]))
    after = tuple(i + j for i, j in zip(op.after, q[1:-1]))
    return replace(op, before=before, after=after)(x, w)


@rule(
    lambda x, v, p, q, kind, k, s, d, b, o: Pool(kind, k, s, d, b, o)(
        Pad(p, q, "constant")(x, number(v))
    )
)
def pad_into_pool(
    x: Value, v: float, p: tuple[Size, ...], q: tuple[Size, ...], kind: str, root: Value
) -> Built:
    """What lies outside takes no part in a pool, like zeros in a sum and -inf in a maximum."""
    nothing = {"sum": 0.0, "max": float("-inf")}.get(kind)
    if v != nothing or any(size != 0 for size in (p[0], p[-1], q[0], q[-1])):
        return "it pads with elements that count, or other axes than the spatial ones"
    assert isinstance(root.op, Pool)
    before = tuple(i + j for i, j in zip(root.op.before, p[1:-1]))
    return replace(root.op, before=before)(x)


RULES = [
    affine_before_movement,
    scale_after,
    divide_after,
    number_after,
    scale_after_shift,
    divide_after_shift,
    minus_shift,
    shift_minus_shift,
    shift_twice,
    scale_before,
    number_before,
    shift_before,
    pad_into_convolution,
    pad_into_pool,
]
