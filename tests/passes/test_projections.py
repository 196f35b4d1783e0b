"""Three projections of one input become one product, unless something else reads one of them."""

import pytest

from tests.passes.graphs import count, given, graph, transformed, weight
from whet.ir.graph import Value
from whet.ir.sizes import symbol
from whet.ops.attention import Attention, split_heads
from whet.ops.contract import MatMul
from whet.ops.elementwise import Exp
from whet.passes.projections import merge_projections

N = symbol("n", 1)


def head(x: Value, name: str, heads: int = 2, bias: bool = True) -> Value:
    y = MatMul()(x, weight(f"w{name}", 8, heads * 4))
    return split_heads(y + weight(f"b{name}", heads * 4) if bias else y, heads)


@pytest.mark.parametrize("length", [5, N])
@pytest.mark.parametrize("bias", ["qkv", "qv", ""])
def test_one_product(length, bias):
    x = given("x", 2, length, 8)
    y = Attention(0.5)(*(head(x, n, bias=n in bias) for n in "qkv"))
    (after,) = transformed(merge_projections, y)
    assert count(graph(after), MatMul) == 1


def test_groups_of_heads_with_a_mask():
    x = given("x", 2, 5, 8)
    y = Attention(0.5)(head(x, "q", 4), head(x, "k", 2), head(x, "v", 2), given("m", 5, 5))
    (after,) = transformed(merge_projections, y)
    assert count(graph(after), MatMul) == 1


def test_keys_of_another_input_stay():
    x, z = given("x", 2, 5, 8), given("z", 2, 5, 8)
    before = graph(Attention()(head(x, "q"), head(z, "k"), head(z, "v")))
    assert merge_projections(before) is before


def test_keys_that_are_kept_for_later_stay():
    x = given("x", 2, 5, 8)
    q, k, v = (head(x, n) for n in "qkv")
    before = graph(Attention()(q, k, v), k)
    assert merge_projections(before) is before


def test_what_is_no_projection_stays():
    x = given("x", 2, 5, 8)
    before = graph(Attention()(Exp()(head(x, "q")), head(x, "k"), head(x, "v")))
    assert merge_projections(before) is before
