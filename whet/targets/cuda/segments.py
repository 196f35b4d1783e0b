"""Launches of neighbouring steps as one graph, and where each Value lies that they touch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from whet.knobs import knobs
from whet.targets.cuda.driver import Event, Stream
from whet.targets.cuda.graph import Call, Graph, OneByOne
from whet.targets.cuda.library import RoutineCall
from whet.targets.cuda.order import Use, in_order, predecessors

logger = logging.getLogger("whet.cuda")


ROUNDS = 5
LEAST_GAIN = 0.01  # of the time, for which branches overlap


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


@dataclass(eq=False)
class Segment:
    """Launches of neighbouring steps, and the graph that they become when they first run."""

    begin: int
    end: int
    overlaps: dict[int, bool]
    """For each segment, by where it begins, whether its branches overlap: what was found to be
    faster. Where that is not to be found out, they do not."""
    calls: list[Call | RoutineCall] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """The step of each launch."""
    uses: list[Use] = field(default_factory=list)
    """The memory of each."""
    results: list[tuple[Place, int]] = field(default_factory=list)
    """The plan's outputs that it writes, and their bytes."""
    spent: list[tuple[Place, int]] = field(default_factory=list)
    """What it finds in the arena and writes over, and its bytes."""
    arena: range = range(0)
    """The addresses of the arena."""
    graph: Graph | OneByOne | None = None
    branches: list[tuple[int, ...]] | None = None
    """What each launch must wait for, where that is less than all before it, and whether it is
    faster is not known yet."""
    changed: set[int] = field(default_factory=set)
    """Launches whose arguments are not those that the graph knows."""

    def run(self, stream: Stream) -> None:
        """Asks for its launches."""
        graph = self.graph
        if graph is None:
            self.changed.clear()
            if self.calls:
                self.graph = self._first()
                OneByOne(self.calls).launch(stream)  # what fails, most often fails at once
            return
        for number in self.changed:
            graph.update(number)
        self.changed.clear()
        if self.branches is not None and isinstance(graph, Graph):
            graph = self.graph = self._faster(graph, self.branches, stream)
        graph.launch(stream)

    def make(self, pause: Callable[[], object]) -> None:
        """Makes the graph before the first run, with pauses in between."""
        if self.calls and self.graph is None:
            self.changed.clear()
            self.graph = self._first(pause)

    def _first(self, pause: Callable[[], object] = lambda: None) -> Graph | OneByOne:
        """Its launches in order, unless branches are known to be faster."""
        if knobs.one_by_one:
            return OneByOne(self.calls)
        overlap = self.overlaps.get(self.begin)
        after = None if overlap is False else predecessors(self.uses)
        if after == in_order(len(self.calls)):
            after = None
        if after is not None and not overlap:
            self.branches, after = after, None
        return Graph(self.calls, after, pause)

    def _faster(self, plain: Graph, after: list[tuple[int, ...]], stream: Stream) -> Graph:
        """The graph, or one with branches. A run that comes back is worth finding that out."""
        self.branches = None
        branched, bits = Graph(self.calls, after), set[tuple[bytes, ...]]()
        # What is read here may be gone after a launch. Inputs on the device never are.
        there = [(place, size) for place, size in self.spent if place.pointer in self.arena]
        before = _read(there, stream)
        times = []
        for graph in (plain, branched):
            taken = []
            for _ in range(ROUNDS):
                _write(there, before, stream)
                taken.append(_seconds(graph, stream))
            times.append(min(taken))
            bits.add(self._bits(stream))
        _write(there, before, stream)
        logger.debug("in order and in branches: %s us", [round(1e6 * t, 1) for t in times])
        if len(bits) > 1:
            logger.warning("branches that overlap gave other bits, and go in order now")
        overlap = len(bits) == 1 and times[1] < times[0] * (1 - LEAST_GAIN)
        self.overlaps[self.begin] = overlap
        return branched if overlap else plain

    def _bits(self, stream: Stream) -> tuple[bytes, ...]:
        """What it has written."""
        return tuple(array.tobytes() for array in _read(self.results, stream))


def _read(places: Sequence[tuple[Place, int]], stream: Stream) -> list[np.ndarray]:
    """What lies there, byte by byte."""
    found = [np.empty(size, np.uint8) for _, size in places]
    for array, (place, size) in zip(found, places):
        stream.download(array.ctypes.data, place.pointer, size)
    stream.synchronize()
    return found


def _write(
    places: Sequence[tuple[Place, int]], arrays: Sequence[np.ndarray], stream: Stream
) -> None:
    """Puts back what lay there."""
    for array, (place, size) in zip(arrays, places):
        stream.upload(place.pointer, array.ctypes.data, size)
    stream.synchronize()


def _seconds(graph: Graph, stream: Stream) -> float:
    """What a graph takes."""
    first, last = Event(timed=True), Event(timed=True)
    first.record(stream)
    graph.launch(stream)
    last.record(stream)
    return last.seconds_since(first)
