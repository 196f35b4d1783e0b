"""The forms that exporters write, each with the one operator it is, and near misses."""

import math

import numpy as np
import pytest

from tests.passes.graphs import count, given, graph, transformed, weight
from whet.ir.graph import Value, constant
from whet.ops.elementwise import (
    Cast,
    Clip,
    Div,
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
from whet.ops.movement import reshape
from whet.ops.reduce import LayerNorm, LogSoftmax, Reduce, RMSNorm, Softmax, reduce_mean
from whet.ops.transcendental import Log1p, Softplus
from whet.passes.recognise import Numbers, looking_at, read_numbers, recognise
from whet.passes.simplify import simplify

X = given("x", 2, 3, 8)
H = given("h", 2, 3, 8, dtype="float16")
L = given("l", 2, 2048)
ROOT2 = 1.4142135623730951
E3, E5, E6 = (float(np.float32(e)) for e in (1e-3, 1e-5, 1e-6))


def tanh_gelu(cube: Value) -> Value:
    return 0.5 * X * (1.0 + Tanh()(math.sqrt(2 / math.pi) * (X + 0.044715 * cube)))


def softmax(x: Value, axis: int) -> Value:
    e = Exp()(x - Reduce("max", (axis,))(x))
    return e / Reduce("sum", (axis,))(e)


SAME = {
    "torch gelu": (X * 0.5 * (Erf()(X / ROOT2) + 1.0), Gelu()(X)),
    "keras gelu": (0.5 * X * (1.0 + Erf()(X * (1 / ROOT2))), Gelu()(X)),
    "gelu, the half last": ((X * (1.0 + Erf()(X / 1.4142135))) * 0.5, Gelu()(X)),
    "gelu in float16": (H * ((Erf()(H * 0.70703125) + 1.0) * 0.5), Gelu()(H)),
    "gelu of a gate": (
        X * weight("g", 8) * 0.5 * (1.0 + Erf()(X * weight("g", 8) / ROOT2)),
        Gelu()(X * weight("g", 8)),
    ),
    "tanh gelu with a power": (tanh_gelu(Pow()(X, 3.0)), Gelu(True)(X)),
    "tanh gelu with products": (tanh_gelu(X * X * X), Gelu(True)(X)),
    "tanh gelu, factored": (
        0.5 * X * (1.0 + Tanh()(0.7978845608 * X * (1.0 + 0.044715 * X * X))),
        Gelu(True)(X),
    ),
    "sigmoid": (1.0 / (1.0 + Exp()(Neg()(X))), Sigmoid()(X)),
    "sigmoid by tanh": (0.5 * (Tanh()(X * 0.5) + 1.0), Sigmoid()(X)),
    "silu": (Sigmoid()(X) * X, Silu()(X)),
    "silu written out": (X / (1.0 + Exp()(Neg()(X))), Silu()(X)),
    "quick gelu": (X * Sigmoid()(X * 1.5), Silu(1.5)(X)),
    "softplus": (Log()(Exp()(X) + 1.0), Softplus()(X)),
    "softplus by log1p": (Log1p()(Exp()(X)), Softplus()(X)),
    "mish": (X * Tanh()(Log()(1.0 + Exp()(X))), X * Tanh()(Softplus()(X))),
    "relu by max": (Max()(0.0, X), Relu()(X)),
    "relu by clip": (Clip()(X, 0.0, math.inf), Relu()(X)),
    "softmax": (softmax(X, 1), Softmax(1)(X)),
    "softmax without the maximum": (
        Exp()(X) / Reduce("sum", (2,))(Exp()(X)),
        Softmax(2)(X),
    ),
    "log of softmax": (Log()(Softmax(2)(X)), LogSoftmax(2)(X)),
    "log softmax": (
        (X - Reduce("max", (2,))(X))
        - Log()(Reduce("sum", (2,))(Exp()(X - Reduce("max", (2,))(X)))),
        LogSoftmax(2)(X),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_is(name):
    before, after = SAME[name]
    assert transformed(recognise, *simplify(graph(before)).outputs) == (after,)


ANOTHER = {
    "half of another number": X * 0.4 * (1.0 + Erf()(X / ROOT2)),
    "erf of another scale": X * 0.5 * (1.0 + Erf()(X / 1.4)),
    "a gate on another value": X * Sigmoid()(given("y", 2, 3, 8)),
    "a clip with an end": Clip()(X, 0.0, 6.0),
    "exp over another sum": Exp()(X) / Reduce("sum", (2,))(Exp()(X * 2.0)),
    "a softmax over two axes": Exp()(X) / Reduce("sum", (1, 2))(Exp()(X)),
    "two plus exp": Log()(Exp()(X) + 2.0),
    "truth values over false": Max()(given("b", 2, dtype="bool"), constant(False)),
}


@pytest.mark.parametrize("name", ANOTHER)
def test_is_something_else(name):
    before = graph(ANOTHER[name])
    assert recognise(before) is before


def moments(x: Value, axes: tuple[int, ...], epsilon: float = 1e-5) -> tuple[Value, Value]:
    d = x - reduce_mean(x, axes)
    return d, reduce_mean(Pow()(d, 2.0), axes) + epsilon


def layer_norm(x: Value, axes: tuple[int, ...] = (2,)) -> Value:
    d, variance = moments(x, axes)
    return d / Sqrt()(variance)


G, B, ONES = weight("g", 8), weight("b", 8), constant(np.ones(8), "float32")
NORMS = {
    "torch layer norm": (layer_norm(X) * G + B, LayerNorm(1, E5)(X, G, B)),
    "layer norm by a reciprocal": (
        B + G * (moments(X, (2,))[0] * (1.0 / Sqrt()(moments(X, (2,))[1]))),
        LayerNorm(1, E5)(X, G, B),
    ),
    "layer norm by a power": (
        moments(X, (2,))[0] * Pow()(moments(X, (2,))[1], -0.5) * G,
        LayerNorm(1, E5)(X, G),
    ),
    "layer norm without scale": (layer_norm(X), LayerNorm(1, E5)(X, ONES)),
    "layer norm over two axes": (
        layer_norm(X, (1, 2)) * weight("g2", 3, 8),
        LayerNorm(2, E5)(X, weight("g2", 3, 8)),
    ),
    "layer norm with a bias alone": (layer_norm(X) + B, LayerNorm(1, E5)(X, ONES, B)),
    "llama's norm": (
        weight("g", 8) * (X * (1.0 / Sqrt()(reduce_mean(Pow()(X, 2.0), (2,)) + 1e-6))),
        RMSNorm(1, E6)(X, G),
    ),
    "norm by the root of the mean square": (
        X / Sqrt()(reduce_mean(X * X, (2,)) + 1e-6),
        RMSNorm(1, E6)(X, ONES),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_is_a_norm(name):
    before, after = NORMS[name]
    assert transformed(recognise, *simplify(graph(before)).outputs) == (after,)


def test_tensorflow_layer_norm():
    """x times the factor, plus bias less mean times the factor."""
    mean = reduce_mean(X, (2,))
    factor = (1.0 / Sqrt()(reduce_mean((X - mean) * (X - mean), (2,)) + 1e-3)) * G
    before = simplify(graph(X * factor + (B - mean * factor)))
    assert transformed(recognise, *before.outputs) == (LayerNorm(1, E3)(X, G, B),)


NO_NORMS = {
    "a sum in place of a mean": moments(X, (2,))[0]
    / Sqrt()(Reduce("sum", (2,))(moments(X, (2,))[0] * moments(X, (2,))[0]) + 1e-5),
    "over axes in the middle": layer_norm(X, (1,)),
    "by a variance over one element less": moments(L, (1,))[0]
    / Sqrt()(Reduce("sum", (1,))(moments(L, (1,))[0] * moments(L, (1,))[0]) / 2047.0 + 1e-5),
    "of another value": moments(X, (2,))[0] / Sqrt()(moments(X * 2.0 + 1.0, (2,))[1]),
    "an epsilon that is a tensor": moments(X, (2,))[0]
    / Sqrt()(reduce_mean(moments(X, (2,))[0] * moments(X, (2,))[0], (2,)) + given("e", 2, 3, 1)),
}


@pytest.mark.parametrize("name", NO_NORMS)
def test_is_no_norm(name):
    before = simplify(graph(NO_NORMS[name]))
    assert count(recognise(before), LayerNorm, RMSNorm) == 0


def test_a_scale_that_is_no_weight_stays_behind_the_norm():
    (after,) = transformed(recognise, *simplify(graph(layer_norm(X) * given("s", 8))).outputs)
    assert count(graph(after), LayerNorm) == 1
    assert after.inputs[1] is given("s", 8)


def test_casts_around_the_statistics():
    wide = Cast("float32")(H)
    before = Cast("float16")(layer_norm(wide) * G + B)
    assert count(recognise(simplify(graph(before))), LayerNorm) == 1


def test_a_softmax_of_what_was_just_narrowed():
    wide = reduce_mean(Cast("float32")(H), (1,))
    narrow = Cast("float16")(wide)
    for shape in ((2, 1, 8), (2, 8)):
        softmax = Softmax(len(shape) - 1)
        before = graph(softmax(reshape(narrow, *shape)))
        (after,) = transformed(recognise, *simplify(before).outputs)
        assert after == Cast("float16")(softmax(reshape(wide, *shape)))
    read_twice = simplify(graph(Softmax(-1)(narrow), narrow))
    assert recognise(read_twice) is read_twice
    already_wide = simplify(graph(Softmax(-1)(Cast("float16")(given("i", 8, dtype="int32")))))
    assert recognise(already_wide) is already_wide


def test_numbers_that_are_weights():
    """An exporter that keeps every scalar as an initializer."""
    numbers = {"half": 0.5, "one": 1.0, "root": ROOT2, "three": 3.0, "gain": 2.0}
    half, one, root, gain = (weight(n) for n in ("half", "one", "root", "gain"))
    before = graph(half * X * (one + Erf()(Div()(X, root))) * gain)
    assert recognise(before) is before
    known = Numbers(lambda name: np.array(numbers[name], np.float32))
    with looking_at(known):
        after = recognise(before)
    assert after.outputs == (Gelu()(X) * gain,)
    assert known.frozen == {"half", "one", "root"}, "what is a weight still can be exchanged"


def test_exponents_and_indices_that_are_weights():
    from whet.ops.movement import Gather

    known = Numbers({"two": np.array(2.0), "i": np.array(1)}.get)
    before = graph(Pow()(X, weight("two")), Gather(1)(X, weight("i", dtype="int64")))
    with looking_at(known):
        after = read_numbers(before)
    assert count(after, Pow, Gather) == 0
    assert known.frozen == {"two", "i"}
