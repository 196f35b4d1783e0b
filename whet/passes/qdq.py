"""Quantised arithmetic where an integer kernel can do it.

A product of dequantised tensors is the product of their integers times both scales, and a zero
point is a correction by the sum of the weights: what remains is a convolution or matrix product of
8-bit integers into int32. Quantise and dequantise move so that movement happens on 8 bits. Results
differ from the model as written by rounding alone, as in ONNX Runtime; no precision is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.ir.graph import Constant, Graph, Value, Weight, constant
from whet.ir.match import Matcher, ReadNumber
from whet.ir.rewrite import Built, Rules, once, rewrite, rule, rule_for, static, such
from whet.ops.bits import BitCast
from whet.ops.cast import Cast
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Add, BitwiseXor, Clip, Mul, Relu, Sub
from whet.ops.movement import (
    Broadcast,
    Concat,
    Gather,
    Pad,
    Reshape,
    Reverse,
    Slice,
    Transpose,
    reshape,
    transpose,
)
from whet.ops.quantize import EIGHT_BITS, Dequantize, Quantize, is_one, sums
from whet.ops.window import Pool
from whet.passes.movement import only
from whet.passes.recognise import known_numbers


def quantized_arithmetic(graph: Graph) -> Graph:
    """Contractions of 8-bit integers into int32, and movement on 8 bits."""
    numbers = known_numbers()
    return rewrite(graph, RULES, numbers.look, numbers.frozen.update)


@dataclass(frozen=True)
class Shifted:
    """The integers q less a zero point."""

    q: Value
    zero: Value | None

    def zero_is_known(self, read: ReadNumber) -> bool:
        """Whether the zero point is 0 for every element."""
        if self.zero is None:
            return True
        elements = elements_of(self.zero, read)
        return elements is not None and not elements.any()

    def zero_has_8_bits(self, read: ReadNumber) -> bool:
        """Whether q less the zero point is known to have 16 bits at most."""
        if self.zero is None or self.zero.dtype in EIGHT_BITS:
            return True
        elements = elements_of(self.zero, read)
        return elements is not None and bool(((elements >= -128) & (elements <= 255)).all())

    @property
    def has_zero_per_column(self) -> bool:
        """Whether the zero point varies along the last axis at most."""
        return self.zero is None or all(size == 1 for size in self.zero.shape[:-1])

    @property
    def has_zero_per_row(self) -> bool:
        """Whether the zero point does not vary along the last axis."""
        return self.zero is None or not self.zero.rank or self.zero.shape[-1] == 1

    @property
    def has_one_zero(self) -> bool:
        return self.zero is None or all(size == 1 for size in self.zero.shape)


def elements_of(value: Value, read: ReadNumber) -> np.ndarray | None:
    """The elements of a zero point, which decides what kernel can be used; None if unknown."""
    match value.op:
        case Constant(data=data):
            return data
        case Weight(name=name):
            known = read(name)
            return None if known is None else np.asarray(known)
        case Cast() | Reshape() | Transpose() | Broadcast():
            return None if value.inputs[0] is None else elements_of(value.inputs[0], read)
    return None


def shifted(x: Value) -> Shifted | None:
    """What an importer writes for integers less their zero point, in int32."""
    shape, zero = x.shape, None
    if isinstance(x.op, Transpose | Reshape):
        inner = shifted(only(x))
        if inner is None or not inner.has_one_zero:
            return None
        return Shifted(x.op(inner.q), _scalar(inner.zero))
    if isinstance(x.op, Sub):
        x, zero = x.inputs  # type: ignore[assignment]
        if zero is not None and isinstance(zero.op, Cast):
            (zero,) = zero.inputs
    if not isinstance(x.op, Cast) or x.dtype != "int32":
        return None
    (q,) = x.inputs
    if q is None or q.dtype not in EIGHT_BITS or q.shape != shape:
        return None
    return Shifted(q, zero)


def contracted(op: Convolution | MatMul, x: Shifted, w: Shifted, read: ReadNumber) -> Built:
    """The sum of products of x and w in int32, by a contraction of 8-bit integers."""
    fits = x.has_one_zero if isinstance(op, Convolution) else x.has_zero_per_row
    if not fits and not x.zero_is_known(read):
        return "the input has a zero point for each channel"
    weight, is_shifted = w.q, w.zero is not None and not w.zero_is_known(read)
    if isinstance(op, MatMul) and (is_shifted or w.q.dtype == "uint8") and w.has_zero_per_column:
        return _with_row_sums(op, x, w, read)
    if w.zero is not None and is_shifted:
        if not w.zero_has_8_bits(read):
            return "the weight's zero point may be no 8-bit integer"
        weight = Cast("int16")(w.q) - Cast("int16")(w.zero)
    if x.zero_is_known(read) or x.zero is None:
        return replace(op, accumulate="int32")(x.q, weight)
    given, plain = _padded(op, x.q, x.zero, read)
    total = replace(plain, accumulate="int32")(given, weight)
    return total - Cast("int32")(x.zero) * sums(op, weight)


def _with_row_sums(op: MatMul, x: Shifted, w: Shifted, read: ReadNumber) -> Value:
    """A product with weights less their zero points, by signed weights and the sum of each row of
    x; 128 less than unsigned weights are signed ones."""
    weight, zero = w.q, constant(0, "int32") if w.zero is None else Cast("int32")(w.zero)
    if weight.dtype == "uint8":
        flipped = BitwiseXor()(weight, constant(128, "uint8"))
        weight, zero = BitCast("int8")(flipped), zero - 128
    total = replace(op, accumulate="int32")(x.q, weight)
    depth = weight.shape[-2]
    # A product with ones: a reduction would be computed anew where its sums are used.
    rows = total.op(x.q, constant(np.ones((depth, 1), np.int8)))
    if x.zero is not None and not x.zero_is_known(read):
        shift = Cast("int32")(x.zero)
        total = total - shift * sums(op, weight)
        rows = rows - shift * constant(depth, "int32")
    return total - rows * zero


def _padded(
    op: Convolution | MatMul, q: Value, zero: Value, read: ReadNumber
) -> tuple[Value, Convolution | MatMul]:
    """The input padded by its zero point, which stands for 0, and the operator without padding."""
    if isinstance(op, MatMul) or all(size == 0 for size in (*op.before, *op.after)):
        return q, op
    known = elements_of(zero, read)
    fill = reshape(zero if zero.dtype == q.dtype else Cast(q.dtype)(zero))
    if known is not None:
        fill = constant(known.reshape(-1)[0], q.dtype)
    padded = Pad((0, *op.before, 0), (0, *op.after, 0))(q, fill)
    none = (0,) * len(op.strides)
    return padded, replace(op, before=none, after=none)


INTEGER_CONTRACTIONS = (
    lambda x, w, s, d, b, a, g: Convolution(s, d, b, a, g, None)(x, static(w)),
    lambda x, w: MatMul(None)(x, static(w)),
)


@rule(*INTEGER_CONTRACTIONS)
def integers(x: Value, w: Value, root: Value, matcher: Matcher) -> Built:
    """Integers less their zero points, multiplied in int32: as they are, with a correction."""
    a, b = shifted(x), shifted(w)
    if a is None or b is None:
        return "it does not multiply 8-bit integers"
    return contracted(root.op, a, b, matcher.look)  # type: ignore[arg-type]


@rule(*INTEGER_CONTRACTIONS)
def dequantized(x: Value, w: Value, root: Value, matcher: Matcher) -> Built:
    """Dequantised tensors multiplied: their integers, and both scales behind."""
    w = dequantized_last(w)
    if not isinstance(x.op, Dequantize) or not isinstance(w.op, Dequantize):
        return "it does not multiply dequantised tensors"
    (q, scale, zero), (k, weight_scale, weight_zero) = _parts(x), _parts(w)
    if q.dtype not in EIGHT_BITS or k.dtype not in EIGHT_BITS or root.dtype != "float32":
        return "they are no 8-bit integers, or the result is no float32"
    if any(size != 1 for size in scale.shape):
        return "the input has a scale for each channel"
    factor = _per_output(root.op, weight_scale, w)
    if factor is None:
        return "the weight's scale varies along axes that are summed"
    total = contracted(root.op, Shifted(q, zero), Shifted(k, weight_zero), matcher.look)  # type: ignore[arg-type]
    if not isinstance(total, Value):
        return total
    return Cast("float32")(total) * (reshape(scale) * factor)


def dequantized_last(w: Value) -> Value:
    """A weight that is moved after it is dequantised, the other way round where possible."""
    if not isinstance(w.op, Transpose | Reshape):
        return w
    x = dequantized_last(only(w))
    if not isinstance(x.op, Dequantize):
        return w
    q, *parameters = x.inputs
    moved = [p and _moved(p, w, x) for p in parameters]
    if any(new is None and old is not None for new, old in zip(moved, parameters)):
        return w
    return x.op(w.op(q), *moved)


def _moved(parameter: Value, w: Value, x: Value) -> Value | None:
    """A scale or zero point that belongs to w as `parameter` does to x, which w is moved from."""
    if all(size == 1 for size in parameter.shape):
        return reshape(parameter)
    wide = reshape(parameter, *(1,) * (x.rank - parameter.rank), *parameter.shape)
    if isinstance(w.op, Transpose):
        return transpose(wide, *w.op.order)
    rows = wide.shape[0]
    keeps_rows = w.rank > 0 and w.shape[0] == rows and all(size == 1 for size in wide.shape[1:])
    return reshape(parameter, rows, *(1,) * (w.rank - 1)) if keeps_rows else None


def _parts(x: Value) -> tuple[Value, Value, Value | None]:
    q, scale, *zero = x.inputs
    assert q is not None
    assert scale is not None
    return q, scale, zero[0] if zero else None


def _per_output(op: Any, scale: Value, w: Value) -> Value | None:
    """The weight's scale as one number, or one for each output channel."""
    if all(size == 1 for size in scale.shape):
        return reshape(scale)
    wide = (1,) * (w.rank - scale.rank) + scale.shape
    axis = 0 if isinstance(op, Convolution) else w.rank - 1
    others = (size for i, size in enumerate(wide) if i != axis)
    return reshape(scale, wide[axis]) if all(size == 1 for size in others) else None


