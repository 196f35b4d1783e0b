"""Operators that combine the elements along axes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import product
from whet.ir.types import FLOATS, TensorType, dtype_name
from whet.ops.elementwise import Cast, Exp, Log, Sqrt, need, require_equal, same_dtype
from whet.ops.movement import Sizes, normalize_axis, reshape

KINDS = ("sum", "prod", "max", "min")


def check_axes(axes: tuple[int, ...], x: TensorType) -> None:
    """Raises ShapeError unless each axis, counted from the front, is there and named once."""
    if len(set(axes)) != len(axes) or any(not 0 <= axis < x.rank for axis in axes):
        raise ShapeError(f"{axes} are no axes of {x}")


def check_scaling(axes: int, x: TensorType, *parameters: TensorType | None) -> None:
    """Raises ShapeError unless scale and bias stretch over the last axes of x."""
    need(x.dtype, FLOATS, "a floating-point dtype")
    if not 0 < axes <= x.rank:
        raise ShapeError(f"{x} has no {axes} axes to normalise")
    for parameter in parameters:
        if parameter is None:
            continue
        same_dtype(x, parameter)
        if parameter.rank > x.rank:
            raise ShapeError(f"{parameter} has more axes than {x}")
        for size, wanted in zip(reversed(parameter.shape), reversed(x.shape)):
            if size != 1:
                require_equal(size, wanted, f"the sizes of {parameter} and {x}")


@operator
class Reduce(Op):
    """`kind` of all elements along `axes`: "sum", "prod", "max", "min"; each axis stays as size 1.

    Of no elements: 0, 1, the least and the greatest value of the dtype.
    """

    kind: str
    axes: tuple[int, ...]
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        check_axes(self.axes, x)
        if self.kind not in KINDS:
            raise TypeMismatch(f"there is no reduction {self.kind!r}, only {', '.join(KINDS)}")
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

    kind: Annotated[str, Literal["max", "min"]]
    axis: int
    last: bool = False

    def infer(self, x: TensorType) -> TensorType:
        check_axes((self.axis,), x)
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

    kind: Annotated[str, Literal["sum", "prod"]]
    axis: int
    exclusive: bool = False
    reverse: bool = False

    def infer(self, x: TensorType) -> TensorType:
        check_axes((self.axis,), x)
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

    def lower(self, x: Value) -> Value:
        """Narrow floats are summed wide and rounded once."""
        return narrowed(self(widened(x)), x)


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
        normalize_axis(self.axis, x.rank)
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
        normalize_axis(self.axis, x.rank)
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
        check_scaling(self.axes, x, scale, bias)
        return x

    def reference(
        self, x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray:
        if x.size == 0:
            return x
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
        check_scaling(self.axes, x, scale)
        return x

    def reference(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        if x.size == 0:
            return x
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
