"""A Plan on a GPU: kernels between two host operators are one CUDA graph.

What a run does is what differs from the run before: the addresses of its inputs and results go into
the few launches that use them, and the graphs are asked for.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.errors import IndexOutOfRange
from whet.ir.evaluate import compute
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan import trace
from whet.plan.plan import Plan, Step, nbytes, segments
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.compile import Function
from whet.targets.cuda.device import Device, holds, numbers
from whet.targets.cuda.driver import Event, Stream
from whet.targets.cuda.memory import Loan, Pinned, room
from whet.targets.cuda.order import Span, Use
from whet.targets.cuda.segments import Place, Segment
from whet.targets.cuda.staging import Staging


class Executable:
    """A Plan compiled for a device: runs on given buffers, from any number of threads."""

    def __init__(self, plan: Plan, device: Device) -> None:
        self.plan, self.device = plan, device
        self.segments = segments(plan.steps)
        device.context.use()
        device.compile([step.kernel for step in plan.steps if step.kernel is not None])
        self._free: list[_Context] = []
        self.allocate: Callable[[int], Any] = device.heap.take
        """Where arenas come from."""
        self.pace: Any = None
        """How weights come to the device, where they are not all there."""
        self._overlaps: dict[int, bool] = {}
        """Whether the branches of each segment overlap, as far as that is known."""
        outputs = plan.graph.outputs
        written = {v for step in plan.steps for v in step.writes if step.kernel is not None}
        self._is_direct = (
            bool(plan.graph.inputs)
            and all(not step.is_host for step in plan.steps)
            and all(o in written and holds(o.tensor) for o in outputs)
        )
        """Whether nothing but kernels runs, and they write all outputs."""

    def run(
        self,
        given: Mapping[Value, Any],
        inputs: Sequence[Any],
        out: Mapping[Value, Any],
        run_graph: Callable[..., Any],
    ) -> Mapping[Value, Any]:
        """Computes the plan's outputs into the `out` arrays; `given` is what was prepared, the same
        object in each run with the same weights. Arrays are NumPy's or this device's."""
        self.device.context.use()
        context = self._free.pop() if self._free else self._context()
        try:
            return context.run(given, inputs, out, run_graph)
        finally:
            self._free.append(context)

    def _context(self) -> _Context:
        """Another one; it does not know its executable, as both go with the last reference."""
        if self.pace is not None or not self.device.tune:
            self._overlaps = dict.fromkeys([begin for begin, _ in self.segments], False)
        way = self.allocate, self.pace, self._overlaps
        return _Context(self.plan, self.device, self.segments, *way)

    def answer(self, given: Mapping[Value, Any], inputs: Sequence[Any]) -> list[DeviceArray] | None:
        """The outputs, once they are asked for on the caller's stream that the inputs are on; None
        where a run takes more than that."""
        is_quick = self._is_direct and self._free and self.pace is None
        if not is_quick or trace.current.get() is not None:
            return None
        stream = inputs[0].stream
        self.device.context.use()
        try:
            context = self._free.pop()
        except IndexError:  # another thread has it
            return None
        try:
            return context.answer(given, inputs, stream)
        finally:
            self._free.append(context)

    @property
    def arena(self) -> int:
        """The bytes that one run at a time takes."""
        kernels = [step.kernel for step in self.plan.steps if step.kernel is not None]
        return sum(room(self.plan, [f for k in kernels for f in self.device.functions(k)]))


class _Context:
    """What one run at a time needs: an arena, a stream, and the launches with their arguments."""

    def __init__(
        self,
        plan: Plan,
        device: Device,
        segments: list[tuple[int, int]],
        allocate: Callable[[int], Any],
        pace: Any,
        overlaps: dict[int, bool],
    ) -> None:
        self.plan, self.device, self.pace = plan, device, pace
        self.overlaps = overlaps
        self.made = {v for s in plan.steps if not s.is_host for v in s.writes}
        self.outside = tuple(o for o in plan.graph.outputs if o not in self.made)
        self.has_host_steps = any(step.is_host for step in plan.steps)
        self.stream = self.used = device.context.lend()
        """Its own, and the one of the run before."""
        self.staging = Staging(device.context, device.heap)
        self.given: Mapping[Value, Any] | None = None
        self.there: Mapping[Value, Any] = {}
        """Weights on the device, and the rooms that the others come to."""
        self.rooms: Any = None
        self.code = [None if s.kernel is None else device.code(s.kernel) for s in plan.steps]
        self._lay_out(allocate)
        self.places: dict[Value, Place] = {}
        self.segments = [self._segment(*segment) for segment in segments]
        for value, at in plan.offsets.items():
            if value in self.places:
                self.places[value].move(self.arena + at)
        self.inputs = [self.places.get(value) for value in plan.graph.inputs]
        self.outputs = [
            (self.places.get(v), v.tensor.numpy, numbers(v.tensor), nbytes(v.tensor))
            for v in plan.graph.outputs
            if v in self.made and holds(v.tensor)
        ]
        self.stream.synchronize()

    def __del__(self) -> None:
        if hasattr(self, "stream"):
            self.device.context.streams.append(self.stream)

    def _lay_out(self, allocate: Callable[[int], Any]) -> None:
        """The arena, with counters and scratch behind it; error words are in the host's memory,
        where a kernel that meets an error writes directly."""
        sizes = room(self.plan, (f for code in self.code for f, _ in code or ()))
        self.memory = allocate(sum(sizes))
        self.arena = self.memory.pointer
        self.counters = self.arena + sizes[0]
        self.scratch = self.counters + sizes[1]
        self.stream.zero(self.counters, sizes[1])
        self.checking = [
            n for n, code in enumerate(self.code) if code and any(f.checks for f, _ in code)
        ]
        """Steps that may meet an index outside its axis: each has a word to say so."""
        self.errors = Pinned(self.device.context, 4 * len(self.checking))
        self.errors.array[:] = 0
        self.error_words = (ctypes.c_int32 * len(self.checking)).from_address(self.errors.pointer)

    def _segment(self, begin: int, end: int) -> Segment:
        segment = Segment(begin, end, self.overlaps)
        for number in range(begin, end):
            step = self.plan.steps[number]
            buffers = (*step.reads, *step.writes)
            for function, module in self.code[number] or ():
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
                (self.places[v], nbytes(v.tensor))
                for v in step.writes
                if v in self.plan.graph.outputs and v in self.places
            ]
        return segment

    def _use(self, step: Step, function: Function) -> Use:
        """The memory that a launch may touch. Weights and inputs are only read."""
        shared = (("counters", function.counters), ("scratch", function.scratch))
        reads, writes = (tuple(map(self._span, values)) for values in (step.reads, step.writes))
        return Use(reads, (*writes, *((name, 0, 1) for name, size in shared if size)))

    def _span(self, value: Value) -> Span:
        at = self.plan.offsets.get(value)
        return (value, 0, 1) if at is None else ("arena", at, at + max(nbytes(value.tensor), 1))

    def _fixed(self, slot: str, number: int) -> int:
        if slot == "error":
            word = self.checking.index(number) if number in self.checking else 0
            return self.errors.pointer + 4 * word
        return self.counters if slot == "counters" else self.scratch

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
        if given is not self.given or (self.pace and self.rooms is not self.pace.rooms):
            self._take_weights(given, stream)
        self._bind(inputs, out, stream)
        watched = trace.current.get()
        values: Any = out
        if self.has_host_steps or watched is not None:
            values = {**given, **dict(zip(self.plan.graph.inputs, inputs)), **out}
        for number, segment in enumerate(self.segments):
            if self.pace:
                self.pace.bring(number, given, stream)
            if self.plan.steps[segment.begin].kernel is None:
                self._run_host(segment, values, run_graph, watched)
            elif watched is not None:
                self._run_traced(segment, values, watched)
            else:
                segment.run(stream)
            if self.pace:
                self.pace.leave(number, stream)
        if stream is self.stream or any(isinstance(a, np.ndarray) for a in out.values()):
            self._finish(values, out, on_device)
        else:
            self._promise(out, stream)
        if not self.outside:
            return out
        known = {**given, **dict(zip(self.plan.graph.inputs, inputs)), **values}
        results = {o: known[o] for o in self.plan.graph.outputs}
        return results if on_device else {o: _on_host(a, out, o) for o, a in results.items()}

    def answer(
        self, given: Mapping[Value, Any], inputs: Sequence[DeviceArray], stream: Stream
    ) -> list[DeviceArray]:
        """The same where all is on the device and on a caller's stream: the least that a run is."""
        if self.used is not stream:
            stream.follow(self.used)
            self.used = stream
        if self.checking:
            self._verify()
        if given is not self.given:
            self._take_weights(given, stream)
        self._bind(inputs, {}, stream)
        results: list[DeviceArray] = []
        context, verify = self.device.context, self._verify if self.checking else None
        for place, dtype, shape, size in self.outputs:
            memory = Loan(stream, size)
            array = DeviceArray(context, memory.pointer, dtype, shape, memory)
            array.stream, array.verify = stream, verify
            if place is not None and place.pointer != array.pointer:
                place.move(array.pointer)
            results.append(array)
        for segment in self.segments:
            segment.run(stream)
        return results

    def _enter(self, stream: Stream, on_device: bool) -> None:
        """Makes a run on this stream come behind the one before, and behind its inputs."""
        if self.used is not stream:
            stream.follow(self.used)
            self.used = stream
        if self.checking:
            self._verify()  # an earlier run that nobody waited for
        if on_device and stream is self.stream and stream is not self.device.context.stream:
            stream.follow(self.device.context.stream)

    def _take_weights(self, given: Mapping[Value, Any], stream: Stream) -> None:
        """Lets the launches know where weights lie: there they stay until others take over."""
        self.there = given
        if self.pace:
            self.there = self.pace.settle(given, self.places, self.segments)
            self.rooms = self.pace.rooms
        for value, array in self.there.items():
            if value in self.places:
                self.places[value].move(self._address(value, array, stream))
        self.given = given

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
        for value, array in out.items():
            if type(array) is DeviceArray:
                if not array.pointer:
                    array.allocate(stream)
                pointer = array.pointer
            elif value in self.places:
                pointer = self.staging[value][0]
            else:
                continue
            place = self.places.get(value) or self.places.setdefault(value, Place())
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

    def _finish(self, values: Mapping[Value, Any], out: Mapping[Value, Any], waits: bool) -> None:
        """Results go where they are wanted, once no kernel met an error."""
        arrived: list[tuple[np.ndarray, Pinned]] = []
        for value, array in out.items():
            if isinstance(array, np.ndarray) and values[value] is array and value in self.places:
                pointer, pinned = self.staging[value]
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
        step = self.plan.steps[number]
        names = " + ".join(step.nodes) or str(step.value.op)
        raise IndexOutOfRange(
            f'at node "{names}": an index lies outside the axis that it chooses from'
        )

    def _run_host(
        self,
        segment: Segment,
        values: dict[Value, Any],
        run_graph: Callable[..., Any],
        watched: trace.Trace | None,
    ) -> None:
        step = self.plan.steps[segment.begin]
        start = time.perf_counter()
        arrays = [None if i is None else self._on_host(i, values) for i in step.value.inputs]
        if self.checking:
            self.used.synchronize()
            self._verify()
        extra = [run_graph] if step.value.op.runs_graphs else []
        results = compute(step.value, [*extra, *arrays], {})
        for value, result in zip(step.writes, results):
            self._take(value, result, values)
        if watched is not None:
            self.used.synchronize()
            taken = time.perf_counter() - start
            watched.add(trace.Timing(step, taken, start), values)

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
        result = np.empty(value.shape, value.tensor.numpy)
        self.used.download(result.ctypes.data, self.places[value].pointer, result.nbytes)
        self.used.synchronize()
        return result

    def _take(self, value: Value, result: Any, values: dict[Value, Any]) -> None:
        """A host operator's result where those that follow look for it."""
        array = values.get(value)
        if not isinstance(value.type, TensorType) or not holds(value.tensor):
            if isinstance(array, np.ndarray) and array is not result:
                array[...] = result
            else:
                values[value] = result
            return
        if value in self.places:
            result = np.ascontiguousarray(result).reshape(value.shape)
            self.used.upload(self.places[value].pointer, result.ctypes.data, result.nbytes)
            self.used.synchronize()
        elif isinstance(array, np.ndarray):
            array[...] = result
        else:
            values[value] = result

    def _run_traced(self, segment: Segment, values: dict[Value, Any], watched: trace.Trace) -> None:
        """Launch after launch, with the device's own times."""
        events = [Event(timed=True)]
        began = time.perf_counter()
        events[0].record(self.used)
        for call in segment.calls:
            call.launch(self.used)
            events.append(Event(timed=True))
            events[-1].record(self.used)
        self.used.synchronize()
        taken: dict[int, float] = {}
        starts: dict[int, float] = {}
        for number, before, after in zip(segment.steps, events, events[1:]):
            starts.setdefault(number, began + before.seconds_since(events[0]))
            taken[number] = taken.get(number, 0.0) + after.seconds_since(before)
        for number, seconds in taken.items():
            step = self.plan.steps[number]
            if watched.look is not None:
                for value in step.writes:
                    values[value] = self._seen(value)
            watched.add(trace.Timing(step, seconds, starts[number]), values)

    def _seen(self, value: Value) -> np.ndarray:
        array = np.empty(value.shape, value.tensor.numpy)
        self.used.download(array.ctypes.data, self.places[value].pointer, array.nbytes)
        self.used.synchronize()
        return array


def _on_host(array: Any, out: Mapping[Value, Any], value: Value) -> Any:
    """A weight that is an output, as NumPy has it."""
    return array.numpy().copy() if isinstance(array, DeviceArray) and value not in out else array
