"""Plans as bytes, for the cache: what was planned once need not be planned at the next start.

Values are one object in one process, so they go as a table, each an operator on earlier ones, and
everything else refers to them by number; tokens go by their place among those of the graph that was
planned, whose are other ones at the next start. Whoever reads bytes back runs what they say, as
with machine code: they must come from where code may come from.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from whet.ir.graph import Graph, Token, Value, make, topological
from whet.plan.plan import Plan


class Unstorable(Exception):  # noqa: N818, nothing is wrong with such a plan
    """A plan holds what only this process knows: a token that its graph does not have."""


def pack(plan: Plan, tokens: Sequence[Token] = ()) -> bytes:
    """A plan as bytes, of a graph with these tokens; raises Unstorable."""
    values: dict[Value, int] = {}
    _number(_named(plan), values)
    out = io.BytesIO()
    writer = _Writer(out, values, tokens)
    writer.dump(len(values))
    for v in values:
        writer.dump((v.op, tuple(None if i is None else values[i] for i in v.inputs), v.index))
    writer.dump(plan)
    return out.getvalue()


def unpack(data: bytes, tokens: Sequence[Token] = ()) -> Plan:
    """The plan that `pack` wrote, of the same graph, whose tokens are these now."""
    reader = _Reader(io.BytesIO(data), tokens)
    for _ in range(reader.load()):
        op, inputs, index = reader.load()
        read = [None if i is None else reader.values[i] for i in inputs]
        reader.values.append(make(op, read)[index])
    plan: Plan = reader.load()
    return plan


def _named(plan: Plan) -> list[Value]:
    """All Values that a plan speaks of, though no output may need them."""
    found = _ends(plan.graph)
    for step in plan.steps:
        found += (*step.reads, *step.writes, step.value, *step.value.siblings)
    return found


def _ends(graph: Graph) -> list[Value]:
    return [*graph.inputs, *graph.roots, *graph.definers.values()]


def _number(ends: Iterable[Value], numbers: dict[Value, int]) -> None:
    """Numbers all that the Values need, each behind its inputs and what its inner graphs hold."""
    for value in topological(ends):
        if value not in numbers:
            for graph in value.op.graphs:
                _number(_ends(graph), numbers)
            numbers[value] = len(numbers)


class _Writer(pickle.Pickler):
    def __init__(self, out: io.BytesIO, values: dict[Value, int], tokens: Sequence[Token]) -> None:
        super().__init__(out, protocol=pickle.HIGHEST_PROTOCOL)
        self.values, self.tokens = values, {token: n for n, token in enumerate(tokens)}

    def persistent_id(self, x: Any) -> int | None:
        """The number of a Value, or below zero of a token: those are one object in a process."""
        kind = type(x)
        if kind is not Value and kind is not Token:
            return None
        if x not in (known := self.values if kind is Value else self.tokens):
            raise Unstorable
        return known[x] if kind is Value else ~known[x]

    def reducer_override(self, x: Any) -> Any:
        """A graph without what it has found out, and without origins of Values that are gone."""
        if type(x) is not Graph:
            return NotImplemented
        origins = {v: names for v, names in x.origins.items() if v in self.values}
        parts = {f.name: getattr(x, f.name) for f in fields(x)}
        return Graph, tuple({**parts, "origins": origins}.values())


class _Reader(pickle.Unpickler):
    def __init__(self, data: io.BytesIO, tokens: Sequence[Token]) -> None:
        super().__init__(data)
        self.values: list[Value] = []
        self.tokens = tokens

    def persistent_load(self, number: int) -> Value | Token:
        return self.values[number] if number >= 0 else self.tokens[~number]
