"""Identities and no-ops, exact for -0.0, NaN, infinities and every dtype, with one exception.

The exception: x + 0.0 becomes x, which keeps the sign of a negative zero that the sum would lose.
ONNX Runtime and TensorRT do the same. x * 0 stays, since it is NaN for NaN and infinity.
"""

from __future__ import annotations

import math

import numpy as np

from whet.ir.graph import Constant, Graph, Value, constant
from whet.ir.match import Matcher
from whet.ir.rewrite import Rules, number, rewrite, rule, rule_for
from whet.ir.types import FLOATS, INTEGERS, NUMPY_DTYPES, SIGNED
from whet.ops.cast import Cast
from whet.ops.elementwise import (
    And,
    Clip,
    Div,
    Equal,
    Max,
    Min,
    Mul,
    Neg,
    Not,
    Or,
    Pow,
    Relu,
    Where,
)
from whet.ops.movement import broadcast_to
from whet.ops.quantize import integer_range
from whet.ops.reduce import LogSoftmax, Reduce, Softmax
from whet.passes.movement import MOVEMENT


def simplify(graph: Graph) -> Graph:
    """Operators that do nothing, undo each other or repeat each other are removed."""
    return rewrite(graph, RULES)


@rule(lambda x: x + 0, lambda x: x - 0, lambda x: x * 1, lambda x: x / 1)
def neutral_element(x: Value) -> Value:
    return x


@rule(lambda x: x * -1)
def times_minus_one(x: Value) -> Value | None:
    return Neg()(x) if x.dtype in FLOATS | SIGNED else None


@rule(lambda x: Neg()(Neg()(x)), lambda x: Not()(Not()(x)))
def twice_undone(x: Value) -> Value:
    return x


@rule(lambda x: Relu()(Relu()(x)))
def relu_twice(x: Value) -> Value:
    return Relu()(x)


@rule(lambda x, y: x + Neg()(y))
def plus_negative(x: Value, y: Value) -> Value:
    return x - y


@rule(lambda x, y: x - Neg()(y))
def minus_negative(x: Value, y: Value) -> Value:
    return x + y


@rule(lambda x, n: Pow()(x, number(n)))
def small_power(x: Value, n: float) -> Value | None:
    if n == 1:
        return x
    if n == 2:
        return x * x
    return x * x * x if n == 3 else None


@rule(lambda x, c: x * number(c))
def divide_by_power_of_two(x: Value, c: float, root: Value) -> Value | None:
    """Exact as a product, as long as the reciprocal is a normal number."""
    if not isinstance(root.op, Div) or root.inputs[0] is not x or x.dtype not in MANTISSA:
        return None
    return x * c if _is_power_of_two(c) else None


def _is_power_of_two(c: float) -> bool:
    """Whether a product with it is exact for all but the largest and the smallest numbers."""
    return math.frexp(abs(c))[0] == 0.5 and 2**-14 <= abs(c) <= 2**14


@rule(lambda x, a, b: Max()(Max()(x, number(a)), number(b)))
def max_of_max(x: Value, a: float, b: float) -> Value:
    return Max()(x, _number(np.maximum(a, b), x))


@rule(lambda x, a, b: Min()(Min()(x, number(a)), number(b)))
def min_of_min(x: Value, a: float, b: float) -> Value:
    return Min()(x, _number(np.minimum(a, b), x))


@rule(lambda x, low, high: Clip()(Relu()(x), number(low), number(high)))
def clip_of_relu(x: Value, low: float, high: float) -> Value | None:
    if not (low <= high and high >= 0):
        return None
    return Clip()(x, _number(max(low, 0), x), _number(high, x))


@rule(lambda x, low, high: Clip()(x, number(low), number(high)))
def clip_to_everything(x: Value, low: float, high: float) -> Value | None:
    return x if low == -math.inf and high == math.inf else None


def _number(value: float | np.generic, x: Value) -> Value:
    return constant(value, x.dtype)


@rule_for(Cast)
def cast_to_same(value: Value) -> Value | None:
    (x,) = value.inputs
    return x if x is not None and x.dtype == value.dtype else None


@rule(lambda x, a, b, s, t: Cast(b, s)(Cast(a, t)(x)))
def cast_of_cast(x: Value, a: str, b: str, s: bool) -> Value | str:
    """The first cast is left out where it loses nothing and the second then means the same."""
    if not _is_exact(x.dtype, a):
        return f"{a} does not hold every {x.dtype}"
    if x.dtype in INTEGERS and a in FLOATS and b in INTEGERS and not _is_exact(x.dtype, b):
        return f"{x.dtype} to {b} wraps, from {a} it does not"
    return Cast(b, s)(x)


def _is_exact(a: str, b: str) -> bool:
    """Whether every value of dtype a is one of dtype b."""
    if a == b:
        return True
    if a == "bool":
        return b in INTEGERS or b in ("float16", "bfloat16", "float32", "float64")
    if a in INTEGERS and b in INTEGERS:
        return _bits(a) < _bits(b) and (a not in SIGNED or b in SIGNED)
    if a in INTEGERS:
        return _bits(a) - (a in SIGNED) <= MANTISSA.get(b, 0)
    return (a, b) in WIDENINGS


