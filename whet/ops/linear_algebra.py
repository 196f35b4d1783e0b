"""Operators on square matrices."""

from __future__ import annotations

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, operator
from whet.ir.types import FLOATS, TensorType
from whet.ops.elementwise import need, require_equal
from whet.ops.movement import reshape, slice_axis
from whet.ops.reduce import narrowed, widened

MOST_EXPANDED = 3  # rows


def _square(x: TensorType) -> None:
    need(x.dtype, FLOATS, "a floating-point dtype")
    if x.rank < 2:
        raise ShapeError(f"a square matrix is needed, got {x}")
    require_equal(x.shape[-1], x.shape[-2], "the rows and columns of a square matrix")


@operator
class Determinant(Op):
    """The determinants of x[..., N, N]."""

    def infer(self, x: TensorType) -> TensorType:
        _square(x)
        return x.with_shape(*x.shape[:-2])

    def reference(self, x: np.ndarray) -> np.ndarray:
        return np.linalg.det(x.astype(np.float64)).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        """Products of elements for the smallest matrices; larger ones need pivots."""
        n = x.shape[-1]
        if not isinstance(n, int) or not 1 <= n <= MOST_EXPANDED:
            return self(x)
        wide, lead = widened(x), x.shape[:-2]
        rows = [[_element(wide, i, j) for j in range(n)] for i in range(n)]
        return narrowed(reshape(_expanded(rows), *lead), x)


def _element(x: Value, i: int, j: int) -> Value:
    return slice_axis(slice_axis(x, -2, i, 1), -1, j, 1)


def _expanded(rows: list[list[Value]]) -> Value:
    """The determinant by Laplace's expansion along the first row."""
    first, *rest = rows
    if not rest:
        return first[0]
    minors = [[row[:j] + row[j + 1 :] for row in rest] for j in range(len(first))]
    total = first[0] * _expanded(minors[0])
    for j in range(1, len(first)):
        term = first[j] * _expanded(minors[j])
        total = total - term if j % 2 else total + term
    return total


@operator
class Inverse(Op):
    """The inverses of x[..., N, N]; a singular matrix gives infinities and NaN."""

    def infer(self, x: TensorType) -> TensorType:
        _square(x)
        return x

    def reference(self, x: np.ndarray) -> np.ndarray:
        wide = x.astype(np.float64)
        flat = wide.reshape(-1, *x.shape[-2:])
        return np.stack([_inverse(m) for m in flat]).reshape(x.shape).astype(x.dtype)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return np.full(matrix.shape, np.nan)
