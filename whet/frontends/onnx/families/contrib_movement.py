"""com.microsoft operators that move, sample, pool and combine elements."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whet.frontends.onnx.families import attention, gather, generate, movement, sampling, select
from whet.frontends.onnx.families.pooling import windows
from whet.frontends.onnx.registry import Refused, contrib_op
from whet.frontends.onnx.windows import channels_first, channels_last
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, floor_divide
from whet.ops import elementwise as ew
from whet.ops.index import number, positions
from whet.ops.movement import (
    Concat,
    Gather,
    normalize_axis,
    reshape,
    slice_axis,
    transpose,
    unsqueeze,
)
from whet.ops.reduce import Reduce, RMSNorm, narrowed, widened
from whet.ops.sample import Axis, sample

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading

Ints = Sequence[int]


@contrib_op
def Trilu(x: Value, k: Value | None = None, *, upper: int = 1) -> Value:
    return generate.Trilu(x, k, upper=upper)


@contrib_op
def Range(start: Value, limit: Value, delta: Value | None = None, *, node: Reading) -> Value:
    delta = constant(1, start.dtype) if delta is None else reshape(delta)
    return generate.Range(reshape(start), reshape(limit), delta, node=node)


@contrib_op
def Pad(
    x: Value, pads: Value, fill: Value | None = None, *, mode: str = "constant", node: Reading
) -> Value:
    return movement.Pad_11(x, reshape(pads, 2 * x.rank), fill, mode=mode, node=node)


@contrib_op
def GatherND(data: Value, indices: Value) -> Value:
    return gather.GatherND(data, indices)


@contrib_op
def Unique(x: Value, *, node: Reading) -> Any:
    values, _, which, counts = select.Unique(x, sorted=0, node=node)
    return values, which, counts


@contrib_op
def ExpandDims(x: Value, axis: Value, *, node: Reading) -> Value:
    return unsqueeze(x, int(node.number(axis, "axis")))


@contrib_op
def TorchEmbedding(
    weight: Value,
    indices: Value,
    padding_idx: Value | None = None,
    scale_grad_by_freq: Value | None = None,
) -> Value:
    return Gather(0)(weight, indices)


@contrib_op
def UnfoldTensor(x: Value, *, dim: int = -1, size: int, step: int = 1) -> Value:
    axis = normalize_axis(dim, x.rank)
    count = floor_divide(x.shape[axis] - size, step) + 1
    index = positions(count, 2, 0) * step + positions(size, 2, 1)
    y = Gather(axis)(x, index)
    return transpose(y, *(i for i in range(y.rank) if i != axis + 1), axis + 1)


@contrib_op
def NhwcMaxPool(
    x: Value,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    w = windows(x.shape[1:-1], auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    return w.pool("max", x)


@contrib_op
def GridSample(
    x: Value,
    grid: Value,
    *,
    align_corners: int = 0,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Value:
    how = {"align_corners": align_corners, "mode": mode, "padding_mode": padding_mode}
    return sampling.GridSample(x, grid, **how)


@contrib_op
def CropAndResize(
    x: Value,
    rois: Value,
    batch_indices: Value,
    crop_size: Value,
    *,
    extrapolation_value: float = 0.0,
    mode: str = "bilinear",
    node: Reading,
) -> Value:
    out = node.sizes(crop_size, "crop_size")
    wide, boxes, regions = channels_last(widened(x)), widened(rois), rois.shape[0]
    at, inside = [], constant(True)
    for axis in range(2):
        start, end = (reshape(slice_axis(boxes, 1, axis + i, 1), regions, 1) for i in (0, 2))
        last = number(x.shape[2 + axis], boxes.dtype) - 1.0
        line = _crop_line(start, end, last, out[axis])
        line = reshape(line, regions, *((out[0], 1) if axis == 0 else (1, out[1])))
        within = ew.And()(ew.LessOrEqual()(0.0, line), ew.LessOrEqual()(line, last))
        inside = ew.And()(inside, within)
        at.append(ew.Floor()(line + 0.5) if mode == "nearest" else line)
    zero = constant(0.0, boxes.dtype)
    edges = [Axis(s, "border", zero, number(s, boxes.dtype)) for s in x.shape[2:]]
    picked = Gather(0)(wide, batch_indices)
    y = sample(picked, at, edges, "nearest" if mode == "nearest" else "linear")
    filler = constant(extrapolation_value, y.dtype)
    return channels_first(narrowed(ew.Where()(unsqueeze(inside, 3), y, filler), x))


def _crop_line(start: Value, end: Value, last: Value, count: Size) -> Value:
    """Where `count` samples [R, count] stand between the corners of each box."""
    if count == 1:
        return (start + end) * 0.5 * last
    step = (end - start) * last / (number(count, start.dtype) - 1.0)
    return start * last + positions(count, 2, 1, start.dtype) * step


@contrib_op
def ComplexMul(a: Value, b: Value) -> Value:
    return _complex_product(a, b, 1.0)


@contrib_op
def ComplexMulConj(a: Value, b: Value) -> Value:
    return _complex_product(a, b, -1.0)


def _complex_product(a: Value, b: Value, sign: float) -> Value:
    """a times b, or b's conjugate with sign -1; the last axis holds real and imaginary part."""
    ar, ai, br, bi = (slice_axis(x, -1, i, 1) for x in (a, b) for i in range(2))
    bi = bi if sign > 0 else ew.Neg()(bi)
    real, imaginary = ar * br - ai * bi, ar * bi + ai * br
    return Concat(real.rank - 1)(real, imaginary)


