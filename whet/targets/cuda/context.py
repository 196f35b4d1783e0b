"""What one run of a plan at a time needs on a GPU: memory, a stream, and the launches."""

from __future__ import annotations

import ctypes
import itertools
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.errors import OutOfMemory
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan import trace
from whet.plan.plan import Plan
from whet.targets.bound import NO_SIZES, Sizes
from whet.targets.bound import Bound as Known
from whet.targets.bound import Layout as NoLayout
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.bound import Bound, Layout
from whet.targets.cuda.device import Device, holds, numbers
from whet.targets.cuda.driver import Event, Stream
from whet.targets.cuda.launches import Each, Launches, Ranged
from whet.targets.cuda.memory import Loan, Pinned, Room, aligned, room
from whet.targets.cuda.segments import Place
from whet.targets.cuda.staging import Staging

_numbers = itertools.count()

LEAST_ROOM = 1 << 20
"""Bytes of an arena that grows."""

EASY_ROOM = 32 << 20
"""The same where the device has the memory to give: growing takes longer than most small runs."""

MOST_AHEAD = 1 << 30
"""Bytes of an arena for the largest sizes there may be that are taken before they are needed."""


class Context:
    """Runs a plan, one run after the other."""

    def __init__(
        self, plan: Plan, device: Device, segments: list[tuple[int, int]], pace: Any
    ) -> None:
        self.plan, self.device, self.pace = plan, device, pace
        self.spans = segments
        self.number = next(_numbers)
        self.made = {v for s in plan.steps if not s.is_host for v in s.writes}
        self.outside = tuple(o for o in plan.graph.outputs if o not in self.made)
        self.has_host_steps = any(step.is_host for step in plan.steps)
        self.stream = self.used = device.context.lend()
        """Its own, and the one of the run before."""
        self.staging = Staging(device.context, device.heap)
        self.rooms: Any = None
        self.code = [None if s.kernel is None else device.code(s.kernel) for s in plan.steps]
        self.checking = [
            n for n, code in enumerate(self.code) if code and any(f.checks for f, _ in code)
        ]
        """Steps that may meet an index outside its axis: each has a word to say so, in the host's
        memory, where a kernel that meets an error writes directly."""
        self.errors = Pinned(device.context, 4 * len(self.checking))
        self.errors.array[:] = 0
        self.error_words = (ctypes.c_int32 * len(self.checking)).from_address(self.errors.pointer)
        self.sizes: Sizes = NO_SIZES
        self.room: Room | None = None
        self.ranged: Ranged | None = None
        """The launches for all sizes that runs tell."""
        self.bound: Bound | None = None
        """What the next run has, unless other launches were made for it since."""
        self.launches: Any = None
        """Those of the run at hand, or of all runs where sizes are known."""
        self.inputs: list[Any] = []
        self.is_waiting = False
        """Whether launches are being made for it."""

    def __del__(self) -> None:
        if hasattr(self, "stream"):
            self.device.context.streams.append(self.stream)

    # Sizes that are known.

    def fix(self, allocate: Callable[[int], Any], overlaps: dict[int, bool]) -> None:
        """Makes the launches of a plan whose sizes are known."""
        plan = self.plan
        self._take_room(
            room(plan.arena, (f for code in self.code for f, _ in code or ())), allocate
        )
        assert self.room is not None
        self.staging.guests = {v: self.room.arena + at for v, at in plan.guests.items()}
        known = Known(plan, NoLayout(plan, ()), NO_SIZES)
        self.kind: Callable[[TensorType], TensorType] = lambda kind: kind
        here = self.device.context.found.architecture
        way = plan, self.spans, self.code, known, self.room, self._words, overlaps
        self.launches = Launches(*way, here)
        self._look_up()
        self.stream.synchronize()

    def _take_room(self, sizes: tuple[int, int, int], allocate: Callable[[int], Any]) -> None:
        self.room = Room(allocate(sum(sizes)), sizes)
        self.stream.zero(self.room.counters, sizes[1])

    @property
    def _words(self) -> dict[int, int]:
        """Where the error words of steps lie."""
        first = self.errors.pointer
        words = dict.fromkeys(range(len(self.plan.steps)), first)
        return words | {number: first + 4 * n for n, number in enumerate(self.checking)}

    def _look_up(self) -> None:
        self.inputs = [self.launches.places.get(value) for value in self.plan.graph.inputs]

    # Sizes that a run tells.

    def open(self, layout: Layout) -> None:
        """Makes the launches of a plan whose sizes runs tell."""
        self.ranged = Ranged(self.plan, self.spans, layout, self._words)

    def bind(
        self, bound: Bound, allocate: Callable[[int], Any], largest: Callable[[], float]
    ) -> None:
        """Lets the next run have some sizes."""
        self.bound = None
        self.sizes, self.kind = bound.sizes, bound.tensor
        if self.room is None or not self.room.holds(bound.room):
            self._grow(bound, allocate, largest())
        assert self.room is not None and self.ranged is not None
        self.bound = bound  # before looking for others, whose maker takes it back
        found = bound.special.get(self.number)
        if found is not None and found.room() is not self.room:
            del bound.special[self.number]
            found = None
        if found is None:
            self.ranged.bind(bound, self.room)
        if self.launches is not (found or self.ranged):
            self.launches = found or self.ranged
            self._look_up()

    def _grow(self, bound: Bound, allocate: Callable[[int], Any], largest: float) -> None:
        """Takes more memory than is needed now, so that larger sizes seldom have to; where profiles
        say how large sizes get, as much as that takes; where that is not to be had, what is needed
        now."""
        before = (0, 0, 0) if self.room is None else self.room.sizes
        arena, counters, scratch = map(max, before, bound.room)
        bounded = largest <= MOST_AHEAD
        least = EASY_ROOM if allocate == self.device.heap.take else LEAST_ROOM
        arena = max(arena, aligned(int(largest))) if bounded else max(_doubled(arena), least)
        self.used.synchronize()  # what runs still has the memory that is about to go
        try:
            self._take_room((arena, _doubled(counters), _doubled(scratch)), allocate)
        except OutOfMemory:
            self._take_room(bound.room, allocate)
        self.used.follow(self.stream)

    @property
    def is_graph(self) -> bool:
        """Whether the next run is graphs."""
        return self.launches is not self.ranged

    def is_ready(self, bound: Bound) -> bool:
        """Whether there are launches for the very sizes, in this context's memory."""
        found = bound.special.get(self.number)
        return found is not None and found.room() is self.room

    def prepare(self, bound: Bound, pause: Callable[[], object]) -> None:
        """Makes launches for the very sizes, with pauses in which runs go on."""
        room = self.room
        if room is None or not room.holds(bound.room):
            self.bound = None  # the next run takes more, and asks again
            return
        way = self.plan, self.spans, bound.code, bound, room, self._words
        apart = dict.fromkeys([begin for begin, _ in self.spans], False)
        made = Launches(*way, apart, self.device.context.found.architecture, pause)
        self._place_weights(made)
        made.make(pause)
        bound.special[self.number] = made
        self.bound = None

    def _place_weights(self, made: Launches) -> None:
        """Lets launches that nobody runs yet begin with the weights of the run before, so that
        their graph is made with these, and not told of each later."""
        given = None if self.pace or self.launches is None else self.launches.given()
        if given is None or type(given) is dict:
            return
        arrays = {v: a for v, a in given.items() if v in made.places}
        if all(type(a) is DeviceArray and not a.pointer & 15 for a in arrays.values()):
            for value, array in arrays.items():
                made.places[value].move(array.pointer)
            made.given = weakref.ref(given)

    # A run.

    def run(
        self,
        given: Mapping[Value, Any],
        inputs: Sequence[Any],
        out: Mapping[Value, Any],
        run_graph: Callable[..., Any],
    ) -> Mapping[Value, Any]:
        """Asks the device for everything; waits for it, unless the inputs are on a caller's stream
        and all results stay on the device."""
        stream, on_device = self.stream, False
        for array in inputs:
            if type(array) is DeviceArray:
                on_device = True
                if array.stream is not None:
                    stream = array.stream
                    break
        self._enter(stream, on_device)
        known = self.launches.given()
        if given is not known or (self.pace and self.rooms is not self.pace.rooms):
            self._take_weights(given, stream)
        self._bind(inputs, out, stream)
        watched = trace.current.get()
        values: Any = out
        if self.has_host_steps or watched is not None:
            values = {**given, **dict(zip(self.plan.graph.inputs, inputs)), **out}
        for number, (begin, _) in enumerate(self.spans):
            if self.pace:
                self.pace.bring(number, given, stream)
            if self.plan.steps[begin].kernel is None:
                self._run_host(begin, values, run_graph, watched)
            elif watched is not None:
                self._run_traced(number, values, watched)
            else:
                self.launches.run(number, stream)
            if self.pace:
                self.pace.leave(number, stream)
        if stream is self.stream or any(isinstance(a, np.ndarray) for a in out.values()):
            self._finish(out, on_device)
        else:
            self._promise(out, stream)
        if not self.outside:
            return out
        found = {**given, **dict(zip(self.plan.graph.inputs, inputs)), **values}
        results = {o: found[o] for o in self.plan.graph.outputs}
        return results if on_device else {o: _on_host(a, out, o) for o, a in results.items()}

    def answer(
        self, given: Mapping[Value, Any], inputs: Sequence[DeviceArray], stream: Stream
    ) -> list[DeviceArray]:
        """The same where all is on the device and on a caller's stream, and launches are graphs:
        the least that a run is."""
        if self.used is not stream:
            stream.follow(self.used)
            self.used = stream
        if self.checking:
            self._verify()
        if given is not self.launches.given():
            self._take_weights(given, stream)
        self._bind(inputs, {}, stream)
        results: list[DeviceArray] = []
        context, verify = self.device.context, self._verify if self.checking else None
        for place, dtype, shape, size in self.launches.outputs:
            memory = Loan(stream, size)
            array = DeviceArray(context, memory.pointer, dtype, shape, memory)
            array.stream, array.verify = stream, verify
            if place is not None and place.pointer != array.pointer:
                place.move(array.pointer)
            results.append(array)
        for segment in self.launches.segments:
            segment.run(stream)
        return results

    def _enter(self, stream: Stream, on_device: bool) -> None:
        """Makes a run on this stream come behind the one before, and behind its inputs."""
        if self.used is not stream:
            stream.follow(self.used)
            self.used = stream
            if stream is self.stream:
                # What the run before has staged may not have left the host, and nobody waited.
                stream.synchronize()
        if self.checking:
            self._verify()  # an earlier run that nobody waited for
        if on_device and stream is self.stream and stream is not self.device.context.stream:
            stream.follow(self.device.context.stream)

    def _take_weights(self, given: Mapping[Value, Any], stream: Stream) -> None:
        """Lets the launches know where weights lie: there they stay until others take over."""
        there, places = given, self.launches.places
        if self.pace:
            there = self.pace.settle(given, places, self.launches.segments)
            self.rooms = self.pace.rooms
        for value, array in there.items():
            if value in places:
                places[value].move(self._address(value, array, stream))
        # A plain one is what preparing reads, once.
        self.launches.given = (lambda: given) if type(given) is dict else weakref.ref(given)

    def _bind(self, inputs: Sequence[Any], out: Mapping[Value, Any], stream: Stream) -> None:
        """Lets the launches know where inputs and results lie."""
        for number, place in enumerate(self.inputs):
            if place is not None:
                array = inputs[number]
                if type(array) is DeviceArray and not array.pointer & 15:
                    pointer = array.pointer
                else:
                    pointer = self._address(self.plan.graph.inputs[number], array, stream)
                if pointer != place.pointer:
                    place.move(pointer)
        places = self.launches.places
        for value, array in out.items():
            if type(array) is DeviceArray:
                if not array.pointer:
                    array.allocate(stream)
                pointer = array.pointer
            elif value in places:
                pointer, _ = self.staging.of(value, array.nbytes)
            else:
                continue
            place = places.get(value) or places.setdefault(value, Place())
            if pointer != place.pointer:
                place.move(pointer)

    def _address(self, value: Value, array: Any, stream: Stream) -> int:
        """Where an array lies on the device, copied there where it has to be."""
        if isinstance(array, DeviceArray) and array.pointer % 16 == 0:
            return array.pointer
        return self.staging.bring(value, array, stream, stream is not self.stream)

    def _promise(self, out: Mapping[Value, Any], stream: Stream) -> None:
        """Results are there for what comes next on the caller's stream."""
        for array in out.values():
            array.stream = stream
            if self.checking:
                array.verify = self._verify

    def _finish(self, out: Mapping[Value, Any], waits: bool) -> None:
        """Results go where they are wanted, once no kernel met an error."""
        arrived: list[tuple[np.ndarray, Pinned]] = []
        for value, array in out.items():
            if isinstance(array, np.ndarray) and value in self.launches.places:
                pointer, pinned = self.staging.of(value, array.nbytes)
                self.used.download(pinned.pointer, pointer, array.nbytes)
                arrived.append((array, pinned))
        if out or self.checking or waits:
            self.used.synchronize()
        self._verify()
        for array, pinned in arrived:
            flat = pinned.array[: array.nbytes]
            array[...] = flat.view(array.dtype).reshape(array.shape)

    def _verify(self) -> None:
        """Raises for the first step that met an index outside its axis."""
        if not any(self.error_words):
            return
        number = next(n for n, word in zip(self.checking, self.error_words) if word)
        self.used.synchronize()
        self.errors.array[:] = 0
        raise self.plan.steps[number].index_error()

    def _run_host(
        self,
        number: int,
        values: dict[Value, Any],
        run_graph: Callable[..., Any],
        watched: trace.Trace | None,
    ) -> None:
        step = self.plan.steps[number]
        start = time.perf_counter()
        arrays = [None if i is None else self._on_host(i, values) for i in step.value.inputs]
        if self.checking:
            self.used.synchronize()
            self._verify()
        results = step.computed(arrays, self.sizes, run_graph)
        for value, result in zip(step.writes, results):
            self._take(value, result, values)
        if watched is not None:
            self.used.synchronize()
            taken = time.perf_counter() - start
            watched.add(trace.Timing(step, taken, start, sizes=self.sizes), values)
            self.device.context.resume()

    def _on_host(self, value: Value, values: dict[Value, Any]) -> Any:
        """A Value as NumPy has it."""
        array = values.get(value)
        if isinstance(array, DeviceArray) and array.host is not None:
            return array.host
        if array is not None and not isinstance(array, DeviceArray) and value not in self.made:
            return array
        if not isinstance(value.type, TensorType) or not holds(value.tensor):
            return array
        if isinstance(array, DeviceArray) and value not in self.made:
            return array.numpy()
        return self._seen(value)

    def _take(self, value: Value, result: Any, values: dict[Value, Any]) -> None:
        """A host operator's result where those that follow look for it."""
        array = values.get(value)
        if not isinstance(value.type, TensorType) or not holds(value.tensor):
            if isinstance(array, np.ndarray) and array is not result:
                array[...] = result
            else:
                values[value] = result
            return
        pointer = self.launches.at(value)
        if pointer is not None:
            result = np.ascontiguousarray(result).reshape(numbers(self.kind(value.tensor)))
            self.used.upload(pointer, result.ctypes.data, result.nbytes)
            self.used.synchronize()
        elif isinstance(array, np.ndarray):
            array[...] = result
        else:
            values[value] = result

    def _run_traced(self, number: int, values: dict[Value, Any], watched: trace.Trace) -> None:
        """Launch after launch, with the device's own times; where each step is looked at, one step
        after the other, as later ones write over what it wrote."""
        launches = list(self.launches.each(number))
        parts = [launches]
        if watched.look is not None:
            parts = [list(part) for _, part in itertools.groupby(launches, lambda each: each[0])]
        for part in parts:
            for place, (start, seconds) in self._timed(part).items():
                found = self.plan.steps[place]
                if watched.look is not None:
                    values.update((value, self._seen(value)) for value in found.writes)
                timing = trace.Timing(found, seconds, start, sizes=self.sizes)
                watched.add(timing, values)
                self.device.context.resume()

    def _timed(self, launches: Sequence[Each]) -> dict[int, tuple[float, float]]:
        """Asks for launches and waits for them; when each step began, and what it took."""
        events, began = [Event(timed=True)], time.perf_counter()
        events[0].record(self.used)
        for _, launch in launches:
            launch(self.used)
            events.append(Event(timed=True))
            events[-1].record(self.used)
        self.used.synchronize()
        found: dict[int, tuple[float, float]] = {}
        for (step, _), before, after in zip(launches, events, events[1:]):
            start, seconds = found.get(step, (began + before.seconds_since(events[0]), 0.0))
            found[step] = start, seconds + after.seconds_since(before)
        return found

    def _seen(self, value: Value) -> np.ndarray:
        kind, pointer = self.kind(value.tensor), self.launches.at(value)
        array = np.empty(numbers(kind), kind.numpy)
        assert pointer is not None
        self.used.download(array.ctypes.data, pointer, array.nbytes)
        self.used.synchronize()
        return array


def _doubled(size: int) -> int:
    """A power of two."""
    return 0 if size == 0 else max(LEAST_ROOM, 1 << (size - 1).bit_length())


def _on_host(array: Any, out: Mapping[Value, Any], value: Value) -> Any:
    """A weight that is an output, as NumPy has it."""
    return array.numpy().copy() if isinstance(array, DeviceArray) and value not in out else array
