"""Reductions in two steps: the same results, of parts that are many enough to share."""

from __future__ import annotations

import pytest

from tests.passes.graphs import given, graph
from whet.ops.reduce import Reduce
from whet.passes.check import same_meaning
from whet.plan.two_steps import in_parts

PARTS = range(8, 1025)


@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize(
    ("shape", "axes", "second"),
    [
        ((4096,), (0,), 64),
        ((96,), (0,), 8),
        ((3, 12, 40), (1, 2), 12),
        ((5, 2, 4000), (1, 2), 50),
        ((2, 900, 3), (1,), 30),
        ((1, 1, 128), (0, 1, 2), 8),
    ],
)
def test_parts_give_the_same(kind, shape, axes, second):
    x = given("x", *shape)
    whole = Reduce(kind, axes)(x)
    split = in_parts(whole.op, x, PARTS)
    assert isinstance(split.op, Reduce)
    (partial,) = split.inputs
    assert [partial.shape[axis] for axis in split.op.axes] == [second]
    assert same_meaning(graph(whole), {"in two steps": graph(split)}) >= 1


@pytest.mark.parametrize("shape", [(7,), (4099,), (1, 13)])
def test_what_does_not_divide_stays_whole(shape):
    x = given("x", *shape)
    assert in_parts(Reduce("sum", tuple(range(len(shape)))), x, PARTS) is None