@contrib_op
def IsAllFinite(*inputs: Value, isinf_only: int = 0, isnan_only: int = 0) -> Value:
    return functools.reduce(ew.And(), (_all_finite(x, isinf_only, isnan_only) for x in inputs))


def _all_finite(x: Value, isinf_only: int, isnan_only: int) -> Value:
    """Whether x has no infinity and no NaN, or neither of the one kind that counts."""
    tests = [] if isnan_only else [ew.IsInf()(x)]
    tests += [] if isinf_only else [ew.IsNaN()(x)]
    strange = functools.reduce(ew.Or(), tests)
    found = Reduce("max", tuple(range(x.rank)))(ew.Cast("int32")(strange))
    return ew.Equal()(reshape(found), 0)


@contrib_op
def GatedRMSNorm(
    x: Value, scale: Value, gate: Value, *, activation: str = "silu", epsilon: float = 1e-5
) -> Value:
    if activation not in ("silu", "swish", "sigmoid"):
        raise Refused(f"activation {activation!r} is none of silu, swish, sigmoid")
    size = scale.shape[0]
    groups = reshape(x, *x.shape[:-1], floor_divide(x.shape[-1], size), size)
    y = widened(reshape(RMSNorm(1, epsilon)(groups, scale), *x.shape))
    wide = widened(gate)
    return narrowed(y * (ew.Sigmoid()(wide) if activation == "sigmoid" else ew.Silu()(wide)), x)


@contrib_op
def CausalConvWithState(
    x: Value,
    w: Value,
    b: Value | None = None,
    past_state: Value | None = None,
    *,
    activation: str = "none",
    channels_last: int = 0,
    dilation: int = 1,
    ndim: int = 1,
    state_window: int = 0,
) -> tuple[Value, Value]:
    if channels_last or dilation != 1 or ndim != 1 or state_window:
        raise Refused("channels_last, dilation, ndim and state_window are only read at defaults")
    return attention.CausalConvWithState(x, w, b, past_state, activation=activation)


@contrib_op
def LinearAttention(
    q: Value,
    k: Value,
    v: Value,
    past_state: Value | None = None,
    decay: Value | None = None,
    beta: Value | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    state_window: int = 0,
    update_rule: str = "gated_delta",
) -> tuple[Value, Value]:
    if state_window or kv_num_heads > q_num_heads:
        raise Refused("state_window and fewer heads of q than of k are not read yet")
    return attention.LinearAttention(
        q,
        k,
        v,
        past_state,
        decay,
        beta,
        kv_num_heads=kv_num_heads,
        q_num_heads=q_num_heads,
        scale=scale,
        update_rule=update_rule,
    )
