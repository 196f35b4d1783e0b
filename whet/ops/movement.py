"""Operators that only move elements: each output element is one input element, or a fill value."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np

from whet.errors import IndexOutOfRange, ShapeError
from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import Size, is_at_most, is_less, product
from whet.ir.types import TensorType
from whet.ops.elementwise import Array, broadcast_sizes, require_equal, same_dtype


def normalize_axis(axis: int, rank: int) -> int:
    """The axis counted from the front; raises ShapeError where there is none."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} does not exist in a tensor of {rank} axes")
    return axis % rank


def check_shape(shape: tuple[Size, ...]) -> None:
    """Raises ShapeError for a shape with a size that is negative."""
    if any(is_less(size, 0) for size in shape):
        raise ShapeError(f"a tensor cannot have the shape {list(shape)}")


@operator
class Sizes(Op):
    """Sizes as an int64 tensor of one axis: what a shape looks like as data."""

    sizes: tuple[Size, ...]
    computes_sizes: ClassVar[bool] = True

    def infer(self) -> TensorType:
        return TensorType("int64", (len(self.sizes),))

    def reference(self) -> Array:
        static = all(isinstance(size, int) for size in self.sizes)
        return np.array(self.sizes, np.int64 if static else object)


@operator
class Reshape(Op):
    """The same elements in the same (row-major) order under another shape."""

    shape: tuple[Size, ...]
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        check_shape(self.shape)
        require_equal(
            product(x.shape),
            product(self.shape),
            f"the number of elements of {x} and {list(self.shape)}",
        )
        return TensorType(x.dtype, self.shape)

    def reference(self, x: Array) -> Array:
        return x.reshape(self.shape)


@operator
class Transpose(Op):
    """Axis i of the output is axis `order[i]` of the input."""

    order: tuple[int, ...]
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if sorted(self.order) != list(range(x.rank)):
            raise ShapeError(f"{self.order} is no order of the {x.rank} axes of {x}")
        return TensorType(x.dtype, tuple(x.shape[i] for i in self.order))

    def reference(self, x: Array) -> Array:
        return x.transpose(self.order)


@operator
class Broadcast(Op):
    """Stretches axes of size 1, and adds axes in front, to reach `shape`."""

    shape: tuple[Size, ...]
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if x.rank > len(self.shape):
            raise ShapeError(f"{x} has more axes than {list(self.shape)}")
        check_shape(self.shape)
        for size, wanted in zip(reversed(x.shape), reversed(self.shape)):
            if (
                size != 1
                and size != wanted
                and broadcast_sizes(size, wanted) == size
                and isinstance(size, int)
            ):
                raise ShapeError(f"{x} does not stretch to {list(self.shape)}")
        return TensorType(x.dtype, self.shape)

    def accepts_all(self, x: TensorType) -> bool:
        pairs = zip(reversed(x.shape), reversed(self.shape))
        return all(is_at_most(0, size) for size in self.shape) and all(
            size in (1, wanted) for size, wanted in pairs
        )

    def reference(self, x: Array) -> Array:
        return np.broadcast_to(x, tuple(map(int, self.shape)))


@operator
class Slice(Op):
    """Elements start, start + step, … of each axis, `sizes[i]` of them; every index lies inside."""

    starts: tuple[Size, ...]
    sizes: tuple[Size, ...]
    steps: tuple[int, ...]
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if not len(self.starts) == len(self.sizes) == len(self.steps) == x.rank:
            raise ShapeError(f"a slice of {x} needs {x.rank} starts, sizes and steps")
        for size, start, count, step in zip(x.shape, self.starts, self.sizes, self.steps):
            check_slice(size, start, count, step)
        return TensorType(x.dtype, self.sizes)

    def accepts_all(self, x: TensorType) -> bool:
        return all(map(is_inside, x.shape, self.starts, self.sizes, self.steps))

    def reference(self, x: Array) -> Array:
        for axis, (start, size, step) in enumerate(zip(self.starts, self.sizes, self.steps)):
            if (start, size, step) != (0, x.shape[axis], 1):
                check_slice(x.shape[axis], start, size, step)
                x = np.take(x, np.arange(int(size)) * step + int(start), axis)
        return x