@rule(lambda q, s, z, to, f: Quantize(to, f)(Dequantize("float32")(q, s, z), s, z))
def there_and_back(q: Value, to: str) -> Value | None:
    """Exact: the error of (q - z) * s / s is far below the half that would round to another q."""
    return q if q.dtype == to and to in EIGHT_BITS else None


@rule(
    lambda x, s, to, f: Quantize(to, f)(once(x), static(s)),
    lambda x, s, z, to, f: Quantize(to, f)(once(x), static(s), z),
)
def scaled_once(x: Value, s: Value, root: Value) -> Value | None:
    """Sums of integers times their scale, over the result's scale: one product with the quotient of
    both, as in QLinearConv."""
    if any(size != 1 for size in s.shape) or s.dtype != "float32" or is_one(s):
        return None
    y = divided(x, reshape(s))
    one = constant(1, s.dtype)
    return None if y is None else root.op(y, one, *(p for p in root.inputs[2:] if p is not None))


def divided(x: Value, s: Value) -> Value | None:
    """x / s without a division of each element, where x is scaled anyway; s is positive."""
    if not isinstance(x.op, Mul | Add | Relu | Clip):
        return None
    inputs = [i for i in x.inputs if i is not None]
    a = next((i for i in inputs if not i.is_static), None)
    others = [i for i in inputs if i is not a]
    if a is None or not all(o.is_static for o in others):
        return None
    if isinstance(x.op, Mul):
        is_sum = isinstance(a.op, Cast) and only(a).dtype == "int32"
        return a * (others[0] / s) if is_sum and others else None
    y = divided(a, s)
    return None if y is None else x.op(*(y if i is a else i / s for i in inputs))


