"""Attention in the forms that exporters write it, and what only looks like it."""

import math

import numpy as np
import pytest

from tests.passes.graphs import count, given, graph, transformed, weight
from whet.ir.graph import Value, constant
from whet.ir.sizes import symbol
from whet.ops.attention import Attention
from whet.ops.contract import MatMul
from whet.ops.elementwise import (
    And,
    Cast,
    Equal,
    IsNaN,
    Less,
    LessOrEqual,
    Not,
    Relu,
    Tanh,
    Where,
)
from whet.ops.index import Iota
from whet.ops.movement import Sizes, broadcast_to, reshape, slice_axis, transpose, unsqueeze
from whet.ops.reduce import Softmax
from whet.passes.fold import fold_constants
from whet.passes.layout import channels_last, settle_layout
from whet.passes.recognise import recognise
from whet.passes.simplify import simplify

B, H, S, T, D = 2, 3, 4, 5, 8
N = symbol("n", 1)
LOWEST = float(np.finfo(np.float32).min)


def heads(name: str, length=S, count: int = H, batch=B, dtype: str = "float32") -> Value:
    """[B, heads, length, D] as a view of a projection [B, length, heads * D]."""
    x = given(name, batch, length, count * D, dtype=dtype)
    return transpose(reshape(x, batch, length, count, D), 0, 2, 1, 3)


def swapped(k: Value) -> Value:
    return transpose(k, *range(k.rank - 2), k.rank - 1, k.rank - 2)


def guarded(p: Value) -> Value:
    """torch's scaled_dot_product_attention: a query that sees no key gives 0."""
    return Where()(IsNaN()(p), constant(0.0, p.dtype), p)


Q, K, V = heads("q"), heads("k", T), heads("v", T)
SCORES = MatMul()(Q, swapped(K))
MASK = given("mask", B, 1, S, T, dtype="bool")


def torch_sdpa() -> Value:
    root = 1 / math.sqrt(math.sqrt(D))
    k = reshape(transpose(reshape(K, B * H, T, D), 0, 2, 1), B, H, D, T)
    mask = Where()(MASK, constant(0.0, "float32"), constant(-math.inf, "float32"))
    return MatMul()(guarded(Softmax(-1)(MatMul()(Q * root, k * root) + mask)), V)


def bert() -> Value:
    hidden = (1.0 - Cast("float32")(given("mask", B, 1, 1, T, dtype="bool"))) * -10000.0
    return MatMul()(Softmax(3)(SCORES / math.sqrt(D) + hidden), V)


def merged_heads() -> Value:
    q, k, v = (reshape(x, B * H, x.shape[2], D) for x in (Q, K, V))
    y = MatMul()(Softmax(2)(MatMul()(q * 0.25, swapped(k)) + given("m", S, T)), v)
    return reshape(transpose(reshape(y, B, H, S, D), 0, 2, 1, 3), B, S, H * D)


def one_head() -> Value:
    q, k, v = given("q", S, D), given("k", T, D), given("v", T, D)
    return MatMul()(Softmax(-1)(MatMul()(q, transpose(k, 1, 0)) * 0.5), v)


def windows() -> Value:
    q, k, v = (given(n, 2, 3, H, S, D) for n in "qkv")
    return MatMul()(Softmax(-1)(MatMul()(q, swapped(k)) * 0.5 + weight("bias", S, S)), v)


def masked_windows() -> Value:
    """Swin: a batch of windows, a mask for each of the windows of an image."""
    q, k, v = (given(n, 4, H, S, D) for n in "qkv")
    scores = MatMul()(q * 0.5, swapped(k)) + weight("bias", 1, H, S, S)
    scores = reshape(scores, 2, 2, H, S, S) + unsqueeze(weight("mask", 2, S, S), 0, 2)
    return MatMul()(Softmax(-1)(reshape(scores, 4, H, S, S)), v)


def packed() -> Value:
    """timm: one projection for queries, keys and values, sliced after the transpose."""
    x = transpose(reshape(given("x", B, S, 3 * H * D), B, S, 3, H, D), 2, 0, 3, 1, 4)
    q, k, v = (reshape(slice_axis(x, 0, i, 1), B, H, S, D) for i in range(3))
    y = MatMul()(Softmax(-1)(MatMul()(q * 0.3, swapped(k))), v)
    return reshape(transpose(y, 0, 2, 1, 3), B, S, H * D)


def repeated(x: Value, times: int) -> Value:
    batch, groups, length, size = x.shape
    wide = broadcast_to(unsqueeze(x, 2), batch, groups, times, length, size)
    return reshape(wide, batch, groups * times, length, size)


def grouped() -> Value:
    q, k, v = heads("q", count=6), heads("k", T, 2), heads("v", T, 2)
    p = Softmax(-1)(MatMul()(q, swapped(repeated(k, 3))) * 0.3)
    return MatMul()(p, repeated(v, 3))


def half_precision() -> Value:
    q, k, v = (heads(n, dtype="float16") for n in "qkv")
    p = Softmax(-1)(Cast("float32")(MatMul()(q, swapped(k)) * 0.25))
    return MatMul()(Cast("float16")(p), v)


