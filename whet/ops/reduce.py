"""Operators that combine the elements along axes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import product
from whet.ir.types import FLOATS, TensorType, dtype_name
from whet.ops.elementwise import Cast, Exp, Log, Sqrt, need
from whet.ops.movement import Sizes, reshape


@operator
class Reduce(Op):
    """`kind` of all elements along `axes`: "sum", "prod", "max", "min"; each axis stays as size 1.

    Of no elements: 0, 1, the least and the greatest value of the dtype.
    """

    kind: str
    axes: tuple[int, ...]
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        if self.kind in ("max", "min") and x.dtype == "bool":
            return self._kept(x)
        if x.dtype in ("bool", "string"):
            raise TypeMismatch(f"the {self.kind} of {x.dtype} elements is not defined")
        return self._kept(x)

    def _kept(self, x: TensorType) -> TensorType:
        return x.with_shape(*(1 if i in self.axes else s for i, s in enumerate(x.shape)))

    def reference(self, x: np.ndarray) -> np.ndarray:
        if self.kind in ("sum", "prod"):
            wide = np.float64 if dtype_name(x.dtype) in FLOATS else x.dtype
            combine = np.add if self.kind == "sum" else np.multiply
            return combine.reduce(x, self.axes, dtype=wide, keepdims=True).astype(x.dtype)
        pick = np.maximum if self.kind == "max" else np.minimum
        if x.size == 0:
            shape = [1 if i in self.axes else s for i, s in enumerate(x.shape)]
            return np.full(shape, identity(self.kind, x.dtype), x.dtype)
        return pick.reduce(x, self.axes, keepdims=True)


def identity(kind: str, dtype: np.dtype) -> object:
    """The result of a reduction of no elements."""
    if kind in ("sum", "prod"):
        return np.asarray(kind == "prod").astype(dtype)[()]
    if dtype.kind == "b":
        return kind == "min"
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return info.min if kind == "max" else info.max
    return np.asarray(-np.inf if kind == "max" else np.inf).astype(dtype)[()]


@operator
class ArgReduce(Op):
    """The int64 index of the "max" or "min" element along an axis, which stays with size 1."""

    kind: str
    axis: int
    last: bool = False

    def infer(self, x: TensorType) -> TensorType:
        return TensorType("int64", tuple(1 if i == self.axis else s for i, s in enumerate(x.shape)))

    def reference(self, x: np.ndarray) -> np.ndarray:
        pick = np.argmax if self.kind == "max" else np.argmin
        if x.shape[self.axis] == 0:
            raise ShapeError(f"an axis of no elements has no {self.kind}")
        if not self.last:
            return pick(x, self.axis, keepdims=True)
        return x.shape[self.axis] - 1 - pick(np.flip(x, self.axis), self.axis, keepdims=True)


@operator
class Cumulative(Op):
    """Running "sum" or "prod" along an axis; `exclusive` leaves the element itself out."""

    kind: str
    axis: int
    exclusive: bool = False
    reverse: bool = False

    def infer(self, x: TensorType) -> TensorType:
        return x

    def reference(self, x: np.ndarray) -> np.ndarray:
        x = np.flip(x, self.axis) if self.reverse else x
        wide = np.float64 if dtype_name(x.dtype) in FLOATS else x.dtype
        combine = np.add if self.kind == "sum" else np.multiply
        run = combine.accumulate(x, self.axis, dtype=wide)
        if self.exclusive:
            first = [slice(None)] * x.ndim
            first[self.axis] = slice(0, 1)
            run = np.roll(run, 1, self.axis)
            run[tuple(first)] = self.kind == "prod"
        return (np.flip(run, self.axis) if self.reverse else run).astype(x.dtype)


def widened(x: Value) -> Value:
    """x in float32 where its dtype is narrower: what sums and products are computed in."""
    return Cast("float32")(x) if x.dtype in FLOATS and x.tensor.numpy.itemsize < 4 else x


def narrowed(y: Value, x: Value) -> Value:
    """y rounded once to x's dtype."""
    return y if y.dtype == x.dtype else Cast(x.dtype)(y)


