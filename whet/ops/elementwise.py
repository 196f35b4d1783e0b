"""Operators that compute each output element from one element of each input; inputs broadcast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.atoms import Undecided
from whet.ir.graph import OPERATORS, Guard, Op, Value, constant, note_guards, operator
from whet.ir.graph import collect_guards as collect_guards
from whet.ir.sizes import Size, is_different, is_less, maximum, minimum
from whet.ir.types import COMPLEX, FLOATS, INTEGERS, NUMPY_DTYPES, TensorType
from whet.ops.cast import Cast as Cast
from whet.ops.cast import cast as cast

Array = np.ndarray
NUMBERS = FLOATS | INTEGERS | COMPLEX
BOOL = frozenset({"bool"})
ANY = frozenset(NUMPY_DTYPES)
NARROW = FLOATS - {"float32", "float64"}
Lower = Callable[..., Value]


def require_equal(a: Size, b: Size, what: str) -> Size:
    """One of two sizes that must be the same; raises ShapeError where they are proved different."""
    if a == b:
        return a
    if is_different(a, b):
        raise ShapeError(f"{what} must be equal, got {a} and {b}")
    note_guards([Guard(a, b, "")])
    return a if isinstance(a, int) else b


def broadcast_sizes(a: Size, b: Size) -> Size:
    """NumPy's rule for one axis: equal sizes, or one of them 1."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if is_different(a, b) and is_different(a, 1) and is_different(b, 1):
        raise ShapeError(
            f"sizes {a} and {b} do not broadcast: they must be equal, or one of them 1"
        )
    note_guards([Guard(a, b, "", broadcast=True)])
    for size in (a, b):
        if isinstance(size, int) and size != 1:
            return size
    return maximum(a, b)


def broadcast(*shapes: tuple[Size, ...]) -> tuple[Size, ...]:
    """The shape that all of them stretch to, by NumPy's rule."""
    rank = max(len(shape) for shape in shapes)
    aligned = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result: list[Size] = []
    for sizes in zip(*aligned):
        size = sizes[0]
        for other in sizes[1:]:
            size = broadcast_sizes(size, other)
        result.append(size)
    return tuple(result)


def same_dtype(*types: TensorType) -> str:
    """The one dtype of all the types; raises TypeMismatch where they differ."""
    names = {t.dtype for t in types}
    if len(names) > 1:
        raise TypeMismatch(f"one dtype is needed, got {' and '.join(sorted(names))}")
    return types[0].dtype


def need(dtype: str, allowed: frozenset[str], what: str) -> None:
    """Raises TypeMismatch unless the dtype is among the allowed ones."""
    if dtype not in allowed:
        raise TypeMismatch(f"{what} is needed, got {dtype}")


class Elementwise(Op):
    """Broadcasts its inputs; the output has their dtype, which must be among `accepts`."""

    folds: ClassVar[bool] = True
    accepts: ClassVar[frozenset[str]] = NUMBERS

    def infer(self, *inputs: TensorType) -> TensorType:
        dtype = same_dtype(*inputs)
        need(dtype, self.accepts, type(self).__name__)
        return TensorType(dtype, broadcast(*(i.shape for i in inputs)))


class Unary(Elementwise):
    """One input."""


class FloatUnary(Unary):
    """One input, of a floating-point dtype."""

    accepts: ClassVar[frozenset[str]] = FLOATS


class Bitwise(Elementwise):
    """Integers as rows of bits."""

    accepts: ClassVar[frozenset[str]] = INTEGERS


class Logical(Elementwise):
    """Truth values."""

    accepts: ClassVar[frozenset[str]] = BOOL
    computes_sizes: ClassVar[bool] = True


class Comparison(Elementwise):
    """The output is bool."""

    accepts: ClassVar[frozenset[str]] = NUMBERS | BOOL
    computes_sizes: ClassVar[bool] = True

    def infer(self, *inputs: TensorType) -> TensorType:
        return super().infer(*inputs).with_dtype("bool")


class Test(Unary):
    """One input; the output is bool."""

    accepts: ClassVar[frozenset[str]] = FLOATS

    def infer(self, *inputs: TensorType) -> TensorType:
        return super().infer(*inputs).with_dtype("bool")


