"""Operators between real numbers x and their quantised forms q: x = (q - zero point) * scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whet.errors import TypeMismatch
from whet.ir.graph import Constant, Op, Value, constant, operator
from whet.ir.types import FLOATS, INTEGERS, TensorType
from whet.ops.bits import BitCast
from whet.ops.cast import bit_width, cast
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import (
    Array,
    BitwiseXor,
    Cast,
    Clip,
    Elementwise,
    Round,
    broadcast,
    cast_to,
    need,
)
from whet.ops.movement import Pad, reshape
from whet.ops.reduce import Reduce

EIGHT_BITS = ("int8", "uint8")
SIGN = 0x80
"""The highest bit of a byte, and what `signed` takes off one."""


def integer_range(dtype: str) -> tuple[int, int]:
    """The least and the greatest number of an integer dtype."""
    bits = bit_width(dtype)
    return (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def is_one(scale: Value) -> bool:
    """Whether dividing by it changes nothing, as is known here."""
    return isinstance(scale.op, Constant) and bool((scale.op.data == 1).all())


def _check_zero(zero: TensorType | None, dtype: str) -> None:
    if zero is not None and zero.dtype != dtype:
        raise TypeMismatch(f"the zero point of {dtype} is {zero.dtype}")


@operator
class Saturate(Elementwise):
    """x in float32, rounded (halves to even), plus a zero point in int32, clamped into `to`."""

    to: str

    def infer(self, *inputs: TensorType) -> TensorType:
        x, zero = inputs
        need(x.dtype, frozenset({"float32"}), "a float32")
        need(zero.dtype, frozenset({"int32"}), "a zero point in int32")
        return TensorType(self.to, broadcast(x.shape, zero.shape))

    def reference(self, x: Array, zero: Array) -> Array:
        low, high = integer_range(self.to)
        return cast(np.clip(np.rint(x.astype(np.float64)) + zero, low, high), self.to)

    def lower(self, x: Value, zero: Value) -> Value:
        low, high = (constant(limit, x.dtype) for limit in integer_range(self.to))
        return Cast(self.to)(Clip()(Round()(x) + Cast(x.dtype)(zero), low, high))


SMALL = ("int8", "uint8", "int16", "uint16")
"""Integers that float32 and int32 hold with room to spare."""


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
        quotient = cast_to(x, scale.dtype)
        quotient = quotient if is_one(scale) else quotient / scale
        wide = quotient if scale.dtype == "float64" else cast_to(quotient, "float32")
        if self.to in FLOATS:
            shifted = wide if zero is None else wide + cast_to(zero, wide.dtype)
            return Cast(self.to, self.saturate)(shifted)
        if self.to in SMALL and wide.dtype == "float32":
            shift = constant(0, "int32") if zero is None else Cast("int32")(zero)
            return Saturate(self.to)(wide, shift)
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


def sums(op: Convolution | MatMul, w: Value) -> Value:
    """What each output's weights add up to: an expression over weights."""
    wide = Cast("int32")(w)
    if isinstance(op, MatMul):
        total = Reduce("sum", (w.rank - 2,))(wide)
        return reshape(total, w.shape[1]) if w.rank == 2 else total
    return reshape(Reduce("sum", tuple(range(1, w.rank)))(wide), w.shape[0])


def signed(x: Value) -> Value:
    """Bytes less 128, as int8: the highest bit is turned; int8 as it is."""
    if x.dtype == "int8":
        return x
    flipped: Value = BitCast("int8")(BitwiseXor()(x, constant(SIGN, "uint8")))
    return flipped


def with_padding(op: Convolution, x: Value) -> tuple[Convolution, Value, int]:
    """The convolution of what x pads by a known number, that padding its own; and the number."""
    if not isinstance(x.op, Pad) or x.op.mode != "constant" or any((*op.before, *op.after)):
        return op, x, 0
    inner, number = x.inputs
    assert inner is not None and number is not None
    sides = x.op.before, x.op.after
    if not isinstance(number.op, Constant) or any(s[0] or s[-1] for s in sides):
        return op, x, 0
    before, after = (side[1:-1] for side in sides)
    return replace(op, before=before, after=after), inner, int(number.op.data)
