"""Elementary functions that targets need not emit: each has a form in exp, log, sin, cos and atan.

The forms keep their relative precision near zeros, and do not overflow before the result does.
"""

from __future__ import annotations

import math

import numpy as np

from whet.ir.graph import Value, operator
from whet.ops.elementwise import (
    Abs,
    Array,
    Atan,
    Cos,
    Equal,
    Exp,
    FloatUnary,
    Less,
    Log,
    Max,
    Neg,
    Sin,
    Sqrt,
    Where,
    const_like,
    rounds_once,
)

LARGE = 1e9  # from here 1 + x*x and x*x are one float64, and so are their logarithms


@operator
class Expm1(FloatUnary):
    """exp(x) - 1, precise near 0."""

    def reference(self, x: Array) -> Array:
        return np.expm1(x.astype(np.float64)).astype(x.dtype)

    @rounds_once
    def lower(self, x: Value) -> Value:
        # Kahan: the rounding error of u = exp(x) cancels in (u - 1) / log(u).
        u = Exp()(x)
        corrected = (u - 1) * x / Log()(u)
        certain = Where()(Less()(Abs()(x), 40), corrected, u - 1)
        return Where()(Equal()(u, 1), x, Where()(Equal()(u - 1, -1), const_like(-1, x), certain))


@operator
class Log1p(FloatUnary):
    """log(1 + x), precise near 0."""

    def reference(self, x: Array) -> Array:
        return np.log1p(x.astype(np.float64)).astype(x.dtype)

    @rounds_once
    def lower(self, x: Value) -> Value:
        # Kahan: log(u) / (u - 1) hardly changes where u = 1 + x was rounded.
        u = 1 + x
        return Where()(
            Equal()(u, 1), x, Where()(Less()(x, LARGE), Log()(u) * (x / (u - 1)), Log()(u))
        )


@operator
class Tan(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.tan(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        return Sin()(x) / Cos()(x)


@operator
class Asin(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.arcsin(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        return Atan()(x / Sqrt()((1 - x) * (1 + x)))


@operator
class Acos(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.arccos(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        return 2 * Atan()(Sqrt()((1 - x) / (1 + x)))


@operator
class Sinh(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.sinh(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        size = Abs()(x)
        t = Expm1()(size)
        half = Exp()(size * 0.5)
        return copy_sign(Where()(Less()(size, 9), (t + t / (t + 1)) * 0.5, half * 0.5 * half), x)


@operator
class Cosh(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.cosh(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        half = Exp()(Abs()(x) * 0.5)
        return half * 0.5 * half + 0.5 / half / half


@operator
class Asinh(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.arcsinh(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        size = Abs()(x)
        square = size * size
        near = Log1p()(size + square / (1 + Sqrt()(square + 1)))
        return copy_sign(Where()(Less()(size, LARGE), near, Log()(size) + math.log(2)), x)


@operator
class Acosh(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.arccosh(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        t = x - 1
        near = Log1p()(t + Sqrt()(t) * Sqrt()(t + 2))
        return Where()(Less()(x, LARGE), near, Log()(x) + math.log(2))


@operator
class Atanh(FloatUnary):
    def reference(self, x: Array) -> Array:
        return np.arctanh(x)

    @rounds_once
    def lower(self, x: Value) -> Value:
        size = Abs()(x)
        return copy_sign(Log1p()(size * 2 / (1 - size)) * 0.5, x)


@operator
class Softplus(FloatUnary):
    """log(1 + exp(x))"""

    def reference(self, x: Array) -> Array:
        return np.logaddexp(x.astype(np.float64), 0).astype(x.dtype)

    @rounds_once
    def lower(self, x: Value) -> Value:
        return Max()(x, 0) + Log1p()(Exp()(Neg()(Abs()(x))))


def copy_sign(size: Value, x: Value) -> Value:
    """`size` with x's sign; a zero x is given back as it is."""
    return Where()(Less()(x, 0), Neg()(size), Where()(Equal()(x, 0), x, size))