def cast_to(x: Value, dtype: str) -> Value:
    """x in another dtype; x itself where it has it."""
    return x if x.dtype == dtype else Cast(dtype)(x)


def rounded_once(compute: Callable[..., Value], *values: Value | None) -> Value:
    """compute(*values), with floats of 16 bits and fewer in float32 until the result is rounded."""
    dtype = next(v.dtype for v in values if v is not None)
    if dtype not in NARROW:
        return compute(*values)
    return Cast(dtype)(compute(*(v and Cast("float32")(v) for v in values)))


def rounds_once(lower: Lower) -> Lower:
    """Decorates a `lower` that computes `rounded_once`."""

    @functools.wraps(lower)
    def wide(op: Any, *values: Value | None) -> Value:
        return rounded_once(functools.partial(lower, op), *values)

    return wide


# fmt: off
@operator
class Neg(Unary):
    computes_sizes: ClassVar[bool] = True
    def reference(self, x: Array) -> Array: return np.negative(x)
@operator
class Abs(Unary):
    def reference(self, x: Array) -> Array: return np.abs(x)
@operator
class Sign(Unary):
    def reference(self, x: Array) -> Array: return np.sign(x)
@operator
class Floor(FloatUnary):
    def reference(self, x: Array) -> Array: return np.floor(x)
@operator
class Ceil(FloatUnary):
    def reference(self, x: Array) -> Array: return np.ceil(x)
@operator
class Round(FloatUnary):
    """To the nearest integer, halves to even."""
    def reference(self, x: Array) -> Array: return np.rint(x)
@operator
class Sqrt(FloatUnary):
    def reference(self, x: Array) -> Array: return np.sqrt(x)
@operator
class Exp(FloatUnary):
    def reference(self, x: Array) -> Array: return np.exp(x)
@operator
class Log(FloatUnary):
    def reference(self, x: Array) -> Array: return np.log(x)
@operator
class Sin(FloatUnary):
    def reference(self, x: Array) -> Array: return np.sin(x)
@operator
class Cos(FloatUnary):
    def reference(self, x: Array) -> Array: return np.cos(x)
@operator
class Atan(FloatUnary):
    def reference(self, x: Array) -> Array: return np.arctan(x)
@operator
class Tanh(FloatUnary):
    def reference(self, x: Array) -> Array: return np.tanh(x)
@operator
class Erf(FloatUnary):
    """2/sqrt(pi) times the integral of exp(-t*t) from 0 to x."""
    def reference(self, x: Array) -> Array: return _erf(x.astype(np.float64)).astype(x.dtype)
@operator
class IsNaN(Test):
    def reference(self, x: Array) -> Array: return np.isnan(x)
@operator
class Not(Logical):
    def reference(self, x: Array) -> Array: return np.logical_not(x)
@operator
class And(Logical):
    def reference(self, a: Array, b: Array) -> Array: return np.logical_and(a, b)
@operator
class Or(Logical):
    def reference(self, a: Array, b: Array) -> Array: return np.logical_or(a, b)
@operator
class Xor(Logical):
    def reference(self, a: Array, b: Array) -> Array: return np.logical_xor(a, b)
@operator
class BitwiseNot(Bitwise):
    def reference(self, x: Array) -> Array: return np.invert(x)
@operator
class BitwiseAnd(Bitwise):
    def reference(self, a: Array, b: Array) -> Array: return a & b
@operator
class BitwiseOr(Bitwise):
    def reference(self, a: Array, b: Array) -> Array: return a | b
@operator
class BitwiseXor(Bitwise):
    def reference(self, a: Array, b: Array) -> Array: return a ^ b
@operator
class Add(Elementwise):
    computes_sizes: ClassVar[bool] = True
    def reference(self, a: Array, b: Array) -> Array: return a + b
@operator
class Sub(Elementwise):
    computes_sizes: ClassVar[bool] = True
    def reference(self, a: Array, b: Array) -> Array: return a - b
@operator
class Mul(Elementwise):
    computes_sizes: ClassVar[bool] = True
    def reference(self, a: Array, b: Array) -> Array: return a * b
# fmt: on

_erf = np.vectorize(math.erf, otypes=[np.float64])


def holds_sizes(*arrays: Array) -> bool:
    """Whether any of the arrays may hold symbolic sizes instead of numbers."""
    return any(a.dtype == object for a in arrays)


