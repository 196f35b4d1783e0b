"""Operators that pick elements by their values: how many they find, only a run tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, floor_divide, is_less, product
from whet.ir.types import FLOATS, INTEGERS, TensorType
from whet.ops.bits import BitCast
from whet.ops.elementwise import (
    BitwiseNot,
    BitwiseXor,
    Cast,
    Equal,
    IsNaN,
    Less,
    Min,
    Mod,
    Not,
    Where,
    cast_to,
    need,
    require_equal,
)
from whet.ops.gather import GatherElements, ScatterElements
from whet.ops.index import positions
from whet.ops.movement import Concat, Gather, broadcast_to, reshape, slice_axis, transpose
from whet.ops.reduce import Cumulative, Reduce

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
class Prefix(Op):
    """The first elements along an axis, as many as an integer says: known as `count`."""

    count: Size
    axis: int = 0
    defines_sizes: ClassVar[bool] = True
    is_bookkeeping: ClassVar[bool] = True

    def infer(self, x: TensorType, number: TensorType) -> TensorType:
        need(number.dtype, INTEGERS, "an integer")
        return x.with_shape(*x.shape[: self.axis], self.count, *x.shape[self.axis + 1 :])

    def reference(self, x: Array, number: Array) -> Array:
        return x[(*(slice(None),) * self.axis, slice(int(number.reshape(()))))]


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

    def lower(self, x: Value) -> Value:
        """Places in row-major order, as indices of the axes, of which the first count.

        All work is of a size that is known, so that no kernel has to be made for each count.
        """
        size = product(x.shape)
        if not x.tensor.is_static or x.dtype == "string" or size == 0:
            return self(x)
        flags = Cast("bool")(reshape(x, size))
        places, number = kept_places(flags)
        lines = [reshape(i, 1, size) for i in _unflattened(places, x.shape or (1,))]
        return Prefix(self.count, 1)(Concat(0)(*lines) if len(lines) > 1 else lines[0], number)


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
        first, which, counts = unique_rows(rows.reshape(len(rows), math.prod(rows.shape[1:])))
        if not self.ascending:
            order = np.argsort(first)
            first, counts = first[order], counts[order]
            which = np.argsort(order)[which]
        taken = x.reshape(-1)[first] if self.axis is None else np.take(x, first, self.axis)
        return taken, first, which, counts

    def lower(self, x: Value) -> tuple[Value, ...]:
        """Runs of equal lines in sorted order; lines of many elements are left as they are."""
        key, axis = sort_key(x), self.axis or 0
        if key is None or not x.tensor.is_static or 0 in x.shape:
            return self(x)
        x, key = (v if self.axis is not None else reshape(v, product(v.shape)) for v in (x, key))
        size = x.shape[axis]
        width = floor_divide(product(x.shape), size)
        if is_less(MOST_COLUMNS, width):
            return self(x)
        turn = (axis, *(i for i in range(x.rank) if i != axis))
        first, which, counts, number = _runs(reshape(transpose(key, *turn), size, width))
        if not self.ascending:
            order = Order()(first)
            first, counts = Gather(0)(first, order), Gather(0)(counts, order)
            room = broadcast_to(constant(0, "int64"), size)
            rank = ScatterElements(0)(room, order, positions(size, 1, 0))
            which = Gather(0)(rank, which)
        taken = Gather(axis)(x, Min()(first, constant(size, "int64") - 1))
        taken = Prefix(self.count, axis)(taken, number)
        first, counts = (Prefix(self.count)(v, number) for v in (first, counts))
        return taken, first, which, counts


MOST_COLUMNS = 32  # of lines that are sorted by each of their elements


def _runs(key: Value) -> tuple[Value, Value, Value, Value]:
    """Of the different lines of key[N, M], ascending: their first places, which one each line is,
    their counts, and how many they are. Behind their end the first places are N."""
    size, width = key.shape
    assert isinstance(width, int)
    order = positions(size, 1, 0)
    for column in reversed(range(width)):
        line = reshape(slice_axis(key, 1, column, 1), size)
        order = Gather(0)(order, Order()(Gather(0)(line, order)))
    lines = Gather(0)(key, order)
    before, after = (slice_axis(lines, 0, start, size - 1) for start in (0, 1))
    changes = Reduce("max", (1,))(Cast("int64")(Not()(Equal()(before, after))))
    fresh = Concat(0)(constant(np.ones(1, np.int64)), reshape(changes, size - 1))
    run = Cumulative("sum", 0)(fresh) - 1
    end = constant(size, "int64")
    # A sort that keeps equal elements in order has the first of each run at its front.
    room = broadcast_to(end, size + 1)
    first = ScatterElements(0)(room, Where()(Cast("bool")(fresh), run, end), order)
    none = broadcast_to(constant(0, "int64"), size)
    counts = ScatterElements(0, "sum")(none, run, broadcast_to(constant(1, "int64"), size))
    which = ScatterElements(0)(none, order, run)
    number = slice_axis(run, 0, size - 1, 1) + 1
    return slice_axis(first, 0, 0, size), which, counts, number


def unique_rows(rows: Array) -> tuple[Array, Array, Array]:
    """First occurrences of the different rows in ascending order, which of them each row is,
    their counts."""
    if rows.shape[0] == 0:
        return (np.zeros(0, np.int64),) * 3
    # Ranks in place of elements: strings and small floats compare as they should, rows as integers.
    _, ranks = np.unique(sortable(rows).reshape(-1), return_inverse=True)
    ranks = ranks.reshape(rows.shape) if rows.size else np.zeros((rows.shape[0], 1), np.int64)
    _, first, which, counts = np.unique(
        ranks, return_index=True, return_inverse=True, return_counts=True, axis=0
    )
    return first, which.reshape(-1), counts


def kept_places(flags: Value) -> tuple[Value, Value]:
    """The places of true flags[N], in order, and how many there are; zeros fill the rest."""
    (size,) = flags.shape
    upto = Cumulative("sum", 0)(Cast("int64")(flags))
    # What is not kept goes behind the end, where it is cut off.
    target = Where()(flags, upto - 1, constant(size, "int64"))
    room = broadcast_to(constant(0, "int64"), size + 1)
    places = ScatterElements(0)(room, target, positions(size, 1, 0))
    return slice_axis(places, 0, 0, size), slice_axis(upto, 0, size - 1, 1)


def _unflattened(places: Value, shape: tuple[Size, ...]) -> Iterator[Value]:
    """The indices of row-major places, an axis at a time."""
    for axis, size in enumerate(shape):
        inner = places / constant(product(shape[axis + 1 :]), "int64")
        yield Mod()(inner, constant(size, "int64")) if axis else inner


@operator
class Order(Op):
    """The int64 indices that sort along the last axis; equal elements keep their order, and NaN is
    the greatest."""

    descending: bool = False

    def infer(self, x: TensorType) -> TensorType:
        if x.rank == 0:
            raise ShapeError("a scalar has no axis to sort")
        return x.with_dtype("int64")

    def reference(self, x: Array) -> Array:
        x = sortable(x)
        if not self.descending:
            return np.argsort(x, -1, kind="stable")
        # A stable sort of the reversed axis, read backwards, keeps equal elements in order.
        return x.shape[-1] - 1 - np.flip(np.argsort(np.flip(x, -1), -1, kind="stable"), -1)

    def lower(self, x: Value) -> Value:
        """By integers in the same order."""
        key = sort_key(x)
        if key is None or (key is x and not self.descending):
            return self(x)
        return Order()(BitwiseNot()(key) if self.descending else key)


def sortable(x: Array) -> Array:
    """x in a dtype of NumPy's own: of the others it does not know where their NaN belongs."""
    return x.astype(np.float32) if x.dtype != object and x.dtype.isbuiltin != 1 else x


