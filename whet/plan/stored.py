"""Plans as bytes, for the cache: what was planned once need not be planned at the next start.

Values are one object in one process, so they go as a table, each an operator on earlier ones, and
everything else refers to them by number. Whoever reads bytes back runs what they say, as with
machine code: they must come from where code may come from.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any

from whet.ir.graph import Token, Value, make, topological
from whet.plan.plan import Plan

Entry = tuple[Any, tuple[int | None, ...], int]
"""An operator, the numbers of what it reads, and which of its results it is."""


class Unstorable(Exception):  # noqa: N818, nothing is wrong with such a plan
    """A plan holds what only this process knows: an inner graph's parameter, an effect."""


def pack(plan: Plan) -> bytes:
    """A plan as bytes; raises Unstorable."""
    values = tuple(topological(_named(plan)))
    numbers = {value: number for number, value in enumerate(values)}
    table: list[Entry] = [
        (v.op, tuple(None if i is None else numbers[i] for i in v.inputs), v.index) for v in values
    ]
    out = io.BytesIO()
    writer = _Writer(out, numbers)
    writer.dump(table)
    origins = {v: names for v, names in plan.graph.origins.items() if v in numbers}
    writer.dump(replace(plan, graph=replace(plan.graph, origins=origins)))
    return out.getvalue()


def unpack(data: bytes) -> Plan:
    """The plan that `pack` wrote."""
    reader = _Reader(io.BytesIO(data))
    for op, inputs, index in reader.load():
        read = [None if i is None else reader.values[i] for i in inputs]
        reader.values.append(make(op, read)[index])
    plan: Plan = reader.load()
    return plan


def _named(plan: Plan) -> list[Value]:
    """All Values that a plan speaks of, though no output may need them."""
    graph = plan.graph
    found = [*graph.inputs, *graph.roots, *graph.definers.values()]
    for step in plan.steps:
        found += (*step.reads, *step.writes, step.value, *step.value.siblings)
    return found


class _Writer(pickle.Pickler):
    def __init__(self, out: io.BytesIO, numbers: dict[Value, int]) -> None:
        super().__init__(out, protocol=pickle.HIGHEST_PROTOCOL)
        self.numbers = numbers

    def persistent_id(self, x: Any) -> int | None:
        if type(x) is Token or (type(x) is Value and x not in self.numbers):
            raise Unstorable
        return self.numbers[x] if type(x) is Value else None


class _Reader(pickle.Unpickler):
    values: list[Value]

    def __init__(self, data: io.BytesIO) -> None:
        super().__init__(data)
        self.values = []

    def persistent_load(self, number: Any) -> Value:
        value: Value = self.values[number]
        return value