def _decided(proved: bool, refuted: bool) -> bool:
    if not proved and not refuted:
        raise Undecided
    return proved


@operator
class Equal(Comparison):
    accepts: ClassVar[frozenset[str]] = ANY

    def reference(self, a: Array, b: Array) -> Array:
        return np.frompyfunc(self._equal, 2, 1)(a, b) if holds_sizes(a, b) else np.equal(a, b)

    @staticmethod
    def _equal(a: Any, b: Any) -> bool:
        return _decided(a == b, isinstance(a, str) or is_different(a, b))


@operator
class Less(Comparison):
    def reference(self, a: Array, b: Array) -> Array:
        return np.frompyfunc(self._less, 2, 1)(a, b) if holds_sizes(a, b) else np.less(a, b)

    @staticmethod
    def _less(a: Size, b: Size) -> bool:
        return _decided(is_less(a, b), is_less(b, a + 1))


@operator
class LessOrEqual(Comparison):
    def reference(self, a: Array, b: Array) -> Array:
        return (
            np.frompyfunc(self._at_most, 2, 1)(a, b) if holds_sizes(a, b) else np.less_equal(a, b)
        )

    @staticmethod
    def _at_most(a: Size, b: Size) -> bool:
        return _decided(is_less(a, b + 1), is_less(b, a))


@operator
class Max(Elementwise):
    """The greater; NaN where either is NaN."""

    accepts: ClassVar[frozenset[str]] = NUMBERS | BOOL
    computes_sizes: ClassVar[bool] = True

    def reference(self, a: Array, b: Array) -> Array:
        return np.frompyfunc(maximum, 2, 1)(a, b) if holds_sizes(a, b) else np.maximum(a, b)


@operator
class Min(Elementwise):
    """The lesser; NaN where either is NaN."""

    accepts: ClassVar[frozenset[str]] = NUMBERS | BOOL
    computes_sizes: ClassVar[bool] = True

    def reference(self, a: Array, b: Array) -> Array:
        return np.frompyfunc(minimum, 2, 1)(a, b) if holds_sizes(a, b) else np.minimum(a, b)


@operator
class Div(Elementwise):
    """a / b; of integers the quotient rounded toward zero, which for b = 0 is 0."""

    computes_sizes: ClassVar[bool] = True

    def reference(self, a: Array, b: Array) -> Array:
        if holds_sizes(a, b):
            _decided(_counts(a, b), False)
            return a // b
        if a.dtype.kind not in "iu":
            return a / b
        quotient = np.floor_divide(a, np.where(b == 0, 1, b).astype(b.dtype))
        wrong = (quotient < 0) & (quotient * b != a)
        return np.where(b == 0, 0, quotient + wrong).astype(a.dtype)


def _counts(a: Array, b: Array) -> bool:
    """Whether a is at least 0 and b more: then rounding toward zero is rounding down."""
    return all(is_less(-1, x) for x in a.flat) and all(is_less(0, x) for x in b.flat)


@operator
class Mod(Elementwise):
    """The remainder of a / b, with the sign of b, or of a when `truncated` (C's fmod).

    Of integers, 0 for b = 0.
    """

    truncated: bool = False
    computes_sizes: ClassVar[bool] = True

    def reference(self, a: Array, b: Array) -> Array:
        if holds_sizes(a, b):
            _decided(_counts(a, b), False)
            return a % b
        return np.fmod(a, b) if self.truncated else np.mod(a, b)


@operator
class Pow(Op):
    """a ** b, in a's dtype; b may have another one. Of integers, rounded toward zero."""

    folds: ClassVar[bool] = True

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        need(a.dtype, NUMBERS, "a number as base")
        need(b.dtype, NUMBERS, "a number as exponent")
        return TensorType(a.dtype, broadcast(a.shape, b.shape))

    def reference(self, a: Array, b: Array) -> Array:
        if a.dtype.kind in "iu" and b.dtype.kind in "iu":
            return _integer_power(a, b).astype(a.dtype)
        return np.power(_wide(a), _wide(b)).astype(a.dtype)


def _wide(x: Array) -> Array:
    return x if x.dtype.kind == "c" else x.astype(np.float64)


