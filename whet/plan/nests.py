"""Operators as loop nests of their own: joined, scattered and running ones, which no single
expression gives.

Each operator has a list of phases; a phase is a kernel, and sees all that the one before it stored.
"""

from __future__ import annotations

from collections.abc import Callable

from whet.ir.graph import Op, Value
from whet.ir.sizes import Size
from whet.ops import elementwise as ew
from whet.ops.gather import ScatterElements, ScatterND
from whet.ops.movement import Concat
from whet.ops.reduce import Cumulative
from whet.plan.kernel import Apply, Axis, Choice, Expression, Literal, Nest, Select, Store
from whet.plan.lower import Indices, Lowering, flatten, loop_index, within

Phase = Callable[[Lowering, Value], list[Nest]]

MOST_WOVEN = 4
"""Parts that are stored together where their elements alternate."""

OUTPUT = -1  # the output's buffer, until it is known how many inputs there are

COMBINE: dict[str, Op] = {"sum": ew.Add(), "prod": ew.Mul(), "max": ew.Max(), "min": ew.Min()}


def elements(lowering: Lowering, root: Value) -> list[Nest]:
    """One nest over the elements of a result that an expression gives."""
    axes, index = axes_of(root.shape)
    return [_nest(axes, root, index, lowering.pull(root, index))]


def axes_of(shape: Indices) -> tuple[tuple[Axis, ...], Indices]:
    """Loops over a tensor's elements, and their indices."""
    axes = tuple(Axis(f"i{n}", size) for n, size in enumerate(shape))
    return axes, tuple(loop_index(a.name, a.size) for a in axes)


def _nest(axes: tuple[Axis, ...], root: Value, at: Indices, element: Expression) -> Nest:
    return Nest(axes, (Store(OUTPUT, flatten(at, root.shape), element),))


def _concat(lowering: Lowering, root: Value) -> list[Nest]:
    """A nest for each part, so that no element has to ask which part it belongs to."""
    axis = root.op.axis % root.rank  # type: ignore[attr-defined]
    if len(root.inputs) <= MOST_WOVEN and all(i and _is_one(i.shape[axis:]) for i in root.inputs):
        return [_stacked(lowering, root)]
    nests, start = [], 0
    for part in root.inputs:
        assert part is not None
        axes, index = axes_of(part.shape)
        at = (*index[:axis], index[axis] + start, *index[axis + 1 :])
        nests.append(_nest(axes, root, at, lowering.pull(part, index)))
        start = start + part.shape[axis]
    return nests


def _is_one(shape: Indices) -> bool:
    return all(size == 1 for size in shape)


def _stacked(lowering: Lowering, root: Value) -> Nest:
    """A nest whose turns store an element of each part: neighbours, where parts alternate."""
    parts = [part for part in root.inputs if part is not None]
    axes, index = axes_of(parts[0].shape)
    axis = root.op.axis % root.rank  # type: ignore[attr-defined]
    places = ((*index[:axis], k, *index[axis + 1 :]) for k in range(len(parts)))
    stores = (
        Store(OUTPUT, flatten(at, root.shape), lowering.pull(part, index))
        for at, part in zip(places, parts)
    )
    return Nest(axes, tuple(stores))


def _first_input(lowering: Lowering, root: Value) -> list[Nest]:
    (data, *_) = root.inputs
    assert data is not None
    axes, index = axes_of(root.shape)
    return [_nest(axes, root, index, lowering.pull(data, index))]


def _scatter_elements(lowering: Lowering, root: Value) -> list[Nest]:
    """Turns that differ in another axis than the scattered one never meet."""
    op, (_, indices, updates) = root.op, root.inputs
    assert isinstance(op, ScatterElements) and indices is not None and updates is not None
    axis = op.axis % root.rank
    axes, index = axes_of(indices.shape)
    place, choice = _choice("s0", lowering.pull(indices, index), root.shape[axis])
    at = (*index[:axis], place, *index[axis + 1 :])
    update = lowering.pull(updates, index)
    return [_scattered(axes, root, at, update, op.kind, (choice,), (axes[axis].name,))]


def _scatter_nd(lowering: Lowering, root: Value) -> list[Nest]:
    """Slices at tuples of indices: tuples may be equal, elements of a slice never meet."""
    op, (_, indices, updates) = root.op, root.inputs
    assert isinstance(op, ScatterND) and indices is not None and updates is not None
    axes, index = axes_of(updates.shape)
    depth, lead = indices.shape[-1], indices.rank - 1
    assert isinstance(depth, int)
    found = [
        _choice(f"s{k}", lowering.pull(indices, (*index[:lead], k)), root.shape[k])
        for k in range(depth)
    ]
    at = (*(place for place, _ in found), *index[lead:])
    choices = tuple(choice for _, choice in found)
    ordered = tuple(a.name for a in axes[:lead])
    update = lowering.pull(updates, index)
    return [_scattered(axes, root, at, update, op.kind, choices, ordered)]


def _choice(name: str, value: Expression, limit: Size) -> tuple[Size, Choice]:
    return loop_index(name, limit), Choice(name, value, limit)


def _scattered(
    axes: tuple[Axis, ...],
    root: Value,
    at: Indices,
    update: Expression,
    kind: str | None,
    choices: tuple[Choice, ...],
    ordered: tuple[str, ...],
) -> Nest:
    combine = COMBINE[kind] if kind else None
    store = Store(OUTPUT, flatten(at, root.shape), update, combine, choices)
    return Nest(axes, (store,), ordered)


def _cumulative(lowering: Lowering, root: Value) -> list[Nest]:
    """Each element from the one stored before it, in order along the axis."""
    op, (x,) = root.op, root.inputs
    assert isinstance(op, Cumulative) and x is not None
    axis = op.axis % root.rank
    axes, index = axes_of(root.shape)
    size, step = root.shape[axis], index[axis]

    def moved(i: Size) -> Indices:
        along = size - 1 - i if op.reverse else i
        return (*index[:axis], along, *index[axis + 1 :])

    first = Literal(1 if op.kind == "prod" else 0, root.dtype)
    is_later = within([(step - 1, size)])
    fresh = lowering.pull(x, moved(step - 1 if op.exclusive else step))
    before = lowering.load(root, moved(step - 1))
    total: Expression = Apply(COMBINE[op.kind], (before, fresh), root.dtype)
    if is_later:
        total = Select(is_later, total, first if op.exclusive else fresh, root.dtype)
    elif op.exclusive:
        total = first
    return [
        Nest(axes, (Store(OUTPUT, flatten(moved(step), root.shape), total),), (axes[axis].name,))
    ]


NESTS: dict[type[Op], tuple[Phase, ...]] = {
    Concat: (_concat,),
    ScatterElements: (_first_input, _scatter_elements),
    ScatterND: (_first_input, _scatter_nd),
    Cumulative: (_cumulative,),
}
"""Operators with nests of their own, in phases."""
