"""A plan's launches with their arguments: for known sizes, as graphs, or for all that runs tell."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from whet.ir.graph import Value
from whet.ir.sizes import Expr
from whet.knobs import knobs
from whet.plan.plan import Plan, Step, nbytes
from whet.targets import bound as shared
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.bound import Bound, Code, Layout, taken
from whet.targets.cuda.compile import Function
from whet.targets.cuda.driver import Stream, check, direct, failure
from whet.targets.cuda.memory import Room
from whet.targets.cuda.order import Span, Use, meet
from whet.targets.cuda.segments import Place, Segment

Words = Mapping[int, int]
"""Where the error words of steps lie."""

Given = Callable[[], Mapping[Value, Any] | None]
"""The weights whose addresses launches know, while these live: launches that do not run again hold
none that a refit has replaced."""

Each = tuple[int, Callable[[Stream], None]]
"""The number of a step, and what asks for one of its launches."""


class Launches:
    """Those of a plan at known sizes: each of its segments is a graph."""

    def __init__(
        self,
        plan: Plan,
        segments: list[tuple[int, int]],
        code: Code,
        bound: shared.Bound,
        room: Room,
        words: Words,
        overlaps: dict[int, bool],
        architecture: Architecture,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self.room = weakref.ref(room)
        """Where they run; those of sizes that wait to come back keep no memory that larger ones
        have outgrown."""
        self.given: Given = lambda: None
        self.places: dict[Value, Place] = {}
        made = _Making(plan, code, bound, room, words, architecture, self.places)
        self.segments = [made.segment(Segment(*s, overlaps), pause) for s in segments]
        for value, at in made.offsets.items():
            if value in self.places:
                self.places[value].move(room.arena + at)
        written = {v for s in plan.steps if not s.is_host for v in s.writes}
        kinds = [(v, bound.tensor(v.tensor)) for v in plan.graph.outputs if v in written]
        self.outputs = [
            (self.places.get(v), k.numpy, tuple(map(int, k.shape)), nbytes(k)) for v, k in kinds
        ]
        """Where results go that kernels write, and what they are."""

    def make(self, pause: Callable[[], object]) -> None:
        """Makes all graphs before the first run."""
        for segment in self.segments:
            segment.make(pause)

    def run(self, number: int, stream: Stream) -> None:
        """Asks for the launches of a segment."""
        self.segments[number].run(stream)

    def each(self, number: int) -> Iterator[Each]:
        """The launches of a segment, one by one."""
        segment = self.segments[number]
        for step, call in zip(segment.steps, segment.calls):
            yield step, call.launch

    def at(self, value: Value) -> int | None:
        """Where launches find or leave a Value; None where none touches it."""
        place = self.places.get(value)
        return None if place is None else place.pointer


class _Making:
    """What it takes to make launches."""

    def __init__(
        self,
        plan: Plan,
        code: Code,
        bound: shared.Bound,
        room: Room,
        words: Words,
        architecture: Architecture,
        places: dict[Value, Place],
    ) -> None:
        self.plan, self.code, self.room, self.words = plan, code, room, words
        self.value, self.tensor, self.offsets = bound.value, bound.tensor, bound.offsets
        self.architecture, self.places = architecture, places

    def segment(self, segment: Segment, pause: Callable[[], object]) -> Segment:
        """Fills a segment with its launches."""
        for number in range(segment.begin, segment.end):
            pause()
            step, code = self.plan.steps[number], self.code[number]
            buffers = (*step.reads, *step.writes)
            here = self.architecture
            for function, module in () if code is None else taken(code, self.value, here):
                arguments = np.zeros(len(function.slots) + function.nulls, np.int64)
                view, where = memoryview(arguments), len(segment.calls)  # type: ignore[arg-type]
                for position, slot in enumerate(function.slots):
                    if isinstance(slot, int):
                        place = self.places.setdefault(buffers[slot], Place())
                        place.uses.append((view, position, segment.changed, where))
                    else:
                        arguments[position] = self._fixed(slot, number)
                name = f"{step.name} of {' + '.join(step.nodes)}"
                segment.calls.append(module.call(function, arguments, name))
                segment.steps.append(number)
                segment.uses.append(self._use(step, function))
            segment.results += [
                (self.places[v], nbytes(self.tensor(v.tensor)))
                for v in step.writes
                if v in self.plan.graph.outputs and v in self.places
            ]
        segment.spent = self._spent(segment)
        segment.arena = range(self.room.arena, self.room.counters)
        return segment

    def _spent(self, segment: Segment) -> list[tuple[Place, int]]:
        """What was there before a segment that reads it and writes over it, and its bytes."""
        made, found = dict[Value, None](), dict[Value, None]()
        for step in self.plan.steps[segment.begin : segment.end]:
            made.update(dict.fromkeys(step.writes))  # a scan reads what it has written itself
            found.update(dict.fromkeys(v for v in step.reads if v not in made))
        written = tuple(map(self._span, made))
        lost = [v for v in found if v in self.places and meet((self._span(v),), written)]
        return [(self.places[v], nbytes(self.tensor(v.tensor))) for v in lost]

    def _use(self, step: Step, function: Function) -> Use:
        """The memory that a launch may touch. A guest is taken to be in the arena in every run,
        which adds no edge: what lies in its place waits for the same launches anyhow."""
        shared = (("counters", function.counters), ("scratch", function.scratch))
        reads, writes = (tuple(map(self._span, values)) for values in (step.reads, step.writes))
        return Use(reads, (*writes, *((name, 0, 1) for name, size in shared if size != 0)))

    def _span(self, value: Value) -> Span:
        at = self.offsets.get(value, self.plan.guests.get(value))
        if at is None:
            return value, 0, 1
        return "arena", at, at + max(nbytes(self.tensor(value.tensor)), 1)

    def _fixed(self, slot: str | Expr, number: int) -> int:
        if isinstance(slot, Expr):
            return self.value(slot)
        if slot == "error":
            return self.words[number]
        return self.room.counters if slot == "counters" else self.room.scratch


class Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    )


CONFIGURATION = np.dtype(
    {
        "names": ("grid", "shared", "stream"),
        "formats": (("u4", 3), "u4", "u8"),
        "offsets": [getattr(Configuration, n).offset for n in ("grid", "shared", "stream")],
        "itemsize": ctypes.sizeof(Configuration),
    }
)
"""What runs write of it, as NumPy has it: all launches at once."""


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_ubyte * 64))


STARTS_EARLY = Attribute(6, 0, (1,))
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: a function that waits by itself for what
comes before it may start while that runs."""


