"""Sizes against brute force: arithmetic, proofs and text never change what an expression is
worth."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.ir.atoms import Undecided
from whet.ir.size_text import parse
from whet.ir.sizes import (
    Expr,
    Size,
    bounds,
    ceil_divide,
    coefficient,
    floor_divide,
    is_different,
    is_equal,
    is_less,
    maximum,
    minimum,
    modulo,
    product,
    substitute,
    symbol,
)

NAMES = ("n", "m", "batch", "x.0")
settings.register_profile("sizes", max_examples=300, deadline=None)
settings.load_profile("sizes")


@dataclass(frozen=True)
class Tree:
    """An expression as it was written, next to the Size made of it."""

    size: Size
    worth: Callable[[Mapping[str, int]], int]


def leaf(name: str) -> Tree:
    return Tree(symbol(name), lambda v: v[name])


def number(n: int) -> Tree:
    return Tree(n, lambda v: n)


def binary(make: Callable[..., Any], plain: Callable[[int, int], int]) -> Callable[..., Tree]:
    return lambda a, b: Tree(make(a.size, b.size), lambda v: plain(a.worth(v), b.worth(v)))


ADD, SUB, MUL = (binary(f, f) for f in (operator.add, operator.sub, operator.mul))
MIN, MAX = binary(minimum, min), binary(maximum, max)


def by(make: Callable[..., Any], plain: Callable[[int, int], int]) -> Callable[[Tree, int], Tree]:
    return lambda a, d: Tree(make(a.size, d), lambda v: plain(a.worth(v), d))


DIVIDE, MODULO = by(floor_divide, operator.floordiv), by(modulo, operator.mod)
CEILING = by(ceil_divide, lambda a, b: -(-a // b))
POSITIVE = st.integers(1, 12)
LEAVES = st.one_of(st.sampled_from(NAMES).map(leaf), st.integers(-9, 9).map(number))


def wider(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    pairs = (st.builds(f, inner, inner) for f in (ADD, SUB, MUL, MIN, MAX))
    return st.one_of(*pairs, *(st.builds(f, inner, POSITIVE) for f in (DIVIDE, MODULO, CEILING)))


TREES = st.recursive(LEAVES, wider, max_leaves=8)
VALUES = st.fixed_dictionaries({name: st.integers(0, 40) for name in NAMES})


def value(size: Size, values: Mapping[str, int]) -> int:
    found = substitute(size, values)
    assert isinstance(found, int), f"{size} is {found}"
    return found


@given(TREES, VALUES)
def test_worth(tree: Tree, values: dict[str, int]) -> None:
    """What an expression is simplified to is worth what was written."""
    assert value(tree.size, values) == tree.worth(values)


@given(TREES, TREES, VALUES)
def test_operators(a: Tree, b: Tree, values: dict[str, int]) -> None:
    x, y = a.worth(values), b.worth(values)
    for plain in (operator.add, operator.sub, operator.mul):
        assert value(plain(a.size, b.size), values) == plain(x, y)
    assert value(-a.size, values) == -x
    assert value(3 - a.size, values) == 3 - x
    assert value(product([a.size, b.size, 2]), values) == x * y * 2


@given(TREES, TREES, VALUES)
def test_division_by_expressions(a: Tree, b: Tree, values: dict[str, int]) -> None:
    """Divisors may be expressions: where they are worth 1 or more, all is as with numbers."""
    x, y = a.worth(values), b.worth(values)
    if y < 1 or b.size == 0 or bounds(b.size)[1] < 1:
        return
    assert value(floor_divide(a.size, b.size), values) == x // y
    assert value(modulo(a.size, b.size), values) == x % y
    assert value(ceil_divide(a.size, b.size), values) == -(-x // y)


@given(TREES, TREES, POSITIVE)
def test_exact_quotients_vanish(a: Tree, b: Tree, d: int) -> None:
    assert floor_divide(a.size * d, d) == a.size
    assert modulo(a.size * d, d) == 0
    assert floor_divide(a.size * d + b.size * d, d) == a.size + b.size
    assert floor_divide(a.size, d) * d + modulo(a.size, d) is not None


def test_divisions_of_divisions_have_one_form() -> None:
    n = symbol("n")
    assert floor_divide(floor_divide(2 * n, 3), 2) == floor_divide(n, 3)
    assert floor_divide(floor_divide(3 * n + 3, 7), 6) == floor_divide(n + 1, 14)


@given(TREES)
def test_text(tree: Tree) -> None:
    """What is printed reads back as the same expression, and is an expression in Python too."""
    assert parse(str(tree.size)) == tree.size
    ast.parse(str(tree.size), mode="eval")


@given(TREES, VALUES)
def test_text_in_python(tree: Tree, values: dict[str, int]) -> None:
    """Text and worth agree under Python's own precedence."""
    names = {name: v for name, v in values.items() if name.isidentifier()}
    text = str(tree.size).replace("'x.0'", str(values["x.0"]))
    assert eval(text, {"min": min, "max": max, **names}) == tree.worth(values)


