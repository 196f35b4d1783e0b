"""Each identity with what it becomes, and the cases that look like one and are none."""

import numpy as np
import pytest

from tests.passes.graphs import given, graph, transformed, weight
from whet.ir.graph import Value, constant
from whet.ir.match import Matcher
from whet.ir.sizes import symbol
from whet.ops.elementwise import (
    And,
    Cast,
    Clip,
    Div,
    Equal,
    Exp,
    Max,
    Min,
    Neg,
    Not,
    Or,
    Pow,
    Relu,
    Where,
)
from whet.ops.movement import (
    Broadcast,
    Concat,
    Gather,
    Pad,
    Reshape,
    Reverse,
    Sizes,
    Slice,
    Transpose,
    broadcast_to,
    reshape,
    slice_axis,
    transpose,
)
from whet.ops.reduce import LayerNorm, Reduce, Softmax
from whet.passes.fold import fold_constants
from whet.passes.movement import MOVEMENT
from whet.passes.simplify import simplify

N = symbol("n", 1)
X = given("x", 2, 3)
J = given("i", 2, 3, dtype="int32")
B = given("b", 2, 3, dtype="bool")
S = given("s", N, 6)
T = given("t", 2, 3, 4, 5)
HALF = given("h", 2, 3, dtype="float16")
INF = float("inf")


def full(value: float, like: Value, *shape: int) -> Value:
    return constant(np.full(shape, value), like.dtype)


