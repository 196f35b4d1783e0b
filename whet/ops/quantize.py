"""Operators between real numbers x and their quantised forms q: x = (q - zero point) * scale."""

from __future__ import annotations

import numpy as np

from whet.errors import TypeMismatch
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.types import FLOATS, INTEGERS, TensorType
from whet.ops.cast import bit_width, cast
from whet.ops.elementwise import Array, Cast, Clip, Round, broadcast, cast_to, need


def integer_range(dtype: str) -> tuple[int, int]:
    """The least and the greatest number of an integer dtype."""
    bits = bit_width(dtype)
    return (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _check_zero(zero: TensorType | None, dtype: str) -> None:
    if zero is not None and zero.dtype != dtype:
        raise TypeMismatch(f"the zero point of {dtype} is {zero.dtype}")


@operator
class Quantize(Op):
    """x / scale, rounded (halves to even), plus zero point, clamped into `to`; inputs broadcast.

    The quotient has scale's dtype. To a float of 8 or 4 bits it is rounded once, as Cast does it.
    """

    to: str
    saturate: bool = True

    def infer(self, x: TensorType, scale: TensorType, zero: TensorType | None = None) -> TensorType:
        need(scale.dtype, FLOATS, "a floating-point scale")
        need(x.dtype, FLOATS | INTEGERS, "numbers")
        _check_zero(zero, self.to)
        return TensorType(
            self.to, broadcast(x.shape, scale.shape, () if zero is None else zero.shape)
        )

    def reference(self, x: Array, scale: Array, zero: Array | None = None) -> Array:
        quotient = (x.astype(scale.dtype) / scale).astype(np.float64)
        shift = 0.0 if zero is None else zero.astype(np.float64)
        if self.to in FLOATS:
            return cast((quotient + shift).astype(np.float32), self.to, self.saturate)
        low, high = integer_range(self.to)
        return cast(np.clip(np.rint(quotient) + shift, low, high), self.to)

    def lower(self, x: Value, scale: Value, zero: Value | None = None) -> Value:
        quotient = cast_to(x, scale.dtype) / scale
        wide = quotient if scale.dtype == "float64" else cast_to(quotient, "float32")
        if self.to in FLOATS:
            shifted = wide if zero is None else wide + cast_to(zero, wide.dtype)
            return Cast(self.to, self.saturate)(shifted)
        shifted = Round()(wide) if zero is None else Round()(wide) + Cast(wide.dtype)(zero)
        low, high = (constant(limit, wide.dtype) for limit in integer_range(self.to))
        return Cast(self.to)(Clip()(shifted, low, high))


@operator
class Dequantize(Op):
    """(q - zero point) * scale in the dtype `to`; inputs broadcast."""

    to: str

    def infer(self, q: TensorType, scale: TensorType, zero: TensorType | None = None) -> TensorType:
        need(self.to, FLOATS, "a floating-point result")
        _check_zero(zero, q.dtype)
        return TensorType(
            self.to, broadcast(q.shape, scale.shape, () if zero is None else zero.shape)
        )

    def reference(self, q: Array, scale: Array, zero: Array | None = None) -> Array:
        wide = q.astype(np.float64)
        shifted = wide if zero is None else wide - zero.astype(np.float64)
        return (shifted * scale.astype(np.float64)).astype(self.to)

    def lower(self, q: Value, scale: Value, zero: Value | None = None) -> Value:
        wide = "float64" if self.to == "float64" else "float32"
        if zero is None:
            shifted = Cast(wide)(q)
        elif q.dtype in INTEGERS:
            shifted = Cast(wide)(Cast("int32")(q) - Cast("int32")(zero))
        else:
            shifted = Cast(wide)(q) - Cast(wide)(zero)
        return cast_to(shifted * cast_to(scale, wide), self.to)
