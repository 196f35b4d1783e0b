"""com.microsoft operators that fuse activations, normalisation, products and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from whet.frontends.onnx.families.convolution import convolve
from whet.frontends.onnx.families.matmul import Gemm, matmul
from whet.frontends.onnx.families.normalize import flattened, moments
from whet.frontends.onnx.registry import Refused, contrib_op, onnx_op
from whet.frontends.onnx.windows import channels_first, channels_last
from whet.ir.graph import Value, constant
from whet.ir.sizes import floor_divide
from whet.ops import elementwise as ew
from whet.ops.elementwise import Cast
from whet.ops.movement import normalize_axis, reshape, slice_axis, transpose, unsqueeze
from whet.ops.reduce import LayerNorm, Reduce, RMSNorm, Softmax, narrowed, reduce_mean, widened

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading

Ints = Sequence[int]


@contrib_op
def Gelu(x: Value) -> Value:
    return ew.Gelu()(x)


@contrib_op
def BiasGelu(x: Value, bias: Value) -> Value:
    return ew.Gelu()(x + bias)


@contrib_op
def FastGelu(x: Value, bias: Value | None = None) -> Value:
    return ew.Gelu(approximate=True)(x if bias is None else x + bias)


@contrib_op
def GemmFastGelu(x: Value, w: Value, bias: Value | None = None) -> Value:
    return FastGelu(matmul(x, w), bias)


@contrib_op
def QuickGelu(x: Value, *, alpha: float = 1.702) -> Value:
    return ew.Silu(alpha)(x)


@contrib_op
def BiasSplitGelu(x: Value, bias: Value) -> Value:
    x = x + bias
    half = floor_divide(x.shape[-1], 2)
    return slice_axis(x, -1, 0, half) * ew.Gelu()(slice_axis(x, -1, half, half))


@contrib_op
def BiasAdd(x: Value, bias: Value, skip: Value) -> Value:
    return x + bias + skip


@contrib_op
def BiasSoftmax(x: Value, bias: Value, *, axis: int = 1, is_inner_broadcast: int) -> Value:
    axis = normalize_axis(axis, x.rank)
    if is_inner_broadcast:
        # The bias has x's leading axes up to `axis - 1`'s neighbours; those between are stretched.
        missing = x.rank - bias.rank
        bias = unsqueeze(bias, *range(axis - missing, axis)) if missing else bias
    return flattened(Softmax(-1), x + bias, axis)


@contrib_op
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
    bias = None if bias is None else narrowed(bias, x)
    y = LayerNorm(x.rank - first, epsilon)(x, narrowed(scale, x), bias)
    if not (node.wanted(1) or node.wanted(2)):
        return (y,)
    mean, deviation = moments(x, tuple(range(first, x.rank)), epsilon)
    return y, mean, 1 / deviation


@onnx_op  # ONNX Runtime's optimiser writes it into ONNX's own domain
@contrib_op
def SimplifiedLayerNormalization(
    x: Value,
    scale: Value,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    node: Reading,
) -> tuple[Value, ...]:
    first = normalize_axis(axis, x.rank)
    y = RMSNorm(x.rank - first, epsilon)(x, narrowed(scale, x))
    if not node.wanted(1):
        return (y,)
    return y, inverse_rms(x, tuple(range(first, x.rank)), epsilon)


def inverse_rms(x: Value, axes: tuple[int, ...], epsilon: float) -> Value:
    """1 / sqrt(mean(x*x) + epsilon) over the axes, which stay with size 1."""
    wide = widened(x)
    return 1 / ew.Sqrt()(reduce_mean(wide * wide, axes) + epsilon)


@contrib_op
def SkipLayerNormalization(
    x: Value,
    skip: Value,
    gamma: Value,
    beta: Value | None = None,
    bias: Value | None = None,
    *,
    epsilon: float = 1e-12,
    node: Reading,
) -> tuple[Value | None, ...]:
    total = skipped(x, skip, bias)
    y = LayerNorm(1, epsilon)(total, gamma, beta)
    mean = deviation = None
    if node.wanted(1) or node.wanted(2):
        mean, spread = moments(total, (total.rank - 1,), epsilon)
        deviation = 1 / spread
    return y, mean, deviation, total


@contrib_op
def SkipSimplifiedLayerNormalization(
    x: Value,
    skip: Value,
    gamma: Value,
    bias: Value | None = None,
    *,
    epsilon: float = 1e-12,
    node: Reading,
) -> tuple[Value | None, ...]:
    total = skipped(x, skip, bias)
    y = RMSNorm(1, epsilon)(total, gamma)
    inverse = inverse_rms(total, (total.rank - 1,), epsilon) if node.wanted(2) else None
    return y, None, inverse, total


def skipped(x: Value, skip: Value, bias: Value | None) -> Value:
    """x + skip + bias, rounded once."""
    total = widened(x) + widened(skip)
    return narrowed(total if bias is None else total + widened(bias), x)


@contrib_op
def GroupNorm(
    x: Value,
    gamma: Value,
    beta: Value,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> Value:
    return group_norm(x, gamma, beta, activation, channels_last, epsilon, groups)


@contrib_op
def SkipGroupNorm(
    x: Value,
    gamma: Value,
    beta: Value,
    skip: Value,
    bias: Value | None = None,
    *,
    activation: int,
    channels_last: int = 1,
    epsilon: float = 1e-5,
    groups: int,
) -> tuple[Value, Value]:
    if skip.rank == 2:
        skip = unsqueeze(skip, 1, 2) if channels_last else unsqueeze(skip, 2, 3)
    if bias is not None and not channels_last:
        bias = reshape(bias, *bias.shape, 1, 1)
    total = skipped(x, skip, bias)
    return group_norm(total, gamma, beta, activation, channels_last, epsilon, groups), total


def group_norm(
    x: Value, gamma: Value, beta: Value, activation: int, last: int, epsilon: float, groups: int
) -> Value:
    """Normalised over groups of neighbouring channels, scaled, shifted, then SiLU if asked."""
    y = channels_last(x) if not last else x
    n, *spatial, channels = y.shape
    wide = reshape(widened(y), n, *spatial, groups, floor_divide(channels, groups))
    axes = (*range(1, len(spatial) + 1), wide.rank - 1)
    centred = wide - reduce_mean(wide, axes)
    normal = centred / ew.Sqrt()(reduce_mean(centred * centred, axes) + epsilon)
    y = reshape(normal, *y.shape) * widened(gamma) + widened(beta)
    y = narrowed(ew.Silu()(y) if activation else y, x)
    return y if last else channels_first(y)


ACTIVATIONS: dict[str, Callable[..., Value]] = {
    "Relu": lambda x: ew.Relu()(x),
    "Sigmoid": lambda x: ew.Sigmoid()(x),
    "Tanh": lambda x: ew.Tanh()(x),
    "LeakyRelu": lambda x, alpha=0.01: ew.Where()(ew.Less()(x, 0), x * alpha, x),
    "Clip": lambda x, low, high: ew.Clip()(x, constant(low, x.dtype), constant(high, x.dtype)),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: ew.Clip()(
        x * alpha + beta, constant(0, x.dtype), constant(1, x.dtype)
    ),
}
"""The activations that ONNX Runtime fuses, with their parameters in the order it writes them."""


def activated(x: Value, name: str, parameters: Sequence[float] = ()) -> Value:
    """x through the named activation; x itself where there is none."""
    if not name:
        return x
    if name not in ACTIVATIONS:
        raise Refused(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](x, *parameters)


@contrib_op
def FusedConv(
    x: Value,
    w: Value,
    b: Value | None = None,
    z: Value | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    windows = (auto_pad, dilations, group, kernel_shape, pads, strides)
    y = convolve(channels_last(x), channels_last(w), *windows)
    y = y if b is None else y + b
    y = y if z is None else y + channels_last(z)
    return channels_first(activated(y, activation, activation_params))


@contrib_op
def NhwcConv(
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
    y = convolve(x, channels_last(w), auto_pad, dilations, group, kernel_shape, pads, strides)
    return y if b is None else y + b


@contrib_op
def NhwcFusedConv(
    x: Value,
    w: Value,
    b: Value | None = None,
    z: Value | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    y = convolve(x, channels_last(w), auto_pad, dilations, group, kernel_shape, pads, strides)
    y = y if b is None else y + b
    return activated(y if z is None else y + z, activation, activation_params)


@contrib_op
def FusedGemm(
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Value:
    y = Gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    given = (activation_alpha, activation_beta, activation_gamma)
    return activated(y, activation, [p for p in given if p is not None])


@contrib_op
def FusedMatMul(
    a: Value,
    b: Value,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Value:
    y = matmul(_turned(a, transA, transBatchA), _turned(b, transB, transBatchB))
    return y if alpha == 1.0 else y * alpha


@contrib_op
def TransposeMatMul(
    a: Value,
    b: Value,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Value:
    return FusedMatMul(a, b, alpha=alpha, transA=transA, transB=transB)


@contrib_op
def FusedMatMulActivation(
    a: Value,
    b: Value,
    *,
    activation: str,
    activation_alpha: float | None = None,
    activation_axis: int | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Value:
    y = matmul(_turned(a, transA, transBatchA), _turned(b, transB, transBatchB))
    given = (activation_alpha, activation_beta, activation_gamma)
    y = y if alpha == 1.0 else y * alpha
    return activated(y, activation, [p for p in given if p is not None])


def _turned(x: Value, matrix: int, batch: int) -> Value:
    """x with its last two axes exchanged, or its first axis moved behind the batch axes."""
    if x.rank < 2:
        return x
    order = list(range(x.rank))
    if batch:
        order = [*order[1:-1], 0, order[-1]]
    if matrix:
        order[-2], order[-1] = order[-1], order[-2]
    return transpose(x, *order)


@contrib_op
def CDist(a: Value, b: Value, *, metric: str = "sqeuclidean") -> Value:
    if metric not in ("euclidean", "sqeuclidean"):
        raise Refused(f"the metric {metric!r} is neither euclidean nor sqeuclidean")
    difference = unsqueeze(a, 1) - unsqueeze(b, 0)
    total = Reduce("sum", (2,))(difference * difference)
    total = reshape(total, a.shape[0], b.shape[0])
    return ew.Sqrt()(total) if metric == "euclidean" else total


@contrib_op
def ScaledSiLU(x: Value, scale: Value | None = None, *, alpha: float = 1.0) -> Value:
    if scale is None:
        return ew.Silu()(x * alpha)
    return ew.Silu()(narrowed(widened(x) * Cast(widened(x).dtype)(scale), x))
