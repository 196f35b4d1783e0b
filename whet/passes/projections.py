"""Queries, keys and values from one product, where all are products of one input with weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from whet.ir.graph import Graph, Value, constant
from whet.ir.match import Matcher
from whet.ir.rewrite import Built, rewrite, rule
from whet.ir.sizes import product
from whet.ops.attention import Attention
from whet.ops.contract import MatMul
from whet.ops.elementwise import Add
from whet.ops.movement import Concat, Reshape, Transpose, broadcast_to, reshape, split
from whet.passes.movement import only


def merge_projections(graph: Graph) -> Graph:
    """One product gives the queries, keys and values of an attention, which reads slices of it.

    Their weights are joined, as an expression over weights. It pays because attention reads slices
    as they lie: a larger product keeps more workers busy, and its input is read once.
    """
    return rewrite(graph, [one_product])


@dataclass(frozen=True)
class Projection:
    """x @ w + b, moved by `move`."""

    x: Value
    w: Value
    b: Value | None
    move: Callable[[Value], Value]


def projection(value: Value) -> Projection | None:
    """A Value as a movement of a product with a weight, perhaps plus a bias, or None."""
    *steps, last = _steps(value)
    bias: Value | None = None
    if steps and isinstance(steps[-1].op, Add):
        _, bias = _product_and_bias(steps.pop())
    if last.op != MatMul():
        return None
    x, w = last.inputs
    if x is None or w is None or not w.is_static or w.rank != 2:
        return None

    def move(y: Value) -> Value:
        for step in reversed(steps):
            y = step.op(y)
        return y

    return Projection(x, w, bias, move)


def _product_and_bias(value: Value) -> tuple[Value, Value | None]:
    a, b = value.inputs
    assert a is not None
    assert b is not None
    for x, bias in ((a, b), (b, a)):
        if isinstance(x.op, MatMul) and bias.is_static and product(bias.shape[:-1]) == 1:
            return x, bias
    return value, None


@rule(
    lambda q, k, v, s, c, left, right, o: Attention(s, c, left, right, o)(q, k, v),
    lambda q, k, v, m, s, c, left, right, o: Attention(s, c, left, right, o)(q, k, v, m),
)
def one_product(q: Value, k: Value, v: Value, root: Value, matcher: Matcher) -> Built:
    found = [projection(x) for x in (q, k, v)]
    if any(matcher.uses.get(step, 1) > 1 for x in (q, k, v) for step in _steps(x)):
        return "keys or values are read elsewhere too"
    parts = [p for p in found if p is not None]
    if len(parts) < 3 or any(p.x is not parts[0].x for p in parts):
        return "queries, keys and values are no products of one input with weights"
    if len({id(p.w) for p in parts}) == 1:
        return "they are one product already"
    joined = MatMul()(parts[0].x, Concat(1)(*(p.w for p in parts)))
    if any(p.b is not None for p in parts):
        joined = joined + Concat(0)(*map(_bias, parts))
    slices = split(joined, tuple(p.w.shape[1] for p in parts), joined.rank - 1)
    moved = [p.move(y) for p, y in zip(parts, slices)]
    return root.op(*moved, *root.inputs[3:])


def _steps(value: Value) -> Iterator[Value]:
    """The movement on top of a product, the bias and the product."""
    while isinstance(value.op, Transpose | Reshape):
        yield value
        value = only(value)
    yield value
    if isinstance(value.op, Add):
        yield _product_and_bias(value)[0]


def _bias(part: Projection) -> Value:
    """The bias as a vector; zeros where there is none."""
    width = part.w.shape[1]
    if part.b is None:
        return broadcast_to(constant(0.0, part.w.dtype), width)
    return broadcast_to(reshape(part.b, part.b.shape[-1] if part.b.rank else 1), width)
