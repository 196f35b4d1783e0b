"""Affine operators and padding around contractions, and where they must stay."""

from dataclasses import replace

import pytest

from tests.passes.graphs import count, given, graph, transformed, weight
from whet.ir.graph import Value, constant
from whet.ir.sizes import symbol
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Add, Div, Mul, Relu, Sqrt, Sub
from whet.ops.movement import Pad, Slice, reshape, transpose
from whet.ops.window import Pool
from whet.passes.fold_weights import fold_weights

X = given("x", 2, 5, 6, 4)
N = symbol("n", 1)
B = weight("b", 8)


SMALL = MatMul()(given("h", 3, 4, dtype="float16"), weight("w", 4, 8, dtype="float16") * 1e-3)


def convolution(
    x: Value = X, out: int = 8, pad: int = 1, groups: int = 1, name: str = "w"
) -> Value:
    w = weight(name, out, 3, 3, x.shape[-1] // groups)
    return Convolution((1, 1), (1, 1), (pad, pad), (pad, pad), groups)(x, w)


def normalized(y: Value, name: str = "bn") -> Value:
    """Batch normalisation as an importer writes it, channels last."""
    scale, bias, mean, variance = (weight(f"{name}.{p}", y.shape[-1]) for p in "gbmv")
    factor = scale / Sqrt()(variance + 1e-5)
    offset = bias - mean * factor
    return y * reshape(factor, 1, 1, 1, y.shape[-1]) + reshape(offset, 1, 1, 1, y.shape[-1])


FOLDS = {
    "batch norm": (normalized(convolution()), 1),
    "batch norm behind a bias": (normalized(convolution() + B), 1),
    "two batch norms": (normalized(normalized(convolution()), "again"), 1),
    "batch norm of channels by themselves": (normalized(convolution(out=4, groups=4)), 1),
    "batch norm of groups": (normalized(convolution(groups=2)), 1),
    "batch norm with names for sizes": (normalized(convolution(given("n", N, 5, N, 4))), 1),
    "behind a matrix product": ((MatMul()(X, weight("w", 4, 8)) + B) * weight("g", 8), 1),
    "behind a batch of products": (MatMul()(X, weight("w", 5, 4, 8)) * weight("g", 8), 0),
    "division": (convolution() / weight("g", 8), 0),
    "division behind a bias": ((convolution() + B) / weight("g", 8), 1),
    "a number": (convolution() * 0.5, 0),
    "a difference": (convolution() - B, 1),
    "two differences": (convolution() + B - weight("c", 8), 1),
    "two sums": (weight("c", 8) + (B + convolution()), 1),
    "half precision": (
        MatMul()(given("h", 3, 4, dtype="float16"), weight("w", 4, 8, dtype="float16"))
        * weight("g", 8, dtype="float16"),
        0,
    ),
    "half precision, by a number that it has no reciprocal of": (SMALL / 1e-5, 0),
    "half precision, by weights that it has no reciprocal of": (
        SMALL / (weight("g", 8, dtype="float16") * 1e-5),
        0,
    ),
    "a scale in front": (convolution(X * weight("g", 4)), 0),
    "a scale in front of groups": (convolution(X * weight("g", 4), groups=2), 0),
    "a number in front": (convolution(X * 0.7), 0),
    "one scale for all channels in front": (convolution(X * weight("g")), 0),
    "a shift in front without padding": (convolution(X + weight("t", 4), pad=0), 1),
    "normalised input": (convolution((X - weight("m", 4)) * weight("g", 4), pad=0), None),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name):
    before, sums = FOLDS[name]
    (after,) = transformed(fold_weights, before)
    assert count(graph(after), Mul, Div) == 0, str(graph(after))
    assert sums is None or count(graph(after), Add, Sub) == sums, str(graph(after))


def test_behind_a_transposed_convolution():
    """Bias and batch norm stand behind the reshape and transpose that spread the taps."""
    y = reshape(convolution(pad=1), 2, 5, 6, 2, 2, 2)
    y = reshape(transpose(y, 0, 1, 4, 2, 5, 3), 2, 10, 12, 2)
    y = Slice((0, 1, 0, 0), (2, 9, 12, 2), (1, 1, 1, 1))(y)
    (after,) = transformed(fold_weights, Relu()(normalized(y + weight("b", 2))))
    assert count(graph(after), Mul) == 0
    assert count(graph(after), Add) == 1


STAYS = {
    "a factor for each position": convolution() * weight("g", 6, 1),
    "a factor that is no weight": convolution() * given("g", 8),
    "a result that is read twice": convolution() * weight("g", 8) + convolution(),
    "a weight that is no weight": MatMul()(X, given("w", 4, 8)) * weight("g", 8),
    "integers": Convolution((1, 1), (1, 1), (0, 0), (0, 0), 1, "int32")(
        given("q", 1, 3, 3, 4, dtype="uint8"), weight("k", 8, 1, 1, 4, dtype="int8")
    )
    * weight("g", 8, dtype="int32"),
    "a shift in front of padding": convolution(X + weight("t", 4)),
    "behind something else": Relu()(convolution()) * weight("g", 8),
    "a factor behind reversed channels": Slice((0, 0, 0, 7), (2, 5, 6, 8), (1, 1, 1, -1))(
        convolution()
    )
    * weight("g", 8),
    "a factor that stretches": convolution(out=1) * weight("g", 8),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    before = graph(STAYS[name])
    assert fold_weights(before) is before


def test_zero_padding_goes_into_a_convolution():
    padded = Pad((0, 1, 0, 0), (0, 2, 3, 0))(X, 0.0)
    (after,) = transformed(fold_weights, convolution(padded))
    assert after.op == Convolution((1, 1), (1, 1), (2, 1), (3, 4))


@pytest.mark.parametrize(
    "padded",
    [
        Pad((0, 1, 0, 0), (0, 0, 0, 0))(X, 1.0),
        Pad((0, 1, 0, 0), (0, 0, 0, 0))(X, given("fill")),
        Pad((0, 1, 0, 0), (0, 0, 0, 0), "edge")(X, 0.0),
        Pad((0, 0, 0, 2), (0, 0, 0, 2))(X, 0.0),
        Pad((1, 0, 0, 0), (0, 0, 0, 0))(X, 0.0),
    ],
    ids=["ones", "an unknown number", "the edge", "channels", "the batch"],
)
def test_other_padding_stays(padded):
    before = graph(convolution(padded))
    assert fold_weights(before) is before


def test_padding_goes_into_a_pool():
    pool = Pool("max", (3, 3), (2, 2), (1, 1), (0, 0), (3, 3))
    padded = Pad((0, 1, 1, 0), (0, 1, 1, 0))(X, float("-inf"))
    (after,) = transformed(fold_weights, pool(padded))
    assert after.op == Pool("max", (3, 3), (2, 2), (1, 1), (1, 1), (3, 3))
    counted = graph(pool(Pad((0, 1, 1, 0), (0, 1, 1, 0))(X, constant(0.0, "float32"))))
    assert fold_weights(counted) is counted


def test_a_convolution_keeps_its_name_when_a_norm_becomes_part_of_it():
    y = convolution()
    g = replace(graph(normalized(y)), origins={y: ("conv",), normalized(y): ("norm",)})
    new = fold_weights(g)
    (found,) = (v for v in new.values if isinstance(v.op, Convolution))
    assert new.origins[found][0] == "conv" and "norm" in new.origins[new.outputs[0]]
