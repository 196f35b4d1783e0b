"""ONNX normalisation: affine at inference, or by moments of the data in two stable passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from whet.frontends.onnx.families.pooling import power, root
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import floor_divide, product
from whet.ops import reduce
from whet.ops.elementwise import Abs, Cast, Equal, Pow, Sqrt, Where
from whet.ops.index import positions
from whet.ops.movement import normalize_axis, reshape
from whet.ops.reduce import LayerNorm, Reduce, RMSNorm, narrowed, reduce_mean, widened
from whet.ops.window import Pool

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading


def per_channel(parameter: Value, rank: int) -> Value:
    """parameter[C] shaped to broadcast over x[N, C, *S]."""
    return reshape(parameter, *parameter.shape, *(1,) * max(rank - 2, 0))


@onnx_op
def BatchNormalization(
    x: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
    node: Reading,
) -> tuple[Value, ...]:
    # Before opset 14 a node was in training where the model named its further outputs.
    if training_mode or (node.opset < 14 and node.wanted(1)):
        return _trained(x, scale, bias, mean, variance, epsilon, momentum)
    return (affine(x, scale, bias, mean, variance, epsilon),)


def affine(
    x: Value, scale: Value, bias: Value, mean: Value, variance: Value, epsilon: float
) -> Value:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias on axis 1, as a product and a sum."""
    factor = widened(scale) / Sqrt()(widened(variance) + epsilon)
    offset = widened(bias) - widened(mean) * factor
    rank = x.rank if scale.rank == 1 else 2
    factor, offset = (narrowed(per_channel(p, rank), x) for p in (factor, offset))
    return x * factor + offset


def _trained(
    x: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    epsilon: float,
    momentum: float,
) -> tuple[Value, ...]:
    """The result with the batch's own moments, the running moments after it, and the batch's."""
    axes = (0, *range(2, x.rank))
    wide = widened(x)
    centred = wide - reduce_mean(wide, axes)
    batch_mean = reshape(reduce_mean(wide, axes), *mean.shape)
    batch_variance = reshape(reduce_mean(centred * centred, axes), *variance.shape)
    normal = centred / Sqrt()(per_channel(batch_variance, x.rank) + epsilon)
    y = normal * per_channel(widened(scale), x.rank) + per_channel(widened(bias), x.rank)
    moments = [narrowed(batch_mean, mean), narrowed(batch_variance, variance)]
    running = [old * momentum + new * (1 - momentum) for old, new in zip((mean, variance), moments)]
    return narrowed(y, x), *running, *moments


def normalized(x: Value, axes: tuple[int, ...], epsilon: float) -> Value:
    """(x - mean) / sqrt(variance + epsilon) over the axes, in float32 or wider."""
    wide = widened(x)
    centred = wide - reduce_mean(wide, axes)
    return centred / Sqrt()(reduce_mean(centred * centred, axes) + epsilon)


@onnx_op
def InstanceNormalization(x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5) -> Value:
    normal = normalized(x, tuple(range(2, x.rank)), epsilon)
    scale, bias = (per_channel(widened(p), x.rank) for p in (scale, bias))
    return narrowed(normal * scale + bias, x)


def grouped(x: Value, groups: int, epsilon: float) -> Value:
    """x[N, C, *S] normalised over each of the groups of channels, in float32 or wider."""
    rest = floor_divide(product(x.shape[1:]), groups)
    return normalized(reshape(x, x.shape[0], groups, rest), (2,), epsilon)


@onnx_op
def GroupNormalization_18(
    x: Value,
    scale: Value,
    bias: Value,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
) -> Value:
    normal = grouped(x, num_groups, epsilon)
    scale, bias = (per_channel(widened(p), 3) for p in (scale, bias))
    return narrowed(reshape(normal * scale + bias, *x.shape), x)


@onnx_op
def GroupNormalization_21(
    x: Value,
    scale: Value,
    bias: Value,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,
) -> Value:
    normal = reshape(grouped(x, num_groups, epsilon), *x.shape)
    scale, bias = (per_channel(widened(p), x.rank) for p in (scale, bias))
    return narrowed(normal * scale + bias, x)


