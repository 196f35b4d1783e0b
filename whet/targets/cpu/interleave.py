"""Nests whose neighbours in memory come from few places: pixels from planes, shuffled channels.

Lanes run along the loop outside of the few; their vectors are woven together before they are
stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from whet.ir.sizes import coefficient, substitute
from whet.plan.kernel import Apply, Axis, Expression, Index, Literal, Load, Nest, Select, walk
from whet.plan.loops import replace_nodes, rewrite_sizes
from whet.targets.cpu.llvm import Function, split_type

FEW = range(2, 5)


def interleaved(nest: Nest, lanes: int) -> tuple[Nest, Axis] | None:
    """The nest with one store for each of few neighbours, and the loop along which lanes run."""
    nest = _written_out(nest)
    first, *others = nest.stores
    if len(nest.stores) not in FEW or nest.ordered:
        return None
    if any(s.choices or s.combine or s.buffer != first.buffer for s in nest.stores):
        return None
    if any(s.offset != first.offset + k for k, s in enumerate(others, 1)):
        return None
    for axis in nest.axes:
        wide = isinstance(axis.size, int) and axis.size >= lanes
        if wide and coefficient(first.offset, axis.name) == len(nest.stores):
            return (nest, axis) if all(_runs_along(s.value, axis) for s in nest.stores) else None
    return None


def _runs_along(value: Expression, axis: Axis) -> bool:
    """Whether what neighbouring lanes load lies side by side, or is the same."""
    nodes = list(walk(value))
    if not all(isinstance(n, Load | Literal | Apply | Index | Select) for n in nodes):
        return False
    return all(coefficient(n.offset, axis.name) in (0, 1) for n in nodes if isinstance(n, Load))


def _written_out(nest: Nest) -> Nest:
    """A loop of few turns over neighbours in memory as a store for each."""
    if len(nest.stores) != 1:
        return nest
    (store,) = nest.stores
    for axis in nest.axes:
        if axis.size in FEW and coefficient(store.offset, axis.name) == 1:
            rest = tuple(a for a in nest.axes if a is not axis)
            turns = (partial(substitute, values={axis.name: k}) for k in range(int(axis.size)))
            stores = (
                replace(
                    store,
                    offset=at(store.offset),
                    value=replace_nodes(rewrite_sizes(store.value, at), _decided),
                )
                for at in turns
            )
            return replace(nest, axes=rest, stores=tuple(stores))
    return nest


def _decided(node: Expression) -> Expression | None:
    """The side of a Select that is known to be chosen."""
    if not isinstance(node, Select):
        return None
    known = [0 <= i < n for i, n in node.ranges if isinstance(i, int) and isinstance(n, int)]
    if not all(known):
        return replace_nodes(node.outside, _decided)
    if len(known) == len(node.ranges):
        return replace_nodes(node.inside, _decided)
    return None


def woven(f: Function, type: str, values: Sequence[str]) -> str:
    """Vectors of one type as one: the first lanes of all, then the second ones."""
    count, lanes = len(values), split_type(type)[1]
    if count == 4:
        return woven(f, *_pairs(f, type, values))
    if count == 2:
        order = [k * lanes + i for i in range(lanes) for k in range(2)]
        return f.shuffle(type, values[0], values[1], order)
    joined, wide = _joined(f, type, values[0], values[1])
    third, _ = _joined(f, type, values[2], "poison")
    order = [k * lanes + i for i in range(lanes) for k in range(3)]
    return f.shuffle(wide, joined, third, order)


def _pairs(f: Function, type: str, values: Sequence[str]) -> tuple[str, list[str]]:
    """Of four vectors the first with the third, and the second with the fourth."""
    element, lanes = split_type(type)
    pairs = [woven(f, type, (values[k], values[k + 2])) for k in range(2)]
    return f"<{2 * lanes} x {element}>", pairs


def _joined(f: Function, type: str, a: str, b: str) -> tuple[str, str]:
    """Two vectors end to end, and the type of that."""
    element, lanes = split_type(type)
    return f.shuffle(type, a, b, range(2 * lanes)), f"<{2 * lanes} x {element}>"
