"""com.microsoft operators that multiply in integers, and layers on quantised weights."""

from __future__ import annotations

from collections.abc import Sequence

from whet.frontends.onnx.families import quantize
from whet.frontends.onnx.families.contrib_attention import EmbedLayerNormalization, attend_packed
from whet.frontends.onnx.families.contrib_quantized import real
from whet.frontends.onnx.families.matmul import matmul, rows_shifted
from whet.frontends.onnx.families.recurrent import LSTM
from whet.frontends.onnx.quantized import along, requantize, shifted
from whet.frontends.onnx.registry import Refused, contrib_op
from whet.ir.graph import Value
from whet.ir.sizes import floor_divide
from whet.ops.elementwise import Cast
from whet.ops.movement import (
    normalize_axis,
    reshape,
    split,
    transpose,
)
from whet.ops.quantize import Dequantize
from whet.ops.reduce import Reduce

Ints = Sequence[int]


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
