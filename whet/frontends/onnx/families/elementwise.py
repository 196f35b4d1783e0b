"""ONNX operators that work element by element."""

from __future__ import annotations

from whet.frontends.onnx.registry import onnx_op
from whet.ops import elementwise as ew


# fmt: off
@onnx_op
def Add(a, b): return ew.Add()(a, b)
@onnx_op
def Sub(a, b): return ew.Sub()(a, b)
@onnx_op
def Mul(a, b): return ew.Mul()(a, b)
@onnx_op
def Div(a, b): return ew.Div()(a, b)
@onnx_op
def Relu(x): return ew.Relu()(x)
@onnx_op
def Sigmoid(x): return ew.Sigmoid()(x)
@onnx_op
def Sqrt(x): return ew.Sqrt()(x)
@onnx_op
def Erf(x): return ew.Erf()(x)
@onnx_op
def Identity(x): return x
# fmt: on
