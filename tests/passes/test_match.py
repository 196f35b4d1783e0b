"""Patterns: commutative operands, products in any nesting, numbers, readers, reasons."""

import numpy as np
import pytest

from tests.passes.graphs import given, graph, weight
from whet.ir.graph import Constant, constant
from whet.ir.match import Matcher
from whet.ir.rewrite import called, explain, number, once, rewrite, rule, rule_for, static, such
from whet.ops.elementwise import Add, Erf, Exp, Max, Mul, Neg, Relu, Sigmoid, Silu, Sqrt, Sub, Tanh

X = given("x", 2, 3)
Y = given("y", 2, 3)


@rule(lambda x, y: Max()(Exp()(x), y))
def exp_below(x, y):
    return Tanh()(x) + y


def test_commutative_operands_match_in_either_order():
    for root in (Max()(Exp()(X), Y), Max()(Y, Exp()(X))):
        assert rewrite(graph(root), [exp_below]).outputs[0] is Tanh()(X) + Y


def test_other_operands_keep_their_places():
    r = rule(lambda x, y: Exp()(x) - y)(lambda x, y: x)
    assert rewrite(graph(Exp()(X) - Y), [r]).outputs[0] is X
    swapped = graph(Y - Exp()(X))
    assert rewrite(swapped, [r]) is swapped


@pytest.mark.parametrize(
    "product",
    [
        X * 0.5 * Exp()(Y),
        X * (0.5 * Exp()(Y)),
        Exp()(Y) * X * 0.5,
        0.5 * (Exp()(Y) * X),
        (Exp()(Y) / 2.0) * X,
        X / (2.0 / Exp()(Y)),
        (X * 0.25) * (Exp()(Y) * 2.0),
    ],
)
def test_factors_match_in_any_order_and_nesting(product):
    r = rule(lambda x, y: x * 0.5 * Exp()(y))(lambda x, y: Tanh()(x) + Tanh()(y))
    assert rewrite(graph(product), [r]).outputs[0] is Tanh()(X) + Tanh()(Y)


def test_a_factor_may_itself_be_a_product():
    r = rule(lambda x: x * Sigmoid()(x))(lambda x: Silu()(x))
    product = X * Y
    assert rewrite(graph(product * Sigmoid()(product)), [r]).outputs[0] is Silu()(product)
    assert rewrite(graph(X * (Sigmoid()(X) * Y)), [r]).outputs[0] is not Silu()(X) * Y


def test_a_root_below_the_bar():
    r = rule(lambda x, y: x / Sqrt()(y))(lambda x, y: x + y)
    for quotient in (X / Sqrt()(Y), X * (1.0 / Sqrt()(Y))):
        assert rewrite(graph(quotient), [r]).outputs[0] is X + Y


def test_numbers_match_as_exactly_as_they_are_written():
    whole = rule(lambda x: x * 1)(lambda x: x)
    near = graph(X * 1.0000001)
    assert rewrite(near, [whole]) is near
    root = rule(lambda x: x * 0.70710678)(lambda x: x)
    assert rewrite(graph(X * 0.7071068), [root]).outputs[0] is X
    far = graph(X * 0.70711)
    assert rewrite(far, [root]) is far


def test_infinity_is_near_nothing_else():
    r = rule(lambda x: Max()(x, float("inf")))(lambda x: x)
    finite = graph(Max()(X, 6.0))
    assert rewrite(finite, [r]) is finite


def test_a_number_is_bound_and_may_be_a_weight_only_where_it_can_be_read():
    r = rule(lambda x, c: x * number(c))(lambda x, c: Exp()(x) - c)
    assert rewrite(graph(X * 3.0), [r]).outputs[0] is Exp()(X) - 3.0
    assert rewrite(graph(X / 4.0), [r]).outputs[0] is Exp()(X) - 0.25
    scaled = graph(X * weight("w"))
    assert rewrite(scaled, [r]) is scaled
    frozen: set[str] = set()
    new = rewrite(scaled, [r], {"w": np.array(2.0)}.get, frozen.update)
    assert new.outputs[0] is Exp()(X) - 2.0
    assert frozen == {"w"}


