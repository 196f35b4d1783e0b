"""Operators that combine the elements under a sliding window: pooling, channels last."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, is_less, maximum
from whet.ir.types import FLOATS, TensorType, dtype_name
from whet.ops.contract import check_windows
from whet.ops.elementwise import And, Less, LessOrEqual, Or, Where
from whet.ops.index import number, positions
from whet.ops.movement import Pad, Slice, broadcast_to
from whet.ops.reduce import identity


def _check(op: Pool | ArgPool, x: TensorType) -> None:
    if x.rank != len(op.kernel) + 2 or not len(op.kernel) == len(op.shape) == len(op.strides):
        raise ShapeError(f"pooling over {len(op.kernel)} axes does not fit {x}")
    if min(op.kernel, default=1) < 1:
        raise ShapeError(f"windows of {op.kernel} elements are empty")
    if any(is_less(size, 0) for size in op.shape):
        raise ShapeError(f"windows of {op.kernel} elements are larger than the padded axes of {x}")
    check_windows(op.strides, op.dilations, op.before)


@operator
class Pool(Op):
    """`kind` ("max", "sum") over windows of x[N, *S, C]; `shape` is the result's spatial shape.

    Elements outside x do not take part. A window that sees none gives the kind's identity.
    """

    kind: Annotated[str, Literal["max", "sum"]]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Size, ...]
    shape: tuple[Size, ...]

    def infer(self, x: TensorType) -> TensorType:
        _check(self, x)
        return x.with_shape(x.shape[0], *self.shape, x.shape[-1])

    def reference(self, x: np.ndarray) -> np.ndarray:
        views = windows_of(x, self, identity(self.kind, x.dtype))
        axes = tuple(range(x.ndim, views.ndim))
        if self.kind == "max":
            return views.max(axes)
        wide = np.float64 if dtype_name(x.dtype) in FLOATS else x.dtype
        return views.sum(axes, dtype=wide).astype(x.dtype)


@operator
class ArgPool(Op):
    """Row-major int64 indices into S of the first greatest element in windows of x[N, *S, C]."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Size, ...]
    shape: tuple[Size, ...]

    def infer(self, x: TensorType) -> TensorType:
        _check(self, x)
        return TensorType("int64", (x.shape[0], *self.shape, x.shape[-1]))

    def reference(self, x: np.ndarray) -> np.ndarray:
        spatial = x.shape[1:-1]
        plane = np.arange(np.prod(spatial, dtype=np.int64)).reshape(1, *spatial, 1)
        where = windows_of(plane, self, -1)
        elements = windows_of(x, self, identity("max", x.dtype))
        # An element outside never wins against one inside that holds the least value.
        taps = *elements.shape[: x.ndim], math.prod(self.kernel)
        inside = np.broadcast_to(where >= 0, elements.shape).reshape(taps)
        flat = elements.reshape(inside.shape)
        best = flat.max(-1, keepdims=True)
        # Where nothing equals the greatest (a NaN), the first element inside stands for it.
        tap = np.argmax(inside.astype(np.int8) + (inside & (flat == best)), -1)[..., None]
        where = np.broadcast_to(where, elements.shape).reshape(inside.shape)
        return np.take_along_axis(where, tap, -1)[..., 0]

    def lower(self, x: Value) -> Value:
        """One comparison for each tap, over shifted and strided views of the padded x."""
        padded, inside = self._padded(x)
        best: Value | None = None
        where: Value | None = None
        for tap in np.ndindex(self.kernel):
            value, index = self._tap(padded, tap), self._tap(inside, tap)
            if best is None or where is None:
                best, where = value, index
                continue
            better = And()(LessOrEqual()(0, index), Or()(Less()(best, value), Less()(where, 0)))
            best, where = Where()(better, value, best), Where()(better, index, where)
        assert where is not None
        return broadcast_to(where, *self.infer(x.tensor).shape)

    def _padded(self, x: Value) -> tuple[Value, Value]:
        """x and the index of each of its elements, -1 outside, as far as windows reach."""
        sizes = x.shape[1:-1]
        after = tuple(
            maximum((out - 1) * s + (k - 1) * d + 1 - n - b, 0)
            for n, k, s, d, b, out in zip(
                sizes, self.kernel, self.strides, self.dilations, self.before, self.shape
            )
        )
        index: Value | None = None
        for axis, size in enumerate(sizes):
            line = positions(size, x.rank, axis + 1)
            index = line if index is None else index * number(size, "int64") + line
        pad = Pad((0, *self.before, 0), (0, *after, 0))
        return pad(x, constant(identity("max", x.tensor.numpy), x.dtype)), pad(index, -1)

    def _tap(self, x: Value, tap: tuple[int, ...]) -> Value:
        starts = (0, *(t * d for t, d in zip(tap, self.dilations)), 0)
        sizes = (x.shape[0], *self.shape, x.shape[-1])
        return Slice(starts, sizes, (1, *self.strides, 1))(x)


def windows_of(x: np.ndarray, op: Pool | ArgPool, fill: object) -> np.ndarray:
    """The windows of x[N, *S, C] as a view [N, *shape, C, *kernel]; `fill` stands outside x."""
    pads = [(0, 0)]
    for size, k, s, d, b, out in zip(
        x.shape[1:-1], op.kernel, op.strides, op.dilations, op.before, op.shape
    ):
        pads.append((b, max(0, (max(out, 1) - 1) * s + (k - 1) * d + 1 - size - b)))
    padded = np.pad(x, [*pads, (0, 0)], constant_values=fill)  # type: ignore[call-overload]
    spans = [(k - 1) * d + 1 for k, d in zip(op.kernel, op.dilations)]
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(1, x.ndim - 1)))
    steps = tuple(slice(0, out * s, s) for s, out in zip(op.strides, op.shape))
    taps = tuple(slice(None, None, d) for d in op.dilations)
    return views[(slice(None), *steps, slice(None), *taps)]