@given(TREES, VALUES, st.sampled_from(NAMES))
def test_substituting_in_steps(tree: Tree, values: dict[str, int], first: str) -> None:
    partly = substitute(tree.size, {first: values[first]})
    assert value(partly, values) == tree.worth(values)
    renamed = substitute(tree.size, {name: symbol(name + "'") for name in NAMES})
    assert value(renamed, {name + "'": v for name, v in values.items()}) == tree.worth(values)


@given(TREES, TREES, TREES, VALUES)
def test_substituting_expressions(a: Tree, b: Tree, c: Tree, values: dict[str, int]) -> None:
    """All names at once, also where what is put in uses them."""
    x, y = b.worth(values), c.worth(values)
    if x < 0 or y < 0:
        return  # a named size stands for what is not negative
    swapped = substitute(a.size, {"n": b.size, "m": c.size})
    assert value(swapped, values) == a.worth({**values, "n": x, "m": y})


@given(TREES, VALUES)
def test_bounds(tree: Tree, values: dict[str, int]) -> None:
    low, high = bounds(tree.size)
    assert low <= tree.worth(values) <= high


@given(TREES, TREES, VALUES)
def test_proofs(a: Tree, b: Tree, values: dict[str, int]) -> None:
    """What is proved holds; nothing is both."""
    x, y = a.worth(values), b.worth(values)
    assert not is_less(a.size, b.size) or x < y
    assert not is_equal(a.size, b.size) or x == y
    assert not is_different(a.size, b.size) or x != y


@given(TREES, st.integers(0, 20), st.integers(0, 20), VALUES)
def test_proofs_from_ranges(tree: Tree, low: int, width: int, values: dict[str, int]) -> None:
    """A size with a range, and one that is bounded by another."""
    n = symbol("n", low, low + width)
    within = {**values, "n": low + values["n"] % (width + 1)}
    size = substitute(tree.size, {"n": n})
    at_least, at_most = bounds(size)
    assert at_least <= value(size, within) <= at_most
    part = symbol("part", 0, symbol("whole"))
    assert is_less(part, symbol("whole") + 1)
    assert is_less(-1, symbol("whole") - part)
    assert not is_less(part, symbol("whole"))


@given(TREES, VALUES, st.sampled_from(NAMES))
def test_coefficients(tree: Tree, values: dict[str, int], name: str) -> None:
    """Where an expression is linear in a name, a step of it changes the expression by the
    coefficient."""
    found = coefficient(tree.size, name)
    if found is None:
        return
    step = tree.worth({**values, name: values[name] + 1}) - tree.worth(values)
    assert value(found, values) == step


@given(st.lists(TREES, min_size=1, max_size=4), VALUES)
def test_extremes_of_many(trees: list[Tree], values: dict[str, int]) -> None:
    sizes, worths = [t.size for t in trees], [t.worth(values) for t in trees]
    assert value(minimum(*sizes), values) == min(worths)
    assert value(maximum(*sizes), values) == max(worths)


