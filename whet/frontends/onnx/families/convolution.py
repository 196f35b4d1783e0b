"""ONNX convolutions: plain, transposed, integer and quantised; channels last inside."""

from __future__ import annotations

from collections.abc import Sequence

from whet.frontends.onnx.quantized import requantize, shifted
from whet.frontends.onnx.registry import onnx_op
from whet.frontends.onnx.windows import (
    channels_first,
    channels_last,
    each,
    halves,
    padding,
    spans,
)
from whet.ir.graph import Value
from whet.ir.sizes import Size, ceil_divide, floor_divide, is_less, maximum, product
from whet.ops.contract import Convolution
from whet.ops.elementwise import require_equal
from whet.ops.movement import Pad, Reverse, Slice, reshape, transpose

Ints = Sequence[int]


def convolve(
    x: Value,
    w: Value,
    auto_pad: str,
    dilations: Ints | None,
    group: int,
    kernel_shape: Ints | None,
    pads: Ints | None,
    strides: Ints | None,
) -> Value:
    """ONNX's Conv on x[N, *S, C] and w[O, *K, C/group], both channels last, without a bias."""
    axes = w.rank - 2
    kernel = w.shape[1:-1]
    for stated, size in zip(kernel_shape or (), kernel):
        require_equal(stated, size, "kernel_shape and the weight's shape")
    step = each(strides, axes, 1, "strides")
    dilation = each(dilations, axes, 1, "dilations")
    before, after = padding(auto_pad, pads, x.shape[1:-1], spans(kernel, dilation), step)
    return Convolution(step, dilation, before, after, group)(x, w)


