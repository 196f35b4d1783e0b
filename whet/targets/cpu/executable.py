"""A Plan on the CPU: argument blocks and tables that the worker pool walks.

Where a plan serves a range of sizes, each set of sizes that is met is *bound*: where buffers lie,
what the sizes are, and which code each step runs. Code made for the very sizes takes the place of
that for the range between two runs: a table of addresses is replaced by another.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import OutOfMemory
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan import trace
from whet.plan.kernel import Kernel
from whet.plan.plan import Plan, Step, nbytes, segments
from whet.targets.background import give_way
from whet.targets.bound import NO_SIZES, Layout, Sizes
from whet.targets.cpu import codegen, host
from whet.targets.cpu.bound import Bound
from whet.targets.cpu.pool import Pool
from whet.targets.cpu.special import Special
from whet.targets.cpu.stream import Pace
from whet.targets.cpu.trials import Trials, Turn, tables

if TYPE_CHECKING:
    from whet.targets.cpu.device import Device

MOST_BOUND = 256
"""Sets of sizes that a plan keeps what it evaluated for; the one used longest ago goes first."""

MOST_SPECIAL = 64
"""Sets of sizes for which a plan gets kernels of their own."""

RUNS_BEFORE_TRIALS = 3
"""Whoever runs a plan more often than that will run it often enough to gain by better kernels."""


class Executable:
    """A Plan compiled for a device: runs on given buffers, from any number of threads."""

    def __init__(
        self, plan: Plan, device: Device, threads: int, before: Plan | None = None
    ) -> None:
        self.plan, self.device, self.threads = plan, device, threads
        self.segments = segments(plan.steps)
        self.kernels = [s.kernel and device.favourite(s.kernel) for s in plan.steps]
        others = before.kernels if before else []
        device.compile([*(k for k in self.kernels if k is not None), *others])
        steps = enumerate(plan.steps)
        blocks = [(n, codegen.slots(s.kernel)) for n, s in steps if s.kernel is not None]
        self.layout = Layout(plan, blocks)
        self.code = np.array([0 if k is None else device.code(k) for k in self.kernels], np.int64)
        """The address of each step's code, that for the whole range."""
        self.allocate: Callable[[int], np.ndarray] = host.aligned_memory
        """Where arenas come from."""
        self.least_arena = 0
        """What is asked for at once where that is there, so that larger sizes need no more."""
        self.pace: Pace | None = None
        """How weights come and go, where they are not all in memory."""
        self._bound: OrderedDict[tuple[int, ...], Bound] = OrderedDict()
        self._unsized: Bound | None = None
        self._is_direct = len(self.segments) == 1 and not plan.steps[0].is_host
        self._lock = threading.Lock()
        self._free: list[_Context] = []
        self._runs = self._running = self._specials = 0
        self.trials: Trials | None = None
        """While other kernels take turns in the runs."""

    def paced(self, values: Mapping[Value, Any]) -> Iterable[tuple[int, int]]:
        """The segments, each when the weights that it reads are there."""
        return self.segments if self.pace is None else self.pace.walk(values)

    @cached_property
    def kinds(self) -> list[tuple[Value, Any, Any]]:
        """The outputs with their shapes and dtypes, where their sizes are known."""
        outputs = ((value, value.tensor) for value in self.plan.graph.outputs)
        return [(value, kind.shape, kind.numpy) for value, kind in outputs]

    @property
    def arena(self) -> int:
        """The bytes that a run takes for intermediate results; the most of any sizes so far."""
        with self._lock:
            return max([self.plan.arena, *(bound.arena for bound in self._bound.values())])

    def room(self, nbytes: int) -> np.ndarray:
        """Memory for a run that takes so many bytes."""
        if nbytes < self.least_arena:
            with suppress(OutOfMemory):
                return self.allocate(self.least_arena)
        return self.allocate(nbytes)

    def bound(self, sizes: Sizes) -> Bound:
        """The plan at given sizes, evaluated anew or remembered."""
        if not sizes and self._unsized is not None:
            return self._unsized
        key = tuple(sizes[name] for name in sorted(sizes))
        with self._lock:
            found = self._bound.get(key)
            if found is None:
                found = self._bound[key] = Bound(self, sizes)
                self._unsized = None if sizes else found
                while len(self._bound) > MOST_BOUND:
                    self._bound.popitem(last=False)
            else:
                self._bound.move_to_end(key)
            return found

    def serves(self, sizes: Sizes) -> bool:
        """Every size will do: indices are 64 bits."""
        return True

    def specialise(self, sizes: Sizes, ordered: bool = False) -> None:
        """Has kernels made for the very sizes in the background; later runs take them.

        With `ordered`, those that might add numbers up in another order stay as they are. Only so
        many sets of sizes get kernels: code is kept as long as the device.
        """
        bound, plan = self.bound(sizes), weakref.ref(self)
        with self._lock:
            if bound.is_wanted or self._specials == MOST_SPECIAL:
                return
            bound.is_wanted = True
            self._specials += 1
        kernels: list[Kernel | Special | None] = []

        def wanted() -> list[Kernel | Special]:
            if (here := plan()) is None:
                return []
            make = here.device.specialised
            kernels.extend(k and make(k, bound.sizes, ordered) for k in here.kernels)
            return [kernel for kernel in kernels if kernel is not None]

        def swap() -> None:
            if (here := plan()) is not None:
                code = [0 if k is None else here.device.code(k) for k in kernels]
                bound.code = np.array(code, np.int64)
                bound.is_special = True

        self.device.background.compile(wanted, swap)

    def run(
        self,
        given: Mapping[Value, Any],
        inputs: Sequence[Any],
        out: Mapping[Value, Any],
        run_graph: Callable[..., Any],
        sizes: Sizes = NO_SIZES,
    ) -> dict[Value, Any]:
        """Computes the plan's outputs into the `out` arrays; `given` is what was prepared, `sizes`
        are the named sizes of this run."""
        if self._is_short():
            self._short_run(given, inputs, out, self.bound(sizes))
            if len(out) == len(self.plan.graph.outputs):
                return dict(out)
            found = {**given, **dict(zip(self.plan.graph.inputs, inputs)), **out}
            return {value: found[value] for value in self.plan.graph.outputs}
        given = {**given, **dict(zip(self.plan.graph.inputs, inputs))}
        context = self._context()
        with self._lock:
            self._runs += 1
            self._running += 1
            is_due = self._runs == RUNS_BEFORE_TRIALS
            is_alone, trials = self._running == 1, self.trials
        if is_due and self.device.tries and not sizes:
            self._try_others()
        is_timed = trials is not None and is_alone and trace.current.get() is None
        turn = trials.turn() if trials is not None and is_timed else None
        try:
            return context.run(given, out, run_graph, self.bound(sizes), turn)
        except BaseException:
            if turn is not None:
                turn.trials.give_up()
            raise
        finally:
            with self._lock:
                self._running -= 1
            self._free.append(context)

    def answer(self, given: Mapping[Value, Any], inputs: Sequence[Any]) -> list[Any] | None:
        """The outputs, where one native call is all that a run takes; else None."""
        if not self._is_short():
            return None
        out = {value: np.empty(shape, dtype) for value, shape, dtype in self.kinds}
        self._short_run(given, inputs, out, self.bound(NO_SIZES))
        return list(out.values())

    def _is_short(self) -> bool:
        """Whether one native call is all that a run takes, and nothing is measured."""
        is_direct = self._is_direct and self.pace is None and self.trials is None
        return is_direct and self._runs >= RUNS_BEFORE_TRIALS and trace.current.get() is None

    def _short_run(
        self,
        given: Mapping[Value, Any],
        inputs: Sequence[Any],
        out: Mapping[Value, Any],
        bound: Bound,
    ) -> None:
        context = self._context()
        try:
            context.short_run(given, inputs, out, bound)
        finally:
            self._free.append(context)

    def _context(self) -> _Context:
        """One that no other run has."""
        try:
            return self._free.pop()
        except IndexError:  # all are in use
            return _Context(self)

    def _try_others(self) -> None:
        """Compiles other kernels that give the same bits, and lets them take turns when they are
        there."""
        others: dict[Kernel, list[Kernel]] = {}
        plan = weakref.ref(self)

        def wanted() -> list[Kernel]:
            if (here := plan()) is None:
                return []
            known = [k for k in dict.fromkeys(here.kernels) if k is not None]
            for kernel in known:
                if not here.device.was_tried(kernel):
                    others[kernel] = here.device.alike(kernel)
                    give_way()
            return [way for ways in others.values() for way in ways]

        def begin() -> None:
            here = plan()
            if here is not None and any(others.values()):
                rows = tables(here.kernels, others)
                here.trials = Trials(
                    rows, here.device.code, lambda ways: here._settle(others, ways)
                )

        self.device.background.compile(wanted, begin)

    def _settle(
        self, others: Mapping[Kernel, Sequence[Kernel]], fastest: list[Kernel | None]
    ) -> None:
        """Runs go on with the fastest kernels, and the cache remembers them."""
        device = self.device
        for kernel, way in zip(self.kernels, fastest):
            if kernel is not None and way is not None and others.get(kernel):
                device.prefer(kernel, way)
        self.kernels, self.trials = fastest, None
        self.code = np.array([0 if k is None else device.code(k) for k in fastest], np.int64)
        with self._lock:
            for bound in self._bound.values():
                bound.code = self.code


