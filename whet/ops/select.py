"""Operators that pick elements by their values: how many they find, only a run tells."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.graph import Op, operator
from whet.ir.sizes import Size, is_less, product
from whet.ir.types import INTEGERS, TensorType
from whet.ops.elementwise import need, require_equal

Array = np.ndarray


@operator
class Extent(Op):
    """Makes a number in a tensor known as `size`: the result has that size and no content of
    interest."""

    size: Size
    defines_sizes: ClassVar[bool] = True
    is_bookkeeping: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        need(x.dtype, INTEGERS, "an integer")
        return TensorType("bool", (self.size,))

    def reference(self, x: Array) -> Array:
        size = int(x.reshape(()))
        if size < 0:
            raise ShapeError(f"a size that the model computes is negative: {size}")
        return np.broadcast_to(np.zeros((), bool), (size,))


@operator
class NonZero(Op):
    """The indices of elements that are not zero, `count` columns of one index for each axis, in
    row-major order."""

    count: Size
    defines_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        return TensorType("int64", (max(x.rank, 1), self.count))

    def reference(self, x: Array) -> Array:
        return np.stack(np.nonzero(np.atleast_1d(x)))


@operator
class Unique(Op):
    """The different elements (or slices along `axis`): `count` of them, ascending or in order of
    appearance.

    Also, as int64: the index of each one's first occurrence, for each element which one it is, and
    how often each one occurs.
    """

    count: Size
    axis: int | None = None
    ascending: bool = True
    defines_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if self.axis is None:
            shape: tuple[Size, ...] = (self.count,)
            inputs = product(x.shape)
        else:
            shape = (*x.shape[: self.axis], self.count, *x.shape[self.axis + 1 :])
            inputs = x.shape[self.axis]
        found = TensorType("int64", (self.count,))
        return x.with_shape(*shape), found, TensorType("int64", (inputs,)), found

    def reference(self, x: Array) -> tuple[Array, ...]:
        rows = x.reshape(-1, 1) if self.axis is None else np.moveaxis(x, self.axis, 0)
        first, which, counts = unique_rows(rows.reshape(rows.shape[0], -1))
        if not self.ascending:
            order = np.argsort(first)
            first, counts = first[order], counts[order]
            which = np.argsort(order)[which]
        taken = x.reshape(-1)[first] if self.axis is None else np.take(x, first, self.axis)
        return taken, first, which, counts


def unique_rows(rows: Array) -> tuple[Array, Array, Array]:
    """First occurrences of the different rows in ascending order, which of them each row is,
    their counts."""
    if rows.shape[0] == 0:
        return (np.zeros(0, np.int64),) * 3
    # Ranks in place of elements: strings and small floats compare as they should, rows as integers.
    _, ranks = np.unique(rows.reshape(-1), return_inverse=True)
    ranks = ranks.reshape(rows.shape) if rows.size else np.zeros((rows.shape[0], 1), np.int64)
    _, first, which, counts = np.unique(
        ranks, return_index=True, return_inverse=True, return_counts=True, axis=0
    )
    return first, which.reshape(-1), counts


@operator
class TopK(Op):
    """The k greatest (or least) elements along an axis and their int64 indices, the best first.

    Of equal elements the one with the lower index comes first; NaN counts as the greatest.
    """

    k: Size
    axis: int
    largest: bool = True

    def infer(self, x: TensorType) -> tuple[TensorType, TensorType]:
        if is_less(x.shape[self.axis], self.k):
            raise ShapeError(f"the best {self.k} of an axis of {x.shape[self.axis]} do not exist")
        shape = (*x.shape[: self.axis], self.k, *x.shape[self.axis + 1 :])
        return x.with_shape(*shape), TensorType("int64", shape)

    def reference(self, x: Array) -> tuple[Array, Array]:
        size = x.shape[self.axis]
        if size < self.k:
            raise ShapeError(f"the best {self.k} of an axis of {size} do not exist")
        if self.largest:
            # A stable sort of the reversed axis, read backwards, keeps equal elements in order.
            order = np.argsort(np.flip(x, self.axis), self.axis, kind="stable")
            order = size - 1 - np.flip(order, self.axis)
        else:
            order = np.argsort(x, self.axis, kind="stable")
        best = np.split(order, [self.k], self.axis)[0]
        return np.take_along_axis(x, best, self.axis), best


@operator
class NonMaxSuppression(Op):
    """Boxes by falling score, without those that overlap a better one of their batch and class.

    boxes[B, N, 4] are corners (y1, x1, y2, x2) in any order, or with `center` (x, y, width,
    height); scores[B, C, N]. Then scalars, each may be absent: the most boxes for each class (0:
    none), the overlap (intersection over union) above which a box is left out, the score that a box
    must exceed. Gives int64 rows (batch, class, box).
    """

    count: Size
    center: bool = False
    defines_sizes: ClassVar[bool] = True

    def infer(
        self, boxes: TensorType, scores: TensorType, *limits: TensorType | None
    ) -> TensorType:
        if boxes.rank != 3 or scores.rank != 3:
            raise ShapeError(
                f"boxes[B, N, 4] and scores[B, C, N] are needed, got {boxes}, {scores}"
            )
        if boxes.dtype != "float32" or scores.dtype != "float32":
            raise TypeMismatch(f"float32 boxes and scores are needed, got {boxes}, {scores}")
        require_equal(boxes.shape[0], scores.shape[0], "the batches of boxes and scores")
        require_equal(boxes.shape[1], scores.shape[2], "the numbers of boxes and of scores")
        require_equal(boxes.shape[2], 4, "the numbers of a box and 4")
        return TensorType("int64", (self.count, 3))

    def reference(
        self, boxes: Array, scores: Array, most: Any = None, overlap: Any = None, score: Any = None
    ) -> Array:
        limit = 0 if most is None else int(most.reshape(()))
        above = np.float32(0) if overlap is None else overlap.reshape(())
        rows: list[tuple[int, int, int]] = []
        for batch, (some, classes) in enumerate(zip(boxes, scores)):
            corners = corners_of(some, self.center)
            for number, values in enumerate(classes):
                wanted = np.arange(values.size) if score is None else np.nonzero(values > score)[0]
                order = wanted[np.argsort(-values[wanted], kind="stable")]
                kept = suppress(corners, order, limit, above)
                rows += [(batch, number, int(box)) for box in kept]
        return np.array(rows, np.int64).reshape(-1, 3)


def corners_of(boxes: Array, center: bool) -> Array:
    """Boxes as (low, low, high, high)."""
    if center:
        middle, half = boxes[:, :2], boxes[:, 2:] / np.float32(2)
        return np.concatenate([middle - half, middle + half], 1)
    a, b = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], 1)


def suppress(corners: Array, order: Array, limit: int, above: Any) -> list[int]:
    """The first boxes in the order, at most `limit`, that overlap none before by more than
    `above`."""
    kept: list[int] = []
    for box in order:
        if len(kept) >= limit:
            break
        if not kept or not np.any(overlaps(corners[box], corners[kept]) > above):
            kept.append(int(box))
    return kept


def overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of a box with each of the others; 0 where either has no area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), -1)
    area, areas = np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], -1)
    union = area + areas - common
    real = (area > 0) & (areas > 0) & (union > 0)
    return np.where(real, common / np.where(real, union, 1), 0)