@onnx_op
def Conv(
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    y = convolve(
        channels_last(x),
        channels_last(w),
        auto_pad,
        dilations,
        group,
        kernel_shape,
        pads,
        strides,
    )
    return channels_first(y if b is None else y + b)


@onnx_op
def ConvInteger(
    x: Value,
    w: Value,
    x_zero_point: Value | None = None,
    w_zero_point: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    y = convolve(
        shifted(channels_last(x), x_zero_point),
        shifted(channels_last(w), w_zero_point, axis=0),
        auto_pad,
        dilations,
        group,
        kernel_shape,
        pads,
        strides,
    )
    return channels_first(y)


@onnx_op
def QLinearConv(
    x: Value,
    x_scale: Value,
    x_zero_point: Value,
    w: Value,
    w_scale: Value,
    w_zero_point: Value,
    y_scale: Value,
    y_zero_point: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    total = convolve(
        shifted(channels_last(x), x_zero_point),
        shifted(channels_last(w), w_zero_point, axis=0),
        auto_pad,
        dilations,
        group,
        kernel_shape,
        pads,
        strides,
    )
    total = total if b is None else total + b
    return channels_first(requantize(total, x_scale * w_scale / y_scale, y_zero_point))


@onnx_op
def ConvTranspose(
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    axes = w.rank - 2
    for stated, size in zip(kernel_shape or (), w.shape[2:]):
        require_equal(stated, size, "kernel_shape and the weight's shape")
    step = each(strides, axes, 1, "strides")
    dilation = each(dilations, axes, 1, "dilations")
    span = spans(w.shape[2:], dilation)
    extra = each(output_padding, axes, 0, "output_padding")
    full = [s * (n - 1) + e + k for n, s, e, k in zip(x.shape[2:], step, extra, span)]
    before, sizes = _transposed_window(auto_pad, pads, output_shape, x.shape[2:], step, full)
    y = transposed_convolution(channels_last(x), _dilated(w, dilation), group, step, before, sizes)
    return channels_first(y if b is None else y + b)


def _transposed_window(
    auto_pad: str,
    pads: Ints | None,
    output_shape: Ints | None,
    sizes: Sequence[Size],
    strides: Ints,
    full: Sequence[Size],
) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    """How much of the full result is cut off in front of each axis, and how much is kept."""
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if not output_shape and not same:
        before, after = padding(auto_pad, pads, sizes, full, strides)
        return before, tuple(f - b - a for f, b, a in zip(full, before, after))
    if output_shape:
        wanted: tuple[Size, ...] = tuple(output_shape[-len(sizes) :])
    else:
        wanted = tuple(n * s for n, s in zip(sizes, strides))
    cut = [maximum(f - out, 0) for f, out in zip(full, wanted)]
    return halves(cut, auto_pad == "SAME_UPPER")[0], wanted


def _dilated(w: Value, dilations: Ints) -> Value:
    """w[C, O, *K] with dilation - 1 zeros between neighbours."""
    if all(d == 1 for d in dilations):
        return w
    gaps = [(k, d) for k, d in zip(w.shape[2:], dilations)]
    w = reshape(w, *w.shape[:2], *(size for k, _ in gaps for size in (k, 1)))
    after = (0, 0, *(size for _, d in gaps for size in (0, d - 1)))
    w = Pad((0,) * w.rank, after)(w, 0)
    w = reshape(w, *w.shape[:2], *(k * d for k, d in gaps))
    sizes = (*w.shape[:2], *((k - 1) * d + 1 for k, d in gaps))
    return Slice((0,) * w.rank, sizes, (1,) * w.rank)(w)


def transposed_convolution(
    x: Value,
    w: Value,
    groups: int,
    strides: Ints,
    before: Sequence[Size],
    sizes: Sequence[Size],
) -> Value:
    """The transposed convolution of x[N, *S, C] with w[C, O/groups, *K]: `sizes` from `before` on.

    One convolution computes the s outputs that stand over each input as s times the channels,
    which then move side by side: the sub-pixel convolution of Shi et al. 2016, here exact for
    every kernel and stride.
    """
    taps = [ceil_divide(k, s) for k, s in zip(w.shape[2:], strides)]
    kernel = _phases(w, groups, strides, taps)
    first, last = [], []
    for n, m, s, b, size in zip(x.shape[1:-1], taps, strides, before, sizes):
        # Only blocks of s outputs that are kept are computed; block t reads inputs t - m + 1 … t.
        start = floor_divide(b, s)
        start = start if not is_less(m - 1, start) and is_less(-1, m - 1 - start) else 0
        first.append(start)
        last.append(maximum(ceil_divide(b + size, s) - n, 0))
    pads = tuple(m - 1 - t for m, t in zip(taps, first))
    ones = (1,) * len(taps)
    y = Convolution(ones, ones, pads, tuple(last), groups)(x, kernel)
    y = _interleaved(y, strides)
    starts = (0, *(b - t * s for b, t, s in zip(before, first, strides)), 0)
    wanted = (y.shape[0], *sizes, y.shape[-1])
    return y if y.shape == wanted else Slice(starts, wanted, (1,) * y.rank)(y)


def _phases(w: Value, groups: int, strides: Ints, taps: Sequence[Size]) -> Value:
    """w[C, O/g, *K] as the weight [O * phases, *taps, C/g] of one convolution for all phases."""
    n = len(strides)
    extra = (m * s - k for m, s, k in zip(taps, strides, w.shape[2:]))
    w = Pad((0,) * w.rank, (0, 0, *extra))(w, 0)
    channels, out = w.shape[:2]
    split = (size for m, s in zip(taps, strides) for size in (m, s))
    w = reshape(w, groups, floor_divide(channels, groups), out, *split)
    w = Reverse(tuple(3 + 2 * i for i in range(n)))(w)
    phases, positions = (4 + 2 * i for i in range(n)), (3 + 2 * i for i in range(n))
    w = transpose(w, 0, 2, *phases, *positions, 1)
    return reshape(w, groups * out * product(strides), *taps, w.shape[-1])


def _interleaved(y: Value, strides: Ints) -> Value:
    """y[N, *T, O * phases] with the phases moved beside each other on the spatial axes."""
    n = len(strides)
    if all(s == 1 for s in strides):
        return y
    blocks = y.shape[1:-1]
    out = floor_divide(y.shape[-1], int(product(strides)))
    y = reshape(y, *y.shape[:-1], out, *strides)
    pairs = (axis for i in range(n) for axis in (1 + i, n + 2 + i))
    y = transpose(y, 0, *pairs, n + 1)
    return reshape(y, y.shape[0], *(t * s for t, s in zip(blocks, strides)), out)
