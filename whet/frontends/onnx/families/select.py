"""ONNX operators that pick elements by their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whet.errors import ShapeError
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Value
from whet.ir.sizes import Size, product
from whet.ops import movement as mv
from whet.ops import select

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading


@onnx_op
def NonZero(x: Value, *, node: Reading) -> Value:
    return select.NonZero(node.fresh_size("count", 0, product(x.shape)))(x)


@onnx_op
def Compress(x: Value, condition: Value, *, axis: int | None = None, node: Reading) -> Value:
    if condition.rank != 1:
        raise ShapeError(f"a condition with one axis is needed, got {condition.type}")
    if axis is None:
        x, axis = mv.reshape(x, product(x.shape)), 0
    count = node.fresh_size("count", 0, condition.shape[0])
    places = mv.reshape(select.NonZero(count)(condition), count)
    return mv.Gather(mv.normalize_axis(axis, x.rank))(x, places)


@onnx_op
def Unique(x: Value, *, axis: int | None = None, sorted: int = 1, node: Reading) -> Any:
    place = None if axis is None else mv.normalize_axis(axis, x.rank)
    most = product(x.shape) if place is None else x.shape[place]
    count = node.fresh_size("count", 0, most)
    return select.Unique(count, place, bool(sorted))(x)


@onnx_op
def TopK(x: Value, *, k: int, axis: int = -1) -> Any:
    return top_k(x, k, axis, True)


@onnx_op
def TopK_10(x: Value, k: Value, *, axis: int = -1, node: Reading) -> Any:
    return TopK_11(x, k, axis=axis, node=node)


@onnx_op
def TopK_11(
    x: Value, k: Value, *, axis: int = -1, largest: int = 1, sorted: int = 1, node: Reading
) -> Any:
    (count,) = node.counts(mv.reshape(k, 1), "K of TopK")
    return top_k(x, count, axis, bool(largest))


def top_k(x: Value, k: Size, axis: int, largest: bool) -> Any:
    if x.rank == 0:
        raise ShapeError("a scalar has no axis to pick the best of")
    return select.TopK(k, mv.normalize_axis(axis, x.rank), largest)(x)


@onnx_op
def NonMaxSuppression(
    boxes: Value,
    scores: Value,
    most: Value | None = None,
    overlap: Value | None = None,
    score: Value | None = None,
    *,
    center_point_box: int = 0,
    node: Reading,
) -> Value:
    count = node.fresh_size("count", 0, product(scores.shape))
    op = select.NonMaxSuppression(count, bool(center_point_box))
    return op(boxes, scores, most, overlap, score)
