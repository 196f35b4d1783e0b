"""Operators on square matrices."""

from __future__ import annotations

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, operator
from whet.ir.types import FLOATS, TensorType
from whet.ops.elementwise import need, require_equal


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
