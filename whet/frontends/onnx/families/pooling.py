"""ONNX pooling: windows slide channels last; the global ones are reductions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from whet.frontends.onnx.registry import Refused, onnx_op
from whet.frontends.onnx.windows import (
    channels_first,
    channels_last,
    each,
    padding,
    spans,
    window_counts,
)
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, ceil_divide, is_less, product
from whet.ops.elementwise import Abs, Cast, Mod, Pow, Sqrt
from whet.ops.gather import ScatterElements
from whet.ops.index import number, positions
from whet.ops.movement import Pad, broadcast_to, reshape
from whet.ops.reduce import Reduce, narrowed, reduce_mean, widened
from whet.ops.window import ArgPool, Pool

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading

Ints = Sequence[int]


@dataclass(frozen=True)
class Windows:
    """Where the windows of a pooling operator stand."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Size, ...]
    after: tuple[Size, ...]
    shape: tuple[Size, ...]

    def pool(self, kind: str, x: Value) -> Value:
        """`kind` of the elements in each window of x[N, *S, C]."""
        return Pool(kind, self.kernel, self.strides, self.dilations, self.before, self.shape)(x)


def windows(
    spatial: Sequence[Size],
    auto_pad: str,
    ceil_mode: int,
    dilations: Ints | None,
    kernel_shape: Ints | None,
    pads: Ints | None,
    strides: Ints | None,
) -> Windows:
    """The windows that ONNX's attributes describe over axes of the given sizes."""
    axes = len(spatial)
    if not kernel_shape:
        raise Refused("the attribute kernel_shape is missing")
    kernel = each(kernel_shape, axes, 1, "kernel_shape")
    step = each(strides, axes, 1, "strides")
    dilation = each(dilations, axes, 1, "dilations")
    span = spans(kernel, dilation)
    before, after = padding(auto_pad, pads, spatial, span, step)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        shape = tuple(ceil_divide(n, s) for n, s in zip(spatial, step))
    else:
        shape = window_counts(spatial, before, after, span, step, bool(ceil_mode))
    return Windows(kernel, step, dilation, before, after, shape)


