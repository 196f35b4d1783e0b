"""The tensor graph: outputs, inputs, and what is known of them. All words of the IR are here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from whet.errors import Error, located
from whet.ir.attributes import Nested, Token, array_key, attribute_key
from whet.ir.guards import Guard, collect_guards, note_guards
from whet.ir.sizes import Expr, Size
from whet.ir.value import (
    OPERATORS,
    Anything,
    Arithmetic,
    Constant,
    Input,
    Op,
    Parameter,
    Pattern,
    Value,
    Weight,
    as_pattern,
    as_value,
    constant,
    infer,
    make,
    operator,
)

__all__ = [
    "OPERATORS",
    "Anything",
    "Arithmetic",
    "Constant",
    "Graph",
    "Guard",
    "Input",
    "Late",
    "Op",
    "Parameter",
    "Pattern",
    "Token",
    "Value",
    "Weight",
    "array_key",
    "as_pattern",
    "as_value",
    "attribute_key",
    "collect_guards",
    "constant",
    "infer",
    "make",
    "map_inner",
    "note_guards",
    "operator",
    "topological",
]


class Late(Protocol):
    """The rest of a model, whose ranks or structure depend on data (DESIGN: a late region)."""

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of what it reads: the first stage's outputs after its named ones, in order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the whole model's outputs, in order, from whichever stage they come."""

    def without(self, names: Collection[str]) -> Late | None:
        """The same without the outputs of these names; None where none are left."""

    def stage(
        self, captured: Mapping[str, Any], weights: Callable[[str], np.ndarray] | None
    ) -> Graph:
        """The graph of the next stage, for captured values as they are now; inputs are among them,
        by name."""


@dataclass(frozen=True, eq=False)
class Graph(Nested):
    """What to compute: `outputs` from `inputs`. Values that no output needs are simply not part of
    it."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    output_names: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    origins: Mapping[Value, tuple[str, ...]] = field(default_factory=dict)
    """Which nodes of the user's model a Value came from."""
    definers: Mapping[str, Value] = field(default_factory=dict)
    """Where the sizes that depend on data become known: their names, and Values whose shapes show
    them."""
    late: Late | None = None
    """What can be planned only once this graph has run; the outputs after the named ones are for
    it."""

    def __iter__(self) -> Iterator[Value]:
        """Every Value the outputs need, each after its inputs and after what defines the sizes it
        uses."""
        return topological(self.roots, needs=self.needs if self.definers else None)

    @property
    def key(self) -> tuple[Any, ...]:
        return Graph, tuple(map(id, self.inputs)), tuple(map(id, self.outputs)), self.guards

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset[str]().union(*(v.op.symbols for v in self.values))

    @property
    def uses_sizes(self) -> bool:
        return any(v.op.uses_sizes for v in self.values)

    def needs(self, value: Value) -> list[Value]:
        """The Values that define sizes in the attributes of value's operator, besides itself."""
        found = (self.definers.get(name) for name in value.op.symbols)
        return [v for v in found if v is not None and v.siblings[0] is not value.siblings[0]]

    @cached_property
    def roots(self) -> tuple[Value, ...]:
        """The outputs, and the Values that tell sizes which guards are about: each run checks
        those, whether or not an output has them in its shape."""
        if not self.definers:
            return self.outputs
        sides = (side for guard in self.guards for side in (guard.left, guard.right))
        names = sorted({s.name for side in sides if isinstance(side, Expr) for s in side.symbols})
        found = dict.fromkeys(self.definers[name] for name in names if name in self.definers)
        return (*self.outputs, *(v for v in found if v not in self.outputs))

    @cached_property
    def values(self) -> tuple[Value, ...]:
        return tuple(self)

    @cached_property
    def uses(self) -> dict[Value, int]:
        """How often each Value is read, by other Values and as an output."""
        count: dict[Value, int] = dict.fromkeys(self.values, 0)
        for value in _one_per_op(self.values):
            for i in value.inputs:
                if i is not None:
                    count[i] += 1
        for root in self.roots:
            count[root] += 1
        return count

    def map(self, fn: Callable[[Value], Value | Sequence[Value]]) -> Graph:
        """The graph with every Value v replaced by fn(v), inputs first.

        fn gets the first of an operator's results and may return all of them as a sequence.
        """
        new: dict[Value, Value] = {}
        origins: dict[Value, tuple[str, ...]] = {}
        for old in self.values:
            if old in new:
                continue
            inputs = tuple(i and new[i] for i in old.inputs)
            same = all(a is b for a, b in zip(inputs, old.inputs))
            first = old.siblings[0] if same else make(old.op, inputs)[0]
            result = fn(first)
            results = (
                first.siblings
                if result is first
                else (result,)
                if isinstance(result, Value)
                else result
            )
            for a, b in zip(old.siblings, results):
                new[a] = b
                self._inherit(origins, a, b)
        return self.replaced(new, origins)

    def _inherit(self, origins: dict[Value, tuple[str, ...]], old: Value, new: Value) -> None:
        """Gives `new`, and what it newly reads, the origin of the Value it replaces."""
        names = self.origins.get(old, ())
        if not names:
            return
        stack = [new]
        while stack:
            value = stack.pop()
            if value in origins or (value is not new and value in self.origins):
                continue
            origins[value] = names
            stack.extend(i for i in value.inputs if i is not None)

    def replaced(
        self, new: Mapping[Value, Value], origins: Mapping[Value, tuple[str, ...]]
    ) -> Graph:
        """The graph whose outputs, and Values that define sizes, are what `new` has for them."""
        outputs = tuple(new[o] for o in self.outputs)
        definers = {name: new.get(v, v) for name, v in self.definers.items()}
        unchanged = all(a is b for a, b in zip(outputs, self.outputs))
        if unchanged and all(definers[name] is v for name, v in self.definers.items()):
            return self
        origins = {**self.origins, **origins}
        return replace(self, outputs=outputs, origins=origins, definers=definers)

    def substitute(self, changes: Mapping[Value, Value]) -> Graph:
        """The graph in which each key of `changes` is read as its value instead."""
        if not changes:
            return self
        new: dict[Value, Value] = dict(changes)
        origins: dict[Value, tuple[str, ...]] = {}
        for a, b in changes.items():
            self._inherit(origins, a, b)
        for old in topological(self.roots, changes, self.needs if self.definers else None):
            if old in new:
                continue
            inputs = tuple(i and new.get(i, i) for i in old.inputs)
            if all(a is b for a, b in zip(inputs, old.inputs)):
                new[old] = old
                continue
            for a, b in zip(old.siblings, make(old.op, inputs)):
                new.setdefault(a, b)
                self._inherit(origins, a, b)
        return self.replaced(new, origins)

    def bind(self, sizes: Mapping[str, Size]) -> Graph:
        """The graph with named sizes replaced, everywhere."""
        if not sizes:
            return self
        new: dict[Value, Value] = {}
        origins: dict[Value, tuple[str, ...]] = {}
        for old in (*self.inputs, *self.values):
            if old in new:
                continue
            # Operator and inputs change together: half-bound types may contradict each other.
            try:
                bound = make(old.op.bind(sizes), tuple(i and new[i] for i in old.inputs))
            except Error as error:
                raise located(error, self.node(old)) from None
            for a, b in zip(old.siblings, bound):
                new[a] = b
                self._inherit(origins, a, b)
        inputs = tuple(new[v] for v in self.inputs)
        return replace(self.replaced(new, origins), inputs=inputs)

    def node(self, value: Value) -> str:
        """The names of the user's nodes that a Value came from, for messages."""
        return " + ".join(self.origins.get(value, ())) or str(value.op)

    def __str__(self) -> str:
        name: dict[Value, str] = {}
        lines = [f"inputs {', '.join(f'{_leaf(v)}: {v.type}' for v in self.inputs)}"]
        for v in self.values:
            if v in name:
                continue
            if isinstance(v.op, Input | Weight | Parameter):
                name[v] = _leaf(v)
            elif isinstance(v.op, Constant) and v.op.data.size == 1:
                name[v] = str(v.op.data.item())
            else:
                names = [f"%{len(name) + i}" for i in range(len(v.siblings))]
                name.update(zip(v.siblings, names))
                args = ", ".join("-" if i is None else name[i] for i in v.inputs)
                types = ", ".join(str(s.type) for s in v.siblings)
                lines.append(f"{', '.join(names)} = {v.op}({args}) : {types}")
        lines.append("return " + ", ".join(name[o] for o in self.outputs))
        return "\n".join(lines)

    __repr__ = object.__repr__


