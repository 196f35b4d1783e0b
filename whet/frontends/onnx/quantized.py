"""Quantised arithmetic: operands less their zero points, sums in int32, rescaled once."""

from __future__ import annotations

from whet.ir.graph import Value, constant
from whet.ops.elementwise import Cast, Clip, Round
from whet.ops.movement import reshape


def shifted(x: Value, zero_point: Value | None, axis: int | None = None) -> Value:
    """x - zero_point in int32; the zero point is one number, or one for each index of `axis`."""
    wide = Cast("int32")(x)
    if zero_point is None:
        return wide
    return wide - Cast("int32")(along(zero_point, x.rank, axis))


def along(parameter: Value, rank: int, axis: int | None) -> Value:
    """A scale or zero point shaped to broadcast against a tensor of `rank` axes."""
    if parameter.rank == 0 or (parameter.shape == (1,) and axis is None):
        return reshape(parameter)
    if parameter.rank > 1:
        return parameter
    axis = rank - 1 if axis is None else axis
    return reshape(parameter, *parameter.shape, *(1,) * (rank - 1 - axis))


def saturated(x: Value, zero_point: Value | None, dtype: str = "uint8") -> Value:
    """The float x rounded (halves to even), shifted and clamped into the zero point's dtype."""
    dtype = dtype if zero_point is None else zero_point.dtype
    x = Round()(x)
    x = x if zero_point is None else x + Cast(x.dtype)(zero_point)
    low, high = integer_range(dtype)
    return Cast(dtype)(Clip()(x, constant(low, x.dtype), constant(high, x.dtype)))


def requantize(total: Value, factor: Value, zero_point: Value) -> Value:
    """int32 sums times `factor` (one, or one for each last index), as the zero point's dtype."""
    scaled = Cast("float32")(total) * Cast("float32")(along(factor, total.rank, None))
    return saturated(scaled, along(zero_point, total.rank, None))


def integer_range(dtype: str) -> tuple[int, int]:
    """The least and the greatest number of an integer dtype."""
    bits = int(dtype.lstrip("uint"))
    return (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