@rule(lambda x, a, b: (x - static(a)) + static(b))
def one_constant(x: Value, a: Value, b: Value) -> Value | None:
    """Exact among integers."""
    return x + (b - a) if x.dtype == "int32" else None


MOVES = (Reshape, Transpose, Slice, Reverse, Broadcast, Gather)


def _has_one_scale(x: Value) -> bool:
    """Whether it is dequantised with one scale and zero point, which add no axes."""
    if not isinstance(x.op, Dequantize) or x.inputs[0] is None or x.inputs[0].shape != x.shape:
        return False
    parameters = (p for p in x.inputs[1:] if p is not None)
    return x.inputs[0].dtype in EIGHT_BITS and all(s == 1 for p in parameters for s in p.shape)


@rule_for(*MOVES)
def dequantize_after(value: Value) -> Value | None:
    """Movement on 8 bits, then dequantised."""
    x, *others = value.inputs
    if value.is_static or x is None or not _has_one_scale(x):
        return None
    return x.op(value.op(x.inputs[0], *others), *map(_scalar, x.inputs[1:]))


def _scalar(parameter: Value | None) -> Value | None:
    return None if parameter is None else reshape(parameter)


@rule_for(Concat)
def dequantize_after_concat(value: Value) -> Value | None:
    parts = [i for i in value.inputs if i is not None]
    first = parts[0]
    if value.is_static or not all(_has_one_scale(p) for p in parts):
        return None
    if any(p.op != first.op or p.inputs[1:] != first.inputs[1:] for p in parts):
        return None
    if len({p.inputs[0].dtype for p in parts if p.inputs[0] is not None}) > 1:
        return None
    joined = value.op(*(p.inputs[0] for p in parts))
    return first.op(joined, *map(_scalar, first.inputs[1:]))