def reduce_mean(x: Value, axes: tuple[int, ...]) -> Value:
    """The mean along axes, which stay with size 1."""
    count = product(x.shape[a] for a in axes)
    total = Reduce("sum", axes)(x)
    if isinstance(count, int):
        return total / count
    return total / Cast(x.dtype)(reshape(Sizes((count,))(), *(1,) * x.rank))


@operator
class Softmax(Op):
    """exp(x) / sum(exp(x)) along one axis."""

    axis: int = -1

    def infer(self, x: TensorType) -> TensorType:
        need(x.dtype, FLOATS, "a floating-point dtype")
        return x

    def reference(self, x: np.ndarray) -> np.ndarray:
        if x.size == 0:
            return x
        wide = x.astype(np.float64)
        e = np.exp(wide - wide.max(self.axis, keepdims=True))
        return (e / e.sum(self.axis, keepdims=True)).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        axes, wide = (self.axis % x.rank,), widened(x)
        e = Exp()(wide - Reduce("max", axes)(wide))
        return narrowed(e / Reduce("sum", axes)(e), x)


@operator
class LogSoftmax(Op):
    """log(softmax(x)) along one axis."""

    axis: int = -1

    def infer(self, x: TensorType) -> TensorType:
        need(x.dtype, FLOATS, "a floating-point dtype")
        return x

    def reference(self, x: np.ndarray) -> np.ndarray:
        if x.size == 0:
            return x
        wide = x.astype(np.float64)
        shifted = wide - wide.max(self.axis, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(self.axis, keepdims=True))).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        axes, wide = (self.axis % x.rank,), widened(x)
        shifted = wide - Reduce("max", axes)(wide)
        return narrowed(shifted - Log()(Reduce("sum", axes)(Exp()(shifted))), x)


@operator
class LayerNorm(Op):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axes (Ba et al. 2016)."""

    axes: int = 1
    epsilon: float = 1e-5

    def infer(self, x: TensorType, scale: TensorType, bias: TensorType | None = None) -> TensorType:
        return x

    def reference(
        self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray:
        axes = tuple(range(x.ndim - self.axes, x.ndim))
        wide = x.astype(np.float64)
        centred = wide - wide.mean(axes, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + self.epsilon)
        return (
            normal * scale.astype(np.float64) + (0 if bias is None else bias.astype(np.float64))
        ).astype(x.dtype)

    def lower(self, x: Value, scale: Value, bias: Value | None = None) -> Value:
        axes = tuple(range(x.rank - self.axes, x.rank))
        wide = widened(x)
        centred = wide - reduce_mean(wide, axes)
        normal = centred / Sqrt()(reduce_mean(centred * centred, axes) + self.epsilon)
        y = normal * widened(scale)
        return narrowed(y if bias is None else y + widened(bias), x)


@operator
class RMSNorm(Op):
    """x / sqrt(mean(x*x) + epsilon) * scale over the last `axes` axes (Zhang and Sennrich 2019)."""

    axes: int = 1
    epsilon: float = 1e-5

    def infer(self, x: TensorType, scale: TensorType) -> TensorType:
        return x

    def reference(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        axes = tuple(range(x.ndim - self.axes, x.ndim))
        wide = x.astype(np.float64)
        return (
            wide
            / np.sqrt((wide**2).mean(axes, keepdims=True) + self.epsilon)
            * scale.astype(np.float64)
        ).astype(x.dtype)

    def lower(self, x: Value, scale: Value) -> Value:
        axes = tuple(range(x.rank - self.axes, x.rank))
        wide = widened(x)
        normal = wide / Sqrt()(reduce_mean(wide * wide, axes) + self.epsilon)
        return narrowed(normal * widened(scale), x)
