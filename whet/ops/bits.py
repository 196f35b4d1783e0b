"""Elements as bits: read as another dtype, and numbers of 8 bits and fewer put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whet.errors import TypeMismatch
from whet.ir.graph import Value, constant, operator
from whet.ir.types import FLOATS, NUMPY_DTYPES, TensorType
from whet.ops.cast import PACKED_BITS
from whet.ops.elementwise import (
    ANY,
    Abs,
    Array,
    BitwiseAnd,
    Cast,
    Clip,
    Equal,
    IsNaN,
    Less,
    Max,
    Min,
    Or,
    Round,
    Shift,
    Unary,
    Where,
    cast_to,
)
from whet.ops.movement import Gather


@operator
class BitCast(Unary):
    """The same bits read as another dtype; an element of less than a byte has a byte of its own."""

    to: str
    accepts: ClassVar[frozenset[str]] = ANY - {"string"}

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if self.to == "string" or x.numpy.itemsize != NUMPY_DTYPES[self.to].itemsize:
            raise TypeMismatch(f"the bits of {x.dtype} do not make a {self.to}: the widths differ")
        return super().infer(x).with_dtype(self.to)

    def reference(self, x: Array) -> Array:
        return x.copy().view(NUMPY_DTYPES[self.to])


@dataclass(frozen=True)
class Format:
    """A float of a few bits: its mantissa, its least normal exponent, and its particular codes."""

    mantissa: int
    least: int
    greatest: int  # the code of the greatest number
    beyond: int  # the code of what is greater and not saturated
    nan: int
    sign: int = 0x80
    has_minus_zero: bool = True


# Micikevicius et al., FP8 Formats for Deep Learning (2022); without minus zero Noune et al. (2022).
FORMATS = {
    "float8_e4m3fn": Format(3, -6, 0x7E, 0x7F, 0x7F),
    "float8_e4m3fnuz": Format(3, -7, 0x7F, 0x80, 0x80, has_minus_zero=False),
    "float8_e5m2": Format(2, -14, 0x7B, 0x7C, 0x7E),
    "float8_e5m2fnuz": Format(2, -15, 0x7F, 0x80, 0x80, has_minus_zero=False),
    "float4_e2m1fn": Format(1, 0, 0x7, 0x7, 0x0, sign=0x8),
}


def decoded(x: Value) -> Value:
    """The numbers of a dtype of 8 bits or fewer: floats as float32, integers in 8 bits."""
    codes = np.arange(1 << PACKED_BITS.get(x.dtype, 8), dtype=np.uint8)
    wide = "float32" if x.dtype in FLOATS else "uint8" if x.dtype[0] == "u" else "int8"
    table = constant(codes.view(NUMPY_DTYPES[x.dtype]).astype(wide))
    return Gather(0)(table, Cast("int32")(BitCast("uint8")(x)))


def encoded(x: Value, to: str, saturate: bool, round_mode: str) -> Value:
    """x as a dtype of 8 bits or fewer."""
    if to in FORMATS:
        code = _float_code(cast_to(x, "float64"), FORMATS[to], to, saturate)
    elif to == "float8_e8m0fnu":
        code = _exponent_code(cast_to(x, "float64"), saturate, round_mode)
    else:
        mask = (1 << PACKED_BITS[to]) - 1
        code = BitwiseAnd()(cast_to(x, "int64"), mask)
    return BitCast(to)(Cast("uint8")(code))


def _float_code(x: Value, form: Format, to: str, saturate: bool) -> Value:
    top = float(np.uint8(form.greatest).view(NUMPY_DTYPES[to]))
    size = Min()(Abs()(x), top if saturate else 2 * top)
    # The binade above the least one, and how many of its steps x is away from zero.
    binade = Max()(Shift(left=False)(_as_bits(size), 52) - (1023 + form.least), 0)
    scale = Shift(left=True)(1023 + form.mantissa - form.least - binade, 52)
    steps = Cast("int64")(Round()(size * BitCast("float64")(scale)))
    code = Shift(left=True)(binade, form.mantissa) + steps
    code = Where()(Less()(form.greatest, code), constant(form.beyond, "int64"), code)
    return Where()(IsNaN()(x), constant(form.nan, "int64"), _signed(code, x, form))


def _as_bits(x: Value) -> Value:
    return BitCast("int64")(x)


def _signed(code: Value, x: Value, form: Format) -> Value:
    negative = Less()(_as_bits(x), 0)
    signed = Where()(negative, code + form.sign, code)
    if form.has_minus_zero:
        return signed
    return Where()(Or()(Equal()(code, 0), Equal()(code, form.nan)), code, signed)


def _exponent_code(x: Value, saturate: bool, round_mode: str) -> Value:
    """The exponent biased by 127, rounded by `round_mode`; 255 is NaN."""
    bits = _as_bits(Abs()(x))
    fraction = BitwiseAnd()(bits, (1 << 52) - 1)
    least = {"up": 1, "nearest": 1 << 51, "down": 1 << 52}[round_mode]
    exponent = Shift(left=False)(bits, 52) - (1023 - 127)
    code = exponent + Cast("int64")(Less()(least - 1, fraction))
    within = Clip()(code, constant(0, "int64"), constant(254, "int64"))
    nan = constant(255, "int64")
    if not saturate:
        within = Where()(Equal()(code, within), code, nan)
    return Where()(IsNaN()(x), nan, within)