def check_slice(size: Size, start: Size, count: Size, step: int) -> None:
    """Raises ShapeError for elements that are proved to lie outside an axis; none lie nowhere."""
    last = start + (count - 1) * step
    outside = is_less(start, 0) or is_less(size, start + 1)
    outside = outside or is_less(last, 0) or is_less(size, last + 1)
    if step == 0 or is_less(count, 0) or (outside and is_less(0, count)):
        raise ShapeError(
            f"a slice of {count} elements from {start} by {step} leaves an axis of {size}"
        )


def is_inside(size: Size, start: Size, count: Size, step: int) -> bool:
    """Whether it is proved that `check_slice` accepts a slice."""
    if not (is_at_most(0, start) and is_at_most(0, count)):
        return False
    last = start + (count - 1) * step
    if step == 1:
        return is_less(last, size)
    return is_less(start, size) and is_at_most(0, last) and is_less(last, size)


@operator
class Pad(Op):
    """`before` and `after` more elements on each axis.

    Modes: "constant" (an input gives it), "reflect" (the border not repeated), "edge", "wrap".
    """

    before: tuple[Size, ...]
    after: tuple[Size, ...]
    mode: Annotated[str, Literal["constant", "reflect", "edge", "wrap"]] = "constant"

    def infer(self, x: TensorType, fill: TensorType) -> TensorType:
        if not len(self.before) == len(self.after) == x.rank:
            raise ShapeError(f"padding {x} needs {x.rank} sizes before and after")
        for side in (*self.before, *self.after):
            if is_less(side, 0):
                raise ShapeError(f"padding by {side} is negative; slice instead")
        if any(is_less(0, more) and is_less(size, 1) for more, size in self._repeats(x)):
            raise ShapeError(f"an axis of no elements cannot be padded by {self.mode!r}")
        same_dtype(x, fill)
        return x.with_shape(*(b + s + a for b, s, a in zip(self.before, x.shape, self.after)))

    def accepts_all(self, x: TensorType, fill: TensorType) -> bool:
        return all(is_at_most(0, side) for side in (*self.before, *self.after)) and all(
            is_less(0, size) for _, size in self._repeats(x)
        )

    def _repeats(self, x: TensorType) -> list[tuple[Size, Size]]:
        """The padding in which an axis' own elements stand, and the size of that axis."""
        both = [(b + a, size) for b, a, size in zip(self.before, self.after, x.shape)]
        return [(more, size) for more, size in both if self.mode != "constant" and more != 0]

    def reference(self, x: Array, fill: Array) -> Array:
        if self.mode == "constant":
            out = np.full([b + s + a for b, s, a in zip(self.before, x.shape, self.after)], fill)
            out[tuple(slice(b, b + s) for b, s in zip(self.before, x.shape))] = x
            return out
        for axis, (b, a) in enumerate(zip(self.before, self.after)):
            if b or a:
                size = x.shape[axis]
                if size == 0:
                    raise ShapeError(f"an axis of no elements cannot be padded by {self.mode!r}")
                places = np.arange(-int(b), size + int(a))
                x = np.take(x, padded_index(places, size, self.mode), axis)
        return x


