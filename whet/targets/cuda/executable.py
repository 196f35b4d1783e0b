"""A Plan on a GPU: kernels between two host operators are one CUDA graph."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.errors import IndexOutOfRange
from whet.ir.evaluate import compute
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan import trace
from whet.plan.plan import Plan, nbytes, segments
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.device import ALIGNMENT, Device, holds
from whet.targets.cuda.driver import Call, Event, Graph, Pinned, Stream


class Executable:
    """A Plan compiled for a device: runs on given buffers, from any number of threads."""

    def __init__(self, plan: Plan, device: Device) -> None:
        self.plan, self.device = plan, device
        self.segments = segments(plan.steps)
        device.context.use()
        device.compile([step.kernel for step in plan.steps if step.kernel is not None])
        self._free: list[_Context] = []

    def run(
        self, given: Mapping[Value, Any], out: Mapping[Value, Any], run_graph: Callable[..., Any]
    ) -> dict[Value, Any]:
        """Computes the plan's outputs into the `out` arrays; `given` are its inputs and what was
        prepared. Arrays are NumPy's or this device's."""
        self.device.context.use()
        context = self._free.pop() if self._free else _Context(self)
        try:
            return context.run(given, out, run_graph)
        finally:
            self._free.append(context)


@dataclass
class _Segment:
    """Launches of neighbouring steps, and the graph that they become when they first run."""

    begin: int
    end: int
    calls: list[Call] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """The step of each launch."""
    graph: Graph | None = None
    changed: set[int] = field(default_factory=set)
    """Launches whose arguments are not those that the graph knows."""

    def run(self, stream: Stream) -> None:
        if self.graph is None:
            self.graph = Graph(self.calls)
        else:
            for number in self.changed:
                self.graph.update(number)
        self.changed.clear()
        if self.calls:
            self.graph.launch(stream)


class _Context:
    """What one run at a time needs: an arena, a stream, and the launches with their arguments."""

    def __init__(self, executable: Executable) -> None:
        self.executable, self.plan = executable, executable.plan
        self.made = {v for s in self.plan.steps if not s.is_host for v in s.writes}
        self.device = executable.device
        context = self.device.context
        self.stream = Stream(context)
        self.memory: list[Any] = []
        self.pointers: dict[Value, int] = {}
        self.places: dict[Value, list[tuple[_Segment, int, int]]] = {}
        self.used = self.stream
        """The stream of the run before."""
        self.static: tuple[tuple[Value, ...], tuple[Any, ...]] = (), ()
        """Weights, and where they were in the run before."""
        self.has_host_steps = any(step.is_host for step in self.plan.steps)
        self._lay_out()
        self.segments = [self._segment(*segment) for segment in executable.segments]
        self.inputs: dict[Value, tuple[int, Pinned]] = {}
        self.outputs: dict[Value, tuple[int, Pinned]] = {}
        known, self.pointers = self.pointers, {}
        for value, pointer in known.items():
            self._point(value, pointer)
        self.stream.synchronize()

    def _lay_out(self) -> None:
        """The arena, with counters and scratch behind it; error words are in the host's memory,
        where a kernel that meets an error writes directly."""
        plan, device = self.plan, self.device
        functions = [
            f for s in plan.steps if s.kernel is not None for f, _ in device.code(s.kernel)
        ]
        counters = 4 * max((f.counters for f in functions), default=0)
        sizes = (plan.arena, counters, max((f.scratch for f in functions), default=0))
        places = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)])
        arena = device.context.allocate(int(places[-1]))
        device.context.stream.synchronize()
        self.memory.append(arena)
        base, self.counters, self.scratch = (arena.pointer + int(p) for p in places[:3])
        self.stream.zero(self.counters, int(places[2] - places[1]))
        self.checks = any(f.checks for f in functions)
        self.errors = Pinned(device.context, 4 * max(1, len(plan.steps)))
        self.error_words = self.errors.array.view(np.int32)
        self.error_words[:] = 0
        for value, at in plan.offsets.items():
            self.pointers[value] = base + at

    def _segment(self, begin: int, end: int) -> _Segment:
        segment = _Segment(begin, end)
        for number in range(begin, end):
            step = self.plan.steps[number]
            if step.kernel is None:
                continue
            buffers = (*step.reads, *step.writes)
            for function, module in self.device.code(step.kernel):
                arguments = np.zeros(len(function.slots) + function.nulls, np.int64)
                where = len(segment.calls)
                for place, slot in enumerate(function.slots):
                    if isinstance(slot, int):
                        found = self.places.setdefault(buffers[slot], [])
                        found.append((segment, where, place))
                    else:
                        arguments[place] = self._fixed(slot, number)
                call = Call(
                    module,
                    function.grid,
                    function.threads,
                    function.shared,
                    arguments,
                    f"{step.name} of {' + '.join(step.nodes)}",
                    function.waits,
                )
                segment.calls.append(call)
                segment.steps.append(number)
        return segment

    def _fixed(self, slot: str, number: int) -> int:
        if slot == "error":
            return self.errors.pointer + 4 * number
        return self.counters if slot == "counters" else self.scratch

    def _point(self, value: Value, pointer: int) -> None:
        """Lets the launches know where a Value lies."""
        if self.pointers.get(value) == pointer:
            return
        self.pointers[value] = pointer
        for segment, call, place in self.places.get(value, ()):
            arguments = segment.calls[call].arguments
            if arguments[place] != pointer:
                arguments[place] = pointer
                segment.changed.add(call)

    def run(
        self, given: Mapping[Value, Any], out: Mapping[Value, Any], run_graph: Callable[..., Any]
    ) -> dict[Value, Any]:
        """Asks the device for everything; waits for it, unless the inputs are on a caller's stream
        and all results stay on the device."""
        arrays = [given[v] for v in self.plan.graph.inputs]
        on_device = [a for a in arrays if isinstance(a, DeviceArray)]
        theirs = next((a.stream for a in on_device if a.stream is not None), None)
        stream = theirs or self.stream
        self._enter(stream, bool(on_device))
        self._bind(given, out, stream)
        watched = trace.current.get()
        values = {**given, **out} if self.has_host_steps or watched is not None else out
        for segment in self.segments:
            if self.plan.steps[segment.begin].is_host:
                self._run_host(segment, values, run_graph, watched)  # type: ignore[arg-type]
            elif watched is not None:
                self._run_traced(segment, values, watched)  # type: ignore[arg-type]
            else:
                segment.run(stream)
        if theirs is not None and not any(isinstance(a, np.ndarray) for a in out.values()):
            return self._promised(values, given, out, stream)
        return self._finish(values, given, out, bool(on_device))

    def _enter(self, stream: Stream, on_device: bool) -> None:
        """Makes a run on this stream come behind the one before, and behind its inputs."""
        if self.used is not stream:
            stream.follow(self.used)
            self.used = stream
        if self.checks:
            self._verify()  # an earlier run that nobody waited for
        if on_device and stream is self.stream:
            stream.follow(self.device.context.stream)

    def _bind(self, given: Mapping[Value, Any], out: Mapping[Value, Any], stream: Stream) -> None:
        """Lets the launches know where inputs, weights and results lie."""
        # Weights stay where they are until others take their place.
        values, arrays = self.static
        if not values or not all(map(operator.is_, map(given.get, values), arrays)):
            inputs = set(self.plan.graph.inputs)
            static = {v: a for v, a in given.items() if v not in inputs}
            self.static = tuple(static), tuple(static.values())
            for value, array in static.items():
                if value in self.places:
                    self._point(value, self._input(value, array, stream))
        for value in self.plan.graph.inputs:
            if value in self.places:
                self._point(value, self._input(value, given[value], stream))
        for value, array in out.items():
            if isinstance(array, DeviceArray):
                if not array.pointer:
                    array.allocate(stream)
                self._point(value, array.pointer)
            elif value in self.places:
                self._point(value, self._staged(self.outputs, value)[0])

    def _promised(
        self,
        values: Mapping[Value, Any],
        given: Mapping[Value, Any],
        out: Mapping[Value, Any],
        stream: Stream,
    ) -> dict[Value, Any]:
        """Results that are there for what comes next on the caller's stream."""
        for array in out.values():
            array.stream = stream
            array.verify = self._verify if self.checks else None
        return {o: values[o] if o in values else given[o] for o in self.plan.graph.outputs}

    def _input(self, value: Value, array: Any, stream: Stream) -> int:
        """Where an input lies on the device, copied there where it has to be."""
        if isinstance(array, DeviceArray):
            if array.pointer % 16 == 0:
                return array.pointer
            pointer, _ = self._staged(self.inputs, value)
            stream.copy(pointer, array.pointer, array.nbytes)
            return pointer
        array = np.asarray(array)
        pointer, pinned = self._staged(self.inputs, value)
        size = array.nbytes
        if stream is not self.stream:
            stream.synchronize()  # what the run before has staged may not have left yet
        pinned.array[:size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        stream.upload(pointer, pinned.pointer, size)
        return pointer

    def _staged(self, kept: dict[Value, tuple[int, Pinned]], value: Value) -> tuple[int, Pinned]:
        """Memory on both sides through which a Value passes."""
        if value not in kept:
            size = nbytes(value.tensor)
            memory = self.device.context.allocate(size)
            self.device.context.stream.synchronize()
            self.memory.append(memory)
            kept[value] = memory.pointer, Pinned(self.device.context, size)
        return kept[value]

    def _finish(
        self,
        values: Mapping[Value, Any],
        given: Mapping[Value, Any],
        out: Mapping[Value, Any],
        on_device: bool,
    ) -> dict[Value, Any]:
        """Results where they are wanted, once they are there and no kernel met an error."""
        arrived: list[tuple[np.ndarray, Pinned]] = []
        for value, array in out.items():
            if isinstance(array, np.ndarray) and values[value] is array and value in self.places:
                pointer, pinned = self._staged(self.outputs, value)
                self.used.download(pinned.pointer, pointer, array.nbytes)
                arrived.append((array, pinned))
        if out or self.checks or on_device:
            self.used.synchronize()
        self._verify()
        for array, pinned in arrived:
            flat = pinned.array[: array.nbytes]
            array[...] = flat.view(array.dtype).reshape(array.shape)
        results = {o: values[o] if o in values else given[o] for o in self.plan.graph.outputs}
        for value, array in results.items():
            if isinstance(array, DeviceArray) and value not in out and not on_device:
                results[value] = array.numpy().copy()
        return results

    def _verify(self) -> None:
        """Raises for the first step that met an index outside its axis."""
        if not self.error_words.any():
            return
        (number, *_) = np.flatnonzero(self.error_words)
        self.used.synchronize()
        self.error_words[:] = 0
        step = self.plan.steps[number]
        names = " + ".join(step.nodes) or str(step.value.op)
        raise IndexOutOfRange(
            f'at node "{names}": an index lies outside the axis that it chooses from'
        )

    def _run_host(
        self,
        segment: _Segment,
        values: dict[Value, Any],
        run_graph: Callable[..., Any],
        watched: trace.Trace | None,
    ) -> None:
        step = self.plan.steps[segment.begin]
        start = time.perf_counter()
        arrays = [None if i is None else self._on_host(i, values) for i in step.value.inputs]
        if self.checks:
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
        self.used.download(result.ctypes.data, self.pointers[value], result.nbytes)
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
        if value in self.pointers:
            result = np.ascontiguousarray(result).reshape(value.shape)
            self.used.upload(self.pointers[value], result.ctypes.data, result.nbytes)
            self.used.synchronize()
        elif isinstance(array, np.ndarray):
            array[...] = result
        else:
            values[value] = result

    def _run_traced(
        self, segment: _Segment, values: dict[Value, Any], watched: trace.Trace
    ) -> None:
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
        self.used.download(array.ctypes.data, self.pointers[value], array.nbytes)
        self.used.synchronize()
        return array
