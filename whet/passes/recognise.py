"""Operators with a name of their own, found in the simpler ones that exporters write them as.

One rule is one meaning; the matcher tries operands and factors in every order. The exporters whose
forms are known to be read: torch.onnx (both), tf2onnx, keras2onnx, onnxscript, Paddle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.ir.graph import Constant, Graph, Pattern, Value, constant
from whet.ir.match import TOLERANCE, ReadNumber, no_number
from whet.ir.rewrite import Rules, called, number, once, rewrite, rule, static
from whet.ir.sizes import product
from whet.ops.cast import Cast
from whet.ops.elementwise import (
    Clip,
    Erf,
    Exp,
    Gelu,
    Log,
    Max,
    Neg,
    Pow,
    Relu,
    Sigmoid,
    Silu,
    Sqrt,
    Tanh,
)
from whet.ops.movement import Reshape, reshape
from whet.ops.reduce import LayerNorm, LogSoftmax, Reduce, RMSNorm, Softmax
from whet.ops.transcendental import Log1p, Softplus
from whet.passes.movement import gather_of_one
from whet.passes.recognise_attention import ATTENTION
from whet.passes.simplify import small_power


@dataclass
class Numbers:
    """Weights of one element that rules may look at, and the names of those they used up.

    Exporters keep the 0.5 of a GELU as an initializer like any other; what a rule has read is part
    of the graph from then on and cannot be exchanged.
    """

    read: ReadNumber = no_number
    frozen: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    """All that rules looked at: with other elements they might have made another graph."""

    def look(self, name: str) -> Any:
        """What a rule may read, and is noted."""
        found = self.read(name)
        if found is not None:
            self.seen.add(name)
        return found


_numbers: ContextVar[Numbers | None] = ContextVar("numbers", default=None)


def known_numbers() -> Numbers:
    """What passes may look at now: nothing, outside looking_at()."""
    return _numbers.get() or Numbers()


@contextmanager
def looking_at(numbers: Numbers | None) -> Iterator[None]:
    """Within it, recognise() may look at these numbers."""
    token = _numbers.set(numbers)
    try:
        yield
    finally:
        _numbers.reset(token)


def read_numbers(graph: Graph) -> Graph:
    """Indices and exponents that the model keeps as weights become attributes."""
    numbers = known_numbers()
    return rewrite(graph, [small_power, gather_of_one], numbers.look, numbers.frozen.update)


def recognise(graph: Graph) -> Graph:
    """GELU, SiLU, softmax, normalisation and attention become one operator each."""
    numbers = known_numbers()
    return rewrite(graph, [*RULES, *ATTENTION], numbers.look, numbers.frozen.update)


@rule(lambda x: x * 0.5 * (1 + Erf()(x * math.sqrt(0.5))))
def gelu(x: Value) -> Value:
    return Gelu()(x)


@rule(
    lambda x: x * 0.5 * (1 + Tanh()((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi))),
    lambda x: x * 0.5 * (1 + Tanh()(x * (1 + x * x * 0.044715) * math.sqrt(2 / math.pi))),
)
def gelu_by_tanh(x: Value) -> Value:
    return Gelu(approximate=True)(x)


@rule(lambda x: 1 / (1 + Exp()(Neg()(x))), lambda x: (1 + Tanh()(x * 0.5)) * 0.5)
def sigmoid(x: Value) -> Value:
    return Sigmoid()(x)


@rule(lambda x: x * Sigmoid()(x), lambda x: x / (1 + Exp()(Neg()(x))))
def silu(x: Value) -> Value:
    return Silu()(x)


@rule(lambda x, a: x * Sigmoid()(x * number(a)))
def silu_with_alpha(x: Value, a: float) -> Value:
    return Silu(float(a))(x)


@rule(lambda x: Log()(1 + Exp()(x)), lambda x: Log1p()(Exp()(x)))
def softplus(x: Value) -> Value:
    """Written out it overflows for large x, where the operator gives x."""
    return Softplus()(x)


@rule(lambda x: Max()(x, 0), lambda x: Clip()(x, 0, math.inf))
def relu(x: Value) -> Value | None:
    return Relu()(x) if x.dtype != "bool" else None


@rule(
    lambda x, e, axes: called(e, Exp()(x - Reduce("max", axes)(x))) / Reduce("sum", axes)(e),
    lambda x, e, axes: called(e, Exp()(x)) / Reduce("sum", axes)(e),
)
def softmax(x: Value, axes: tuple[int, ...]) -> Value | None:
    """Also where it is written without subtracting the maximum, and would overflow."""
    return Softmax(axes[0])(x) if len(axes) == 1 else None


@rule(
    lambda x, axis: Log()(Softmax(axis)(x)),
    lambda x, d, axes: called(d, x - Reduce("max", axes)(x)) - Log()(Reduce("sum", axes)(Exp()(d))),
)
def log_softmax(x: Value, root: Value) -> Value | None:
    inner = root.inputs[-1]
    assert inner is not None
    if isinstance(inner.op, Softmax):
        return LogSoftmax(inner.op.axis)(x)
    summed = inner.inputs[0]
    assert summed is not None
    assert isinstance(summed.op, Reduce)
    return LogSoftmax(summed.op.axes[0])(x) if len(summed.op.axes) == 1 else None


def mean(x: Pattern, axes: Pattern, c: Pattern) -> Pattern:
    return Reduce("sum", axes)(x) * number(c)  # type: ignore[arg-type]


def _is_mean(x: Value, axes: tuple[int, ...], c: float) -> bool:
    count = product(x.shape[a] for a in axes)
    return isinstance(count, int) and abs(c * count - 1) <= TOLERANCE.get(x.dtype, 1e-6)


def _are_last(axes: tuple[int, ...], rank: int) -> bool:
    return sorted(axes) == list(range(rank - len(axes), rank))


def _ones(x: Value, axes: tuple[int, ...]) -> Value | None:
    shape = x.shape[-len(axes) :]
    return constant(np.ones(shape), x.dtype) if all(isinstance(s, int) for s in shape) else None


def _moments_fit(x: Value, axes: tuple[int, ...], *counts: float) -> str | None:
    if not all(_is_mean(x, axes, c) for c in counts):
        return "it divides by another number than that of the elements"
    return None if _are_last(axes, x.rank) else "it normalises other axes than the last ones"


@rule(
    lambda x, d, axes, c, n, e: (
        called(d, x - mean(x, axes, c)) / Sqrt()(mean(d * d, axes, n) + number(e))
    ),
    lambda x, d, axes, c, n, e: (
        called(d, x - mean(x, axes, c)) / Pow()(mean(d * d, axes, n) + number(e), 0.5)
    ),
    lambda x, d, axes, c, n, e: (
        called(d, x - mean(x, axes, c)) * Pow()(mean(d * d, axes, n) + number(e), -0.5)
    ),
)
def layer_norm(x: Value, axes: tuple[int, ...], c: float, n: float, e: float) -> Value | str | None:
    """Without scale and bias; those that follow are taken in by rules of their own."""
    ones = _ones(x, axes)
    return _moments_fit(x, axes, c, n) or (ones and LayerNorm(len(axes), float(e))(x, ones))


@rule(
    lambda x, g, b, m, axes, c, n, e: (
        x * g / Sqrt()(mean((x - m) * (x - m), axes, n) + number(e))
        + (
            b
            - called(m, mean(x, axes, c)) * g / Sqrt()(mean((x - m) * (x - m), axes, n) + number(e))
        )
    )
)
def layer_norm_folded(
    x: Value, g: Value, b: Value, axes: tuple[int, ...], c: float, n: float, e: float
) -> Value | str | None:
    """As TensorFlow writes it: x times the factor, plus bias less mean times the factor."""
    scale, bias = (_over_axes(p, x, len(axes)) for p in (g, b))
    if scale is None or bias is None:
        return "scale or bias vary along other axes than the normalised ones"
    return _moments_fit(x, axes, c, n) or LayerNorm(len(axes), float(e))(x, scale, bias)


@rule(
    lambda x, axes, c, e: x / Sqrt()(mean(x * x, axes, c) + number(e)),
    lambda x, axes, c, e: x / Pow()(mean(x * x, axes, c) + number(e), 0.5),
    lambda x, axes, c, e: x * Pow()(mean(x * x, axes, c) + number(e), -0.5),
)
def rms_norm(x: Value, axes: tuple[int, ...], c: float, e: float) -> Value | str | None:
    ones = _ones(x, axes)
    return _moments_fit(x, axes, c) or (ones and RMSNorm(len(axes), float(e))(x, ones))


def _over_axes(p: Value, x: Value, axes: int) -> Value | None:
    """p reshaped to exactly the last axes of x, which it varies along, else None."""
    lead = p.rank - axes
    if p.rank < axes or p.rank > x.rank or any(size != 1 for size in p.shape[:lead]):
        return None
    return reshape(p, *p.shape[lead:]) if p.shape[lead:] == x.shape[-axes:] else None


@rule(lambda x, o, g, k, e: once(LayerNorm(k, e)(x, o)) * static(g))
def layer_norm_scale(x: Value, o: Value, g: Value, k: int, e: float) -> Value | None:
    scale = _over_axes(g, x, k)
    return LayerNorm(k, e)(x, _times(o, scale)) if scale is not None else None


@rule(lambda x, s, b, k, e: once(LayerNorm(k, e)(x, s)) + static(b))
def layer_norm_bias(x: Value, s: Value, b: Value, k: int, e: float) -> Value | None:
    bias = _over_axes(b, x, k)
    return LayerNorm(k, e)(x, s, bias) if bias is not None else None


@rule(lambda x, o, g, k, e: once(RMSNorm(k, e)(x, o)) * static(g))
def rms_norm_scale(x: Value, o: Value, g: Value, k: int, e: float) -> Value | None:
    scale = _over_axes(g, x, k)
    return RMSNorm(k, e)(x, _times(o, scale)) if scale is not None else None


def _times(ones: Value, scale: Value) -> Value:
    all_ones = isinstance(ones.op, Constant) and (ones.op.data == 1).all()
    return scale if all_ones else ones * scale


@rule(
    lambda x, a, s, axis: Softmax(axis)(once(Cast(a, s)(x))),
    lambda x, a, s, shape, axis: Softmax(axis)(once(Reshape(shape)(once(Cast(a, s)(x))))),
)
def softmax_of_narrowed(x: Value, a: str, root: Value) -> Value | str:
    """A mean or a sum keeps its float32 up to the exponential, which makes much of what rounding
    does to a large number: float16 has 27 to within 0.008, which is 0.8 % of its exponential."""
    if x.dtype != "float32" or a not in ("float16", "bfloat16"):
        return "nothing is lost"
    return Cast(a)(root.op(reshape(x, *root.shape)))


RULES: Rules = [
    gelu,
    gelu_by_tanh,
    sigmoid,
    silu,
    silu_with_alpha,
    softplus,
    relu,
    softmax,
    softmax_of_narrowed,
    log_softmax,
    layer_norm,
    layer_norm_folded,
    rms_norm,
    layer_norm_scale,
    layer_norm_bias,
    rms_norm_scale,
]