def _integer_power(a: Array, b: Array) -> Array:
    # Powers modulo 2**64 are right modulo every narrower width too.
    wide = a.astype(np.int64).astype(np.uint64) ** np.where(b < 0, 0, b).astype(np.uint64)
    inverse = np.where(a == 1, 1, np.where(a == -1, np.where(b % 2 == 0, 1, -1), 0))
    return np.where(b < 0, inverse, wide.astype(np.int64))


@operator
class Shift(Bitwise):
    """a shifted by b bits, to the left or to the right; signed a fills with its sign from the left.

    A b below 0, or of the width or more, leaves nothing of a but its sign.
    """

    left: bool = True

    def reference(self, a: Array, b: Array) -> Array:
        width = a.dtype.itemsize * 8
        shift = np.left_shift if self.left else np.right_shift
        rest = np.where((a < 0) & (not self.left), -1, 0).astype(a.dtype)
        return np.where((b < 0) | (b >= width), rest, shift(a, b % width)).astype(a.dtype)


@operator
class IsInf(Test):
    negative: bool = True
    positive: bool = True

    def reference(self, x: Array) -> Array:
        x = x.astype(np.float32) if x.dtype.name in NARROW else x
        return (np.isposinf(x) & self.positive) | (np.isneginf(x) & self.negative)


@operator
class Where(Op):
    """a where the condition holds, b elsewhere."""

    computes_sizes: ClassVar[bool] = True

    def infer(self, condition: TensorType, a: TensorType, b: TensorType) -> TensorType:
        need(condition.dtype, BOOL, "a bool condition")
        return TensorType(same_dtype(a, b), broadcast(condition.shape, a.shape, b.shape))

    def reference(self, condition: Array, a: Array, b: Array) -> Array:
        return np.where(condition.astype(bool), a, b)


# Operators that rules and templates see whole, and other targets in simpler terms.


@operator
class Relu(Unary):
    def reference(self, x: Array) -> Array:
        return np.maximum(x, np.zeros((), x.dtype))

    def lower(self, x: Value) -> Value:
        return Max()(x, 0)


@operator
class Sigmoid(FloatUnary):
    """1 / (1 + exp(-x))"""

    def reference(self, x: Array) -> Array:
        return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(x.dtype)

    @rounds_once
    def lower(self, x: Value) -> Value:
        return 1 / (1 + Exp()(Neg()(x)))


@operator
class Silu(FloatUnary):
    """x * sigmoid(alpha * x): Swish (Ramachandran et al. 2017)."""

    alpha: float = 1.0

    def reference(self, x: Array) -> Array:
        wide = x.astype(np.float64)
        return (wide / (1 + np.exp(-self.alpha * wide))).astype(x.dtype)

    @rounds_once
    def lower(self, x: Value) -> Value:
        scaled = x if self.alpha == 1.0 else x * self.alpha
        return x / (1 + Exp()(Neg()(scaled)))


@operator
class Gelu(FloatUnary):
    """x times the normal distribution function, or its tanh form (Hendrycks and Gimpel 2016)."""

    approximate: bool = False

    def reference(self, x: Array) -> Array:
        wide = x.astype(np.float64)
        if self.approximate:
            gate = np.tanh(0.7978845608028654 * (wide + 0.044715 * wide**3))
        else:
            gate = _erf(wide * 0.7071067811865476)
        return (0.5 * wide * (1 + gate)).astype(x.dtype)

    @rounds_once
    def lower(self, x: Value) -> Value:
        if self.approximate:
            return x * 0.5 * (1 + Tanh()(x * 0.7978845608028654 * (1 + x * x * 0.044715)))
        return x * 0.5 * (1 + Erf()(x * 0.7071067811865476))


@operator
class Clip(Elementwise):
    """x kept between low and high."""

    def reference(self, x: Array, low: Array, high: Array) -> Array:
        return np.minimum(np.maximum(x, low), high)

    def lower(self, x: Value, low: Value, high: Value) -> Value:
        return Min()(Max()(x, low), high)


def const_like(value: Any, x: Value) -> Value:
    """A scalar of x's dtype."""
    return constant(value, x.dtype)


OPERATORS.update({"+": Add, "-": Sub, "*": Mul, "/": Div})

for _commutative in (Add, Mul, Max, Min, And, Or, Xor, BitwiseAnd, BitwiseOr, BitwiseXor, Equal):
    _commutative.is_commutative = True
