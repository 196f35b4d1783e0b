"""What the checker of passes catches, and what it lets pass."""

from dataclasses import replace

import numpy as np
import pytest

from tests.passes.graphs import given, graph, weight
from whet.ir.graph import Graph, Guard, constant
from whet.ir.sizes import Size, symbol
from whet.knobs import knobs
from whet.ops.contract import MatMul
from whet.ops.elementwise import Clip, Exp, Log, Relu
from whet.ops.movement import reshape, transpose
from whet.ops.reduce import Reduce
from whet.passes.check import Checked, MeaningChangedError, random_weights, same_meaning
from whet.passes.pipeline import optimise

X = given("x", 4, 5)
N = symbol("n", 1)

WRONG = {
    "another number": (X * 2.0, X * 2.01),
    "a clip without its end": (Clip()(X, 0.0, 0.5), Relu()(X)),
    "another order": (transpose(X, 1, 0), reshape(X, 5, 4)),
    "NaN in other places": (Log()(X), Log()(Relu()(X) + 1.0)),
    "infinity of another sign": (X + constant(np.inf, "float32"), X - constant(np.inf, "float32")),
    "one element": (X, X + constant(np.eye(4, 5) * [0, 0, 0, 1, 0], "float32")),
}


@pytest.mark.parametrize("name", WRONG)
def test_catches(name):
    before, after = WRONG[name]
    with pytest.raises(MeaningChangedError, match="the pass"):
        same_meaning(graph(before), graph(after))


def test_catches_an_integer_that_is_off_by_one():
    i = given("i", 3, dtype="int64")
    with pytest.raises(MeaningChangedError, match="differs in"):
        same_meaning(graph(i + 1), graph(i + 2))


def test_catches_what_only_other_sizes_show():
    y = given("y", N, 3)
    same = reshape(Reduce("sum", (0,))(y), 3)
    only_for_three = reshape(Reduce("sum", (0,))(y), 3) * 1.0 + (
        Reduce("sum", (0,))(y * 0.0 + 1.0) - 3.0
    )
    with pytest.raises(MeaningChangedError):
        same_meaning(graph(same), graph(reshape(only_for_three, 3)))


def test_rounding_is_no_change():
    a, b = X * 0.1 + X * 0.2, X * 0.3
    assert same_meaning(graph(a), graph(b)) == 1


def needing(g: Graph, left: Size, right: Size) -> Graph:
    """The graph with a guard, as an importer notes it."""
    return replace(g, guards=(Guard(left, right, "node"),))


def test_sizes_are_tried_and_those_refused_do_not_count():
    x = given("x", N, 4)
    assert same_meaning(graph(x * 2.0), graph(x + x)) == 3
    fixed = needing(graph(reshape(x, 12) * 2.0), N * 4, 12)
    assert same_meaning(fixed, graph(reshape(x + x, 12))) == 1


def test_weights_are_positive_and_the_same_each_time():
    g = graph(MatMul()(X, weight("w", 5, 2)))
    first, again = random_weights(g), random_weights(g)
    assert (first("w") == again("w")).all()
    assert (first("w") > 0).all()


def test_the_pass_is_named():
    def wrong(g):
        return g.map(lambda v: v * 3.0 if isinstance(v.op, Exp) else v)

    with knobs.override(check=True), pytest.raises(MeaningChangedError, match="wrong"):
        optimise(graph(Exp()(X)), passes=[wrong])


def test_a_model_that_refuses_random_inputs_is_reported():
    x = given("x", N, 4)
    before = needing(graph(reshape(x, 1000)), N * 4, 1000)
    watch = Checked(before)
    with pytest.warns(UserWarning, match="not checked"):
        watch("a pass", graph(reshape(Exp()(x), 1000)))
