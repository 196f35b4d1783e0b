"""Kernels for the very sizes met, from kernels that serve every size in a range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from whet.ir.sizes import Size, substitute, symbol
from whet.ir.types import FLOATS
from whet.plan.kernel import (
    Apply,
    Axis,
    Choice,
    Expression,
    Index,
    Kernel,
    Let,
    Literal,
    Load,
    Loops,
    Nest,
    Reduction,
    Select,
    Store,
    Template,
    View,
    walk,
)
from whet.plan.loops import merge_reduction, simplify
from whet.plan.lower import loop_index, reduction, within

Table = Mapping[str, Size]


def bound(kernel: Kernel, sizes: Mapping[str, int]) -> Kernel:
    """The kernel with its named sizes replaced by numbers, and as simple as they allow."""
    if not kernel.sizes:
        return kernel
    if isinstance(kernel, Loops):
        nests = (nest for nest in kernel.nests if not _is_empty(nest.axes, sizes))
        return replace(kernel, nests=tuple(_nest(nest, sizes) for nest in nests))
    axes, table = _axes(kernel.axes, sizes)
    change = partial(substitute, values=sizes)
    return Template(
        kernel.op.bind(sizes),
        tuple(None if view is None else _view(view, change) for view in kernel.inputs),
        kernel.buffers,
        axes,
        _expression(kernel.epilogue, table),
        _view(kernel.output, change),
    )


def adds_up(kernel: Loops) -> bool:
    """Whether results depend on the order in which the kernel's loops take numbers together."""
    nodes = (n for nest in kernel.nests for store in nest.stores for n in walk(store.value))
    sums = (n for n in nodes if isinstance(n, Reduction) and n.kind in ("sum", "prod"))
    return any(n.dtype in FLOATS for n in sums)


def _view(view: View, change: Callable[[Size], Size]) -> View:
    shape, strides = tuple(map(change, view.shape)), tuple(map(change, view.strides))
    return View(view.buffer, view.dtype, shape, strides, change(view.offset))


def _axes(axes: tuple[Axis, ...], sizes: Table) -> tuple[tuple[Axis, ...], dict[str, Size]]:
    """The loops with known bounds, and by what their indices are replaced: those know theirs."""
    known = tuple(Axis(axis.name, substitute(axis.size, sizes)) for axis in axes)
    return known, {**sizes, **{axis.name: loop_index(axis.name, axis.size) for axis in known}}


def _is_empty(axes: tuple[Axis, ...], sizes: Table) -> bool:
    """Whether loops do nothing at these sizes: what they would divide by may be 0, too."""
    return any(substitute(axis.size, sizes) == 0 for axis in axes)


def _nest(nest: Nest, sizes: Table) -> Nest:
    axes, table = _axes(nest.axes, sizes)
    return simplify(replace(nest, axes=axes, stores=tuple(_store(s, table) for s in nest.stores)))


def _store(store: Store, table: dict[str, Size]) -> Store:
    choices = []
    for choice in store.choices:
        limit = substitute(choice.limit, table)
        choices.append(Choice(choice.name, _expression(choice.value, table), limit))
        table = {**table, choice.name: _chosen(choice.name, limit)}
    return replace(
        store,
        offset=substitute(store.offset, table),
        value=_expression(store.value, table),
        choices=tuple(choices),
    )


def _chosen(name: str, limit: Size) -> Size:
    """An index that is data: it keeps its name even where it can only be 0."""
    return symbol(name, 0, limit - 1)


def _expression(expression: Expression, outer: Table) -> Expression:
    """The expression with its indices and sizes replaced, those of its own loops as well."""
    table = dict(outer)
    for node in walk(expression):
        if isinstance(node, Reduction):
            for axis in node.axes:
                table[axis.name] = loop_index(axis.name, substitute(axis.size, outer))
        elif isinstance(node, Let):
            table[node.name] = _chosen(node.name, substitute(node.limit, outer))
    memo: dict[int, Expression] = {}

    def visit(node: Expression) -> Expression:
        if id(node) not in memo:
            memo[id(node)] = _rebuilt(node, visit, table)
        return memo[id(node)]

    for node in walk(expression):  # children first: no recursion as deep as the expression
        visit(node)
    return visit(expression)


def _rebuilt(
    node: Expression, visit: Callable[[Expression], Expression], table: Table
) -> Expression:
    change = partial(substitute, values=table)
    match node:
        case Load(buffer, offset, dtype):
            return Load(buffer, change(offset), dtype)
        case Index(size, dtype):
            return Index(change(size), dtype)
        case Apply(op, args, dtype):
            return Apply(op, tuple(visit(a) for a in args), dtype)
        case Select(ranges, inside, outside, dtype):
            kept = within([(change(i), change(n)) for i, n in ranges])
            return Select(kept, visit(inside), visit(outside), dtype) if kept else visit(inside)
        case Let(name, value, limit, body, dtype):
            return Let(name, visit(value), change(limit), visit(body), dtype)
        case Reduction(kind, axes, body, dtype):
            axes = tuple(Axis(a.name, change(a.size)) for a in axes)
            return _reduction(kind, axes, visit(body), dtype)
    return node


def _reduction(kind: str, axes: tuple[Axis, ...], body: Expression, dtype: str) -> Expression:
    if kind.startswith("arg"):
        alone = all(axis.size == 1 for axis in axes)
        return Literal(0, dtype) if alone else Reduction(kind, axes, body, dtype)
    made = reduction(kind, axes, body, dtype)
    return merge_reduction(made) if isinstance(made, Reduction) else made