@rule_for(Pool)
def dequantize_after_pool(value: Value) -> Value | None:
    """The greatest element is the same before and after, since scales are positive."""
    (x,) = value.inputs
    assert isinstance(value.op, Pool)
    if x is None or value.op.kind != "max" or not _has_one_scale(x) or not _sees_an_element(value):
        return None
    return x.op(value.op(x.inputs[0]), *map(_scalar, x.inputs[1:]))


def _sees_an_element(value: Value) -> bool:
    """Whether no window lies outside the input: what stands there has no 8-bit form."""
    op = value.op
    assert isinstance(op, Pool)
    assert value.inputs[0] is not None
    sizes = value.inputs[0].shape[1:-1]
    for size, k, s, d, before, out in zip(
        sizes, op.kernel, op.strides, op.dilations, op.before, op.shape
    ):
        if not all(isinstance(n, int) for n in (size, before, out)):
            return False
        starts = np.arange(out)[:, None] * s - before + np.arange(k) * d
        if not ((starts >= 0) & (starts < size)).any(1).all():
            return False
    return True


def _is_movement(value: Value) -> bool:
    return isinstance(value.op, Reshape | Transpose | Concat)


@rule(
    lambda m, s, to, f: Quantize(to, f)(once(such(m, _is_movement)), s),
    lambda m, s, z, to, f: Quantize(to, f)(once(such(m, _is_movement)), s, z),
)
def quantize_before(m: Value, root: Value) -> Value | None:
    """Quantised first, then moved on 8 bits."""
    parameters = root.inputs[1:]
    if any(size != 1 for p in parameters if p is not None for size in p.shape):
        return None
    scalars = [_scalar(p) for p in parameters]
    return m.op(*(root.op(i, *scalars) for i in m.inputs))


RULES: Rules = [
    integers,
    dequantized,
    there_and_back,
    scaled_once,
    one_constant,
    dequantize_after,
    dequantize_after_concat,
    dequantize_after_pool,
    quantize_before,
]
