"""ONNX operators that combine the elements along axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from whet.errors import ShapeError
from whet.frontends.onnx.families.movement import known_axes
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Value
from whet.ir.types import FLOATS
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import reduce as rd

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Reading

Axes = tuple[int, ...]
Compute = Callable[[Value, Axes], Value]


def _reduce(kind: str) -> Compute:
    return lambda x, axes: rd.Reduce(kind, axes)(x) if axes else x


_sum, _max = _reduce("sum"), _reduce("max")


def _l1(x: Value, axes: Axes) -> Value:
    return _sum(ew.Abs()(x), axes)


def _sum_square(x: Value, axes: Axes) -> Value:
    return _sum(x * x, axes)


def _l2(x: Value, axes: Axes) -> Value:
    return _in_floats(ew.Sqrt(), _sum_square(x, axes))


def _log_sum(x: Value, axes: Axes) -> Value:
    return _in_floats(ew.Log(), _sum(x, axes))


def _in_floats(op: ew.Op, x: Value) -> Value:
    """op on floats; integers go through float64 and are cut off."""
    return op(x) if x.dtype in FLOATS else ew.Cast(x.dtype)(op(ew.Cast("float64")(x)))


def _log_sum_exp(x: Value, axes: Axes) -> Value:
    if x.dtype not in FLOATS:
        return ew.Cast(x.dtype)(_log_sum_exp(ew.Cast("float64")(x), axes))
    # The greatest element is taken out so that nothing overflows, unless it is infinite: inf - inf.
    top = _max(x, axes)
    top = ew.Where()(ew.Less()(ew.Abs()(top), math.inf), top, ew.const_like(0, x))
    return ew.Log()(_sum(ew.Exp()(x - top), axes)) + top


REDUCTIONS: dict[str, Compute] = {
    "ReduceSum": _sum,
    "ReduceProd": _reduce("prod"),
    "ReduceMax": _max,
    "ReduceMin": _reduce("min"),
    "ReduceMean": rd.reduce_mean,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduced(compute: Compute, x: Value, axes: Axes, keepdims: int) -> Value:
    axes = tuple(sorted({mv.normalize_axis(axis, x.rank) for axis in axes}))
    result = ew.rounded_once(lambda wide: compute(wide, axes), x)
    return result if keepdims == 1 else mv.squeeze(result, *axes)


def _register(name: str, compute: Compute) -> None:
    """The reader that has the axes as attribute, and the one that has them as input."""

    def by_attribute(x: Value, *, axes: Axes | None = None, keepdims: int = 1) -> Value:
        return _reduced(compute, x, tuple(range(x.rank)) if axes is None else axes, keepdims)

    def by_input(
        x: Value,
        axes: Value | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
        node: Reading,
    ) -> Value:
        places = () if axes is None else known_axes(node, axes)
        if not places and not noop_with_empty_axes:
            places = tuple(range(x.rank))
        return _reduced(compute, x, places, keepdims)

    by_attribute.__name__ = name
    by_input.__name__ = f"{name}_{13 if name == 'ReduceSum' else 18}"
    onnx_op(by_attribute)
    onnx_op(by_input)


for _name, _compute in REDUCTIONS.items():
    _register(_name, _compute)


@onnx_op
def ArgMax(x: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Value:
    return _arg_reduce("max", x, axis, keepdims, select_last_index)


@onnx_op
def ArgMin(x: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Value:
    return _arg_reduce("min", x, axis, keepdims, select_last_index)


def _arg_reduce(kind: str, x: Value, axis: int, keepdims: int, last: int) -> Value:
    axis = mv.normalize_axis(axis, x.rank)
    result = rd.ArgReduce(kind, axis, bool(last))(x)
    return result if keepdims == 1 else mv.squeeze(result, axis)


@onnx_op
def CumSum(x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0, node: Reading) -> Value:
    return _cumulative("sum", x, axis, exclusive, reverse, node)


@onnx_op
def CumProd(x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0, node: Reading) -> Value:
    return _cumulative("prod", x, axis, exclusive, reverse, node)


def _cumulative(
    kind: str, x: Value, axis: Value, exclusive: int, reverse: int, node: Reading
) -> Value:
    axes = known_axes(node, axis)
    if len(axes) != 1:
        raise ShapeError(f"one axis is needed, got {axes}")
    place = mv.normalize_axis(axes[0], x.rank)
    return rd.Cumulative(kind, place, bool(exclusive), bool(reverse))(x)
