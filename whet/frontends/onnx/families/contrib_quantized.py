"""com.microsoft operators on quantised tensors: most are dequantise, compute, quantise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.frontends.onnx.families import quantize
from whet.frontends.onnx.families.convolution import convolve
from whet.frontends.onnx.families.normalize import flattened
from whet.frontends.onnx.families.pooling import average, windows
from whet.frontends.onnx.quantized import along, requantize, shifted
from whet.frontends.onnx.registry import contrib_op
from whet.frontends.onnx.windows import channels_first
from whet.frontends.onnx.windows import channels_last as to_last
from whet.ir.graph import Value
from whet.ops import elementwise as ew
from whet.ops.movement import (
    Concat,
    normalize_axis,
    reshape,
)
from whet.ops.quantize import Dequantize, Quantize
from whet.ops.reduce import Softmax, reduce_mean

Ints = Sequence[int]


def real(x: Value, scale: Value, zero: Value | None, axis: int | None = None) -> Value:
    """What a quantised tensor stands for, in the scale's dtype."""
    zero = None if zero is None else along(zero, x.rank, axis)
    return Dequantize(scale.dtype)(x, along(scale, x.rank, axis), zero)


def quantised(x: Value, scale: Value, zero: Value | None, dtype: str) -> Value:
    """x in units of the scale, from the zero point on, as `dtype`."""
    return Quantize(dtype)(x, reshape(scale), None if zero is None else reshape(zero))


def _unary(x: Value, compute: Callable[[Value], Value], *parameters: Value | None) -> Value:
    """One function of one quantised tensor; the parameters are its and the result's."""
    x_scale, x_zero, y_scale, y_zero = parameters
    assert x_scale is not None and y_scale is not None
    return quantised(compute(real(x, x_scale, x_zero)), y_scale, y_zero, x.dtype)


@contrib_op
def QLinearAdd(
    a: Value,
    a_scale: Value,
    a_zero: Value | None,
    b: Value,
    b_scale: Value,
    b_zero: Value | None,
    c_scale: Value,
    c_zero: Value | None = None,
) -> Value:
    total = real(a, a_scale, a_zero) + real(b, b_scale, b_zero)
    return quantised(total, c_scale, c_zero, a.dtype)


@contrib_op
def QLinearMul(
    a: Value,
    a_scale: Value,
    a_zero: Value | None,
    b: Value,
    b_scale: Value,
    b_zero: Value | None,
    c_scale: Value,
    c_zero: Value | None = None,
) -> Value:
    product = real(a, a_scale, a_zero) * real(b, b_scale, b_zero)
    return quantised(product, c_scale, c_zero, a.dtype)


@contrib_op
def QLinearSigmoid(
    x: Value,
    x_scale: Value,
    x_zero: Value | None,
    y_scale: Value,
    y_zero: Value | None = None,
) -> Value:
    return _unary(x, ew.Sigmoid(), x_scale, x_zero, y_scale, y_zero)


@contrib_op
def QLinearLeakyRelu(
    x: Value,
    x_scale: Value,
    x_zero: Value | None,
    y_scale: Value,
    y_zero: Value | None = None,
    *,
    alpha: float = 0.01,
) -> Value:
    def leaky(v: Value) -> Value:
        return ew.Where()(ew.Less()(v, 0), v * alpha, v)

    return _unary(x, leaky, x_scale, x_zero, y_scale, y_zero)


@contrib_op
def QLinearSoftmax(
    x: Value,
    x_scale: Value,
    x_zero: Value | None,
    y_scale: Value,
    y_zero: Value | None = None,
    *,
    axis: int = -1,
    opset: int,
) -> Value:
    def softmax(v: Value) -> Value:
        if opset < 13:
            return flattened(Softmax(-1), v, axis)
        return Softmax(normalize_axis(axis, v.rank))(v)

    return _unary(x, softmax, x_scale, x_zero, y_scale, y_zero)


@contrib_op
def QLinearConcat(y_scale: Value, y_zero: Value, *inputs: Value, axis: int) -> Value:
    triples = [inputs[i : i + 3] for i in range(0, len(inputs), 3)]
    parts = [quantised(real(x, s, z), y_scale, y_zero, y_zero.dtype) for x, s, z in triples]
    return Concat(normalize_axis(axis, parts[0].rank))(*parts)


@contrib_op
def QLinearWhere(
    condition: Value,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    y: Value,
    y_scale: Value,
    y_zero: Value,
    z_scale: Value,
    z_zero: Value,
) -> Value:
    chosen = ew.Where()(condition, real(x, x_scale, x_zero), real(y, y_scale, y_zero))
    return quantised(chosen, z_scale, z_zero, x.dtype)


@contrib_op
def QLinearReduceMean(
    x: Value,
    x_scale: Value,
    x_zero: Value | None,
    y_scale: Value,
    y_zero: Value | None = None,
    *,
    axes: Ints,
    keepdims: int,
) -> Value:
    over = tuple(normalize_axis(a, x.rank) for a in axes) or tuple(range(x.rank))

    def mean(v: Value) -> Value:
        y = reduce_mean(v, over)
        kept = (s for i, s in enumerate(v.shape) if i not in over)
        return y if keepdims else reshape(y, *kept)

    return _unary(x, mean, x_scale, x_zero, y_scale, y_zero)


@contrib_op
def QLinearGlobalAveragePool(
    x: Value,
    x_scale: Value,
    x_zero: Value | None,
    y_scale: Value,
    y_zero: Value | None = None,
    *,
    channels_last: int = 0,
) -> Value:
    axes = tuple(range(1, x.rank - 1)) if channels_last else tuple(range(2, x.rank))
    return _unary(x, lambda v: reduce_mean(v, axes), x_scale, x_zero, y_scale, y_zero)


@contrib_op
def QLinearAveragePool(
    x: Value,
    x_scale: Value,
    x_zero: Value | None,
    y_scale: Value,
    y_zero: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    last = x if channels_last else to_last(x)
    w = windows(last.shape[1:-1], auto_pad, ceil_mode, None, kernel_shape, pads, strides)
    y = average(real(last, x_scale, x_zero), w, bool(count_include_pad))
    y = quantised(y, y_scale, y_zero, x.dtype)
    return y if channels_last else channels_first(y)


@contrib_op
def QLinearConv(
    x: Value,
    x_scale: Value,
    x_zero: Value,
    w: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    last = shifted(x if channels_last else to_last(x), x_zero)
    kernel = shifted(to_last(w), w_zero, axis=0)
    total = convolve(last, kernel, auto_pad, dilations, group, kernel_shape, pads, strides)
    total = total if b is None else total + b
    y = requantize(total, x_scale * w_scale / y_scale, y_zero)
    return y if channels_last else channels_first(y)


@contrib_op
def QuantizeLinear(
    x: Value, scale: Value, zero: Value | None = None, *, axis: int | None = None
) -> Value:
    return quantize.QuantizeLinear(x, scale, zero, axis=1 if axis is None else axis)


@contrib_op
def DequantizeLinear(
    q: Value, scale: Value, zero: Value | None = None, *, axis: int | None = None
) -> Value:
    return quantize.DequantizeLinear(q, scale, zero, axis=1 if axis is None else axis)