def padded_index(i: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Which element of an axis stands at position i, which may lie outside."""
    if mode == "edge":
        return np.clip(i, 0, size - 1)
    if mode == "wrap":
        return i % size
    period = max(2 * size - 2, 1)
    i = i % period
    return np.where(i < size, i, period - i)


@operator
class Concat(Op):
    """The inputs one after the other along `axis`."""

    axis: int
    computes_sizes: ClassVar[bool] = True

    def infer(self, *inputs: TensorType) -> TensorType:
        shape = list(inputs[0].shape)
        for other in inputs[1:]:
            if other.rank != len(shape):
                raise ShapeError(f"tensors of {len(shape)} and {other.rank} axes cannot be joined")
            for axis, size in enumerate(other.shape):
                if axis == self.axis:
                    shape[axis] = shape[axis] + size
                else:
                    shape[axis] = require_equal(shape[axis], size, f"sizes of axis {axis}")
        return TensorType(same_dtype(*inputs), tuple(shape))

    def reference(self, *inputs: Array) -> Array:
        return np.concatenate(inputs, self.axis)


@operator
class Gather(Op):
    """data's slices along `axis` at the indices, in place of that axis."""

    axis: int = 0
    computes_sizes: ClassVar[bool] = True

    def infer(self, data: TensorType, indices: TensorType) -> TensorType:
        axis = normalize_axis(self.axis, data.rank)
        return data.with_shape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])

    def reference(self, data: Array, indices: Array) -> Array:
        size = data.shape[self.axis]
        return np.take(data, checked_indices(indices, size), self.axis)


def checked_indices(indices: Array, size: int) -> Array:
    """The indices counted from the front; raises IndexOutOfRange outside [-size, size)."""
    indices = np.asarray(indices, np.int64)
    outside = (indices < -size) | (indices >= size)
    if outside.any():
        raise IndexOutOfRange(
            f"the index {indices[outside].flat[0]} lies outside an axis of {size} elements"
        )
    return np.where(indices < 0, indices + size, indices)


@operator
class Reverse(Op):
    """Each of the axes back to front."""

    axes: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        return x

    def reference(self, x: Array) -> Array:
        return np.flip(x, self.axes)

    def lower(self, x: Value) -> Value:
        starts = tuple(s - 1 if i in self.axes else 0 for i, s in enumerate(x.shape))
        steps = tuple(-1 if i in self.axes else 1 for i in range(x.rank))
        return Slice(starts, x.shape, steps)(x)


def split(x: Value, sizes: tuple[Size, ...], axis: int) -> tuple[Value, ...]:
    """x cut along an axis into parts of the given sizes."""
    parts, start = [], 0
    for size in sizes:
        parts.append(slice_axis(x, axis, start, size))
        start = start + size  # type: ignore[assignment]
    return tuple(parts)


def slice_axis(x: Value, axis: int, start: Size, size: Size, step: int = 1) -> Value:
    """A slice along one axis only."""
    axis = normalize_axis(axis, x.rank)
    if (start, size, step) == (0, x.shape[axis], 1):
        return x
    starts = tuple(start if i == axis else 0 for i in range(x.rank))
    sizes = tuple(size if i == axis else s for i, s in enumerate(x.shape))
    steps = tuple(step if i == axis else 1 for i in range(x.rank))
    return Slice(starts, sizes, steps)(x)


def reshape(x: Value, *shape: Size) -> Value:
    """x under another shape; x itself where that is the shape it has."""
    return x if x.shape == shape else Reshape(shape)(x)


def transpose(x: Value, *order: int) -> Value:
    """x with its axes in another order; x itself where the order is the same."""
    return x if order == tuple(range(x.rank)) else Transpose(order)(x)


def broadcast_to(x: Value, *shape: Size) -> Value:
    """x stretched to the shape; x itself where it has it."""
    return x if x.shape == shape else Broadcast(shape)(x)


def unsqueeze(x: Value, *axes: int) -> Value:
    """x with axes of size 1 at the given places of the result."""
    rank = x.rank + len(axes)
    places = {normalize_axis(a, rank) for a in axes}
    old = iter(x.shape)
    return Reshape(tuple(1 if i in places else next(old) for i in range(rank)))(x) if axes else x


def squeeze(x: Value, *axes: int) -> Value:
    """x without the given axes, whose sizes must be 1."""
    places = {normalize_axis(a, x.rank) for a in axes}
    for axis in places:
        require_equal(x.shape[axis], 1, f"axis {axis} to drop and 1")
    return Reshape(tuple(s for i, s in enumerate(x.shape) if i not in places))(x) if axes else x