MANTISSA = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
WIDENINGS = {
    ("float16", "float32"),
    ("bfloat16", "float32"),
    *((a, "float64") for a in ("float16", "bfloat16", "float32")),
}


def _bits(dtype: str) -> int:
    return (
        int(dtype.lstrip("uint"))
        if NUMPY_DTYPES[dtype].kind == "V"
        else NUMPY_DTYPES[dtype].itemsize * 8
    )


@rule_for(Where)
def where_known(value: Value) -> Value | None:
    """One side where the condition is the same for every element, or both sides are."""
    condition, a, b = value.inputs
    assert condition is not None
    assert a is not None
    assert b is not None
    if a is b:
        return broadcast_to(a, *value.shape)
    truth = _same_everywhere(condition)
    return None if truth is None else broadcast_to(a if truth else b, *value.shape)


@rule(lambda c, a, b: Where()(Not()(c), a, b))
def where_not(c: Value, a: Value, b: Value) -> Value:
    return Where()(c, b, a)


@rule(lambda c, a, b, n: Equal()(Where()(c, number(a), number(b)), number(n)))
def equal_to_one_side(c: Value, a: float, b: float, n: float, root: Value) -> Value | None:
    """Which side was chosen: the condition, or its negation."""
    if (a == n) == (b == n):
        return None
    chosen = c if a == n else Not()(c)
    return chosen if chosen.shape == root.shape else None


@rule_for(And, Or)
def and_or_known(value: Value) -> Value | None:
    a, b = value.inputs
    for x, other in ((a, b), (b, a)):
        assert x is not None
        assert other is not None
        truth = _same_everywhere(other)
        if truth is None:
            continue
        keeps = truth == isinstance(value.op, And)
        return broadcast_to(x if keeps else other, *value.shape)
    return None


def _same_everywhere(condition: Value) -> bool | None:
    """The truth value that all elements of a constant have, or None."""
    if not isinstance(condition.op, Constant) or not condition.op.data.size:
        return None
    first = bool(condition.op.data.flat[0])
    return first if (condition.op.data == first).all() else None


@rule_for(Softmax, LogSoftmax)
def positive_axis(value: Value) -> Value | None:
    (x,) = value.inputs
    assert x is not None
    axis = value.op.axis  # type: ignore[attr-defined]
    return type(value.op)(axis + x.rank)(x) if axis < 0 else None


@rule_for(Reduce)
def reduce_nothing(value: Value) -> Value | None:
    """Over axes of size 1 every kind of reduction is the element itself."""
    (x,) = value.inputs
    assert x is not None
    axes = tuple(a for a in value.op.axes if x.shape[a] != 1)  # type: ignore[attr-defined]
    if len(axes) == len(value.op.axes):  # type: ignore[attr-defined]
        return None
    return Reduce(value.op.kind, axes)(x) if axes else x  # type: ignore[attr-defined]


@rule(lambda x, kind, a, b: Reduce(kind, a)(Reduce(kind, b)(x)))
def reduce_of_reduce(x: Value, kind: str, a: tuple[int, ...], b: tuple[int, ...]) -> Value:
    return Reduce(kind, tuple(sorted({*a, *b})))(x)


@rule(lambda y, b: y * number(b))
def scale_of_scale(y: Value, b: float, root: Value, matcher: Matcher) -> Value | None:
    """Merged where one of the numbers is a power of two: then rounding is the same."""
    if not isinstance(root.op, Mul) or not isinstance(y.op, Mul):
        return None
    for x, c in (y.inputs, y.inputs[::-1]):
        a = matcher.number(c) if c is not None else None
        if a is None or x is None or not (_is_power_of_two(a) or _is_power_of_two(b)):
            continue
        if _is_held(a * b, root.dtype):
            return x * (a * b)
    return None


def _is_held(number: float, dtype: str) -> bool:
    """Whether it is a finite number of the dtype, exactly."""
    if dtype in INTEGERS:
        low, high = integer_range(dtype)
        return low <= number <= high
    with np.errstate(over="ignore", under="ignore"):
        return math.isfinite(number) and float(NUMPY_DTYPES[dtype].type(number)) == number


RULES: Rules = [
    neutral_element,
    times_minus_one,
    twice_undone,
    relu_twice,
    plus_negative,
    minus_negative,
    small_power,
    divide_by_power_of_two,
    max_of_max,
    min_of_min,
    clip_of_relu,
    clip_to_everything,
    cast_to_same,
    cast_of_cast,
    where_known,
    where_not,
    equal_to_one_side,
    and_or_known,
    positive_axis,
    reduce_nothing,
    reduce_of_reduce,
    scale_of_scale,
    *MOVEMENT,
]
