"""What the names in a graph stand for while it is read, and what is noted of the Values made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from whet.errors import InvalidModel
from whet.ir.graph import Graph, Guard, Value


@dataclass
class Scope:
    """The names that nodes see: those of one graph, and of what encloses it."""

    values: dict[str, Any] = field(default_factory=dict)
    parent: Scope | None = None
    prefix: str = ""
    own: frozenset[str] = frozenset()
    """The names that the graph gives a meaning, sooner or later."""

    def find(self, name: str) -> Any:
        """What a name stands for; raises InvalidModel where nothing, or nothing yet, gives it."""
        comes_later = False
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            comes_later = comes_later or name in scope.own
            scope = scope.parent
        if comes_later:
            raise InvalidModel(
                f"the tensor {name!r} is used before the node that gives it: ONNX needs the nodes "
                "in topological order, without a cycle"
            )
        raise InvalidModel(f"no node, input or initializer gives the tensor {name!r}")


class Poison:
    """Stands for the results of a node that was refused, so that its readers are not refused for
    it."""


class Poisoned(Exception):  # noqa: N818
    """An inner graph holds a node that was refused."""


class Postponed:
    """Stands for the results of a node in the late region."""


@dataclass
class Level:
    """What belongs to one graph, the model's or an inner one, while it is read."""

    leaves: set[Value] = field(default_factory=set)
    origins: dict[Value, tuple[str, ...]] = field(default_factory=dict)
    guards: list[Guard] = field(default_factory=list)
    sizes: set[str] = field(default_factory=set)
    definers: dict[str, Value] = field(default_factory=dict)

    def add(self, value: Value, label: str) -> None:
        """Notes where a Value came from, and the sizes that its operator finds in data."""
        self.origins[value] = (label,)
        for name in value.op.symbols & self.sizes:
            before = self.definers.get(name)
            if before is None or (value.op.defines_sizes and not before.op.defines_sizes):
                self.definers[name] = value

    def defining(self, value: Value) -> list[Value]:
        """The Values that tell the sizes which value's operator uses."""
        found = (self.definers.get(name) for name in value.op.symbols)
        return [v for v in found if v is not None]

    def __contains__(self, value: Value) -> bool:
        return value in self.origins or value in self.leaves


@dataclass(frozen=True)
class Inner:
    """An inner graph read, not yet cut from what encloses it."""

    parameters: tuple[Value, ...]
    outputs: tuple[Value, ...]
    level: Level

    @property
    def roots(self) -> tuple[Value, ...]:
        """What each run of it computes: the outputs, and what tells the sizes in guards."""
        guards, definers = tuple(self.level.guards), self.level.definers
        return Graph(self.parameters, self.outputs, guards=guards, definers=definers).roots

    @property
    def sizes(self) -> set[str]:
        """Names of the sizes that mean something only inside."""
        return self.level.sizes