@onnx_op
def MaxPool(
    x: Value,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
    node: Reading,
) -> tuple[Value, ...]:
    w = windows(x.shape[2:], auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    last = channels_last(x)
    y = channels_first(w.pool("max", last))
    if not node.wanted(1):
        return (y,)
    where = ArgPool(w.kernel, w.strides, w.dilations, w.before, w.shape)(last)
    return y, _flat_indices(channels_first(where), x.shape, bool(storage_order))


def _flat_indices(where: Value, shape: Sequence[Size], column_major: bool) -> Value:
    """Indices into the flattened x[N, C, *S] from row-major indices into S."""
    spatial = shape[2:]
    if column_major:
        where = _column_major(where, spatial)
    plane = product(spatial)
    n = positions(shape[0], where.rank, 0) * number(shape[1] * plane, "int64")
    return where + n + positions(shape[1], where.rank, 1) * number(plane, "int64")


def _column_major(where: Value, spatial: Sequence[Size]) -> Value:
    """Row-major indices into axes of the given sizes as column-major ones."""
    total, rest = constant(0, "int64"), where
    for axis in reversed(range(len(spatial))):
        size = number(spatial[axis], "int64")
        total = total + Mod()(rest, size) * number(product(spatial[:axis]), "int64")
        rest = rest / size
    return total


@onnx_op
def MaxUnpool(
    x: Value,
    indices: Value,
    output_shape: Value | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
    node: Reading,
) -> Value:
    axes = x.rank - 2
    step, flat = each(strides, axes, 1, "strides"), each(pads, 2 * axes, 0, "pads")
    covered = zip(x.shape[2:], step, flat[:axes], flat[axes:], kernel_shape)
    sizes = tuple((n - 1) * s - b - a + k for n, s, b, a, k in covered)
    shape = (*x.shape[:2], *sizes)
    zeros = broadcast_to(constant(0, x.dtype), product(shape))
    places, values = (reshape(v, product(x.shape)) for v in (indices, x))
    y = reshape(ScatterElements(0)(zeros, Cast("int64")(places), values), *shape)
    if output_shape is None:
        return y
    # The indices count within the least shape; a larger one only has more zeros behind it.
    wanted = node.sizes(output_shape, "output_shape")
    after = tuple(w - s for w, s in zip(wanted, shape))
    return Pad((0,) * x.rank, after)(y, constant(0, x.dtype))


@onnx_op
def AveragePool(
    x: Value,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    w = windows(x.shape[2:], auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    return channels_first(average(channels_last(x), w, bool(count_include_pad)))


def average(x: Value, w: Windows, count_padding: bool) -> Value:
    """The mean of each window of x[N, *S, C]; elements outside x are 0, and count where asked."""
    total = w.pool("sum", widened(x))
    uniform, factors = 1, []
    for axis in range(len(w.kernel)):
        count = _elements(x.shape[1 + axis], w, axis, count_padding)
        if isinstance(count, int):
            uniform *= count
        else:
            shape = (count.shape[0] if i == axis + 1 else 1 for i in range(x.rank))
            factors.append(reshape(Cast(total.dtype)(count), *shape))
    return narrowed(total / reduce(operator.mul, factors, constant(uniform, total.dtype)), x)


MOST_TAPS = 1 << 22  # positions looked at to count elements while reading


def _elements(size: Size, w: Windows, axis: int, count_padding: bool) -> Value | int:
    """How many elements count in each window of one axis; a number where all have the same."""
    kernel, stride, dilation = w.kernel[axis], w.strides[axis], w.dilations[axis]
    before, after, windows = w.before[axis], w.after[axis], w.shape[axis]
    span = (kernel - 1) * dilation + 1
    if count_padding:
        size, before, after = size + before + after, 0, 0
    if before == after == 0 and is_less((windows - 1) * stride + span, size + 1):
        return kernel
    if (
        not (isinstance(size, int) and isinstance(before, int) and isinstance(windows, int))
        or windows * kernel > MOST_TAPS
    ):
        ones = broadcast_to(constant(1.0, "float32"), 1, size, 1)
        pool = Pool("sum", (kernel,), (stride,), (dilation,), (before,), (windows,))
        return reshape(pool(ones), windows)
    first = np.arange(windows)[:, None] * stride - before
    tap = first + np.arange(kernel) * dilation
    counts = np.sum((tap >= 0) & (tap < size), 1)
    return int(counts[0]) if len(np.unique(counts)) == 1 else constant(counts)


@onnx_op
def LpPool(
    x: Value,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints | None = None,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    w = windows(x.shape[2:], auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)
    total = w.pool("sum", power(Abs()(channels_last(widened(x))), p))
    return channels_first(narrowed(root(total, p), x))


def power(x: Value, p: float) -> Value:
    """x ** p, multiplied out where p is 1 or 2."""
    if p in (1, 2):
        return x if p == 1 else x * x
    return Pow()(x, constant(p, x.dtype))


def root(x: Value, p: float) -> Value:
    """x ** (1 / p)."""
    if p in (1, 2):
        return x if p == 1 else Sqrt()(x)
    return Pow()(x, constant(1 / p, x.dtype))


def _spatial(x: Value) -> tuple[int, ...]:
    return tuple(range(2, x.rank))


@onnx_op
def GlobalAveragePool(x: Value) -> Value:
    return narrowed(reduce_mean(widened(x), _spatial(x)), x)


@onnx_op
def GlobalMaxPool(x: Value) -> Value:
    return Reduce("max", _spatial(x))(x)


@onnx_op
def GlobalLpPool(x: Value, *, p: int = 2) -> Value:
    total = Reduce("sum", _spatial(x))(power(Abs()(widened(x)), p))
    return narrowed(root(total, p), x)
