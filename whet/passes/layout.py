"""Channels last everywhere: transposes sink towards the outputs until they cancel.

An importer writes a transpose before and after each operator that keeps its channels last.
Transposes sink through all others; two that meet become one, or none. What remains stands before
operators that need that order of axes: attention, a product of two activations, the outputs.
"""

from __future__ import annotations

from whet.ir.graph import Graph, Op, Value, make
from whet.ir.rewrite import rewrite
from whet.ir.types import TensorType
from whet.ops.movement import (
    Concat,
    Reshape,
    Transpose,
    reshape,
    transpose,
)
from whet.passes.axes import Order, carried, inverse, moves_only_ones
from whet.passes.movement import BROADCASTING, MOVEMENT, only
from whet.passes.sink import (
    ALONG_AXES,
    SETTLE,
    SINK,
    interleaved,
    moved_back,
    orders_of,
    through_merge,
    transposed_parts,
)
from whet.passes.unmerge import UNMERGE


def channels_last(graph: Graph) -> Graph:
    """Transposes sink through whatever can compute in another order of axes, and cancel.

    Those that only pass axes of size 1 move no element, but sink like others. Where a transposed
    value meets one that is not, the other is transposed too if that leaves fewer transposes in all.
    """
    graph = sunk(graph)
    while (joined := meetings_transposed(graph)) is not graph:
        better = sunk(joined)
        if transposes(better) >= transposes(graph):
            break
        graph = better
    return graph


def sunk(graph: Graph) -> Graph:
    return rewrite(
        graph, [*SINK, *UNMERGE, through_merge, interleaved, transposed_parts, *MOVEMENT]
    )


def settle_layout(graph: Graph) -> Graph:
    """What is left of transposes when they have sunk becomes a reshape, or part of another one."""
    return rewrite(graph, [*SETTLE, *SINK, *MOVEMENT])


def transposes(graph: Graph) -> int:
    """How many transposes move elements at each run."""
    found = (v for v in graph.values if isinstance(v.op, Transpose) and not v.is_static)
    return sum(not moves_only_ones(only(v).shape, v.op.order) for v in found)  # type: ignore[attr-defined]


def meetings_transposed(graph: Graph) -> Graph:
    """The graph with all inputs transposed of operators whose result, and one input, are."""
    wanted = orders_wanted(graph)
    done: dict[Value, Value] = {}
    for old in graph.values:
        results = make(old.op, tuple(i and done[i] for i in old.inputs))
        new = results[old.index]
        for order in wanted[old] if isinstance(old.op, MEETS) and len(results) == 1 else ():
            if order in orders_of(new.inputs, new.rank):
                new = _all_transposed(new, order)
                break
        done[old] = new
    return graph.replaced(done, {})


MEETS = (*BROADCASTING, Concat)


def _all_transposed(value: Value, order: Order) -> Value:
    """The same value as an operator on inputs transposed back, transposed by `order`."""
    moved = []
    for x in value.inputs:
        assert x is not None
        wide = reshape(x, *(1,) * (value.rank - x.rank), *x.shape)
        moved.append(x if not x.rank else moved_back(x, order) or transpose(wide, *inverse(order)))
    if isinstance(value.op, Concat):
        return transpose(Concat(order[value.op.axis])(*moved), *order)
    return transpose(value.op(*moved), *order)


def orders_wanted(graph: Graph) -> dict[Value, set[Order]]:
    """The orders such that a reader of a Value, or one further down, undoes a transpose by them."""
    wanted: dict[Value, set[Order]] = {v: set() for v in graph.values}
    for value in reversed(graph.values):
        if value.is_static or not isinstance(value.op, (*SAME_AXES, Transpose, Reshape)):
            continue
        for x in value.inputs:
            if x is not None and isinstance(x.type, TensorType):
                wanted[x] |= _wanted_of(x, value, wanted[value])
    return wanted


def _wanted_of(x: Value, reader: Value, wanted: set[Order]) -> set[Order]:
    """What a reader of x, and the readers of its result, want of x."""
    if isinstance(reader.op, Transpose):
        return {inverse(reader.op.order)}
    if isinstance(reader.op, Reshape):
        found = (carried(reader.shape, x.shape, order) for order in wanted)
        return {order for order in found if order is not None}
    return wanted if x.rank == reader.rank else set()


SAME_AXES: tuple[type[Op], ...] = (*MEETS, *ALONG_AXES)
