"""A Plan on a GPU: kernels between two host operators are one CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.errors import IndexOutOfRange
from whet.ir.evaluate import compute
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan import trace
from whet.plan.plan import Plan, Step, nbytes
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.device import ALIGNMENT, Device, holds
from whet.targets.cuda.driver import Call, Event, Graph, Pinned, Stream


class Executable:
    """A Plan compiled for a device: runs on given buffers, from any number of threads."""

    def __init__(self, plan: Plan, device: Device) -> None:
        self.plan, self.device = plan, device
        self.segments = _segments(plan.steps)
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


def _segments(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Runs of steps that are one graph; a step on the host stands alone."""
    segments: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        joins = segments and not step.is_host and not steps[segments[-1][0]].is_host
        if joins:
            segments[-1] = (segments[-1][0], number + 1)
        else:
            segments.append((number, number + 1))
    return segments


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
        self.checks = self.is_bound = False
        self.arrived = Event()
        self._lay_out()
        self.segments = [self._segment(*segment) for segment in executable.segments]
        self.inputs: dict[Value, tuple[int, Pinned]] = {}
        self.outputs: dict[Value, tuple[int, Pinned]] = {}
        for value, pointer in list(self.pointers.items()):
            self._point(value, pointer)
        self.stream.synchronize()

    def _lay_out(self) -> None:
        """The arena, with error words, counters and scratch behind it."""
        plan, device = self.plan, self.device
        functions = [
            f for s in plan.steps if s.kernel is not None for f, _ in device.code(s.kernel)
        ]
        self.error_bytes = 4 * len(plan.steps)
        counters = 4 * max((f.counters for f in functions), default=0)
        sizes = (
            plan.arena,
            self.error_bytes,
            counters,
            max((f.scratch for f in functions), default=0),
        )
        places = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)])
        arena = device.context.allocate(int(places[-1]))
        device.context.stream.synchronize()
        self.memory.append(arena)
        base, self.errors, self.counters, self.scratch = (
            arena.pointer + int(p) for p in places[:4]
        )
        self.stream.zero(self.errors, int(places[3] - places[1]))
        self.checks = any(f.checks for f in functions)
        self.error_words: Pinned | None = None
        self.arena = base
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
            return self.errors + 4 * number
        return self.counters if slot == "counters" else self.scratch

    def _point(self, value: Value, pointer: int) -> None:
        """Lets the launches know where a Value lies."""
        if self.pointers.get(value) == pointer and self.is_bound:
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
        values: dict[Value, Any] = {**given, **out}
        on_device = any(isinstance(values.get(v), DeviceArray) for v in self.plan.graph.inputs)
        # Weights stay where they are: after the first run only inputs are new.
        fresh = given if not self.is_bound else self.plan.graph.inputs
        for value in fresh:
            if value in self.places and value in given:
                self._point(value, self._input(value, given[value]))
        self.is_bound = True
        for value, array in out.items():
            if isinstance(array, DeviceArray):
                self._point(value, array.pointer)
            elif value in self.places:
                self._point(value, self._staged(self.outputs, value)[0])
        if on_device:
            self.arrived.record(self.device.context.stream)
            self.stream.wait_for(self.arrived)
        watched = trace.current.get()
        for segment in self.segments:
            if self.plan.steps[segment.begin].is_host:
                self._run_host(segment, values, run_graph, watched)
            elif watched is not None:
                self._run_traced(segment, values, watched)
            else:
                segment.run(self.stream)
        return self._finish(values, out, on_device)

    def _input(self, value: Value, array: Any) -> int:
        """Where an input lies on the device, copied there where it has to be."""
        if isinstance(array, DeviceArray):
            if array.pointer % 16 == 0:
                return array.pointer
            pointer, _ = self._staged(self.inputs, value)
            self.stream.copy(pointer, array.pointer, array.nbytes)
            return pointer
        array = np.asarray(array)
        pointer, pinned = self._staged(self.inputs, value)
        size = array.nbytes
        pinned.array[:size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.stream.upload(pointer, pinned.pointer, size)
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
        self, values: dict[Value, Any], out: Mapping[Value, Any], on_device: bool
    ) -> dict[Value, Any]:
        """Results where they are wanted, once the errors of kernels are known."""
        arrived: list[tuple[np.ndarray, Pinned]] = []
        for value, array in out.items():
            if isinstance(array, np.ndarray) and values[value] is array and value in self.places:
                pointer, pinned = self._staged(self.outputs, value)
                self.stream.download(pinned.pointer, pointer, array.nbytes)
                arrived.append((array, pinned))
        errors = self._ask_for_errors()
        if out or errors is not None or on_device:
            self.stream.synchronize()
        if errors is not None:
            self._raise(errors)
        for array, pinned in arrived:
            flat = pinned.array[: array.nbytes]
            array[...] = flat.view(array.dtype).reshape(array.shape)
        results = {o: values[o] for o in self.plan.graph.outputs}
        for value, array in results.items():
            if isinstance(array, DeviceArray) and value not in out and not on_device:
                results[value] = array.numpy().copy()
        return results

    def _ask_for_errors(self) -> Pinned | None:
        if not self.checks:
            return None
        if self.error_words is None:
            self.error_words = Pinned(self.device.context, self.error_bytes)
        self.stream.download(self.error_words.pointer, self.errors, self.error_bytes)
        return self.error_words

    def _raise(self, errors: Pinned) -> None:
        """Raises for the first step that met an index outside its axis."""
        words = errors.array[: self.error_bytes].view(np.int32)
        if not words.any():
            return
        (number, *_) = np.flatnonzero(words)
        self.stream.zero(self.errors, self.error_bytes)
        self.stream.synchronize()
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
        if (errors := self._ask_for_errors()) is not None:
            self.stream.synchronize()
            self._raise(errors)
        extra = [run_graph] if step.value.op.runs_graphs else []
        results = compute(step.value, [*extra, *arrays], {})
        for value, result in zip(step.writes, results):
            self._take(value, result, values)
        if watched is not None:
            self.stream.synchronize()
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
        result = np.empty(value.shape, value.tensor.numpy)
        self.stream.download(result.ctypes.data, self.pointers[value], result.nbytes)
        self.stream.synchronize()
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
            self.stream.upload(self.pointers[value], result.ctypes.data, result.nbytes)
            self.stream.synchronize()
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
        events[0].record(self.stream)
        for call in segment.calls:
            call.launch(self.stream)
            events.append(Event(timed=True))
            events[-1].record(self.stream)
        self.stream.synchronize()
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
        self.stream.download(array.ctypes.data, self.pointers[value], array.nbytes)
        self.stream.synchronize()
        return array