class Ranged:
    """Those of a plan for a range of sizes: a set of them only fills arguments and grids in, and
    the launches go to the stream one by one."""

    def __init__(
        self, plan: Plan, segments: list[tuple[int, int]], layout: Layout, words: Words
    ) -> None:
        self.plan, self.layout = plan, layout
        self._ends = [end for _, end in segments]
        self.given: Given = lambda: None
        self.bound: Bound | None = None
        self.room: Room | None = None
        self.arguments = np.zeros(max(layout.length, 1), np.int64)
        self.pointers = self.arguments.ctypes.data + 8 * np.arange(max(layout.length, 1))
        self._counters, self._scratch = (
            np.array([place for place, _ in layout.named.get(name, ())], np.int64)
            for name in ("counters", "scratch")
        )
        for place, number in layout.named.get("error", ()):
            self.arguments[place] = words[number]
        self.places = {value: self._place(value) for value in layout.outside}
        self.configurations = (Configuration * max(len(layout.functions), 1))()
        base, size = ctypes.addressof(self.configurations), ctypes.sizeof(Configuration)
        fields: np.ndarray = np.frombuffer(memoryview(self.configurations), CONFIGURATION)
        self._grids, self._shared, self._streams = (fields[n] for n in ("grid", "shared", "stream"))
        starts = self.pointers.ctypes.data + 8 * np.array(layout.starts, np.int64)
        self.calls: list[tuple[int, int, int]] = []
        """Of each function its configuration, its code, and its arguments."""
        module: Any  # a library has no kernels for open sizes
        for number, (_, function, module) in enumerate(layout.functions):
            found = self.configurations[number]
            found.block[:] = function.threads, 1, 1
            if function.waits:
                found.attributes, found.count = ctypes.addressof(STARTS_EARLY), 1
            here = int(starts[number])
            self.calls.append((base + size * number, int(module.function), here))
        self.stream = 0
        """The number of the one that they are on."""
        self.taken: list[list[int]] = []
        """The functions of each segment that run."""

    def _place(self, value: Value) -> Place:
        """The arguments that point to what is outside of the arena."""
        place, view = Place(), memoryview(self.arguments)  # type: ignore[arg-type]
        place.uses += [(view, at, set(), 0) for at, _ in self.layout.outside[value]]
        return place

    def bind(self, bound: Bound, room: Room) -> None:
        """Fills in what some sizes tell."""
        if bound is self.bound and room is self.room:
            return
        if room is not self.room:
            self.arguments[self._counters] = room.counters
            self.arguments[self._scratch] = room.scratch
        self.bound, self.room = bound, room
        bound.fill(self.arguments, room.arena)
        taken = bound.functions
        self._grids[taken], self._shared[taken] = bound.grids, bound.shared
        ends = self.layout.steps[taken].searchsorted(self._ends).tolist()
        found = taken.tolist()
        self.taken = [found[begin:end] for begin, end in zip([0, *ends], ends)]

    def at(self, value: Value) -> int | None:
        """Where launches find or leave a Value; None where none touches it."""
        assert self.bound is not None and self.room is not None
        if value in self.places:
            return self.places[value].pointer
        if value not in self.layout.places:
            return None
        return self.room.arena + self.bound.offsets[value]

    def run(self, number: int, stream: Stream) -> None:
        """Asks for the launches of a segment."""
        launch, calls, waits = direct().cuLaunchKernelEx, self.calls, knobs.one_by_one
        self._use(stream)
        for function in self.taken[number]:
            if status := launch(*calls[function], 0):
                raise failure(status, f"launching {self._name(function)}")
            if waits:
                stream.synchronize(f"running {self._name(function)}")

    def _use(self, stream: Stream) -> None:
        """Lets all launches be on a stream."""
        if stream.number != self.stream:
            self.stream = stream.number
            self._streams[:] = stream.number

    def _name(self, function: int) -> str:
        step = self.plan.steps[self.layout.functions[function][0]]
        return f"{step.name} of {' + '.join(step.nodes)}"

    def each(self, number: int) -> Iterator[Each]:
        """The launches of a segment, one by one."""
        for function in self.taken[number]:
            yield self.layout.functions[function][0], self._alone(function)

    def _alone(self, function: int) -> Callable[[Stream], None]:
        def launch(stream: Stream) -> None:
            self._use(stream)
            check((direct().cuLaunchKernelEx(*self.calls[function], 0),), "launching a kernel")

        return launch