def with_names() -> Value:
    q, k, v = (heads(n, N, batch=N) for n in "qkv")
    scores = MatMul()(q, swapped(k)) * 0.3 + given("m", N, 1, 1, N)
    return MatMul()(guarded(Softmax(-1)(scores)), v)


FORMS = {
    "plain": lambda: MatMul()(Softmax(-1)(SCORES), V),
    "torch": torch_sdpa,
    "bert": bert,
    "scaled keys": lambda: MatMul()(Softmax(-1)(MatMul()(Q, swapped(K) * 0.5)), V),
    "a scale for each head": lambda: MatMul()(
        Softmax(-1)(SCORES * weight("temperature", H, 1, 1) + given("a", S, T)), V
    ),
    "two masks": lambda: MatMul()(
        Softmax(-1)(SCORES * 0.5 + given("a", S, T) + given("b", B, 1, 1, T)), V
    ),
    "a mask before the scale": lambda: MatMul()(Softmax(-1)((SCORES + given("a", S, T)) * 0.5), V),
    "a mask taken away": lambda: MatMul()(Softmax(-1)(SCORES - given("a", S, T)), V),
    "chosen scores": lambda: MatMul()(
        guarded(Softmax(-1)(Where()(MASK, SCORES, constant(-math.inf, "float32")))), V
    ),
    "scores not chosen": lambda: MatMul()(
        Softmax(-1)(Where()(MASK, constant(-1e9, "float32"), SCORES)), V
    ),
    "the lowest number for what is hidden": lambda: MatMul()(
        Softmax(-1)(
            Where()(given("none", S, T, dtype="bool"), SCORES, constant(LOWEST, "float32"))
        ),
        V,
    ),
    "a cap": lambda: MatMul()(Softmax(-1)(Tanh()(SCORES * 0.02) * 50.0 + given("a", S, T)), V),
    "heads in the batch": merged_heads,
    "one head": one_head,
    "windows": windows,
    "masks of windows": masked_windows,
    "packed": packed,
    "groups of heads": grouped,
    "half precision": half_precision,
    "names for sizes": with_names,
    "one key head for all": lambda: MatMul()(
        Softmax(-1)(MatMul()(Q, swapped(given("k", B, 1, T, D)))), given("v", B, 1, T, D)
    ),
}


def found(*outputs: Value) -> tuple[Value, ...]:
    """As the pipeline has it: transposes sink first, and settle in the end."""
    g = channels_last(simplify(fold_constants(graph(*outputs))))
    return transformed(settle_layout, *transformed(recognise, *g.outputs))


@pytest.mark.parametrize("name", FORMS)
def test_is_attention(name):
    before = FORMS[name]()
    (after,) = transformed(recognise, *channels_last(simplify(graph(before))).outputs)
    left = graph(after)
    assert count(left, Attention) == 1, str(left)
    assert count(left, MatMul, Softmax) == 0, str(left)


def attention_of(value: Value) -> Attention:
    (op,) = {v.op for v in graph(value).values if isinstance(v.op, Attention)}
    return op


def test_what_it_is_made_of():
    (after,) = found(torch_sdpa())
    assert attention_of(after).scale == pytest.approx(1 / math.sqrt(D), rel=1e-6)
    (after,) = found(FORMS["a cap"]())
    assert attention_of(after).softcap == 50.0
    assert attention_of(after).scale == pytest.approx(1.0)
    (after,) = found(grouped())
    assert [i.shape for i in graph(after).values if isinstance(i.op, Attention)] == [(B, 6, S, D)]
    inputs = next(v.inputs for v in graph(after).values if isinstance(v.op, Attention))
    assert inputs[1].shape == (B, 2, T, D), "the repetition of keys is left out"


def test_only_the_transposes_it_needs_are_left():
    """Queries, keys, values and the result, and each is that of heads and positions."""
    for form in (packed, torch_sdpa, merged_heads):
        (after,) = found(form())
        left = [v for v in graph(after).values if v.op.__class__.__name__ == "Transpose"]
        assert {v.op.order for v in left} == {(0, 2, 1, 3)}
        assert len(left) <= 4


NONE = {
    "a softmax over queries": lambda: (MatMul()(Softmax(2)(SCORES), V),),
    "probabilities that are read": lambda: (MatMul()(Softmax(-1)(SCORES), V), Softmax(-1)(SCORES)),
    "a scale for each key": lambda: (MatMul()(Softmax(-1)(SCORES * given("f", T)), V),),
    "scores over zero": lambda: (MatMul()(Softmax(-1)(SCORES / constant(0.0, "float32")), V),),
    "scores bent before the softmax": lambda: (MatMul()(Softmax(-1)(Relu()(SCORES)), V),),
    "what is hidden keeps a weight": lambda: (
        MatMul()(Softmax(-1)(Where()(MASK, SCORES, constant(-1.0, "float32"))), V),
    ),
    "a guard that gives 1": lambda: (
        MatMul()(
            Where()(IsNaN()(Softmax(-1)(SCORES)), constant(1.0, "float32"), Softmax(-1)(SCORES)), V
        ),
    ),
    "a mask that stretches the scores": lambda: (
        MatMul()(
            Softmax(-1)(
                MatMul()(given("q", 1, H, S, D), swapped(given("k", 1, H, T, D)))
                + given("m", B, 1, S, T)
            ),
            V,
        ),
    ),
    "a mask that may stretch the scores": lambda: (
        MatMul()(
            Softmax(-1)(
                MatMul()(given("q", N, H, S, D), swapped(given("k", N, H, T, D)))
                + given("m", B, 1, S, T)
            ),
            given("v", N, H, T, D),
        ),
    ),
    "values of another batch": lambda: (
        MatMul()(Softmax(-1)(MatMul()(Q, swapped(K))), given("v", 1, 1, T, D)),
    ),
}