@given(TREES, TREES)
def test_equal_expressions_are_equal(a: Tree, b: Tree) -> None:
    assert a.size + b.size == b.size + a.size and hash(a.size + b.size) == hash(b.size + a.size)
    assert a.size * b.size == b.size * a.size
    assert (a.size + b.size) - b.size == a.size
    assert (a.size + b.size) * 2 == 2 * a.size + 2 * b.size
    assert minimum(a.size, b.size) == minimum(b.size, a.size)


N, M = symbol("n"), symbol("m")


@pytest.mark.parametrize(
    "size, text",
    [
        (2 * N - N, "n"),
        (N * 0, "0"),
        (N - N + 3, "3"),
        ((N + 1) * (N - 1) - N * N, "-1"),
        (floor_divide(2 * N + 1, 2), "n"),
        (floor_divide(4 * N + 6, 4), "n+1"),
        (floor_divide(6 * N + 4, 4), "(n//2)+n+1"),
        (floor_divide(floor_divide(N, 2), 3), "(n//6)"),
        (floor_divide(N * M, N), "m"),
        (modulo(4 * N + 1, 4), "1"),
        (maximum(N, -1), "n"),
        (minimum(N, N + 1), "n"),
        (maximum(0, N - 5, N - 3), "max(0, n-3)"),
        (floor_divide(N + M, N + M), "1"),
        (symbol("a b") + 1, "'a b'+1"),
    ],
)
def test_forms(size: Size, text: str) -> None:
    assert str(size) == text
    assert parse(text) == size


def test_what_cannot_be_decided_is_not_guessed() -> None:
    for question in (bool, int, range, lambda size: [0][size]):
        with pytest.raises(Undecided, match="n is not known"):
            question(N)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "n +",
        "n ** 2",
        "n / 2",
        "f(n)",
        "__import__('os')",
        "n.a",
        "[n]",
        "1.5",
        "True",
        "n if m else 1",
        "(" * 500 + "n" + ")" * 500,
        "-" * 100_000 + "1",
        "max(n=1)",
        "lambda: n",
        "n < m",
        "'a' 'b",
        "\0",
        "n // 0",
        "n % (m - m)",
        "min()",
        "max(*n)",
        "*".join(["(a+b+c+d+e+f+g+h)"] * 40),
    ],
)
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse(text)


def test_large_numbers_stay_exact() -> None:
    size = (N + 2**40) * 2**30
    assert isinstance(size, Expr)
    assert value(size, {"n": 2**62}) == (2**62 + 2**40) * 2**30
    assert value(floor_divide(size, 2**30), {"n": 5}) == 2**40 + 5
    low, high = bounds(substitute(size, {"n": symbol("n", 0, 2**62)}))
    assert low <= 2**70 <= high


def test_expressions_stay_small() -> None:
    """A few names may make more terms than there is memory for."""
    many = symbol("a") + symbol("b") + symbol("c") + symbol("d") + symbol("e")
    size: Size = many
    with pytest.raises(Undecided, match="terms"):
        for _ in range(100):
            size = size * many
    size = N
    with pytest.raises(Undecided, match="nests"):
        for _ in range(1000):
            size = floor_divide(size + 1, 2) * 3
    chain: Size = N
    with pytest.raises(Undecided, match="nests"):
        for _ in range(1000):
            chain = maximum(floor_divide(chain, 2) + 1, 3)


def test_the_least_of_several_never_matters_beside_one_of_them_in_a_greatest():
    n, m = symbol("n"), symbol("m")
    assert maximum(minimum(64, n), n) == n
    assert maximum(maximum(minimum(64, n), m), n) == maximum(m, n)
    assert minimum(maximum(n, m), n) == n
    assert minimum(minimum(n, m), 3) == minimum(3, n, m)
