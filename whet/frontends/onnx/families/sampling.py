"""ONNX operators that read images at computed positions: grids, regions, deformed windows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whet.frontends.onnx.registry import Refused, onnx_op
from whet.frontends.onnx.windows import channels_first, channels_last, each
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, floor_divide, product
from whet.ir.types import FLOATS
from whet.ops.contract import MatMul
from whet.ops.elementwise import (
    Abs,
    Add,
    And,
    Cast,
    Ceil,
    Clip,
    Floor,
    Less,
    LessOrEqual,
    Max,
    Sign,
    Where,
)
from whet.ops.image import MODES, DecodeImage
from whet.ops.index import IotaUpTo, number, positions
from whet.ops.movement import Gather, broadcast_to, reshape, slice_axis, transpose, unsqueeze
from whet.ops.reduce import Reduce, narrowed, widened
from whet.ops.sample import Axis, masked_max, sample, zeros_outside

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading


@onnx_op
def GridSample(
    x: Value,
    grid: Value,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Value:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    if mode not in ("linear", "nearest", "cubic"):
        raise Refused(f"mode {mode!r} is none of linear, nearest, cubic")
    if padding_mode not in ("zeros", "border", "reflection"):
        raise Refused(f"padding_mode {padding_mode!r} is none of zeros, border, reflection")
    grid = widened(grid)
    image = channels_last(widened(x) if x.dtype in FLOATS else Cast("float32")(x))
    axes, at = [], []
    for place, size in enumerate(reversed(x.shape[2:])):
        length = number(size, grid.dtype)
        g = reshape(slice_axis(grid, -1, place, 1), *grid.shape[:-1])
        if align_corners:
            low, high = constant(0.0, grid.dtype), length - 1.0
            at.append((g + 1.0) / 2.0 * (length - 1.0))
        else:
            low, high = constant(-0.5, grid.dtype), length - 0.5
            at.append(((g + 1.0) * length - 1.0) / 2.0)
        axes.append(Axis(size, padding_mode, low, high))
    # The grid's last axis holds x before y before z.
    y = sample(narrowed(image, grid), at[::-1], axes[::-1], mode)
    return channels_first(narrowed(y, x))


@onnx_op
def AffineGrid(theta: Value, size: Value, *, align_corners: int = 0, node: Reading) -> Value:
    sizes = node.sizes(size, "size")[2:]
    rank, wide = len(sizes), widened(theta)
    shape = (theta.shape[0], *(1,) * rank, rank)

    def column(i: int) -> Value:
        return reshape(slice_axis(wide, 2, i, 1), *shape)

    total = column(rank)
    for place, length in enumerate(reversed(sizes)):
        base = _normalised(length, wide.dtype, bool(align_corners))
        line = reshape(base, *(length if i == rank - place else 1 for i in range(rank + 2)))
        total = total + line * column(place)
    grid = broadcast_to(total, theta.shape[0], *sizes, rank)
    return narrowed(grid, theta)


def _normalised(size: Size, dtype: str, align: bool) -> Value:
    """Where the elements of an axis stand between -1 and 1."""
    i, length = positions(size, 1, 0, dtype), number(size, dtype)
    if align:
        # A single element stands in the middle.
        return (i * 2.0 - (length - 1.0)) / Max()(length - 1.0, 1.0)
    return (i * 2.0 + 1.0) / length - 1.0


@onnx_op
def RoiAlign(
    x: Value,
    rois: Value,
    batch_indices: Value,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    node: Reading,
) -> Value:
    out = (output_height, output_width)
    how = (mode, out, sampling_ratio, spatial_scale, False, node)
    return region_align(x, rois, batch_indices, *how)


@onnx_op
def RoiAlign_16(
    x: Value,
    rois: Value,
    batch_indices: Value,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    node: Reading,
) -> Value:
    half = coordinate_transformation_mode == "half_pixel"
    out = (output_height, output_width)
    how = (mode, out, sampling_ratio, spatial_scale, half, node)
    return region_align(x, rois, batch_indices, *how)


def region_align(
    x: Value,
    rois: Value,
    batch_indices: Value,
    mode: str,
    out: tuple[int, int],
    sampling: int,
    scale: float,
    half_pixel: bool,
    node: Reading,
) -> Value:
    """Each region of x[N, C, H, W] as a grid of bilinear samples, pooled (He et al. 2017)."""
    if mode not in ("avg", "max"):
        raise Refused(f"mode {mode!r} is neither avg nor max")
    corners = widened(rois) * scale - (0.5 if half_pixel else 0.0)
    lines = []
    for axis in range(2):
        ends = (slice_axis(corners, 1, i, 1) for i in (1 - axis, 3 - axis))
        start, end = (reshape(e, rois.shape[0]) for e in ends)
        extent = end - start if half_pixel else Max()(end - start, 1.0)
        size = x.shape[2 + axis]
        lines.append(_sample_line(start, extent, out[axis], sampling, size, axis, node))
    image = channels_last(narrowed(widened(x), corners))
    y = _pooled(image, batch_indices, lines, mode)
    return channels_first(narrowed(y, x))


@dataclass(frozen=True)
class SampleLine:
    """Samples [R, out, T] of one axis of the regions, shaped to meet those of the other axis."""

    taps: tuple[tuple[Value, Value], ...]
    inside: Value
    counted: Value
    count: Value


def _sample_line(
    start: Value, extent: Value, out: int, sampling: int, size: Size, axis: int, node: Reading
) -> SampleLine:
    regions, dtype = start.shape[0], start.dtype
    step = extent / float(out)
    count = constant(sampling, dtype) if sampling > 0 else Ceil()(step)
    if sampling > 0:
        samples: Value = positions(sampling, 1, 0, dtype)
    else:
        most = Cast("int64")(Max()(reshape(Reduce("max", (0,))(count)), 1.0))
        symbol = node.fresh_size(f"samples{axis}", low=1)
        samples = Cast(dtype)(IotaUpTo(symbol)(most))

    def shaped(v: Value, *sizes: Size) -> Value:
        shape = (*sizes, 1, 1) if axis == 0 else (sizes[0], 1, 1, *sizes[1:])
        return reshape(v, *shape)

    length = samples.shape[0]
    step, start = (shaped(v, regions, 1, 1) for v in (step, start))
    count = count if sampling > 0 else shaped(count, regions, 1, 1)
    i = shaped(samples, 1, 1, length)
    at = start + shaped(positions(out, 1, 0, dtype), 1, out, 1) * step + (i + 0.5) * step / count
    last = number(size, dtype)
    inside = And()(LessOrEqual()(-1.0, at), LessOrEqual()(at, last))
    edge = Axis(size, "border", constant(0.0, dtype), last - 1.0)
    clamped = Clip()(at, constant(0.0, dtype), last - 1.0)
    taps = tuple((index, weight) for index, _, weight in edge.taps("linear", clamped))
    return SampleLine(taps, inside, Less()(i, count), count)  # type: ignore[arg-type]


def _pooled(image: Value, batch_indices: Value, lines: Sequence[SampleLine], mode: str) -> Value:
    """The mean or the greatest of the samples of each bin: [R, H', W', C]."""
    n, height, width, channels = image.shape
    rows = reshape(image, n * height * width, channels)
    which = reshape(Cast("int64")(batch_indices), batch_indices.shape[0], 1, 1, 1, 1)
    down, right = lines
    terms = []
    for (y, wy), (x, wx) in itertools.product(down.taps, right.taps):
        index = (which * number(height, "int64") + y) * number(width, "int64") + x
        terms.append(Gather(0)(rows, index) * unsqueeze(wy * wx, 5))
    joined = functools.reduce(Max() if mode == "max" else Add(), terms)
    inside = unsqueeze(And()(down.inside, right.inside), 5)
    counted = unsqueeze(And()(down.counted, right.counted), 5)
    joined = Where()(inside, joined, constant(0.0, joined.dtype))
    shape = (joined.shape[0], joined.shape[1], joined.shape[3], channels)
    if mode == "max":
        lowest = constant(float("-inf"), joined.dtype)
        return reshape(Reduce("max", (2, 4))(Where()(counted, joined, lowest)), *shape)
    total = Reduce("sum", (2, 4))(Where()(counted, joined, constant(0.0, joined.dtype)))
    count = Max()(down.count * right.count, 1.0)
    count = count if count.rank == 0 else reshape(count, count.shape[0], 1, 1, 1)
    return reshape(total, *shape) / count


@onnx_op
def MaxRoiPool(
    x: Value, rois: Value, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Value:
    wide = widened(x)
    corners = widened(rois) * spatial_scale
    regions = rois.shape[0]
    index = reshape(Cast("int64")(slice_axis(rois, 1, 0, 1)), regions)
    y = Gather(0)(wide, index)
    # One axis after the other: the greatest in a rectangle is the greatest of its rows' greatest.
    for axis in (3, 2):
        first, last = (_rounded(slice_axis(corners, 1, i, 1)) for i in (4 - axis, 6 - axis))
        out, size = pooled_shape[axis - 2], x.shape[axis]
        step = Max()(last - first + 1.0, 1.0) / float(out)
        bins = positions(out, 2, 1, wide.dtype)
        limit = number(size, wide.dtype)
        zero = constant(0.0, wide.dtype)
        low = Clip()(Floor()(bins * step) + first, zero, limit)
        high = Clip()(Ceil()((bins + 1.0) * step) + first, zero, limit)
        place = positions(size, 3, 2, wide.dtype)
        mask = And()(LessOrEqual()(unsqueeze(low, 2), place), Less()(place, unsqueeze(high, 2)))
        shape = (regions, 1, out, size, 1) if axis == 2 else (regions, 1, 1, out, size)
        y = masked_max(unsqueeze(y, axis), reshape(mask, *shape), axis + 1)
    empty = Less()(y, float(np.finfo(np.float32).min))
    return narrowed(Where()(empty, constant(0.0, y.dtype), y), x)


def _rounded(x: Value) -> Value:
    """To the nearest whole number, halves away from zero."""
    return Sign()(x) * Floor()(Abs()(x) + 0.5)


@onnx_op
def DeformConv(
    x: Value,
    w: Value,
    offset: Value,
    b: Value | None = None,
    mask: Value | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Value:
    """Every tap of every window reads x where the offsets put it (Zhu et al. 2019)."""
    rank = x.rank - 2
    kernel = w.shape[2:]
    step, dilation = each(strides, rank, 1, "strides"), each(dilations, rank, 1, "dilations")
    before = each(pads, 2 * rank, 0, "pads")[:rank]
    batch, out = x.shape[0], offset.shape[2:]
    taps = product(kernel)
    wide = widened(x)
    # Groups that share offsets stand beside the batch: [N * groups, *S, C / groups].
    share = floor_divide(x.shape[1], offset_group)
    image = channels_last(reshape(wide, batch * offset_group, share, *x.shape[2:]))
    shifts = reshape(widened(offset), batch * offset_group, taps, rank, *out)
    at = []
    for axis in range(rank):
        shift = reshape(slice_axis(shifts, 2, axis, 1), batch * offset_group, taps, *out)
        tap = positions(kernel[axis], rank, axis, wide.dtype) * float(dilation[axis])
        tap = reshape(broadcast_to(tap, *kernel), 1, taps, *(1,) * rank)
        start = positions(out[axis], rank + 2, axis + 2, wide.dtype) * float(step[axis])
        at.append(start - float(before[axis]) + tap + shift)
    read = sample(image, at, zeros_outside(x.shape[2:], wide.dtype), "linear")
    if mask is not None:
        read = read * reshape(widened(mask), batch * offset_group, taps, *out, 1)
    return narrowed(_grouped_product(read, w, b, batch, offset_group, group), x)


def _grouped_product(
    read: Value, w: Value, b: Value | None, batch: Size, offset_group: int, group: int
) -> Value:
    """read[N * offset groups, taps, *P, share] times w[O, C/group, *K]: y[N, O, *P]."""
    taps, *out, share = read.shape[1:]
    places = product(out)
    channels = share * offset_group
    each_in, each_out = floor_divide(channels, group), floor_divide(w.shape[0], group)
    cols = reshape(read, batch, offset_group, taps, places, share)
    cols = transpose(cols, 1, 4, 0, 3, 2)
    cols = reshape(cols, group, each_in, batch * places, taps)
    cols = reshape(transpose(cols, 0, 2, 1, 3), group, batch * places, each_in * taps)
    rows = transpose(reshape(widened(w), group, each_out, each_in * taps), 0, 2, 1)
    y = reshape(MatMul()(cols, rows), group, batch, places, each_out)
    y = reshape(transpose(y, 1, 2, 0, 3), batch, *out, w.shape[0])
    return channels_first(y if b is None else y + widened(b))


@onnx_op
def ImageDecoder(encoded: Value, *, pixel_format: str = "RGB", node: Reading) -> Value:
    if pixel_format not in MODES:
        raise Refused(f"pixel_format {pixel_format!r} is none of {', '.join(MODES)}")
    height, width = node.fresh_size("height"), node.fresh_size("width")
    return DecodeImage(pixel_format, height, width)(encoded)