BECOMES = {
    "add zero": (X + 0.0, X),
    "add zero on the left": (0.0 + X, X),
    "subtract zero": (X - 0.0, X),
    "multiply by one": (1.0 * X, X),
    "divide by one": (X / 1.0, X),
    "integers plus zero": (J + 0, J),
    "times minus one": (X * -1.0, Neg()(X)),
    "negative of negative": (Neg()(Neg()(X)), X),
    "not not": (Not()(Not()(B)), B),
    "plus negative": (X + Neg()(Exp()(X)), X - Exp()(X)),
    "minus negative": (X - Neg()(Exp()(X)), X + Exp()(X)),
    "square": (Pow()(X, 2.0), X * X),
    "cube": (Pow()(X, 3.0), X * X * X),
    "first power": (Pow()(X, 1.0), X),
    "divide by eight": (X / 8.0, X * 0.125),
    "relu of relu": (Relu()(Relu()(X)), Relu()(X)),
    "max of max": (Max()(Max()(X, 1.0), 2.0), Max()(X, 2.0)),
    "min of min": (Min()(Min()(X, 1.0), 2.0), Min()(X, 1.0)),
    "clip of relu": (Clip()(Relu()(X), -1.0, 6.0), Clip()(X, 0.0, 6.0)),
    "clip to everything": (Clip()(X, -INF, INF), X),
    "cast to same": (Cast("float32")(X), X),
    "cast there and back": (Cast("float32")(Cast("float64")(X)), X),
    "wider and narrower": (Cast("int8")(Cast("int64")(J)), Cast("int8")(J)),
    "where both sides are one": (Where()(B, X, X), X),
    "where always": (Where()(constant(True), X, Exp()(X)), X),
    "where never": (Where()(constant(np.zeros((2, 1), bool)), X, Exp()(X)), Exp()(X)),
    "where not": (Where()(Not()(B), X, Exp()(X)), Where()(B, Exp()(X), X)),
    "equal to what holds": (
        Equal()(
            Where()(B, constant(1.0, "float32"), constant(0.0, "float32")), constant(1.0, "float32")
        ),
        B,
    ),
    "equal to what does not hold": (
        Equal()(
            Where()(B, constant(1.0, "float32"), constant(0.0, "float32")), constant(0.0, "float32")
        ),
        Not()(B),
    ),
    "and true": (And()(B, constant(True)), B),
    "or false": (Or()(constant(False), B), B),
    "softmax axis from the back": (Softmax(-1)(X), Softmax(1)(X)),
    "reduce of reduce": (
        Reduce("max", (0,))(Reduce("max", (1,))(T)),
        Reduce("max", (0, 1))(T),
    ),
    "reduce an axis of size 1": (Reduce("sum", (0,))(reshape(X, 1, 6)), reshape(X, 1, 6)),
    "scale of scale": (X * 0.5 * 3.0, X * 1.5),
    "reshape to same": (Reshape((2, 3))(X), X),
    "reshape of reshape": (reshape(reshape(T, 6, 20), 120), reshape(T, 120)),
    "reshape with names": (reshape(reshape(S, N * 2, 3), N, 6), S),
    "transposes that cancel": (transpose(transpose(X, 1, 0), 1, 0), X),
    "transposes that join": (
        transpose(transpose(T, 1, 0, 2, 3), 0, 2, 1, 3),
        transpose(T, 1, 2, 0, 3),
    ),
    "broadcast to same": (Broadcast((2, 3))(X), X),
    "broadcast of broadcast": (
        broadcast_to(broadcast_to(given("r", 1, 3), 2, 3), 4, 2, 3),
        broadcast_to(given("r", 1, 3), 4, 2, 3),
    ),
    "broadcast of fewer elements": (
        Exp()(broadcast_to(given("r", 1, 3), 2, 3)) * 2.0,
        broadcast_to(Exp()(given("r", 1, 3)) * 2.0, 2, 3),
    ),
    "broadcasts of both": (
        broadcast_to(given("r", 1, 3), 2, 3) + broadcast_to(given("c", 2, 1), 2, 3),
        given("r", 1, 3) + given("c", 2, 1),
    ),
    "broadcast that is implied": (X + broadcast_to(given("r", 1, 3), 2, 3), X + given("r", 1, 3)),
    "slice of everything": (Slice((0, 0), (2, 3), (1, 1))(X), X),
    "slice of slice": (
        slice_axis(slice_axis(T, 3, 1, 4), 3, 1, 2, 2),
        slice_axis(T, 3, 2, 2, 2),
    ),
    "slice of a joined part": (
        slice_axis(Concat(1)(X, Exp()(X)), 1, 4, 2),
        slice_axis(Exp()(X), 1, 1, 2),
    ),
    "slice of a split axis": (
        slice_axis(reshape(given("q", 4, 12), 4, 3, 4), 1, 1, 1),
        reshape(slice_axis(given("q", 4, 12), 1, 4, 4), 4, 1, 4),
    ),
    "slice of merged axes": (
        slice_axis(reshape(T, 2, 3, 20), 2, 5, 10),
        reshape(slice_axis(T, 2, 1, 2), 2, 3, 10),
    ),
    "concat of one": (Concat(0)(X), X),
    "concat with nothing": (Concat(0)(X, given("e", 0, 3)), X),
    "split and joined": (Concat(1)(slice_axis(X, 1, 0, 1), slice_axis(X, 1, 1, 2)), X),
    "pad by nothing": (Pad((0, 0), (0, 0))(X, 1.0), X),
    "pad of pad": (
        Pad((1, 0), (0, 2))(Pad((0, 1), (1, 0))(X, 0.0), 0.0),
        Pad((1, 1), (1, 2))(X, 0.0),
    ),
    "reverse twice": (Reverse((0,))(Reverse((0, 1))(X)), Reverse((1,))(X)),
    "gather one": (Gather(1)(X, constant(-1)), reshape(slice_axis(X, 1, 2, 1), 2)),
    "gather in a row": (Gather(2)(T, constant([3, 1])), slice_axis(T, 2, 3, 2, -2)),
    "rows merged around a softmax": (
        reshape(Softmax(1)(reshape(T, 24, 5)), 2, 3, 4, 5),
        Softmax(3)(T),
    ),
    "rows merged and split again": (
        reshape(Exp()(reshape(T, 6, 4, 5)) * weight("w", 5), 2, 3, 4, 5),
        Exp()(T) * weight("w", 5),
    ),
}


@pytest.mark.parametrize("name", BECOMES)
def test_becomes(name):
    before, after = BECOMES[name]
    assert transformed(simplify, before) == (after,), f"{graph(before)}\nnot\n{graph(after)}"


