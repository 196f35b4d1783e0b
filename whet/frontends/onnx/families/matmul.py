"""ONNX matrix products: plain, with a bias, integer and quantised, and Einsum."""

from __future__ import annotations

from whet.frontends.onnx.quantized import along, requantize, shifted
from whet.frontends.onnx.registry import contrib_op, onnx_op
from whet.ir.graph import Value
from whet.ir.types import FLOATS
from whet.ops.contract import MatMul as Product
from whet.ops.elementwise import Cast
from whet.ops.linear_algebra import Determinant
from whet.ops.linear_algebra import Inverse as Inverses
from whet.ops.movement import squeeze, transpose, unsqueeze


def matmul(a: Value, b: Value) -> Value:
    """NumPy's matmul: a vector is a row on the left, a column on the right, and leaves no axis."""
    row, column = a.rank == 1, b.rank == 1
    y = Product()(unsqueeze(a, 0) if row else a, unsqueeze(b, 1) if column else b)
    y = squeeze(y, -2) if row else y
    return squeeze(y, -1) if column else y


@onnx_op
def MatMul(a: Value, b: Value) -> Value:
    return matmul(a, b)


@onnx_op
def Det(x: Value) -> Value:
    return Determinant()(x)


@contrib_op
def Inverse(x: Value) -> Value:
    return Inverses()(x)


@onnx_op
def Gemm(
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Value:
    y = Product()(transpose(a, 1, 0) if transA else a, transpose(b, 1, 0) if transB else b)
    y = scaled(y, alpha)
    return y if c is None or beta == 0 else y + scaled(c, beta)


def scaled(x: Value, factor: float) -> Value:
    """x * factor, in x's dtype."""
    if factor == 1.0:
        return x
    return x * factor if x.dtype in FLOATS else Cast(x.dtype)(Cast("float64")(x) * factor)


@onnx_op
def MatMulInteger(
    a: Value, b: Value, a_zero_point: Value | None = None, b_zero_point: Value | None = None
) -> Value:
    return matmul(rows_shifted(a, a_zero_point), shifted(b, b_zero_point))


def rows_shifted(a: Value, zero_point: Value | None) -> Value:
    """a[..., M, K] less one zero point, or one for each row."""
    if zero_point is not None and zero_point.rank == 1 and zero_point.shape != (1,):
        return shifted(a, zero_point, axis=max(a.rank - 2, 0))
    return shifted(a, zero_point)


@onnx_op
def QLinearMatMul(
    a: Value,
    a_scale: Value,
    a_zero_point: Value,
    b: Value,
    b_scale: Value,
    b_zero_point: Value,
    y_scale: Value,
    y_zero_point: Value,
) -> Value:
    total = matmul(rows_shifted(a, a_zero_point), shifted(b, b_zero_point))
    factor = _row_scale(a_scale, a.rank) * along(b_scale, b.rank, None) / y_scale
    return requantize(total, factor, y_zero_point)


def _row_scale(scale: Value, rank: int) -> Value:
    if scale.rank == 1 and scale.shape != (1,):
        return along(scale, rank, max(rank - 2, 0))
    return along(scale, rank, None)
