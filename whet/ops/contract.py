"""Operators that multiply and sum: matrix products and convolutions."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, operator
from whet.ir.sizes import Size, floor_divide, is_less, maximum, product
from whet.ir.types import TensorType
from whet.ops.elementwise import broadcast, require_equal, same_dtype


@operator
class MatMul(Op):
    """a[..., M, K] times b[..., K, N]; leading axes broadcast; integers add up in `accumulate`."""

    accumulate: Annotated[str | None, Literal["int32", None]] = None

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.rank < 2 or b.rank < 2:
            raise ShapeError(
                f"a matrix product needs two axes or more on each side, got {a} and {b}"
            )
        require_equal(a.shape[-1], b.shape[-2], "the inner sizes of a matrix product")
        dtype = self.accumulate or same_dtype(a, b)
        return TensorType(dtype, (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))

    def operations(self, a: TensorType, b: TensorType) -> Size:
        return 2 * product(MatMul.infer(self, a, b).shape) * a.shape[-1]

    def reference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        wide = _accumulator(a.dtype, self.accumulate)
        return np.matmul(a.astype(wide), b.astype(wide)).astype(self.accumulate or a.dtype)


def _accumulator(dtype: np.dtype, wanted: str | None) -> str:
    if wanted in ("int32", "int64"):
        return wanted
    if dtype.kind in "iub":
        return dtype.name
    return "float64"


def check_windows(
    strides: tuple[int, ...], dilations: tuple[int, ...], *sides: tuple[Size, ...]
) -> None:
    """Raises ShapeError where windows would not move on, or padding be negative."""
    if any(len(line) != len(strides) for line in (dilations, *sides)):
        raise ShapeError(f"strides {strides}, dilations {dilations}, pads {sides} differ in axes")
    if min((*strides, *dilations), default=1) < 1:
        raise ShapeError(f"strides {strides} and dilations {dilations} must be positive")
    for side in (size for line in sides for size in line):
        if is_less(side, 0):
            raise ShapeError(f"padding by {side} is negative; slice instead")


def window_count(size: Size, span: Size, stride: int) -> Size:
    """How many windows fit on an axis; raises ShapeError where not even one does."""
    room = size - span
    if is_less(room, 0):
        raise ShapeError(f"a window of {span} is larger than the padded axis of {size}")
    require_equal(maximum(-room, 0), 0, "what a window reaches beyond the padded axis")
    return floor_divide(room, stride) + 1


@operator
class Convolution(Op):
    """x[N, *S, C] with w[O, *K, C/groups], channels last, giving y[N, *S', O]; S has any rank.

    y[n, s, o] = sum over k, c of x[n, s*stride + k*dilation - before, c] * w[o, k, c]; 0 outside x.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Size, ...]
    after: tuple[Size, ...]
    groups: int = 1
    accumulate: Annotated[str | None, Literal["int32", None]] = None

    def infer(self, x: TensorType, w: TensorType) -> TensorType:
        if x.rank != w.rank or x.rank != len(self.strides) + 2:
            raise ShapeError(
                f"a convolution over {len(self.strides)} axes does not fit {x} and {w}"
            )
        require_equal(
            x.shape[-1],
            w.shape[-1] * self.groups,
            "the input channels and the weight's times groups",
        )
        if self.groups < 1:
            raise ShapeError(f"there are {self.groups} groups")
        require_equal(w.shape[0] % self.groups, 0, "the output channels beyond whole groups")
        check_windows(self.strides, self.dilations, self.before, self.after)
        axes = zip(x.shape[1:-1], w.shape[1:-1], self.before, self.after)
        padded = [(n + b + a, k) for n, k, b, a in axes]
        spatial = (
            window_count(n, (k - 1) * d + 1, s)
            for (n, k), s, d in zip(padded, self.strides, self.dilations)
        )
        return TensorType(self.accumulate or same_dtype(x, w), (x.shape[0], *spatial, w.shape[0]))

    def operations(self, x: TensorType, w: TensorType) -> Size:
        return 2 * product(self.infer(x, w).shape) * product(w.shape[1:])

    def reference(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        wide = _accumulator(x.dtype, self.accumulate)
        pads: Any = ((0, 0), *zip(self.before, self.after), (0, 0))
        x = np.pad(x.astype(wide), pads)
        kernel = w.shape[1:-1]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations)]
        axes = tuple(range(1, x.ndim - 1))
        windows = np.lib.stride_tricks.sliding_window_view(x, spans, axes)
        steps = tuple(slice(None, None, s) for s in self.strides)
        taps = tuple(slice(None, None, d) for d in self.dilations)
        windows = windows[(slice(None), *steps, slice(None), *taps)]
        n, spatial, out = x.shape[0], windows.shape[1 : x.ndim - 1], w.shape[0]
        # windows: n, *s', c, *k  ->  groups of columns against groups of rows
        cols = np.moveaxis(windows, x.ndim - 1, -1).reshape(
            n, *spatial, math.prod(kernel), self.groups, w.shape[-1]
        )
        rows = w.astype(wide).reshape(self.groups, out // self.groups, -1, w.shape[-1])
        product = np.einsum("...kgc,gokc->...go", cols, rows, optimize=True)
        return product.reshape(n, *spatial, out).astype(self.accumulate or w.dtype)