@onnx_op
def LayerNormalization(
    x: Value,
    scale: Value,
    bias: Value | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    node: Reading,
) -> tuple[Value, ...]:
    first = normalize_axis(axis, x.rank)
    y = LayerNorm(x.rank - first, epsilon)(x, scale, bias)
    if not (node.wanted(1) or node.wanted(2)):
        return (y,)
    mean, deviation = moments(x, tuple(range(first, x.rank)), epsilon)
    return y, mean, 1 / deviation


def moments(x: Value, axes: tuple[int, ...], epsilon: float) -> tuple[Value, Value]:
    """The mean, and sqrt(variance + epsilon), over the axes, which stay with size 1."""
    wide = widened(x)
    mean = reduce_mean(wide, axes)
    centred = wide - mean
    return mean, Sqrt()(reduce_mean(centred * centred, axes) + epsilon)


@onnx_op
def RMSNormalization(
    x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    return RMSNorm(x.rank - normalize_axis(axis, x.rank), epsilon)(x, scale)


@onnx_op
def MeanVarianceNormalization(x: Value, *, axes: tuple[int, ...] = (0, 2, 3)) -> Value:
    wide, over = widened(x), tuple(normalize_axis(a, x.rank) for a in axes)
    centred = wide - reduce_mean(wide, over)
    deviation = Sqrt()(reduce_mean(centred * centred, over))
    return narrowed(centred / (deviation + 1e-9), x)


@onnx_op
def LpNormalization(x: Value, *, axis: int = -1, p: int = 2) -> Value:
    wide = widened(x)
    norm = root(Reduce("sum", (normalize_axis(axis, x.rank),))(power(Abs()(wide), p)), p)
    safe = Where()(Equal()(norm, 0.0), constant(1.0, norm.dtype), norm)
    return narrowed(wide / safe, x)


@onnx_op
def LRN(
    x: Value, *, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0, size: int
) -> Value:
    # The channels are the axis that windows slide over, so the elements of one plane stand last.
    n, channels = x.shape[:2]
    wide = reshape(widened(x), n, channels, product(x.shape[2:]))
    pool = Pool("sum", (size,), (1,), (1,), ((size - 1) // 2,), (channels,))
    base = pool(wide * wide) * (alpha / size) + bias
    return narrowed(reshape(wide / Pow()(base, constant(beta, base.dtype)), *x.shape), x)


def flattened(fn: Callable[[Value], Value], x: Value, axis: int) -> Value:
    """fn of x as a matrix whose columns are all axes from `axis` on: what opsets below 13 mean."""
    axis = axis + x.rank if axis < 0 else axis
    if axis == x.rank - 1 and x.rank > 1:
        return fn(x)
    matrix = reshape(x, product(x.shape[:axis]), product(x.shape[axis:]))
    return reshape(fn(matrix), *x.shape)


@onnx_op
def Softmax(x: Value, *, axis: int = 1) -> Value:
    return flattened(reduce.Softmax(-1), x, axis)


@onnx_op
def Softmax_13(x: Value, *, axis: int = -1) -> Value:
    return reduce.Softmax(normalize_axis(axis, x.rank))(x)


@onnx_op
def LogSoftmax(x: Value, *, axis: int = 1) -> Value:
    return flattened(reduce.LogSoftmax(-1), x, axis)


@onnx_op
def LogSoftmax_13(x: Value, *, axis: int = -1) -> Value:
    return reduce.LogSoftmax(normalize_axis(axis, x.rank))(x)


@onnx_op
def Hardmax(x: Value, *, axis: int = 1) -> Value:
    return flattened(lambda rows: hardmax(rows, rows.rank - 1), x, axis)


@onnx_op
def Hardmax_13(x: Value, *, axis: int = -1) -> Value:
    return hardmax(x, normalize_axis(axis, x.rank))


def hardmax(x: Value, axis: int) -> Value:
    """1 at the first greatest element along the axis, 0 elsewhere."""
    best = reduce.ArgReduce("max", axis)(x)
    return Cast(x.dtype)(Equal()(best, positions(x.shape[axis], x.rank, axis)))
