"""Loop nests in their simplest form: indices split where maps divide them, then merged where none
tells them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

from whet.ir.atoms import Call
from whet.ir.sizes import Expr, Size, bounds, coefficient, is_less, substitute, symbol
from whet.plan.kernel import (
    Apply,
    Axis,
    Choice,
    Expression,
    Index,
    Let,
    Load,
    Nest,
    Range,
    Reduction,
    Select,
    walk,
)
from whet.plan.lower import loop_index, within


def simplify(nest: Nest) -> Nest:
    """An equal nest with as few, as plainly indexed loops as possible."""
    nest = replace(nest, axes=tuple(a for a in nest.axes if a.size != 1))
    for _ in range(8):
        split = _split_one(nest)
        if split is None:
            break
        nest = split
    nest = _map_sizes(nest, nest.axes, lambda size: size)  # joins the loops of reductions
    return merge(nest)


MOST_PIECES, LEAST_PIECE = 64, 8
MOST_OUTER = 3
"""Pieces of a loop around others: what is before the elements, these, and what is behind them."""


def cut(nest: Nest) -> list[Nest]:
    """The nest in pieces of its loops, where tests ask in which part of them an element lies:
    parts that are joined, or what fills a tensor up around its elements. In a piece the answer is
    known."""
    for axis in nest.axes:
        pieces = _pieces(nest, axis)
        if len(pieces) > 1:
            return [part for low, high in pieces for part in cut(_piece(nest, axis, low, high))]
    return [nest]


def _pieces(nest: Nest, axis: Axis) -> list[tuple[int, int]]:
    """The pieces of one loop; none where it had better stay whole."""
    if not isinstance(axis.size, int) or axis.size == 0 or axis.name in nest.ordered:
        return []
    nodes = [node for store in nest.stores for node in walk(store.value)]
    is_inner = axis is nest.axes[-1]
    if any(isinstance(n, Reduction) and not (is_inner and axis.name in n.symbols) for n in nodes):
        return []  # what the pieces have in common would be computed for each
    ranges = {r for node in nodes if isinstance(node, Select) for r in node.ranges}
    ends = sorted({0, axis.size, *(end for r in ranges for end in _ends(r, axis, is_inner))})
    pieces = list(pairwise(ends))
    most, least = (MOST_PIECES, LEAST_PIECE) if is_inner else (MOST_OUTER, 1)
    return pieces if len(pieces) <= most and min(b - a for a, b in pieces) >= least else []


def _ends(of: Range, axis: Axis, is_inner: bool) -> Iterator[int]:
    """Where along the loop the answer to a test becomes known, or is no longer; in the innermost
    one, where it changes."""
    index, limit = of
    step = coefficient(index, axis.name)
    if not isinstance(step, int) or step < 1 or not isinstance(limit, int):
        return
    rest = bounds(substitute(index, {axis.name: 0}))
    if any(map(math.isinf, rest)) or not isinstance(axis.size, int):
        return
    if is_inner and rest[0] != rest[1]:
        return
    low, high = map(int, rest)
    turns = (-(x // step) for x in (low, high, low - limit, high - limit))
    yield from (end for end in turns if 0 < end < axis.size)


def _piece(nest: Nest, axis: Axis, low: int, high: int) -> Nest:
    short = Axis(axis.name, high - low)
    values = {axis.name: loop_index(short.name, short.size) + low}
    axes = tuple(short if a is axis else a for a in nest.axes if a is not axis or short.size != 1)
    return merge(_map_sizes(nest, axes, partial(substitute, values=values)))


def sizes_of(nest: Nest) -> Iterator[Size]:
    """Every index expression of a nest."""
    for store in nest.stores:
        yield store.offset
        yield from sizes_in(store.value)
        for choice in store.choices:
            yield choice.limit
            yield from sizes_in(choice.value)


def sizes_in(expression: Expression) -> Iterator[Size]:
    """Every index expression of an expression."""
    for node in walk(expression):
        match node:
            case Load(offset=offset):
                yield offset
            case Index(size=size):
                yield size
            case Select(ranges=ranges):
                for i, n in ranges:
                    yield i
                    yield n
            case Let(limit=limit):
                yield limit


def rewrite_sizes(expression: Expression, change: Callable[[Size], Size]) -> Expression:
    """The expression with each of its index expressions replaced."""
    memo: dict[int, Expression] = {}

    def visit(node: Expression) -> Expression:
        if id(node) not in memo:
            memo[id(node)] = _rebuild(node, visit, change)
        return memo[id(node)]

    for node in walk(expression):
        visit(node)
    return visit(expression)


def replace_nodes(
    expression: Expression, change: Callable[[Expression], Expression | None]
) -> Expression:
    """The expression with what `change` gives in place of nodes, unless it gives None; the
    outermost first."""
    memo: dict[int, Expression] = {}

    def visit(node: Expression) -> Expression:
        if id(node) not in memo:
            memo[id(node)] = change(node) or _rebuild(node, visit, lambda size: size)
        return memo[id(node)]

    return visit(expression)


def _rebuild(
    node: Expression, visit: Callable[[Expression], Expression], change: Callable[[Size], Size]
) -> Expression:
    match node:
        case Load(buffer, offset, dtype):
            return Load(buffer, change(offset), dtype)
        case Index(size, dtype):
            return Index(change(size), dtype)
        case Apply(op, args, dtype):
            return Apply(op, tuple(visit(a) for a in args), dtype)
        case Select(ranges, inside, outside, dtype):
            asked = [(change(i), change(n)) for i, n in ranges]
            if any(is_less(i, 0) or is_less(n - 1, i) for i, n in asked):
                return visit(outside)
            kept = within(asked)
            return Select(kept, visit(inside), visit(outside), dtype) if kept else visit(inside)
        case Let(name, value, limit, body, dtype):
            return Let(name, visit(value), change(limit), visit(body), dtype)
        case Reduction(kind, axes, body, dtype):
            return merge_reduction(Reduction(kind, axes, visit(body), dtype))
    return node


def merge_reduction(reduction: Reduction) -> Reduction:
    """The reduction with loops split where maps divide them, and neighbours joined where every map
    steps evenly from one to the next."""
    axes, body = _split_axes(reduction)
    place = 0
    while place + 1 < len(axes) and not reduction.kind.startswith("arg"):
        outer, inner = axes[place], axes[place + 1]
        if not _steps_evenly(sizes_in(body), outer, inner):
            place += 1
            continue
        merged = Axis(outer.name, outer.size * inner.size)
        body = rewrite_sizes(body, _joining(outer, inner, merged))
        axes = (*axes[:place], merged, *axes[place + 2 :])
    return (
        reduction
        if axes == reduction.axes
        else Reduction(reduction.kind, axes, body, reduction.dtype)
    )


def _split_one(nest: Nest) -> Nest | None:
    """One loop as two where some index map divides its index by a factor of its size."""
    for place, axis in enumerate(nest.axes):
        if not isinstance(axis.size, int):
            continue
        factor = _divisor(sizes_of(nest), axis)
        if factor is None:
            continue
        outer, inner, by = _halves(axis, factor)
        axes = (*nest.axes[:place], outer, inner, *nest.axes[place + 1 :])
        if axis.name in nest.ordered:
            nest = replace(nest, ordered=(*nest.ordered, outer.name, inner.name))
        return _map_sizes(nest, axes, partial(substitute, values={axis.name: by}))
    return None


def _split_axes(reduction: Reduction) -> tuple[tuple[Axis, ...], Expression]:
    """The loops and the body of a reduction, each loop as two where a map divides its index."""
    axes, body = list(reduction.axes), reduction.body
    place = 0
    while place < len(axes) and not reduction.kind.startswith("arg"):
        axis = axes[place]
        factor = _divisor(sizes_in(body), axis) if isinstance(axis.size, int) else None
        if factor is None:
            place += 1
            continue
        outer, inner, by = _halves(axis, factor)
        body = rewrite_sizes(body, partial(substitute, values={axis.name: by}))
        axes[place : place + 1] = outer, inner
    return tuple(axes), body


def _halves(axis: Axis, factor: int) -> tuple[Axis, Axis, Size]:
    """A loop as two, and its index in terms of theirs."""
    assert isinstance(axis.size, int)
    outer, inner = Axis(f"{axis.name}a", axis.size // factor), Axis(f"{axis.name}b", factor)
    by = loop_index(outer.name, outer.size) * factor + loop_index(inner.name, inner.size)
    return outer, inner, by


def _divisor(sizes: Iterable[Size], axis: Axis) -> int | None:
    """The largest number that divides the loop's size and by which a map divides (a multiple of)
    its index."""
    found: list[int] = []
    assert isinstance(axis.size, int)
    for size in sizes:
        for call in _calls(size):
            if call.function not in ("//", "%") or not isinstance(call.args[1], int):
                continue
            step = coefficient(call.args[0], axis.name)
            if not isinstance(step, int) or step == 0:
                continue
            by = call.args[1]
            factor = by // abs(step) if by % abs(step) == 0 else 0
            if 1 < factor < int(axis.size) and int(axis.size) % factor == 0:
                found.append(factor)
    return max(found, default=None)


def _calls(size: Size) -> Iterator[Call]:
    if not isinstance(size, Expr):
        return
    for mono, _ in size.terms:
        for atom in mono:
            if isinstance(atom, Call):
                yield atom
                for arg in atom.args:
                    yield from _calls(arg)


def merge(nest: Nest, kept: int = 0) -> Nest:
    """Neighbouring loops as one where every index map steps evenly; the `kept` innermost stay as
    they are."""
    place = 0
    while place + 1 < len(nest.axes) - kept:
        outer, inner = nest.axes[place], nest.axes[place + 1]
        is_ordered = outer.name in nest.ordered or inner.name in nest.ordered
        if is_ordered or not _steps_evenly(sizes_of(nest), outer, inner):
            place += 1
            continue
        merged = Axis(outer.name, outer.size * inner.size)
        change = _joining(outer, inner, merged)
        axes = (*nest.axes[:place], merged, *nest.axes[place + 2 :])
        nest = _map_sizes(nest, axes, change)
    return nest


def _map_sizes(nest: Nest, axes: tuple[Axis, ...], change: Callable[[Size], Size]) -> Nest:
    stores = tuple(
        replace(
            s,
            offset=change(s.offset),
            value=rewrite_sizes(s.value, change),
            choices=tuple(
                Choice(c.name, rewrite_sizes(c.value, change), change(c.limit)) for c in s.choices
            ),
        )
        for s in nest.stores
    )
    return replace(nest, axes=axes, stores=stores)


def _joining(outer: Axis, inner: Axis, merged: Axis) -> Callable[[Size], Size]:
    """outer*inner.size + inner is the merged index: the outer coefficient is the inner one times
    that size."""
    index = loop_index(merged.name, merged.size)

    def change(size: Size) -> Size:
        step = coefficient(size, inner.name)
        assert step is not None
        return substitute(size, {outer.name: 0, inner.name: 0}) + index * step

    return change


def _steps_evenly(sizes: Iterator[Size], outer: Axis, inner: Axis) -> bool:
    for size in sizes:
        a, b = coefficient(size, outer.name), coefficient(size, inner.name)
        if a is None or b is None or a != b * inner.size:
            return False
    return True


def is_affine(size: Size, names: frozenset[str]) -> bool:
    """Whether an index expression is linear in each of the loop indices."""
    return all(coefficient(size, name) is not None for name in names)


def index_symbol(axis: Axis) -> Size:
    """The index of a loop as a size."""
    return symbol(axis.name, 0, axis.size - 1)
