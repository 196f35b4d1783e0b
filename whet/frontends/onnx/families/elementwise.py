"""ONNX operators that work element by element."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from whet.errors import InvalidModel, TypeMismatch
from whet.frontends.onnx.families.generate import element_type
from whet.frontends.onnx.registry import any_rank, onnx_op
from whet.ir.graph import Value, constant
from whet.ir.types import INTEGERS, UNSIGNED
from whet.ops import elementwise as ew
from whet.ops import transcendental as tr
from whet.ops.bits import BitCast as Bits
from whet.ops.cast import bit_width

LARGEST = 3.4028234663852886e38  # of float32: the default bounds of Clip


# fmt: off
@onnx_op
def Abs(x: Value) -> Value: return x if x.dtype in UNSIGNED else ew.Abs()(x)
@onnx_op
def Neg(x: Value) -> Value: return ew.Neg()(x)
@onnx_op
def Sign(x: Value) -> Value: return ew.Sign()(x)
@onnx_op
def Floor(x: Value) -> Value: return ew.Floor()(x)
@onnx_op
def Ceil(x: Value) -> Value: return ew.Ceil()(x)
@onnx_op
def Round(x: Value) -> Value: return ew.Round()(x)
@onnx_op
def Sqrt(x: Value) -> Value: return ew.Sqrt()(x)
@onnx_op
def Exp(x: Value) -> Value: return ew.Exp()(x)
@onnx_op
def Log(x: Value) -> Value: return ew.Log()(x)
@onnx_op
def Reciprocal(x: Value) -> Value: return 1 / x
@onnx_op
def Erf(x: Value) -> Value: return ew.Erf()(x)
@onnx_op
def Sin(x: Value) -> Value: return ew.Sin()(x)
@onnx_op
def Cos(x: Value) -> Value: return ew.Cos()(x)
@onnx_op
def Tan(x: Value) -> Value: return tr.Tan()(x)
@onnx_op
def Asin(x: Value) -> Value: return tr.Asin()(x)
@onnx_op
def Acos(x: Value) -> Value: return tr.Acos()(x)
@onnx_op
def Atan(x: Value) -> Value: return ew.Atan()(x)
@onnx_op
def Sinh(x: Value) -> Value: return tr.Sinh()(x)
@onnx_op
def Cosh(x: Value) -> Value: return tr.Cosh()(x)
@onnx_op
def Tanh(x: Value) -> Value: return ew.Tanh()(x)
@onnx_op
def Asinh(x: Value) -> Value: return tr.Asinh()(x)
@onnx_op
def Acosh(x: Value) -> Value: return tr.Acosh()(x)
@onnx_op
def Atanh(x: Value) -> Value: return tr.Atanh()(x)
@onnx_op
def Not(x: Value) -> Value: return ew.Not()(x)
@onnx_op
def BitwiseNot(x: Value) -> Value: return ew.BitwiseNot()(x)
@onnx_op
def IsNaN(x: Value) -> Value: return ew.IsNaN()(x)
@onnx_op
def Add(a: Value, b: Value) -> Value: return ew.Add()(a, b)
@onnx_op
def Sub(a: Value, b: Value) -> Value: return ew.Sub()(a, b)
@onnx_op
def Mul(a: Value, b: Value) -> Value: return ew.Mul()(a, b)
@onnx_op
def Div(a: Value, b: Value) -> Value: return ew.Div()(a, b)
@onnx_op
def Pow(a: Value, b: Value) -> Value: return ew.Pow()(a, b)
@onnx_op
def And(a: Value, b: Value) -> Value: return ew.And()(a, b)
@onnx_op
def Or(a: Value, b: Value) -> Value: return ew.Or()(a, b)
@onnx_op
def Xor(a: Value, b: Value) -> Value: return ew.Xor()(a, b)
@onnx_op
def BitwiseAnd(a: Value, b: Value) -> Value: return ew.BitwiseAnd()(a, b)
@onnx_op
def BitwiseOr(a: Value, b: Value) -> Value: return ew.BitwiseOr()(a, b)
@onnx_op
def BitwiseXor(a: Value, b: Value) -> Value: return ew.BitwiseXor()(a, b)
@onnx_op
def Equal(a: Value, b: Value) -> Value: return ew.Equal()(a, b)
@onnx_op
def Less(a: Value, b: Value) -> Value: return ew.Less()(a, b)
@onnx_op
def LessOrEqual(a: Value, b: Value) -> Value: return ew.LessOrEqual()(a, b)
@onnx_op
def Greater(a: Value, b: Value) -> Value: return ew.Less()(b, a)
@onnx_op
def GreaterOrEqual(a: Value, b: Value) -> Value: return ew.LessOrEqual()(b, a)
@onnx_op
def Where(condition: Value, a: Value, b: Value) -> Value: return ew.Where()(condition, a, b)
@onnx_op
def Max(*xs: Value) -> Value: return functools.reduce(ew.Max(), xs)
@onnx_op
def Min(*xs: Value) -> Value: return functools.reduce(ew.Min(), xs)
@onnx_op
def Relu(x: Value) -> Value: return ew.Relu()(x)
@onnx_op
def Sigmoid(x: Value) -> Value: return ew.Sigmoid()(x)
@onnx_op
def Softplus(x: Value) -> Value: return tr.Softplus()(x)
@onnx_op
def Swish(x: Value, *, alpha: float = 1.0) -> Value: return ew.Silu(alpha)(x)
@onnx_op
@any_rank
def Identity(x: Any) -> Any: return x
# fmt: on


@onnx_op
def Mod(a: Value, b: Value, *, fmod: int = 0) -> Value:
    return ew.Mod(truncated=bool(fmod))(a, b)


@onnx_op
def BitShift(a: Value, b: Value, *, direction: str) -> Value:
    return ew.Shift(left=direction == "LEFT")(a, b)


@onnx_op
def IsInf(x: Value, *, detect_negative: int = 1, detect_positive: int = 1) -> Value:
    return ew.IsInf(bool(detect_negative), bool(detect_positive))(x)


@onnx_op
def Sum(*xs: Value) -> Value:
    if len(xs) == 1:
        return xs[0]
    return ew.rounded_once(lambda *wide: functools.reduce(ew.Add(), wide), *xs)


@onnx_op
def Mean(*xs: Value) -> Value:
    def mean(*wide: Value) -> Value:
        return functools.reduce(ew.Add(), wide) / len(xs)

    return ew.rounded_once(mean, *xs)


@onnx_op
def Clip(x: Value, *, min: float = -LARGEST, max: float = LARGEST) -> Value:
    with np.errstate(over="ignore"):  # float16 has infinity for the default bounds
        low, high = (np.float32(bound).astype(x.tensor.numpy) for bound in (min, max))
    return ew.Clip()(x, constant(low), constant(high))


@onnx_op
def Clip_11(x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    if low is not None and high is not None:
        return ew.Clip()(x, low, high)
    if low is not None:
        return ew.Max()(x, low)
    return x if high is None else ew.Min()(x, high)


@onnx_op
def Cast(x: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Value:
    return _cast(x, element_type(to, x.dtype), saturate, round_mode)


@onnx_op
def CastLike(x: Value, like: Value, *, saturate: int = 1, round_mode: str = "up") -> Value:
    return _cast(x, like.dtype, saturate, round_mode)


def _cast(x: Value, dtype: str, saturate: int, round_mode: str) -> Value:
    if round_mode not in ("up", "down", "nearest"):
        raise InvalidModel(f"round_mode {round_mode!r} is none of up, down, nearest")
    if x.dtype == dtype:
        return x
    # Attributes that make no difference here keep their defaults, so that equal casts merge.
    mode = round_mode if dtype == "float8_e8m0fnu" else "up"
    return ew.Cast(dtype, bool(saturate) or not dtype.startswith("float8"), mode)(x)


@onnx_op
def BitCast(x: Value, *, to: int) -> Value:
    dtype = element_type(to, x.dtype)
    if "string" in (dtype, x.dtype) or bit_width(dtype) != bit_width(x.dtype):
        raise TypeMismatch(f"the bits of {x.dtype} do not make a {dtype}: the widths differ")
    return Bits(dtype)(x)


# Activations: compositions, which targets fuse into one expression.


def _activation(compute: Any) -> Any:
    """A reader whose narrow floats are computed in float32 and rounded once."""

    @functools.wraps(compute)
    def read(x: Value, *inputs: Value, **attributes: Any) -> Value:
        return ew.rounded_once(functools.partial(compute, **attributes), x, *inputs)

    return read


@onnx_op
@_activation
def LeakyRelu(x: Value, *, alpha: float = 0.01) -> Value:
    return ew.Where()(ew.Less()(x, 0), x * alpha, x)


@onnx_op
@_activation
def PRelu(x: Value, slope: Value) -> Value:
    return ew.Where()(ew.Less()(x, 0), x * slope, x)


@onnx_op
@_activation
def ThresholdedRelu(x: Value, *, alpha: float = 1.0) -> Value:
    return ew.Where()(ew.Less()(ew.const_like(alpha, x), x), x, ew.const_like(0, x))


@onnx_op
@_activation
def Elu(x: Value, *, alpha: float = 1.0) -> Value:
    return ew.Where()(ew.Less()(x, 0), tr.Expm1()(x) * alpha, x)


@onnx_op
@_activation
def Celu(x: Value, *, alpha: float = 1.0) -> Value:
    return ew.Where()(ew.Less()(x, 0), tr.Expm1()(x / alpha) * alpha, x)


@onnx_op
@_activation
def Selu(
    x: Value, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Value:
    return ew.Where()(ew.Less()(x, 0), tr.Expm1()(x) * (alpha * gamma), x * gamma)


@onnx_op
@_activation
def HardSigmoid(x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    return ew.Clip()(x * alpha + beta, ew.const_like(0, x), ew.const_like(1, x))


@onnx_op
@_activation
def HardSwish(x: Value) -> Value:
    return x * ew.Clip()(x * (1 / 6) + 0.5, ew.const_like(0, x), ew.const_like(1, x))


@onnx_op
@_activation
def Mish(x: Value) -> Value:
    return x * ew.Tanh()(tr.Softplus()(x))


@onnx_op
@_activation
def Softsign(x: Value) -> Value:
    return x / (1 + ew.Abs()(x))


@onnx_op
@_activation
def Shrink(x: Value, *, bias: float = 0.0, lambd: float = 0.5) -> Value:
    if x.dtype in INTEGERS:
        wide = Shrink(ew.Cast("float64")(x), bias=bias, lambd=lambd)
        return ew.Cast(x.dtype)(wide)
    below, above = ew.Less()(x, -lambd), ew.Less()(ew.const_like(lambd, x), x)
    return ew.Where()(below, x + bias, ew.Where()(above, x - bias, ew.const_like(0, x)))


@onnx_op
@_activation
def SwiGLU(gate: Value, x: Value, *, alpha: float = 1.0) -> Value:
    return ew.Silu(alpha)(gate) * x


@onnx_op
def Gelu(x: Value, *, approximate: str = "none") -> Value:
    return ew.Gelu(approximate == "tanh")(x)
