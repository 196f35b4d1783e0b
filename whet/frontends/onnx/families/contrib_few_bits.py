"""com.microsoft operators on weights of a few bits, with a scale for each block."""

from __future__ import annotations

from whet.frontends.onnx.families.matmul import matmul
from whet.frontends.onnx.registry import Refused, contrib_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import floor_divide
from whet.ops.block_quantized import BlockQuantizedMatMul, unpacked
from whet.ops.elementwise import Cast
from whet.ops.movement import (
    Gather,
    Reverse,
    normalize_axis,
    reshape,
    slice_axis,
    transpose,
)
from whet.ops.reduce import narrowed, widened
from whet.ops.resize import repeat


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