def map_inner(graph: Graph, fn: Callable[[Graph], Graph]) -> Graph:
    """The graph with every inner graph g of its operators replaced by fn(g), which must keep g's
    inputs.

    fn goes deeper itself: `def tidy(graph): return rewrite(map_inner(graph, tidy), RULES)`.
    """
    if not any(v.op.graphs for v in graph.values):
        return graph
    return graph.map(lambda v: make(v.op.map_graphs(fn), v.inputs) if v.op.graphs else v)


def _leaf(v: Value) -> str:
    match v.op:
        case Weight(name=name):
            return f"weight {name!r}"
        case Parameter(token=token, name=name):
            return f"{name}{token}"
        case Input(name=name):
            return name
    return repr(v)


def topological(
    outputs: Iterable[Value],
    stop: Iterable[Value] = (),
    needs: Callable[[Value], Iterable[Value]] | None = None,
) -> Iterator[Value]:
    """Every Value the outputs need, each after its inputs, never looking behind a Value in `stop`.

    `needs` gives further Values that must come before a Value.
    """
    seen: set[Value] = set()
    opened: set[Value] = set()
    behind = set(stop)
    stack = [(v, False) for v in reversed(tuple(outputs))]
    while stack:
        value, inputs_done = stack.pop()
        if value in seen:
            continue
        if inputs_done or value in behind:
            seen.add(value)
            yield value
            continue
        if value in opened:
            raise RuntimeError(f"what {value.op} needs comes after it: {value}")
        opened.add(value)
        stack.append((value, True))
        before = [*(needs(value) if needs else ()), *(i for i in value.inputs if i is not None)]
        stack.extend((i, False) for i in reversed(before) if i not in seen)


def _one_per_op(values: Iterable[Value]) -> Iterator[Value]:
    seen: set[int] = set()
    for value in values:
        first = id(value.siblings[0])
        if first not in seen:
            seen.add(first)
            yield value