STAYS = {
    "times zero is NaN for infinity": X * 0.0,
    "zero minus x loses the sign of zero": 0.0 - X,
    "adding a row stretches it": given("r", 1, 3) + full(0, X, 2, 3),
    "one more axis": X * full(1, X, 1, 1, 1),
    "almost one": X * 1.0000001,
    "division by three": X / 3.0,
    "a power that is a root": Pow()(X, 0.5),
    "integer division by two": Div()(J, 2),
    "unsigned times minus one": given("u", 2, dtype="uint8") * constant(255, "uint8"),
    "narrower and wider": Cast("float32")(Cast("float16")(X)),
    "integers through floats clamp, not wrap": Cast("int8")(Cast("float64")(J)),
    "int64 does not fit float32": Cast("int64")(Cast("float32")(given("l", 3, dtype="int64"))),
    "clip of relu below zero": Clip()(Relu()(X), -3.0, -1.0),
    "scales that round": X * 0.3 * 0.7,
    "scales whose product is infinite": HALF * 3000.0 * 64.0,
    "scales whose product is nothing": HALF * 2.0**-14 * 2.0**-14,
    "integers whose product has no room": given("j", 3, dtype="int8") * 64 * 4,
    "a row of ones, where there may be one row": given("s", N, 6) * full(1, X, 4, 1),
    "equal to both sides": Equal()(
        Where()(B, constant(1.0, "float32"), constant(1.0, "float32") + Exp()(X)),
        constant(1.0, "float32"),
    ),
    "max of min": Max()(Min()(X, 1.0), 2.0),
    "or true has a shape": Or()(B, constant(np.array([True, False, True]))),
    "transpose that moves": transpose(X, 1, 0),
    "broadcast that is needed": broadcast_to(given("r", 1, 3), 2, 3),
    "slice over the seam": slice_axis(Concat(1)(X, Exp()(X)), 1, 2, 2),
    "slice across split rows": slice_axis(reshape(given("q", 4, 12), 4, 3, 4), 2, 1, 2),
    "slice within merged rows": slice_axis(reshape(T, 2, 3, 20), 2, 3, 4),
    "joined in another order": Concat(1)(slice_axis(X, 1, 1, 2), slice_axis(X, 1, 0, 1)),
    "pads with other numbers": Pad((1, 0), (0, 0))(Pad((1, 0), (0, 0))(X, 0.0), 1.0),
    "pads by reflection": Pad((1, 0), (0, 0), "reflect")(
        Pad((0, 1), (0, 0), "reflect")(X, 0.0), 0.0
    ),
    "gather without a step": Gather(2)(T, constant([0, 1, 3])),
    "gather outside": Gather(1)(X, constant(7)),
    "reductions of two kinds": Reduce("max", (0,))(Reduce("sum", (1,))(X)),
    "rows merged, with a scale for each": reshape(
        LayerNorm(1)(reshape(T, 24, 5), given("g", 24, 5)), 2, 3, 4, 5
    ),
    "rows merged with another tensor": reshape(reshape(X, 6) + given("v", 6), 2, 3),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    before = graph(STAYS[name])
    assert simplify(before).outputs == before.outputs, str(simplify(before))


def test_a_size_that_may_be_one_keeps_its_broadcast():
    row = given("row", symbol("m"), 3)
    wide = graph(Exp()(broadcast_to(row, N, 3)) + given("y", N, 3))
    assert simplify(wide) is wide


FOLDS = {
    "arithmetic": (constant(2.0, "float32") * constant(3.0, "float32"), constant(6.0, "float32")),
    "indices": (Gather(0)(constant([5, 6, 7]), constant([2, 0])), constant([7, 5])),
    "sizes": (slice_axis(Sizes((2, 7))(), 0, 1, 1), constant([7])),
    "sizes with names": (Concat(0)(Sizes((N,))() * 2, constant([4])), Sizes((N * 2, 4))()),
    "one size": (Gather(0)(Sizes((N, 3))(), 0) * 3, reshape(Sizes((N * 3,))())),
    "through an int32": (
        Cast("int32")(Sizes((N, 3))()) + 1,
        Cast("int32")(Sizes((N + 1, 4))()),
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name):
    before, after = FOLDS[name]
    assert fold_constants(graph(before)).outputs == (after,)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e5m2"])
def test_a_size_as_a_float_is_no_constant(dtype):
    scale = Cast("float32")(Cast(dtype)(reshape(Sizes((N,))())))
    kept = graph(S / scale)
    (after,) = transformed(fold_constants, *kept.outputs)
    assert not isinstance(after.inputs[1], np.ndarray)


@pytest.mark.parametrize(
    "value",
    [
        weight("w", 3) + 1.0,
        X + constant(1.0, "float32"),
        broadcast_to(constant(0.0, "float32"), 1000, 1000),
    ],
    ids=["weights are never looked at", "inputs", "large results"],
)
def test_folds_nothing(value):
    before = graph(value)
    assert fold_constants(before) is before


def test_every_movement_rule_has_a_case():
    """A rule that nothing above reaches is not tested."""
    fired = set()
    for before, _ in BECOMES.values():
        for value in graph(before).values:
            for r in MOVEMENT:
                if isinstance(value.op, r.roots) and r.apply(value, Matcher({})) is not None:
                    fired.add(r.name)
    assert fired == {r.name for r in MOVEMENT}


def test_transposes_of_ones_are_reshapes_in_the_end():
    from whet.passes.layout import settle_layout

    one = given("one", 2, 1, 3)
    assert transformed(settle_layout, Transpose((1, 0, 2))(one)) == (reshape(one, 1, 2, 3),)