def test_a_name_used_twice_is_one_value():
    r = rule(lambda x: Exp()(x) + Tanh()(x))(lambda x: x)
    assert rewrite(graph(Tanh()(X) + Exp()(X)), [r]).outputs[0] is X
    different = graph(Exp()(X) + Tanh()(Y))
    assert rewrite(different, [r]) is different


def test_called_binds_what_it_surrounds():
    r = rule(lambda e, x: called(e, Exp()(x)) / Sqrt()(e))(lambda e, x: e)
    assert rewrite(graph(Exp()(X) / Sqrt()(Exp()(X))), [r]).outputs[0] is Exp()(X)


def test_once_counts_readers():
    r = rule(lambda x: Relu()(once(Exp()(x))))(lambda x: x)
    assert rewrite(graph(Relu()(Exp()(X))), [r]).outputs[0] is X
    e = Exp()(X)
    read_twice = graph(Relu()(e), e)
    assert rewrite(read_twice, [r]) is read_twice
    assert "2 readers" in explain(r, Relu()(e), read_twice.uses)


def test_static_and_such():
    r = rule(lambda x, w: Add()(x, static(w)))(lambda x, w: x)
    assert rewrite(graph(weight("w", 2, 3) + X), [r]).outputs[0] is X
    activations = graph(X + Y)
    assert rewrite(activations, [r]) is activations
    is_big = rule(lambda x: Exp()(such(x, lambda v: v.shape[0] > 5)))(lambda x: x)
    small = graph(Exp()(X))
    assert rewrite(small, [is_big]) is small


def test_a_rule_for_a_class_covers_its_subclasses():
    from whet.ops.elementwise import Elementwise

    seen = []

    @rule_for(Elementwise)
    def look(value):
        seen.append(type(value.op))

    rewrite(graph(Exp()(X) + Y), [look])
    assert seen == [Exp, Add]


def test_explain_gives_the_deepest_reason():
    r = rule(lambda x: x * 0.5 * (1 + Erf()(x)))(lambda x: x)
    reason = explain(r, X * 0.5 * (1 + Erf()(Y)), {})
    assert "x would be two different Values" in reason
    assert explain(r, X * 0.5 * (1 + Erf()(X)), {}) == ""
    declined = rule(lambda x: Exp()(x))(lambda x: "it is Tuesday")
    assert "it is Tuesday" in explain(declined, Exp()(X), {})


def test_new_values_are_rewritten_until_no_rule_applies():
    halve = rule(lambda x, c: Sub()(x, number(c)))(lambda x, c: x - (c - 1.0) if c > 0 else None)
    drop = rule(lambda x: Sub()(x, 0))(lambda x: Neg()(x))
    assert rewrite(graph(X - 4.0), [drop, halve]).outputs[0] is Neg()(X)


def test_rules_that_undo_each_other_are_named():
    there = rule(lambda x: Exp()(x))(lambda x: Tanh()(x))
    back = rule(lambda x: Tanh()(x))(lambda x: Exp()(x))
    with pytest.raises(RuntimeError, match="rules undo each other"):
        rewrite(graph(Exp()(X)), [there, back])


def test_rules_that_grow_the_graph_are_stopped():
    grow = rule(lambda x: Exp()(x))(lambda x: Exp()(x + 1.0))
    with pytest.raises(RuntimeError, match="without end"):
        rewrite(graph(Exp()(X)), [grow])


def test_a_replacement_of_another_type_is_not_taken():
    r = rule(lambda x, y: x + y)(lambda x, y: x)
    wider = graph(given("row", 3) + X)
    assert rewrite(wider, [r]).outputs[0] is X, "the operand that has the shape is found"
    widest = graph(given("row", 3) + given("column", 2, 1))
    assert rewrite(widest, [r]) is widest


def test_names_of_all_matched_nodes_are_kept():
    inner, root = Exp()(X), Relu()(Exp()(X))
    from dataclasses import replace

    g = replace(graph(root), origins={inner: ("a",), root: ("b",)})
    r = rule(lambda x: Relu()(Exp()(x)))(lambda x: Tanh()(x))
    new = rewrite(g, [r])
    assert set(new.origins[new.outputs[0]]) == {"a", "b"}


def test_the_number_of_a_narrow_dtype():
    half = constant(0.5, "bfloat16")
    assert Matcher({}).number(half) == 0.5
    assert isinstance(half.op, Constant)
    assert Matcher({}).number(Mul()(X, Y)) is None
