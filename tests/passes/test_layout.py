"""Transposes sink and cancel; each operator they pass, and those they cannot."""

import itertools

import numpy as np
import pytest

from tests.passes.graphs import count, given, graph, transformed, weight
from whet.ir.graph import Graph, Value, constant
from whet.ir.sizes import symbol
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Add, Exp, Relu, Sigmoid, Sqrt, Where
from whet.ops.movement import (
    Concat,
    Gather,
    Pad,
    Reverse,
    Slice,
    Transpose,
    broadcast_to,
    reshape,
    split,
    transpose,
)
from whet.ops.quantize import Dequantize
from whet.ops.reduce import ArgReduce, Cumulative, LayerNorm, Reduce, RMSNorm, Softmax, reduce_mean
from whet.ops.window import Pool
from whet.passes.axes import carried, gathered_groups, groups, inverse
from whet.passes.layout import channels_last, settle_layout
from whet.passes.unmerge import refined

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
Y = given("y", 2, 4, 5, 6)  # channels last
FIRST = transpose(Y, *TO_FIRST)  # [2, 6, 4, 5]
N = symbol("n", 1)


def laid_out(graph: Graph) -> Graph:
    return settle_layout(channels_last(graph))


def convolution(x: Value, name: str, out: int, kernel: int = 1, groups: int = 1) -> Value:
    """As an importer writes it: channels first outside."""
    w = weight(name, out, x.shape[1] // groups, kernel, kernel)
    pad = (kernel // 2,) * 2
    y = Convolution((1, 1), (1, 1), pad, pad, groups)(
        transpose(x, *TO_LAST), transpose(w, *TO_LAST)
    )
    return transpose(y, *TO_FIRST)


PASSES_BY = {
    "one input": Exp()(FIRST),
    "a scalar": FIRST * 2.0,
    "a weight for each channel": FIRST + weight("w", 6, 1, 1),
    "a weight of all axes": FIRST + weight("w", 2, 6, 4, 5),
    "two transposed alike": FIRST + Exp()(FIRST),
    "a condition": Where()(
        transpose(given("c", 2, 4, 5, 6, dtype="bool"), *TO_FIRST), FIRST, Exp()(FIRST)
    ),
    "a value whose moved axes are 1": FIRST * given("se", 2, 6, 1, 1),
    "a reduction": Reduce("max", (2, 3))(FIRST),
    "a mean": reduce_mean(FIRST, (1,)),
    "the greatest": ArgReduce("max", 1)(FIRST),
    "a running sum": Cumulative("sum", 2, True)(FIRST),
    "softmax": Softmax(1)(FIRST),
    "padding": Pad((0, 0, 1, 2), (0, 0, 3, 0))(FIRST, 0.0),
    "slices": Slice((0, 1, 0, 0), (2, 2, 4, 3), (1, 2, 1, 1))(FIRST),
    "reversal": Reverse((1, 3))(FIRST),
    "joining": Concat(1)(FIRST, weight("w", 2, 3, 4, 5), Exp()(FIRST)),
    "gathering": Gather(1)(FIRST, constant([0, 5, 3])),
    "gathering tables": Gather(2)(FIRST, constant([[0, 1], [3, 2], [1, 3]])),
    "gathering one": Gather(3)(FIRST, given("i", dtype="int64")),
    "splitting an axis": reshape(FIRST, 2, 3, 2, 4, 5),
    "dropping ones": reshape(Reduce("max", (2, 3))(FIRST), 2, 6),
    "merging neighbours": reshape(FIRST, 2, 6, 20),
    "broadcasting": broadcast_to(FIRST, 3, 2, 6, 4, 5),
    "normalising the last axes": LayerNorm(1)(transpose(Y, 1, 2, 0, 3), weight("g", 6)),
    "normalising by the root": RMSNorm(1)(transpose(Y, 2, 0, 1, 3), weight("g", 6)),
    "rows of a product": MatMul()(transpose(Y, 2, 0, 1, 3), weight("w", 6, 7)),
    "dequantising": Dequantize("float32")(
        transpose(given("q", 2, 4, 5, 6, dtype="uint8"), *TO_FIRST), weight("s"), None
    ),
}


@pytest.mark.parametrize("name", PASSES_BY)
def test_sinks_past(name):
    """Below a transpose is left, if any, and none above what is computed."""
    (after,) = transformed(laid_out, PASSES_BY[name])
    above = [v for v in graph(after).values if isinstance(v.op, Transpose) and not v.is_static]
    assert not above or above == [after], str(graph(after))


STOPS_AT = {
    "another activation": FIRST + given("z", 2, 6, 4, 5),
    "other transposed axes": FIRST + transpose(given("z", 2, 4, 6, 5), 0, 2, 1, 3),
    "a product over other axes": MatMul()(FIRST, weight("w", 5, 7)),
    "a product of activations": MatMul()(FIRST, given("z", 5, 7)),
    "normalising moved axes": LayerNorm(1)(FIRST, weight("g", 5)),
    "a scale for each of the moved rows": LayerNorm(1)(
        transpose(Y, 0, 2, 1, 3), weight("g", 5, 4, 6)
    ),
}


@pytest.mark.parametrize("name", STOPS_AT)
def test_stays_above(name):
    (after,) = transformed(laid_out, STOPS_AT[name])
    assert count(graph(after), Transpose) == count(graph(STOPS_AT[name]), Transpose)


def test_a_residual_network_has_one_transpose():
    x = given("x", 1, 3, 8, 8)
    stem = Relu()(convolution(x, "stem", 8, 3))
    y = Relu()(convolution(stem, "a", 8, 3) + weight("b", 8, 1, 1))
    z = Relu()(convolution(y, "c", 8, 3) + stem)
    pooled = reshape(reduce_mean(z, (2, 3)), 1, 8)
    (after,) = transformed(laid_out, MatMul()(pooled, weight("fc", 8, 10)))
    left = [v for v in graph(after).values if isinstance(v.op, Transpose) and not v.is_static]
    assert [v.inputs[0] for v in left] == [x]


def test_squeeze_and_excite():
    x = given("x", N, 8, 6, 6)
    y = convolution(x, "a", 8, 3)
    squeezed = Relu()(convolution(reduce_mean(y, (2, 3)), "down", 2))
    z = y * Sigmoid()(convolution(squeezed, "up", 8))
    (after,) = transformed(laid_out, transpose(convolution(z, "b", 4), *TO_LAST))
    assert count(graph(after), Transpose) == 1


def test_channels_last_blocks_in_a_channels_first_network():
    """ConvNeXt: permutes around the normalisation and the linear layers of each block."""
    x = given("x", 1, 8, 6, 6)
    y = transpose(convolution(x, "depthwise", 8, 3, groups=8), *TO_LAST)
    y = MatMul()(LayerNorm(1)(y, weight("g", 8), weight("h", 8)), weight("up", 8, 32))
    y = MatMul()(Exp()(y), weight("down", 32, 8)) * weight("gamma", 8)
    y = transpose(y, *TO_FIRST) + convolution(x, "skip", 8)
    (after,) = transformed(laid_out, transpose(convolution(y, "last", 4), *TO_LAST))
    assert count(graph(after), Transpose) == 1


@pytest.mark.parametrize("halves", [True, False])
def test_channel_shuffle(halves):
    x = given("x", 1, 8, 6, 6)
    joined = Concat(1)(convolution(x, "a", 4), convolution(x, "b", 4))
    shuffled = reshape(transpose(reshape(joined, 1, 2, 4, 6, 6), 0, 2, 1, 3, 4), 1, 8, 6, 6)
    first, second = split(shuffled, (4, 4), 1) if halves else (shuffled, shuffled)
    ends = (
        transpose(convolution(first, "c", 4), *TO_LAST),
        transpose(convolution(second, "d", 4), *TO_LAST),
    )
    after = transformed(laid_out, Concat(3)(*ends))
    assert count(graph(*after), Transpose) == 1


def test_pixel_shuffle_needs_one():
    x = given("x", 1, 4, 3, 5)
    y = reshape(convolution(x, "up", 8), 1, 2, 2, 2, 3, 5)
    y = reshape(transpose(y, 0, 1, 4, 2, 5, 3), 1, 2, 6, 10)
    (after,) = transformed(laid_out, transpose(convolution(Relu()(y), "c", 2), *TO_LAST))
    assert count(graph(after), Transpose) == 2, "one at the input, one for the shuffle"


@pytest.mark.parametrize("batch", [1, N])
def test_group_normalisation(batch):
    """Channels of a group and pixels are merged, normalised together, and split again."""
    x = given("x", batch, 8, 6, 5)
    y = reshape(convolution(x, "a", 8), batch, 2, 120)
    d = y - reduce_mean(y, (2,))
    y = reshape(d / Sqrt()(reduce_mean(d * d, (2,)) + 1e-5), batch, 8, 6, 5)
    y = Relu()(y * weight("g", 8, 1, 1) + weight("h", 8, 1, 1))
    (after,) = transformed(laid_out, transpose(convolution(y, "b", 4), *TO_LAST))
    assert count(graph(after), Transpose) == 1


def test_rows_of_a_batch_in_another_order():
    """torch's multi-head attention: rows of (position, batch) between the heads and the output."""
    heads = given("y", 2, 4, 5, 8)
    rows = reshape(transpose(heads, 2, 0, 1, 3), 10, 32)
    y = reshape(MatMul()(rows, weight("w", 32, 6)) + weight("b", 6), 5, 2, 6)
    (after,) = transformed(laid_out, transpose(y, 1, 0, 2))
    left = [v.op.order for v in graph(after).values if isinstance(v.op, Transpose)]
    assert left == [(0, 2, 1, 3)]


def test_a_flatten_goes_into_the_weight():
    x = given("x", N, 3, 4, 4)
    flat = reshape(Relu()(convolution(x, "a", 6, 3)), N, 96)
    (after,) = transformed(laid_out, MatMul()(flat, weight("fc", 96, 10)))
    assert count(graph(after), Transpose) == 1


def test_pooling_between_convolutions():
    x = given("x", 1, 3, 8, 8)
    pooled = Pool("max", (2, 2), (2, 2), (1, 1), (0, 0), (4, 4))(
        transpose(convolution(x, "a", 4), *TO_LAST)
    )
    y = convolution(Relu()(transpose(pooled, *TO_FIRST)), "b", 4)
    (after,) = transformed(laid_out, transpose(y, *TO_LAST))
    assert count(graph(after), Transpose) == 1


def test_patches_of_a_vision_transformer():
    x = given("x", 1, 3, 8, 8)
    patches = transpose(reshape(convolution(x, "patch", 6), 1, 6, 64), 0, 2, 1)
    (after,) = transformed(laid_out, patches + weight("pos", 1, 64, 6))
    assert count(graph(after), Transpose) == 1


def test_keys_transposed_with_heads_merged():
    """As torch writes it: heads go into the batch only to swap the last two axes."""
    k = transpose(given("k", 1, 7, 3, 4), 0, 2, 1, 3)
    swapped = reshape(transpose(reshape(k, 3, 7, 4), 0, 2, 1), 1, 3, 4, 7)
    assert transformed(laid_out, swapped) == (transpose(given("k", 1, 7, 3, 4), 0, 2, 3, 1),)


def test_weights_are_left_alone():
    w = transpose(weight("w", 2, 3), 1, 0) + weight("z", 3, 1)
    before = graph(given("x", 3, 2) * w)
    assert laid_out(before) is before


def test_a_layout_that_pays_for_nobody_is_not_chosen():
    """A transposed value and one that is not meet, and both are wanted as they are."""
    z = given("z", 2, 6, 4, 5)
    before = graph(MatMul()(FIRST + z, weight("w", 5, 3)))
    assert count(laid_out(before), Transpose) == 1
    assert count(laid_out(before), Add) == 1


@pytest.mark.parametrize(
    "a, b, runs",
    [
        ((2, 12), (2, 3, 4), [([0], [0]), ([1], [1, 2])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((2, 1, 3), (6,), [([0, 2], [0])]),
        ((N, 6, 4), (N, 24), [([0], [0]), ([1, 2], [1])]),
        ((N, 6), (N * 2, 3), [([0, 1], [0, 1])]),
        ((N * 6, 4), (N, 6, 4), [([0], [0, 1]), ([1], [2])]),
        ((N, symbol("m", 1)), (symbol("k", 1), symbol("l", 1)), None),
    ],
)
def test_groups(a, b, runs):
    assert groups(a, b) == runs


def test_refined():
    assert refined((1, 8, 6, 6), (1, 2, 144)) == (1, 2, 4, 6, 6)
    assert refined((N, 8, 6), (N, 2, 24)) == (N, 2, 4, 6)
    assert refined((4, 6), (6, 4)) is None


@pytest.mark.parametrize("seed", range(20))
def test_carried_and_gathered_mean_what_they_say(seed):
    """A reshape of a transposed array is the transpose of a reshape that both give."""
    rng = np.random.default_rng(seed)
    fine = rng.choice([1, 2, 3, 4, 5], 6)
    between = merged(rng, fine)
    order = tuple(int(i) for i in rng.permutation(len(between)))
    y = rng.random([between[i] for i in inverse(order)])
    for shape in (merged(rng, fine), merged(rng, fine)):
        wanted = y.transpose(order).reshape(shape)
        after = carried(between, shape, order)
        if after is not None:
            spread = [shape[i] for i in inverse(after)]
            assert (y.reshape(spread).transpose(after) == wanted).all()
        parts = gathered_groups(between, shape, order)
        assert parts is not None
        together, last = parts
        spread = [shape[i] for i in inverse(last)]
        assert (y.transpose(together).reshape(spread).transpose(last) == wanted).all()


def merged(rng, sizes) -> tuple[int, ...]:
    """The sizes with some neighbours multiplied."""
    cuts = [0, *np.flatnonzero(rng.random(len(sizes) - 1) < 0.6) + 1, len(sizes)]
    return tuple(int(np.prod(sizes[a:b])) for a, b in itertools.pairwise(cuts))
