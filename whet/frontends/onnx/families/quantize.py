"""ONNX operators between real numbers and their quantised forms."""

from __future__ import annotations

from whet.errors import InvalidModel
from whet.frontends.onnx.families.generate import element_type
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, ceil_divide, is_less, maximum, minimum
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import reduce as rd
from whet.ops.quantize import Dequantize, Quantize


@onnx_op
def QuantizeLinear(
    x: Value,
    scale: Value,
    zero: Value | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Value:
    to = element_type(output_dtype or None, "uint8" if zero is None else zero.dtype)
    divisor = ew.cast_to(scale, element_type(precision or None, scale.dtype))
    parameters = (p and stretched(p, x, axis, block_size) for p in (divisor, zero))
    keeps_range = bool(saturate) or not to.startswith("float8")
    return Quantize(to, keeps_range)(x, *parameters)


@onnx_op
def DequantizeLinear(
    q: Value,
    scale: Value,
    zero: Value | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Value:
    to = element_type(output_dtype or None, scale.dtype)
    parameters = (p and stretched(p, q, axis, block_size) for p in (scale, zero))
    return Dequantize(to)(q, *parameters)


def stretched(parameter: Value, x: Value, axis: int, block: Size) -> Value:
    """A scale or zero point that broadcasts against x: one, one per index of `axis`, or blocks."""
    if parameter.rank == 0:
        return parameter
    if parameter.shape == (1,):
        return mv.reshape(parameter)
    axis = mv.normalize_axis(axis, x.rank)
    if parameter.rank == 1 and not block:
        return mv.reshape(
            parameter, *(parameter.shape[0] if i == axis else 1 for i in range(x.rank))
        )
    if parameter.rank != x.rank or is_less(block, 0):
        raise InvalidModel(f"a scale {parameter.type} does not fit {x.type} in blocks of {block}")
    # A block longer than the axis would only be cut off again.
    most = maximum(x.shape[axis], 1)
    block = minimum(block, most) if block else ceil_divide(most, maximum(parameter.shape[axis], 1))
    return _repeated(parameter, axis, block, x)


def _repeated(parameter: Value, axis: int, block: Size, x: Value) -> Value:
    """Each element `block` times along the axis, as far as x reaches."""
    shape = parameter.shape
    apart = mv.unsqueeze(parameter, axis + 1)
    wide = mv.broadcast_to(apart, *shape[: axis + 1], block, *shape[axis + 1 :])
    joined = mv.reshape(wide, *shape[:axis], shape[axis] * block, *shape[axis + 1 :])
    return mv.slice_axis(joined, axis, 0, x.shape[axis])


@onnx_op
def DynamicQuantizeLinear(x: Value) -> tuple[Value, Value, Value]:
    axes = tuple(range(x.rank))
    low = ew.Min()(mv.reshape(rd.Reduce("min", axes)(x)), 0)
    high = ew.Max()(mv.reshape(rd.Reduce("max", axes)(x)), 0)
    spread = (high - low) / 255
    scale = ew.Where()(ew.Equal()(spread, 0), constant(1, x.dtype), spread)
    limits = constant(0, x.dtype), constant(255, x.dtype)
    zero = ew.Cast("uint8")(ew.Clip()(ew.Round()(ew.Neg()(low) / scale), *limits))
    return Quantize("uint8")(x, scale, zero), scale, zero