class _Context:
    """What one run at a time needs: an arena, and the kernels' arguments with its addresses."""

    def __init__(self, executable: Executable) -> None:
        self.executable = executable
        layout, steps = executable.layout, executable.plan.steps
        self.tables = np.zeros((len(steps), 2), np.int64)
        self.table = self.tables.ctypes.data
        self.errors = np.zeros(len(steps), np.int64)
        self.arguments = np.zeros(max(layout.length, 1), np.int64)
        kernels = [number for number, step in enumerate(steps) if not step.is_host]
        starts = 8 * np.array(layout.starts, np.int64)
        self.tables[kernels, 1] = self.arguments.ctypes.data + starts
        for place, number in layout.named.get("error", ()):
            self.arguments[place] = self.errors.ctypes.data + 8 * number
        self.arena = host.aligned_memory(64)
        self.bound: Bound | None = None
        self.code: np.ndarray | None = None
        self.addresses: dict[Value, int] = {}
        self.inside: dict[Value, np.ndarray] | None = None
        self.given: Callable[[], Mapping[Value, Any] | None] = lambda: None
        """What was prepared, where the arguments have all of its addresses, and it still lives."""

    def bind(self, bound: Bound, code: np.ndarray) -> None:
        """Lays arguments and tables out for some sizes."""
        if bound is not self.bound:
            if self.arena.nbytes < bound.arena:
                # First: where it fails, the arguments are still those of the `bound` of before.
                self.arena = self.executable.room(bound.arena)
            self.bound, self.inside = bound, None
            bound.fill(self.arguments, self.arena.ctypes.data)
            self.addresses.clear()
        if self.code is not code:
            self.code = code
            self.tables[:, 0] = code

    def values(self) -> dict[Value, np.ndarray]:
        """What lies in the arena, as arrays."""
        if self.inside is None:
            assert self.bound is not None
            self.inside = {
                value: self._array(self.bound.tensor(value.tensor), at)
                for value, at in self.bound.offsets.items()
            }
        return self.inside

    def _array(self, kind: TensorType, at: int) -> np.ndarray:
        return self.arena[at : at + nbytes(kind)].view(kind.numpy).reshape(kind.shape)

    def _set(self, value: Value, array: Any) -> None:
        assert self.bound is not None
        address = array.__array_interface__["data"][0]  # sooner told than by array.ctypes
        if self.addresses.get(value) != address:
            self.addresses[value] = address
            for place, offset in self.bound.outside[value]:
                self.arguments[place] = address + offset

    def run(
        self,
        given: Mapping[Value, Any],
        out: Mapping[Value, Any],
        run_graph: Callable[..., Any],
        bound: Bound,
        turn: Turn | None = None,
    ) -> dict[Value, Any]:
        self.bind(bound, bound.code if turn is None else turn.code)
        self.given = lambda: None
        plan = self.executable.plan
        watched = trace.current.get()
        values: dict[Value, Any] = {**given, **out}
        self._set_all(values)
        if watched is not None or len(self.executable.segments) > 1:
            values = {**self.values(), **values}
        pool = Pool.shared(self.executable.device.driver)
        if watched is not None:
            self._run_traced(pool, values, run_graph, watched)
            return {o: values[o] for o in plan.graph.outputs}
        seconds = np.zeros(len(plan.steps))
        for begin, end in self.executable.paced(values):
            if plan.steps[begin].is_host:
                self._run_host(plan.steps[begin], values, run_graph)
                continue
            table = self.table + 16 * begin
            if turn is None:
                pool.run(table, end - begin, bound.threads)
            else:
                times, _ = pool.run_timed(table, end - begin, self.executable.threads)
                seconds[begin:end] = np.diff(times)
            if np.count_nonzero(self.errors):
                self._raise()
        if turn is not None:
            turn.done(seconds)
        return {o: values[o] for o in plan.graph.outputs}

    def short_run(
        self,
        given: Mapping[Value, Any],
        inputs: Sequence[Any],
        out: Mapping[Value, Any],
        bound: Bound,
    ) -> None:
        """A run where all steps are one segment."""
        executable = self.executable
        if self.given() is not given or self.bound is not bound or self.code is not bound.code:
            self.bind(bound, bound.code)
            self._set_all(given)
            self.given = weakref.ref(given)
        self._set_all(dict(zip(executable.plan.graph.inputs, inputs)))
        self._set_all(out)
        pool = Pool.shared(executable.device.driver)
        pool.run(self.table, len(executable.plan.steps), bound.threads)
        if np.count_nonzero(self.errors):
            self._raise()

    def _set_all(self, arrays: Mapping[Value, Any]) -> None:
        assert self.bound is not None
        for value, array in arrays.items():
            if value in self.bound.outside:
                self._set(value, array)

    def _run_traced(
        self,
        pool: Pool,
        values: dict[Value, Any],
        run_graph: Callable[..., Any],
        watched: trace.Trace,
    ) -> None:
        """As `run` does it, with the time of each step taken."""
        assert self.bound is not None
        steps, threads = self.executable.plan.steps, self.executable.threads
        segments, sizes = self.executable.paced(values), self.bound.sizes
        if watched.look is not None:
            segments = ((n, n + 1) for begin, end in segments for n in range(begin, end))
        for begin, end in segments:
            if steps[begin].is_host:
                start = time.perf_counter()
                self._run_host(steps[begin], values, run_graph)
                taken = time.perf_counter() - start
                watched.add(trace.Timing(steps[begin], taken, start, sizes=sizes), values)
                continue
            times, done = pool.run_timed(self.tables.ctypes.data + 16 * begin, end - begin, threads)
            if self.errors.any():
                self._raise()
            for n, step in enumerate(steps[begin:end]):
                seconds = float(times[n + 1] - times[n]) * 1e-9
                ends = ((t, float(row[n]) * 1e-9) for t, row in enumerate(done) if row[n])
                start = float(times[n]) * 1e-9
                watched.add(trace.Timing(step, seconds, start, tuple(ends), sizes), values)

    def _run_host(
        self, step: Step, values: dict[Value, Any], run_graph: Callable[..., Any]
    ) -> None:
        assert self.bound is not None
        arrays = [None if i is None else values[i] for i in step.value.inputs]
        results = step.computed(arrays, self.bound.sizes, run_graph)
        for value, result in zip(step.writes, results):
            if value in values and isinstance(value.type, TensorType):
                values[value][...] = result
            else:
                values[value] = result
                if isinstance(result, np.ndarray) and value in self.bound.outside:
                    values[value] = np.ascontiguousarray(result)
                    self._set(value, values[value])

    def _raise(self) -> None:
        (number, *_) = np.flatnonzero(self.errors)
        self.errors[:] = 0
        raise self.executable.plan.steps[number].index_error()
