"""Operators that combine the elements along axes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from whet.errors import TypeMismatch
from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import product
from whet.ir.types import FLOATS, TensorType
from whet.ops.elementwise import Cast, Exp, Log, Sqrt, need
from whet.ops.movement import Sizes, reshape


@operator
class Reduce(Op):
    """`kind` of all elements along `axes` ("sum", "prod", "max", "min"); each axis stays, with size 1.

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

    def reference(self, x):
        if self.kind in ("sum", "prod"):
            wide = np.float32 if x.dtype.kind not in "biufcO" or x.dtype == np.float16 else x.dtype
            total = {"sum": np.sum, "prod": np.prod}[self.kind](
                x, self.axes, dtype=wide, keepdims=True
            )
            return np.asarray(total).astype(x.dtype)
        start = {"initial": identity(self.kind, x.dtype)} if x.size == 0 else {}
        return {"max": np.max, "min": np.min}[self.kind](x, self.axes, keepdims=True, **start)


def identity(kind: str, dtype: np.dtype) -> object:
    """The result of a reduction of no elements."""
    if kind in ("sum", "prod"):
        return np.asarray(kind == "prod").astype(dtype)[()]
    if dtype == bool:
        return kind == "min"
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return info.min if kind == "max" else info.max
    return np.asarray(-np.inf if kind == "max" else np.inf).astype(dtype)[()]


@operator
class ArgReduce(Op):
    """The int64 index of the greatest ("max") or least ("min") element along an axis, which stays with size 1."""

    kind: str
    axis: int
    last: bool = False

    def infer(self, x: TensorType) -> TensorType:
        return TensorType("int64", tuple(1 if i == self.axis else s for i, s in enumerate(x.shape)))

    def reference(self, x):
        pick = np.argmax if self.kind == "max" else np.argmin
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

    def reference(self, x):
        x = np.flip(x, self.axis) if self.reverse else x
        wide = np.float32 if x.dtype.kind not in "biufc" or x.dtype == np.float16 else x.dtype
        run = {"sum": np.cumsum, "prod": np.cumprod}[self.kind](x, self.axis, dtype=wide)
        if self.exclusive:
            first = [slice(None)] * x.ndim
            first[self.axis] = slice(0, 1)
            run = np.roll(run, 1, self.axis)
            run[tuple(first)] = self.kind == "prod"
        return (np.flip(run, self.axis) if self.reverse else run).astype(x.dtype)


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

    def reference(self, x):
        if x.size == 0:
            return x
        wide = x.astype(np.float64)
        e = np.exp(wide - wide.max(self.axis, keepdims=True))
        return (e / e.sum(self.axis, keepdims=True)).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        axes = (self.axis % x.rank,)
        e = Exp()(x - Reduce("max", axes)(x))
        return e / Reduce("sum", axes)(e)


@operator
class LogSoftmax(Op):
    """log(softmax(x)) along one axis."""

    axis: int = -1

    def infer(self, x: TensorType) -> TensorType:
        need(x.dtype, FLOATS, "a floating-point dtype")
        return x

    def reference(self, x):
        wide = x.astype(np.float64)
        shifted = wide - wide.max(self.axis, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(self.axis, keepdims=True))).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        axes = (self.axis % x.rank,)
        shifted = x - Reduce("max", axes)(x)
        return shifted - Log()(Reduce("sum", axes)(Exp()(shifted)))


@operator
class LayerNorm(Op):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last `axes` axes (Ba et al. 2016)."""

    axes: int = 1
    epsilon: float = 1e-5

    def infer(self, x: TensorType, scale: TensorType, bias: TensorType | None = None) -> TensorType:
        return x

    def reference(self, x, scale, bias=None):
        axes = tuple(range(x.ndim - self.axes, x.ndim))
        wide = x.astype(np.float64)
        centred = wide - wide.mean(axes, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + self.epsilon)
        return (
            normal * scale.astype(np.float64) + (0 if bias is None else bias.astype(np.float64))
        ).astype(x.dtype)

    def lower(self, x: Value, scale: Value, bias: Value | None = None) -> Value:
        axes = tuple(range(x.rank - self.axes, x.rank))
        centred = x - reduce_mean(x, axes)
        normal = centred / Sqrt()(reduce_mean(centred * centred, axes) + self.epsilon) * scale
        return normal if bias is None else normal + bias


@operator
class RMSNorm(Op):
    """x / sqrt(mean(x*x) + epsilon) * scale over the last `axes` axes (Zhang and Sennrich 2019)."""

    axes: int = 1
    epsilon: float = 1e-5

    def infer(self, x: TensorType, scale: TensorType) -> TensorType:
        return x

    def reference(self, x, scale):
        axes = tuple(range(x.ndim - self.axes, x.ndim))
        wide = x.astype(np.float64)
        return (
            wide
            / np.sqrt((wide**2).mean(axes, keepdims=True) + self.epsilon)
            * scale.astype(np.float64)
        ).astype(x.dtype)

    def lower(self, x: Value, scale: Value) -> Value:
        axes = tuple(range(x.rank - self.axes, x.rank))
        return x / Sqrt()(reduce_mean(x * x, axes) + self.epsilon) * scale
