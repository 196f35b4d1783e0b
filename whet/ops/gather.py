"""Operators that read or write at positions that are data; negative ones count from the end."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import is_at_most, is_less
from whet.ir.types import FLOATS, TensorType, dtype_name
from whet.ops.elementwise import Array, require_equal, same_dtype
from whet.ops.movement import checked_indices, normalize_axis
from whet.ops.reduce import narrowed, widened


@operator
class GatherElements(Op):
    """data at each place of `indices`, with the index there in place of that along `axis`."""

    axis: int
    computes_sizes: ClassVar[bool] = True

    def infer(self, data: TensorType, indices: TensorType) -> TensorType:
        _check_elements(data, indices, self.axis)
        return data.with_shape(*indices.shape)

    def accepts_all(self, data: TensorType, indices: TensorType) -> bool:
        pairs = enumerate(zip(data.shape, indices.shape))
        return all(is_at_most(b, a) for i, (a, b) in pairs if i != self.axis % data.rank)

    def reference(self, data: Array, indices: Array) -> Array:
        return data[_element_positions(data, indices, self.axis)]


def _check_elements(data: TensorType, indices: TensorType, axis: int) -> None:
    axis = normalize_axis(axis, data.rank)
    if indices.rank != data.rank:
        raise ShapeError(f"indices {indices} need as many axes as the data {data}")
    for i, (size, wanted) in enumerate(zip(data.shape, indices.shape)):
        if i != axis and is_less(size, wanted):
            raise ShapeError(f"axis {i} of the indices is {wanted} long, that of the data {size}")


def _element_positions(data: Array, indices: Array, axis: int) -> tuple[Array, ...]:
    """The place in data of each element of `indices`, one array for each axis."""
    places: list[Any] = list(np.ogrid[tuple(slice(s) for s in indices.shape)])
    for i, (size, wanted) in enumerate(zip(data.shape, indices.shape)):
        if i != axis % data.ndim and wanted > size:
            raise ShapeError(f"axis {i} of the indices is {wanted} long, that of the data {size}")
    places[axis] = checked_indices(indices, data.shape[axis])
    return tuple(places)


@operator
class GatherND(Op):
    """data's slices at the tuples along the last axis of `indices`, behind `batch` shared axes."""

    batch: int = 0
    computes_sizes: ClassVar[bool] = True

    def infer(self, data: TensorType, indices: TensorType) -> TensorType:
        if not 0 <= self.batch < min(data.rank, indices.rank):
            raise ShapeError(f"{data} and {indices} do not share {self.batch} axes")
        for a, b in zip(data.shape[: self.batch], indices.shape[: self.batch]):
            require_equal(a, b, "the shared axes of data and indices")
        depth = _depth(indices)
        if self.batch + depth > data.rank:
            raise ShapeError(f"{depth} indices are too many for {data}")
        return data.with_shape(*indices.shape[:-1], *data.shape[self.batch + depth :])

    def accepts_all(self, data: TensorType, indices: TensorType) -> bool:
        return data.shape[: self.batch] == indices.shape[: self.batch]

    def reference(self, data: Array, indices: Array) -> Array:
        return data[_tuple_positions(data, indices, self.batch)]


def _depth(indices: TensorType) -> int:
    """How many indices a tuple holds."""
    if indices.rank == 0 or not isinstance(indices.shape[-1], int):
        raise ShapeError(f"how many indices the last axis of {indices} holds must be known")
    return indices.shape[-1]


def _tuple_positions(data: Array, indices: Array, batch: int) -> tuple[Array, ...]:
    """The place in data of each tuple, one array for each axis that is indexed."""
    shape = indices.shape[:-1]
    places: list[Array] = [
        np.arange(shape[i]).reshape([-1 if a == i else 1 for a in range(len(shape))])
        for i in range(batch)
    ]
    places += [
        checked_indices(indices[..., i], data.shape[batch + i]) for i in range(indices.shape[-1])
    ]
    return tuple(np.broadcast_arrays(*places))


@operator
class ScatterElements(Op):
    """data with `updates` written where GatherElements would read.

    `kind` combines them with what is there ("sum", "prod", "max", "min"); else the last one stays.
    """

    axis: int
    kind: Annotated[str | None, Literal["sum", "prod", "max", "min", None]] = None
    computes_sizes: ClassVar[bool] = True

    def infer(self, data: TensorType, indices: TensorType, updates: TensorType) -> TensorType:
        _check_elements(data, indices, self.axis)
        if updates.rank != indices.rank:
            raise ShapeError(f"the updates {updates} need the shape of the indices {indices}")
        for a, b in zip(indices.shape, updates.shape):
            require_equal(a, b, "the shapes of indices and updates")
        return TensorType(same_dtype(data, updates), data.shape)

    def reference(self, data: Array, indices: Array, updates: Array) -> Array:
        return _write(data, _element_positions(data, indices, self.axis), updates, self.kind)

    def lower(self, data: Value, indices: Value, updates: Value) -> Value:
        """Narrow floats are combined wide and rounded once."""
        if self.kind is None:
            return self(data, indices, updates)
        return narrowed(self(widened(data), indices, widened(updates)), data)


@operator
class ScatterND(Op):
    """data with `updates` written where GatherND would read; `kind` as in ScatterElements."""

    kind: Annotated[str | None, Literal["sum", "prod", "max", "min", None]] = None
    computes_sizes: ClassVar[bool] = True

    def infer(self, data: TensorType, indices: TensorType, updates: TensorType) -> TensorType:
        depth = _depth(indices)
        if depth > data.rank:
            raise ShapeError(f"{depth} indices are too many for {data}")
        wanted = (*indices.shape[:-1], *data.shape[depth:])
        if updates.rank != len(wanted):
            raise ShapeError(f"the updates need the shape {list(wanted)}, got {updates}")
        for a, b in zip(updates.shape, wanted):
            require_equal(a, b, "the updates and the places for them")
        return TensorType(same_dtype(data, updates), data.shape)

    def reference(self, data: Array, indices: Array, updates: Array) -> Array:
        return _write(data, _tuple_positions(data, indices, 0), updates, self.kind)

    def lower(self, data: Value, indices: Value, updates: Value) -> Value:
        """Narrow floats are combined wide and rounded once."""
        if self.kind is None:
            return self(data, indices, updates)
        return narrowed(self(widened(data), indices, widened(updates)), data)


_COMBINE: dict[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _write(data: Array, places: tuple[Any, ...], updates: Array, kind: str | None) -> Array:
    if updates.size == 0:
        return data
    if kind is None:
        out = np.array(data, object if updates.dtype == object else None)
        out[places] = updates
        return out
    is_float = data.dtype != object and dtype_name(data.dtype) in FLOATS
    out = np.array(data, np.float64 if is_float else None)
    _COMBINE[kind].at(out, places, updates.astype(out.dtype))
    return out.astype(data.dtype)