@pytest.mark.parametrize("name", NONE)
def test_is_no_attention(name):
    before = graph(*NONE[name]())
    assert count(recognise(before), Attention) == 0


def positions(length, axis: int, shift=0) -> Value:
    """As torch's exporter has them: a range, and axes of size 1 around it."""
    line = Iota(length)() if not isinstance(length, int) else constant(np.arange(length))
    return reshape(line + shift, *(length if i == axis else 1 for i in range(4)))


def below(queries, keys, shift: int = 0) -> Value:
    """Whether key j is at most query i + shift."""
    return LessOrEqual()(positions(keys, 3), positions(queries, 2, shift))


def triangle(queries, keys) -> Value:
    """onnxscript: the lower triangle of ones, compared with 0."""
    diagonal = reshape(positions(keys, 3) - positions(queries, 2), queries, keys)
    ones = Where()(
        LessOrEqual()(diagonal, constant(0)), constant(1.0, "float32"), constant(0.0, "float32")
    )
    low, zero = constant(-math.inf, "float32"), constant(0.0, "float32")
    return Where()(Equal()(ones, zero), low, zero)


def added(condition: Value, low: float = LOWEST) -> Value:
    return Where()(condition, constant(0.0, "float32"), constant(low, "float32"))


def attended(mask: Value, queries=S, keys=T) -> Value:
    q, k, v = heads("q", queries), heads("k", keys), heads("v", keys)
    return MatMul()(guarded(Softmax(-1)(MatMul()(q, swapped(k)) * 0.3 + mask)), v)


PAST = T - S
CAUSAL = {
    "positions": (added(below(S, T)), 0),
    "positions after some that are kept": (added(below(S, T, PAST)), PAST),
    "later keys hidden": (
        Where()(
            Less()(positions(S, 2), positions(T, 3)),
            constant(LOWEST, "float32"),
            constant(0.0, "float32"),
        ),
        0,
    ),
    "not later": (added(Not()(Less()(positions(S, 2), positions(T, 3)))), 0),
    "a triangle": (triangle(S, T), 0),
    "a constant": (constant(np.where(np.tri(S, T, 1), 0, -1e9), "float32"), 1),
    "a condition that is a constant": (added(constant(np.tri(S, T, dtype=bool))), 0),
    "and padding": (
        added(And()(given("pad", B, 1, 1, T, dtype="bool"), below(S, T)), -math.inf),
        0,
    ),
}


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name, folded):
    mask, offset = CAUSAL[name]
    before = graph(attended(mask))
    (after,) = transformed(
        recognise, *(fold_constants(before) if folded else simplify(before)).outputs
    )
    op = attention_of(after)
    assert (op.right, op.offset, op.left) == (0, offset, None)
    masks = next(v.inputs[3] for v in graph(after).values if isinstance(v.op, Attention))
    assert (masks is None) == (name != "and padding")


def test_causal_with_names_for_sizes():
    past = symbol("past")
    total = N + past
    q, k, v = heads("q", N), heads("k", total), heads("v", total)
    mask = added(LessOrEqual()(positions(total, 3), positions(N, 2) + Sizes((past,))()))
    y = MatMul()(Softmax(-1)(MatMul()(q, swapped(k)) + mask), v)
    op = attention_of(recognise(simplify(graph(y))).outputs[0])
    assert (op.right, op.offset) == (0, past)


NOT_CAUSAL = {
    "a window that hides a query": added(below(S, T, -1)),
    "earlier keys hidden": added(LessOrEqual()(positions(S, 2), positions(T, 3))),
    "every second key": added(LessOrEqual()(positions(T, 3) * 2, positions(S, 2))),
    "padding that may hide all by a finite number": added(
        And()(given("pad", B, 1, 1, T, dtype="bool"), below(S, T))
    ),
    "a constant that is no triangle": constant(np.where(np.eye(S, T), 0, -1e9), "float32"),
    "a weight": added(weight("w", S, T, dtype="bool")),
    "numbers too small to hide": Where()(
        below(S, T), constant(0.0, "float32"), constant(-3.0, "float32")
    ),
}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_masks_that_are_not_causal(name):
    (after,) = transformed(recognise, *simplify(graph(attended(NOT_CAUSAL[name]))).outputs)
    op = attention_of(after)
    assert (op.left, op.right, op.offset) == (None, None, 0)
