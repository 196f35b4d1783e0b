"""Launches of neighbouring steps as one graph, and where each Value lies that they touch."""

from __future__ import annotations

from dataclasses import dataclass, field

from whet.targets.cuda.driver import Stream
from whet.targets.cuda.graph import Call, Graph
from whet.targets.cuda.library import RoutineCall
from whet.targets.cuda.order import Use, predecessors


@dataclass(eq=False)
class Segment:
    """Launches of neighbouring steps, and the graph that they become when they first run."""

    begin: int
    end: int
    calls: list[Call | RoutineCall] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """The step of each launch."""
    uses: list[Use] = field(default_factory=list)
    """The memory of each."""
    branches: bool = False
    """Whether launches that do not need each other may overlap."""
    graph: Graph | None = None
    changed: set[int] = field(default_factory=set)
    """Launches whose arguments are not those that the graph knows."""

    def run(self, stream: Stream) -> None:
        """Asks for its launches."""
        graph = self.graph
        if graph is None:
            self.changed.clear()
            if not self.calls:
                return
            after = predecessors(self.uses) if self.branches else None
            graph = self.graph = Graph(self.calls, after)
        elif self.changed:
            for number in self.changed:
                graph.update(number)
            self.changed.clear()
        graph.launch(stream)


class Place:
    """Where a Value lies, and the arguments of launches that say so."""

    __slots__ = ("pointer", "uses")

    def __init__(self) -> None:
        self.pointer = 0
        self.uses: list[tuple[memoryview, int, set[int], int]] = []
        """Arguments, the number of the one, and in which set its launch is noted as changed."""

    def move(self, pointer: int, only: set[int] | None = None) -> None:
        """Lets the launches know of another address: all, or those noted in one set."""
        self.pointer = pointer
        for arguments, number, changed, call in self.uses:
            if only is None or only is changed:
                arguments[number] = pointer
                changed.add(call)
