"""com.microsoft operators on quantised tensors: most are dequantise, compute, quantise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.frontends.onnx.families import quantize
from whet.frontends.onnx.families.contrib_attention import EmbedLayerNormalization, attend_packed
from whet.frontends.onnx.families.convolution import convolve
from whet.frontends.onnx.families.matmul import matmul, rows_shifted
from whet.frontends.onnx.families.normalize import flattened
from whet.frontends.onnx.families.pooling import average, windows
from whet.frontends.onnx.families.recurrent import LSTM
from whet.frontends.onnx.quantized import along, requantize, shifted
from whet.frontends.onnx.registry import Refused, contrib_op
from whet.frontends.onnx.windows import channels_first
from whet.frontends.onnx.windows import channels_last as to_last
from whet.ir.graph import Value, constant
from whet.ir.sizes import floor_divide
from whet.ops import elementwise as ew
from whet.ops.block_quantized import BlockQuantizedMatMul, unpacked
from whet.ops.elementwise import Cast
from whet.ops.movement import (
    Concat,
    Gather,
    Reverse,
    normalize_axis,
    reshape,
    slice_axis,
    split,
    transpose,
)
from whet.ops.quantize import Dequantize, Quantize
from whet.ops.reduce import Reduce, Softmax, narrowed, reduce_mean, widened
from whet.ops.resize import repeat

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


@contrib_op
def MulInteger(a: Value, a_zero: Value | None, b: Value, b_zero: Value | None = None) -> Value:
    return shifted(a, a_zero) * shifted(b, b_zero)


@contrib_op
def MatMulInteger16(a: Value, b: Value) -> Value:
    return matmul(Cast("int32")(a), Cast("int32")(b))


@contrib_op
def ReduceSumInteger(x: Value, *, axes: Ints, keepdims: int) -> Value:
    over = tuple(normalize_axis(a, x.rank) for a in axes)
    total = Reduce("sum", over)(Cast("uint32" if x.dtype[0] == "u" else "int32")(x))
    return (
        total if keepdims else reshape(total, *(s for i, s in enumerate(x.shape) if i not in over))
    )


@contrib_op
def QGemm(
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    c: Value | None = None,
    y_scale: Value | None = None,
    y_zero: Value | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Value:
    left = shifted(transpose(a, 1, 0) if transA else a, a_zero)
    right = shifted(transpose(b, 1, 0) if transB else b, b_zero)
    total = matmul(left, right)
    total = total if c is None else total + c
    factor = a_scale * b_scale
    factor = factor if alpha == 1.0 else factor * alpha
    if y_scale is None or y_zero is None:
        return Cast(factor.dtype)(total) * along(factor, 2, None)
    return requantize(total, factor / y_scale, y_zero)


@contrib_op
def MatMulIntegerToFloat(
    a: Value,
    b: Value,
    a_scale: Value,
    b_scale: Value,
    a_zero: Value | None = None,
    b_zero: Value | None = None,
    bias: Value | None = None,
) -> Value:
    total = matmul(rows_shifted(a, a_zero), shifted(b, b_zero))
    y = Cast(a_scale.dtype)(total) * along(a_scale * b_scale, total.rank, None)
    return y if bias is None else y + bias


@contrib_op
def DynamicQuantizeMatMul(
    a: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value | None = None,
    bias: Value | None = None,
) -> Value:
    codes, scale, zero = quantize.DynamicQuantizeLinear(a)
    return MatMulIntegerToFloat(codes, b, scale, b_scale, zero, b_zero, bias)


@contrib_op
def QAttention(
    x: Value,
    weight: Value,
    bias: Value,
    x_scale: Value,
    w_scale: Value,
    mask_index: Value | None = None,
    x_zero: Value | None = None,
    w_zero: Value | None = None,
    past: Value | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Value, Value]:
    if past_present_share_buffer or do_rotary:
        raise Refused("past_present_share_buffer and do_rotary are only known to CUDA kernels")
    packed = MatMulIntegerToFloat(x, weight, x_scale, w_scale, x_zero, w_zero, bias)
    width = floor_divide(packed.shape[2], 3)
    q, k, v = split(packed, (width,) * 3, 2)
    return attend_packed(
        (q, k, v), mask_index, past, None, num_heads, mask_filter_value, scale, unidirectional
    )


@contrib_op
def MatMulNBits(
    a: Value,
    codes: Value,
    scales: Value,
    zero_points: Value | None = None,
    g_idx: Value | None = None,
    bias: Value | None = None,
    *,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Value:
    if weight_prepacked:
        raise Refused("weight_prepacked is a layout of one GPU's kernels; export without it")
    if g_idx is not None:
        raise Refused("g_idx is deprecated, and no kernel of ONNX Runtime reads it any more")
    blocks = -(-K // block_size)
    codes = reshape(codes, N, blocks, block_size * bits // 8)
    zeros = None
    if zero_points is not None:
        zeros = _zero_points(zero_points, N, blocks, bits, scales.dtype)
    y = BlockQuantizedMatMul(K, bits, block_size)(a, codes, reshape(scales, N, blocks), zeros)
    return y if bias is None else y + bias


def _zero_points(zeros: Value, rows: int, blocks: int, bits: int, dtype: str) -> Value:
    """Zero points [N, blocks] as floats, from floats or from packed codes."""
    if zeros.dtype != "uint8":
        return reshape(zeros, rows, blocks)
    width = -(-blocks * bits // 8)
    codes = unpacked(reshape(zeros, rows, width), bits)
    return Cast(dtype)(slice_axis(codes, 1, 0, blocks))


@contrib_op
def QEmbedLayerNormalization(
    input_ids: Value,
    segment_ids: Value | None,
    word: Value,
    position: Value,
    segment: Value | None,
    gamma: Value,
    beta: Value,
    mask: Value | None,
    word_scale: Value,
    position_scale: Value,
    segment_scale: Value | None,
    gamma_scale: Value,
    beta_scale: Value,
    word_zero: Value,
    position_zero: Value,
    segment_zero: Value | None,
    gamma_zero: Value,
    beta_zero: Value,
    *,
    epsilon: float = 1e-12,
) -> tuple[Value, Value]:
    if segment is not None and segment_scale is not None:
        segment = real(segment, segment_scale, segment_zero)
    y, index, _ = EmbedLayerNormalization(
        input_ids,
        segment_ids,
        real(word, word_scale, word_zero),
        real(position, position_scale, position_zero),
        segment,
        real(gamma, gamma_scale, gamma_zero),
        real(beta, beta_scale, beta_zero),
        mask,
        epsilon=epsilon,
    )
    return y, index


@contrib_op
def DynamicQuantizeLSTM(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None,
    sequence_lens: Value | None,
    initial_h: Value | None,
    initial_c: Value | None,
    p: Value | None,
    w_scale: Value,
    w_zero: Value,
    r_scale: Value,
    r_zero: Value,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[Value, ...]:
    # The weights are exact; ONNX Runtime also rounds each step's inputs to 8 bits, for speed.
    w, r = (_direction_weights(*t) for t in ((w, w_scale, w_zero), (r, r_scale, r_zero)))
    return LSTM(
        x,
        w,
        r,
        b,
        sequence_lens,
        initial_h,
        initial_c,
        p,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        input_forget=input_forget,
    )


def _direction_weights(codes: Value, scale: Value, zero: Value) -> Value:
    """codes[D, inputs, 4H] as the weight [D, 4H, inputs] they stand for."""
    shape = (codes.shape[0], 1, 1) if scale.rank == 1 else (codes.shape[0], 1, codes.shape[2])
    w = Dequantize(scale.dtype)(codes, reshape(scale, *shape), reshape(zero, *shape))
    return transpose(w, 0, 2, 1)


@contrib_op
def GatherBlockQuantized(
    data: Value,
    indices: Value,
    scales: Value,
    zero_points: Value | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Value:
    if data.dtype not in ("uint8", "int4", "uint4", "int8"):
        raise Refused(f"blocks of {data.dtype} are not read yet")
    along_axis = normalize_axis(gather_axis, data.rank)
    blocked = normalize_axis(quantize_axis, data.rank)
    if along_axis == blocked:
        raise Refused("gathering along the axis of the blocks is not read yet")
    # Only the rows that are gathered need decoding.
    rows, row_scales = (Gather(along_axis)(v, indices) for v in (data, scales))
    zeros = None if zero_points is None else Gather(along_axis)(zero_points, indices)
    axis = blocked + indices.rank - 1 if blocked > along_axis else blocked
    if data.dtype == "uint8":
        rows = unpacked(rows, bits)
        if zeros is not None:
            zeros = slice_axis(unpacked(zeros, bits), -1, 0, scales.shape[-1])
    wide = Cast(widened(scales).dtype)(rows)
    if zeros is not None:
        wide = wide - _spread(Cast(wide.dtype)(zeros), axis, block_size, rows)
    elif data.dtype == "uint8":
        wide = wide - float(2 ** (bits - 1))
    return narrowed(wide * _spread(widened(row_scales), axis, block_size, rows), scales)


def _spread(parameter: Value, axis: int, block: int, x: Value) -> Value:
    """Each element of the parameter `block` times along the axis, as far as x reaches."""
    return slice_axis(repeat(parameter, axis, block), axis, 0, x.shape[axis])


NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The quantiles of a normal distribution that NF4's codes stand for (Dettmers et al. 2023)."""

FP4 = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
"""What the codes of bitsandbytes' FP4 stand for; the highest bit is the sign."""


@contrib_op
def MatMulBnb4(
    a: Value,
    codes: Value,
    absmax: Value,
    *,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    block_size: int,
    quant_type: int,
    training_mode: int = 0,
    transB: int = 1,  # noqa: N803
) -> Value:
    if not transB or quant_type not in (0, 1):
        raise Refused("only transB = 1 with quant_type 0 (FP4) or 1 (NF4) is defined")
    table = NF4 if quant_type else (*FP4, *(-v for v in FP4))
    # The first of two codes lies in the high bits.
    pairs = unpacked(reshape(codes, floor_divide(N * K, 2), 1), 4)
    index = reshape(Reverse((1,))(pairs), N * K)
    dtype = widened(a).dtype
    w = Gather(0)(constant(table, dtype), Cast("int64")(index))
    w = w * slice_axis(repeat(Cast(dtype)(absmax), 0, block_size), 0, 0, N * K)
    return narrowed(matmul(widened(a), transpose(reshape(w, N, K), 1, 0)), a)
