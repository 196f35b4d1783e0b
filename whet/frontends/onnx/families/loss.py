"""ONNX losses: the log-probability of the right class, weighted and reduced."""

from __future__ import annotations

from whet.frontends.onnx.registry import Refused, onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import product
from whet.ops.elementwise import Cast, Equal, Where
from whet.ops.index import number, positions
from whet.ops.movement import broadcast_to, reshape, unsqueeze
from whet.ops.reduce import LogSoftmax, Reduce, narrowed, widened


@onnx_op
def NegativeLogLikelihoodLoss(
    x: Value,
    target: Value,
    weight: Value | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Value:
    return narrowed(likelihood_loss(widened(x), target, weight, ignore_index, reduction), x)


@onnx_op
def SoftmaxCrossEntropyLoss(
    scores: Value,
    labels: Value,
    weights: Value | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Value, Value]:
    log_prob = LogSoftmax(1)(widened(scores))
    loss = likelihood_loss(log_prob, labels, weights, ignore_index, reduction)
    return narrowed(loss, scores), narrowed(log_prob, scores)


def likelihood_loss(
    x: Value, target: Value, weight: Value | None, ignored: int | None, reduction: str
) -> Value:
    """Minus x[N, C, *S] at the class target[N, *S], times the class's weight, 0 where ignored."""
    classes = positions(x.shape[1], x.rank, 1)
    hit = Equal()(unsqueeze(Cast("int64")(target), 1), classes)
    zero = constant(0.0, x.dtype)
    weights = constant(1.0, x.dtype)
    if weight is not None:
        weights = reshape(narrowed(weight, x), 1, weight.shape[0], *(1,) * (x.rank - 2))
    loss = _picked(Where()(hit, (0 - x) * weights, zero), target)
    if reduction == "none":
        return _kept(loss, target, ignored)
    total = _total(_kept(loss, target, ignored))
    if reduction == "sum":
        return total
    if reduction != "mean":
        raise Refused(f"reduction {reduction!r} is none of none, sum, mean")
    if weight is None and ignored is None:
        return total / number(product(target.shape), x.dtype)
    share = broadcast_to(weights, 1, x.shape[1], *(1,) * (x.rank - 2))
    counted = _picked(Where()(hit, share, zero), target)
    return total / _total(_kept(counted, target, ignored))


def _picked(x: Value, target: Value) -> Value:
    """The sum over the classes, of which all but one are 0."""
    return reshape(Reduce("sum", (1,))(x), *target.shape)


def _kept(x: Value, target: Value, ignored: int | None) -> Value:
    """x with 0 where the target is the ignored class."""
    if ignored is None:
        return x
    skipped = Equal()(target, constant(ignored, target.dtype))
    return Where()(skipped, constant(0.0, x.dtype), x)


def _total(x: Value) -> Value:
    return reshape(Reduce("sum", tuple(range(x.rank)))(x))
