"""Operators that compute each element of the output from the same element of the inputs, which broadcast."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.graph import OPERATORS, Guard, Op, Value, constant, operator
from whet.ir.sizes import Size, is_different, maximum
from whet.ir.types import FLOATS, INTEGERS, NUMPY_DTYPES, TensorType

_guards: ContextVar[list[Guard] | None] = ContextVar("guards", default=None)


@contextmanager
def collect_guards(into: list[Guard]) -> Iterator[None]:
    """Within it, sizes that cannot be proved to fit are noted in `into`, to be checked at each run."""
    token = _guards.set(into)
    try:
        yield
    finally:
        _guards.reset(token)


def require_equal(a: Size, b: Size, what: str) -> Size:
    """One of two sizes that must be the same; raises ShapeError where they are proved different."""
    if a == b:
        return a
    if is_different(a, b):
        raise ShapeError(f"{what} must be equal, got {a} and {b}")
    if (guards := _guards.get()) is not None:
        guards.append(Guard(a, b, ""))
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
    if (guards := _guards.get()) is not None:
        guards.append(Guard(a, b, "", broadcast=True))
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
    """Broadcasts its inputs; the output has their dtype."""

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType(same_dtype(*inputs), broadcast(*(i.shape for i in inputs)))


class Unary(Elementwise):
    """One input."""


class Comparison(Elementwise):
    """The output is bool."""

    def infer(self, *inputs: TensorType) -> TensorType:
        return super().infer(*inputs).with_dtype("bool")


class Test(Unary):
    """One input; the output is bool."""

    def infer(self, x: TensorType) -> TensorType:  # type: ignore[override]
        return x.with_dtype("bool")


# fmt: off
@operator
class Neg(Unary):
    computes_sizes: ClassVar[bool] = True
    def reference(self, x): return np.negative(x)
@operator
class Abs(Unary):
    def reference(self, x): return np.abs(x)
@operator
class Sign(Unary):
    def reference(self, x): return np.sign(x)
@operator
class Floor(Unary):
    def reference(self, x): return np.floor(x)
@operator
class Ceil(Unary):
    def reference(self, x): return np.ceil(x)
@operator
class Round(Unary):
    """To the nearest integer, halves to even."""
    def reference(self, x): return np.round(x)
@operator
class Sqrt(Unary):
    def reference(self, x): return np.sqrt(x)
@operator
class Exp(Unary):
    def reference(self, x): return np.exp(x)
@operator
class Log(Unary):
    def reference(self, x): return np.log(x)
@operator
class Sin(Unary):
    def reference(self, x): return np.sin(x)
@operator
class Cos(Unary):
    def reference(self, x): return np.cos(x)
@operator
class Tan(Unary):
    def reference(self, x): return np.tan(x)
@operator
class Asin(Unary):
    def reference(self, x): return np.arcsin(x)
@operator
class Acos(Unary):
    def reference(self, x): return np.arccos(x)
@operator
class Atan(Unary):
    def reference(self, x): return np.arctan(x)
@operator
class Sinh(Unary):
    def reference(self, x): return np.sinh(x)
@operator
class Cosh(Unary):
    def reference(self, x): return np.cosh(x)
@operator
class Tanh(Unary):
    def reference(self, x): return np.tanh(x)
@operator
class Asinh(Unary):
    def reference(self, x): return np.arcsinh(x)
@operator
class Acosh(Unary):
    def reference(self, x): return np.arccosh(x)
@operator
class Atanh(Unary):
    def reference(self, x): return np.arctanh(x)
@operator
class Not(Unary):
    computes_sizes: ClassVar[bool] = True
    def reference(self, x): return np.logical_not(x)
@operator
class BitwiseNot(Unary):
    def reference(self, x): return np.invert(x)
@operator
class IsNaN(Test):
    def reference(self, x): return np.isnan(x)
@operator
class Add(Elementwise):
    computes_sizes: ClassVar[bool] = True
    def reference(self, a, b): return a + b
@operator
class Sub(Elementwise):
    computes_sizes: ClassVar[bool] = True
    def reference(self, a, b): return a - b
@operator
class Mul(Elementwise):
    computes_sizes: ClassVar[bool] = True
    def reference(self, a, b): return a * b
@operator
class And(Elementwise):
    def reference(self, a, b): return np.logical_and(a, b)
@operator
class Or(Elementwise):
    def reference(self, a, b): return np.logical_or(a, b)
@operator
class Xor(Elementwise):
    def reference(self, a, b): return np.logical_xor(a, b)
@operator
class BitwiseAnd(Elementwise):
    def reference(self, a, b): return a & b
@operator
class BitwiseOr(Elementwise):
    def reference(self, a, b): return a | b
@operator
class BitwiseXor(Elementwise):
    def reference(self, a, b): return a ^ b
@operator
class Less(Comparison):
    def reference(self, a, b): return np.less(a, b)
@operator
class LessOrEqual(Comparison):
    def reference(self, a, b): return np.less_equal(a, b)
# fmt: on


@operator
class Equal(Comparison):
    computes_sizes: ClassVar[bool] = True

    def reference(self, a, b):
        return np.equal(a, b)


@operator
class Max(Elementwise):
    """The greater; NaN where either is NaN."""

    computes_sizes: ClassVar[bool] = True

    def reference(self, a, b):
        if a.dtype == object or b.dtype == object:
            return np.frompyfunc(maximum, 2, 1)(a, b)
        return np.maximum(a, b)


@operator
class Min(Elementwise):
    """The lesser; NaN where either is NaN."""

    def reference(self, a, b):
        return np.minimum(a, b)


@operator
class Div(Elementwise):
    """a / b; of integers the quotient rounded toward zero, which for b = 0 is 0."""

    computes_sizes: ClassVar[bool] = True

    def reference(self, a, b):
        if a.dtype == object or b.dtype == object:
            return a // b
        if a.dtype.kind not in "iu":
            with np.errstate(all="ignore"):
                return a / b
        safe = np.where(b == 0, 1, b)
        quotient = np.abs(a) // np.abs(safe) * np.sign(a) * np.sign(safe)
        return np.where(b == 0, 0, quotient).astype(a.dtype)


@operator
class Mod(Elementwise):
    """The remainder of a / b, with the sign of b, or of a when `truncated` (C's fmod)."""

    truncated: bool = False

    def reference(self, a, b):
        with np.errstate(all="ignore"):
            return np.fmod(a, b) if self.truncated else np.mod(a, b)


@operator
class Pow(Op):
    """a ** b, in a's dtype; b may have another one."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        return TensorType(a.dtype, broadcast(a.shape, b.shape))

    def reference(self, a, b):
        with np.errstate(all="ignore"):
            if a.dtype.kind in "iu" and b.dtype.kind in "iu":
                return np.where(
                    b < 0, a.astype(float) ** b.astype(float), a ** np.maximum(b, 0).astype(a.dtype)
                ).astype(a.dtype)
            return np.power(
                a.astype(np.result_type(a, b) if a.dtype.kind == b.dtype.kind else a.dtype), b
            ).astype(a.dtype)


@operator
class Shift(Elementwise):
    """Unsigned a shifted by b bits, to the left or to the right; 0 when b is at least the width."""

    left: bool = True

    def reference(self, a, b):
        width = a.dtype.itemsize * 8
        shifted = np.left_shift(a, b % width) if self.left else np.right_shift(a, b % width)
        return np.where(b >= width, 0, shifted).astype(a.dtype)


@operator
class IsInf(Test):
    negative: bool = True
    positive: bool = True

    def reference(self, x):
        x = x.astype(np.float32) if x.dtype.kind == "V" else x
        return (np.isposinf(x) if self.positive else False) | (
            np.isneginf(x) if self.negative else np.zeros(x.shape, bool)
        )


@operator
class Where(Op):
    """a where the condition holds, b elsewhere."""

    computes_sizes: ClassVar[bool] = True

    def infer(self, condition: TensorType, a: TensorType, b: TensorType) -> TensorType:
        need(condition.dtype, frozenset({"bool"}), "a bool condition")
        return TensorType(same_dtype(a, b), broadcast(condition.shape, a.shape, b.shape))

    def reference(self, condition, a, b):
        return np.where(condition.astype(bool), a, b)


@operator
class Cast(Op):
    """To another dtype: floats to integers round toward zero; `saturate` is for 8-bit floats and smaller."""

    to: str
    saturate: bool = True
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        return x.with_dtype(self.to)

    def reference(self, x):
        if x.dtype == object and self.to in INTEGERS:
            return x
        return cast(x, self.to, self.saturate)


def cast(x: np.ndarray, to: str, saturate: bool = True) -> np.ndarray:
    """x in the dtype called `to`, as ONNX's Cast has it."""
    dtype = NUMPY_DTYPES[to]
    if to in FLOATS and saturate and (to.startswith("float8") or to.startswith("float4")):
        return _saturate(x, to)
    with np.errstate(all="ignore"):
        if to in ("int4", "uint4", "int2", "uint2"):
            return _wrap(x, to)
        if to in INTEGERS and x.dtype.kind not in "biufc":
            return x.astype(np.float32).astype(dtype)
        if to == "bool" and x.dtype.kind not in "biufc":
            return x.astype(np.float32) != 0
        return x.astype(dtype)


def _saturate(x: np.ndarray, to: str) -> np.ndarray:
    import ml_dtypes

    if to == "float8_e8m0fnu":
        return x.astype(np.float32).astype(NUMPY_DTYPES[to])
    limit = float(ml_dtypes.finfo(NUMPY_DTYPES[to]).max)
    wide = x.astype(np.float64) if x.dtype == np.float64 else x.astype(np.float32)
    return np.where(np.isnan(wide), wide, np.clip(wide, -limit, limit)).astype(NUMPY_DTYPES[to])


def _wrap(x: np.ndarray, to: str) -> np.ndarray:
    bits = int(to[-1])
    wide = (np.trunc(x.astype(np.float32)) if x.dtype.kind not in "biu" else x).astype(np.int64)
    low = wide & ((1 << bits) - 1)
    if to[0] == "i":
        low = np.where(low >= 1 << (bits - 1), low - (1 << bits), low)
    return low.astype(np.int8 if to[0] == "i" else np.uint8).astype(NUMPY_DTYPES[to])


@operator
class BitCast(Op):
    """The same bits read as another dtype of the same width."""

    to: str

    def infer(self, x: TensorType) -> TensorType:
        if x.numpy.itemsize != NUMPY_DTYPES[self.to].itemsize:
            raise TypeMismatch(f"the bits of {x.dtype} do not make a {self.to}: the widths differ")
        return x.with_dtype(self.to)

    def reference(self, x):
        return np.ascontiguousarray(x).view(NUMPY_DTYPES[self.to])


@operator
class Erf(Unary):
    """2/sqrt(pi) times the integral of exp(-t*t) from 0 to x."""

    def reference(self, x):
        return _erf(x.astype(np.float64)).astype(x.dtype)


_erf = np.vectorize(math.erf, otypes=[np.float64])


# Operators that targets see whole where a rule or a template wants them, and otherwise in simpler terms.


@operator
class Relu(Unary):
    def reference(self, x):
        return np.maximum(x, np.zeros((), x.dtype))

    def lower(self, x: Value) -> Value:
        return Max()(x, 0)


@operator
class Sigmoid(Unary):
    """1 / (1 + exp(-x))"""

    def reference(self, x):
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        return 1 / (1 + Exp()(Neg()(x)))


@operator
class Silu(Unary):
    """x * sigmoid(alpha * x): Swish."""

    alpha: float = 1.0

    def reference(self, x):
        with np.errstate(over="ignore"):
            wide = x.astype(np.float64)
            return (wide / (1 + np.exp(-self.alpha * wide))).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        scaled = x if self.alpha == 1.0 else x * self.alpha
        return x / (1 + Exp()(Neg()(scaled)))


@operator
class Gelu(Unary):
    """x times the normal distribution's cumulative function, or its tanh form (Hendrycks and Gimpel 2016)."""

    approximate: bool = False

    def reference(self, x):
        wide = x.astype(np.float64)
        if self.approximate:
            return (
                0.5 * wide * (1 + np.tanh(0.7978845608028654 * (wide + 0.044715 * wide**3)))
            ).astype(x.dtype)
        return (0.5 * wide * (1 + _erf(wide * 0.7071067811865476))).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        if self.approximate:
            return x * 0.5 * (1 + Tanh()(x * 0.7978845608028654 * (1 + x * x * 0.044715)))
        return x * 0.5 * (1 + Erf()(x * 0.7071067811865476))


@operator
class Clip(Elementwise):
    """x kept between low and high."""

    def reference(self, x, low, high):
        return np.minimum(np.maximum(x, low), high)

    def lower(self, x: Value, low: Value, high: Value) -> Value:
        return Min()(Max()(x, low), high)


def const_like(value: Any, x: Value) -> Value:
    """A scalar of x's dtype."""
    return constant(value, x.dtype)


OPERATORS.update({"+": Add, "-": Sub, "*": Mul, "/": Div})
