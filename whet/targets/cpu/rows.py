"""Rows that are reduced and then used: what is costly in them is computed once, and kept in L1."""

from __future__ import annotations

from whet.ir.sizes import Size, substitute
from whet.ops import elementwise as ew
from whet.plan.kernel import Apply, Axis, Expression, Literal, Load, Reduction, Store, walk
from whet.plan.loops import replace_nodes, rewrite_sizes
from whet.plan.lower import loop_index

COSTLY = (
    *(ew.Exp, ew.Log, ew.Pow, ew.Sin, ew.Cos, ew.Atan),
    *(ew.Tanh, ew.Erf, ew.Sigmoid, ew.Silu, ew.Gelu),
)
LONGEST = 16384  # elements of a row that is kept on the stack


def with_reciprocals(value: Expression, along: Axis) -> Expression:
    """Divisions of a row by a sum as products with the sum's reciprocal, computed once."""

    def change(node: Expression) -> Expression | None:
        if not isinstance(node, Apply) or not isinstance(node.op, ew.Div):
            return None
        row, divisor = node.args
        if along.name in divisor.symbols or along.name not in row.symbols:
            return None
        if node.dtype != "float32" or not any(_is_sum(n) for n in walk(divisor)):
            return None
        one = Literal(1.0, node.dtype)
        reciprocal = Apply(ew.Div(), (one, replace_nodes(divisor, change)), node.dtype)
        return Apply(ew.Mul(), (replace_nodes(row, change), reciprocal), node.dtype)

    return replace_nodes(value, change)


def _is_sum(node: Expression) -> bool:
    return isinstance(node, Reduction) and node.kind == "sum"


def kept_row(store: Store, along: Axis, buffer: int) -> tuple[Store, Store] | None:
    """A store of the costly part of a row, and the store itself, which reads it there: where the
    row's results go in the end, or in a buffer of its own if these are of another dtype.

    None where no reduction over the row computes what the row's elements need as well.
    """
    index = loop_index(along.name, along.size)
    at = index
    if store.value.dtype == "float32" and store.combine is None and not store.choices:
        buffer, at = store.buffer, store.offset
    elif not isinstance(along.size, int) or along.size > LONGEST:
        return None
    elements = [n for n in walk(store.value) if _is_costly(n, along.name)]
    found: dict[Expression, dict[Expression, Size]] = {n: {n: index} for n in elements}
    for reduction in walk(store.value):
        if not isinstance(reduction, Reduction) or len(reduction.axes) != 1:
            continue
        (axis,) = reduction.axes
        if axis.size != along.size:
            continue
        for node in walk(reduction.body):
            if _is_costly(node, axis.name):
                same = rewrite_sizes(node, lambda s, name=axis.name: substitute(s, {name: index}))  # type: ignore[misc]
                if same in found:
                    found[same][node] = loop_index(axis.name, axis.size)
    shared = [n for n, places in found.items() if len(places) > 1]
    if not shared:
        return None
    kept = max(shared, key=lambda n: sum(1 for _ in walk(n)))
    places = found[kept]

    def change(node: Expression) -> Expression | None:
        if node not in places:
            return None
        return Load(buffer, substitute(at, {along.name: places[node]}), node.dtype)

    rest = Store(store.buffer, store.offset, replace_nodes(store.value, change))
    return Store(buffer, at, kept), rest


def _is_costly(node: Expression, index: str) -> bool:
    """Whether an element that changes along the row takes a costly operator to compute."""
    if not isinstance(node, Apply) or node.dtype != "float32" or index not in node.symbols:
        return False
    return any(
        isinstance(n, Apply) and isinstance(n.op, COSTLY) and index in n.symbols for n in walk(node)
    )