def sort_key(x: Value) -> Value | None:
    """int32 or int64 in the order of x; zeros of both signs are equal, and so are NaNs."""
    if x.dtype in ("int32", "int64"):
        return x
    if x.dtype == "uint64":
        return BitCast("int64")(x) + constant(-(2**63), "int64")
    if x.dtype in INTEGERS or x.dtype == "bool":
        return Cast("int64" if x.dtype == "uint32" else "int32")(x)
    if x.dtype not in FLOATS:
        return None
    bits = 64 if x.dtype == "float64" else 32
    x = cast_to(x, f"float{bits}")
    code = BitCast(f"int{bits}")(Where()(Equal()(x, 0.0), constant(0.0, x.dtype), x))
    most = constant(2 ** (bits - 1) - 1, code.dtype)
    # Below zero a greater magnitude is less: all bits but the sign are turned over.
    mirrored = Where()(Less()(code, constant(0, code.dtype)), BitwiseXor()(code, most), code)
    return Where()(IsNaN()(x), most, mirrored)


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
        order = np.moveaxis(
            Order(self.largest).reference(np.moveaxis(x, self.axis, -1)), -1, self.axis
        )
        best = np.split(order, [self.k], self.axis)[0]
        return np.take_along_axis(x, best, self.axis), best

    def lower(self, x: Value) -> tuple[Value, Value]:
        """The first of a sorted axis."""
        if sort_key(x) is None:
            return self(x)
        turn = [i for i in range(x.rank) if i != self.axis] + [self.axis]
        back = sorted(range(x.rank), key=turn.__getitem__)
        order = transpose(Order(self.largest)(transpose(x, *turn)), *back)
        best = slice_axis(order, self.axis, 0, self.k)
        return GatherElements(self.axis)(x, best), best


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

    def reference(self, boxes: Array, scores: Array, *limits: Any) -> Array:
        return kept_boxes(boxes, scores, self.center, *limits)

    def lower(self, boxes: Value, scores: Value, *limits: Value | None) -> Value:
        """As many rows as there could be, then those that there are."""
        if 0 in (*boxes.shape, *scores.shape):
            return self(boxes, scores, *limits)
        rows, number = Suppression(self.center)(boxes, scores, *limits)
        return Prefix(self.count)(rows, number)


@operator
class Suppression(Op):
    """NonMaxSuppression's rows in a tensor with room for every box of every class, and how many
    there are, int64[1]; what stands behind them has no meaning."""

    center: bool = False

    def infer(
        self, boxes: TensorType, scores: TensorType, *limits: TensorType | None
    ) -> tuple[TensorType, TensorType]:
        rows = TensorType("int64", (product(scores.shape), 3))
        return rows, TensorType("int64", (1,))

    def reference(self, boxes: Array, scores: Array, *limits: Any) -> tuple[Array, Array]:
        kept = kept_boxes(boxes, scores, self.center, *limits)
        rows = np.zeros((scores.size, 3), np.int64)
        rows[: len(kept)] = kept
        return rows, np.array([len(kept)])


def kept_boxes(
    boxes: Array,
    scores: Array,
    center: bool,
    most: Any = None,
    overlap: Any = None,
    score: Any = None,
) -> Array:
    """Rows (batch, class, box) of the boxes that no better one suppresses."""
    limit = 0 if most is None else int(most.reshape(()))
    above = np.float32(0) if overlap is None else overlap.reshape(())
    rows: list[tuple[int, int, int]] = []
    for batch, (some, classes) in enumerate(zip(boxes, scores)):
        corners = corners_of(some, center)
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
