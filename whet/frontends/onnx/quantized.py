"""Quantised arithmetic: operands less their zero points, sums in int32, rescaled once."""

from __future__ import annotations

from whet.ir.graph import Value, constant
from whet.ops.elementwise import Cast
from whet.ops.movement import reshape
from whet.ops.quantize import Quantize


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
    return Quantize(dtype)(x, constant(1, x.dtype), zero_point)


def requantize(total: Value, factor: Value, zero_point: Value) -> Value:
    """int32 sums times `factor` (one, or one for each last index), as the zero point's dtype."""
    scaled = Cast("float32")(total) * Cast("float32")(along(factor, total.rank, None))
    return saturated(scaled, along(zero_point, total.rank, None))
