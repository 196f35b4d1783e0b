"""Rules: a pattern, and the function that builds what replaces it."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from whet.ir.graph import Anything, Constant, Graph, Op, Pattern, Value, attribute_key

MOST_SWEEPS = 100


@dataclass(frozen=True)
class Rule:
    """`build` makes the replacement of what `pattern` matches, or returns None to decline."""

    pattern: Pattern
    build: Callable[..., Value | None]

    @property
    def name(self) -> str:
        return self.build.__name__

    def apply(self, value: Value) -> Value | None:
        bound: dict[str, Any] = {}
        return self.build(**bound) if match(self.pattern, value, bound) else None


def rule(pattern: Callable[..., Pattern]) -> Callable[[Callable[..., Value | None]], Rule]:
    """Decorates the function that builds the replacement; its arguments are the pattern's.

    A name used as an input binds a Value, a name used as an attribute binds the attribute.
    """
    names = inspect.signature(pattern).parameters
    holes = {name: Pattern(Anything(name), ()) for name in names}
    return lambda build: Rule(pattern(**holes), build)


def match(pattern: Pattern, value: Value | None, bound: dict[str, Any]) -> bool:
    """Whether the Value has the pattern's form; fills in what its names stand for."""
    if isinstance(pattern.op, Anything):
        return value is not None and bound.setdefault(pattern.op.name, value) is value
    return (
        value is not None
        and _match_op(pattern.op, value.op, bound)
        and len(pattern.inputs) == len(value.inputs)
        and all(match(p, v, bound) for p, v in zip(pattern.inputs, value.inputs))
    )


def _match_op(pattern: Op, op: Op, bound: dict[str, Any]) -> bool:
    if type(pattern) is not type(op):
        return False
    if isinstance(pattern, Constant) and isinstance(op, Constant):
        # A number in a pattern stands for that number in any dtype, whatever the number of its axes.
        return (
            op.data.size == 1
            and op.data.dtype.kind not in "OSU"
            and op.data.item() == pattern.data.item()
        )
    return all(
        _match_attribute(getattr(pattern, f.name), getattr(op, f.name), bound)
        for f in fields(pattern)  # type: ignore[arg-type]
    )


def _match_attribute(want: Any, got: Any, bound: dict[str, Any]) -> bool:
    if isinstance(want, Pattern) and isinstance(want.op, Anything):
        want = bound.setdefault(want.op.name, got)
    return want is got or attribute_key(want) == attribute_key(got)


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """Applies the rules, inputs first, until none applies."""
    by_root: dict[type[Op], list[Rule]] = defaultdict(list)
    for r in rules:
        by_root[type(r.pattern.op)].append(r)

    def apply_rules(value: Value) -> Value:
        for r in by_root.get(type(value.op), ()):
            new = r.apply(value)
            if new is not None and new is not value:
                return new
        return value

    for _ in range(MOST_SWEEPS):
        new = graph.map(apply_rules)
        if new is graph:
            return graph
        graph = new
    raise RuntimeError(
        f"the rules still change the graph after {MOST_SWEEPS} sweeps: {[r.name for r in rules]}"
    )
