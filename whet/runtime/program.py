"""Graphs that run: compiled for the sizes they meet, stage by stage where sizes depend on data."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np

from whet.engine.weights import WeightStore
from whet.errors import Error, InvalidInput, ShapeError, located
from whet.ir.atoms import Undecided
from whet.ir.evaluate import bind_sizes, compute
from whet.ir.graph import Graph, Value
from whet.ir.sizes import Expr
from whet.ir.types import TensorType, map_sizes
from whet.plan import trace
from whet.plan.likely import likely
from whet.plan.plan import Plan, Step, nbytes
from whet.plan.target import Device, RangeDevice, RangeExecutable
from whet.runtime.ahead import (
    counted,
    first_part,
    frontier_of,
    meanings,
    needed,
    ranges_behind,
    ready_values,
    rest_of,
)
from whet.runtime.kept import Kept
from whet.runtime.memory import Memory
from whet.runtime.planned import drafted
from whet.runtime.prepared import Prepared
from whet.runtime.ranges import Demands, Guards, Ranges, image_sizes, names_shown
from whet.targets.bound import evaluator

logger = logging.getLogger("whet")

Arrays = Sequence[Any]

ENOUGH_RUNS = 2
"""Runs at the same sizes after which kernels are made for these."""

MOST_MET = 4096
"""Sets of sizes whose runs are counted at a time."""

MOST_STAGES = 256
"""Compiled graphs that are kept: one for each graph and each set of sizes, the oldest go first."""


class Runner:
    """All that runs on one device; what weights alone make is `prepared`, and may be shared.

    Unless `specialize` is "eager", graphs are planned once for all sizes, where the device can, and
    named sizes are told to kernels as they run; else each set of sizes is planned and compiled when
    it is first met. With "lazy", sizes that come back get kernels of their own.
    """

    def __init__(
        self,
        device: Device,
        weights: WeightStore | Prepared,
        threads: int,
        specialize: str = "eager",
        deterministic: bool = False,
    ) -> None:
        self.device, self.threads = device, threads
        self.prepared = (
            weights if isinstance(weights, Prepared) else Prepared(device, weights, threads)
        )
        able = device.capabilities
        is_paced = self.prepared.stream is not None
        self.is_wide = specialize != "eager" and able.ranges and (able.paced_ranges or not is_paced)
        self.is_lazy, self.deterministic = specialize == "lazy", deterministic
        self.reference_ops: dict[str, None] = {}
        self._stages: Kept[StageKey, Stage] = Kept(MOST_STAGES)
        self._met: dict[tuple[Graph, tuple[Any, ...]], tuple[Stage, dict[str, int]]] = {}
        """What runs for shapes that were met before, and the sizes that they show."""
        self._alone: dict[tuple[Graph, tuple[Any, ...]], tuple[Program, dict[str, int]]] = {}
        """What is one program and nothing else, for shapes that were met before, and what its
        kernels are told."""
        self._shown: dict[tuple[Graph, tuple[Any, ...]], dict[str, int]] = {}
        """The sizes that shapes show which were met before."""
        self._guards: Kept[Graph, Guards] = Kept(MOST_STAGES)
        self._wide: Kept[Graph, Stage | None] = Kept(MOST_STAGES)
        """Graphs that are planned for a range of sizes; None where that cannot be."""

    @property
    def weights(self) -> WeightStore:
        """The weights that a run on this thread reads."""
        return self.prepared.weights

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans of all stages compiled so far, in that order."""
        return tuple(stage.program.plan for stage in self._compiled)

    @property
    def memory(self) -> Memory:
        """What weights and intermediate results take."""
        stages = self._compiled
        weights = sum(nbytes(v.tensor) for v in {v for s in stages for v in s.program.given})
        stream = self.prepared.stream
        resident = weights if stream is None else min(weights, stream.most)
        return Memory(weights, resident, tuple(stage.arena for stage in stages))

    @property
    def _compiled(self) -> list[Stage]:
        return [s for s in (*self._wide.values(), *self._stages.values()) if s is not None]

    def source(self, plan: Plan) -> tuple[Graph, dict[Value, Value]]:
        """The graph that a plan computes, and which of its Values those of the plan stand for."""
        for stage in self._compiled:
            if stage.program.plan is plan:
                return stage.program.source, meanings(stage.program.source, self.device)
        raise KeyError("this session has no such plan")

    def execute(
        self,
        graph: Graph,
        arrays: Arrays,
        out: Mapping[int, np.ndarray] | None = None,
        known: Mapping[str, int] = {},
    ) -> list[Any]:
        """The graph's outputs for arrays of any sizes that it accepts; `out` gives arrays for some
        of them, `known` sizes that they do not show."""
        shapes = None if known else tuple(getattr(a, "shape", None) for a in arrays)
        if shapes is not None and (met := self._met.get((graph, shapes))) is not None:
            return met[0].run(arrays, out or {}, met[1])
        sizes = self._sizes_of(graph, arrays, known, shapes)
        stage = self._wide_for(graph, sizes) or self.stage(graph, sizes)
        # Shapes alone say what runs, unless a stage for all sizes may be replaced meanwhile.
        if shapes is not None and None not in shapes and not (sizes and self.is_wide):
            if len(self._met) >= MOST_STAGES:
                self._met.clear()
                self._alone.clear()
            self._met[graph, shapes] = stage, sizes
            if stage.is_alone and graph.late is None:
                self._alone[graph, shapes] = stage.program, {}
        elif shapes is not None and graph.late is None and stage.answers(sizes):
            if len(self._alone) >= MOST_STAGES:
                self._alone.clear()
            self._alone[graph, shapes] = stage.program, stage.ranges.values(sizes)
        return stage.run(arrays, out or {}, sizes)

    def _sizes_of(
        self,
        graph: Graph,
        arrays: Arrays,
        known: Mapping[str, int],
        shapes: tuple[Any, ...] | None,
    ) -> dict[str, int]:
        """The named sizes that arrays show, which the graph's guards accept; found at once for
        shapes that were met before."""
        found = None if shapes is None else self._shown.get((graph, shapes))
        if found is not None:
            return dict(found)
        sizes = dict(known)
        for value, array in zip(graph.inputs, arrays, strict=True):
            bind_sizes(value.type, array, sizes)
        self._guards.made(graph, lambda: Guards(graph)).check(sizes)
        if shapes is not None and None not in shapes:
            if len(self._shown) >= MOST_MET:
                self._shown.clear()
            self._shown[graph, shapes] = dict(sizes)
        return sizes

    def answer(self, graph: Graph, arrays: Sequence[Any]) -> list[Any] | None:
        """What `execute` gives, where the device has a shorter way to it; else None."""
        found = self._alone.get((graph, tuple([array.shape for array in arrays])))
        return None if found is None else found[0].answer(arrays, found[1])

    def _wide_for(self, graph: Graph, sizes: Mapping[str, int]) -> Stage | None:
        """The graph for all its sizes, where it serves these, and nothing better is there."""
        if not sizes or not self.is_wide or _stage_key(graph, sizes) in self._stages:
            return None
        wide = self.wide(graph)
        return wide if wide is not None and wide.serves(sizes) else None

    def wide(self, graph: Graph, ranges: Ranges | None = None) -> Stage | None:
        """The compiled form of a graph for all its sizes; None where it takes their values."""
        return self._wide.made(graph, lambda: self._wide_stage(graph, ranges))

    def _wide_stage(self, graph: Graph, ranges: Ranges | None) -> Stage | None:
        ranges = ranges or Ranges().with_names(names_shown(graph), 1)
        try:
            with likely({**image_sizes(graph), **ranges.likely}):
                stage = Stage(self, graph.bind(ranges.sizes), ranges, graph)
        except (Undecided, ShapeError) as why:
            # Sizes from 1 on, as kernels take them, may not fit where 0 does.
            logger.debug("planned anew for each set of sizes: %s", why)
            return None
        # What is slow here has other kernels for known sizes, which need not give the same bits.
        return None if self.deterministic and stage.program.is_makeshift else stage

    def stage(self, graph: Graph, sizes: Mapping[str, int]) -> Stage:
        """The compiled form of a graph at given sizes."""
        key = _stage_key(graph, sizes)
        return self._stages.made(key, lambda: Stage(self, graph.bind(sizes)))

    def run_graph(self, graph: Graph, arrays: Arrays) -> list[Any]:
        """Runs an inner graph, for the operators of control flow."""
        return self.execute(graph, arrays)

    def program(self, graph: Graph) -> Program:
        """A graph whose sizes are known, or told to its kernels as they run, compiled."""
        return Program(self, graph)


StageKey = tuple[Graph, tuple[tuple[str, int], ...]]


def _stage_key(graph: Graph, sizes: Mapping[str, int]) -> StageKey:
    return graph, tuple(sorted(sizes.items()))


class Program:
    """A graph whose sizes are known or told in each run: its plan, compiled, and what was prepared
    for it."""

    def __init__(self, runner: Runner, source: Graph) -> None:
        self.runner, self.source = runner, source
        draft = drafted(source, runner.device)
        self.plan, self.graph = draft.plan, draft.plan.graph
        """The graph in the device's terms."""
        runner.reference_ops.update(dict.fromkeys(self.plan.reference_ops))
        self.given = needed(self.plan)
        runner.prepared.note_reader(self, self.given)
        with runner.prepared.planning(self.given) as before:
            self.executable = runner.device.executable(self.plan, runner.threads, before)
            draft.keep()
        allocate = getattr(runner.device, "allocate", None)
        if allocate is not None:
            self.executable.allocate = allocate  # type: ignore[attr-defined]
        self.pace = runner.prepared.paced(self.executable, self.given)
        if not runner.weights.missing:
            runner.prepared.of_program(self, self.given)
        self.made = {v for step in self.plan.steps for v in step.writes}
        made = {v for v in self.graph.outputs if v in self.made and isinstance(v.type, TensorType)}
        self.is_plain = len(made) == len(self.graph.outputs)
        """Whether each output is a tensor of its own, which a step writes."""
        self._answer = getattr(self.executable, "answer", None) if self.is_plain else None
        makeshift = runner.device.capabilities.makeshift
        slow = any(makeshift(v) for v in (*source.values, *self.graph.values))
        self.is_makeshift = slow or bool(self.plan.reference_ops)
        """Whether some of it would be faster if its sizes were known."""
        kinds = (v.type for v in self.graph.outputs if isinstance(v.type, TensorType))
        self._open = list(dict.fromkeys(s for k in kinds for s in k.shape if isinstance(s, Expr)))
        """The sizes of the outputs that runs tell."""
        self._evaluate = evaluator(self._open)
        self._known_kinds: dict[tuple[tuple[str, int], ...], list[TensorType | None]] = {}

    def run(
        self,
        arrays: Arrays,
        out: Mapping[int, np.ndarray],
        sizes: Mapping[str, int] = {},
    ) -> list[Any]:
        """The outputs as fresh arrays, or in those that `out` gives by the output's number; `sizes`
        are those that the kernels are told."""
        given = self.runner.prepared.of_program(self, self.given)
        buffers = self._buffers(arrays, out, sizes)
        told = {"sizes": sizes} if sizes else {}
        inputs = list(map(_as_array, arrays))
        with self.pace:
            values = self.executable.run(given, inputs, buffers, self.runner.run_graph, **told)
        if self.is_plain and not out:
            return [values[value] for value in self.graph.outputs]
        results: list[Any] = []
        for number, value in enumerate(self.graph.outputs):
            array = values[value]
            if isinstance(value.type, TensorType) and (
                value not in buffers or any(array is r for r in results)
            ):
                array = array.copy()  # an input, a weight, or an output given twice
            if number in out and array is not out[number]:
                out[number][...] = array
                array = out[number]
            results.append(array)
        return results

    def answer(self, arrays: Arrays, sizes: Mapping[str, int]) -> list[Any] | None:
        """The outputs as fresh arrays, by the device's shortest way; None where it has none."""
        if self._answer is None:
            return None
        given = self.runner.prepared.of_program(self, self.given)
        return self._answer(given, arrays, sizes) if sizes else self._answer(given, arrays)

    def _buffers(
        self, arrays: Arrays, out: Mapping[int, np.ndarray], sizes: Mapping[str, int]
    ) -> dict[Value, Any]:
        """Where steps are to leave the outputs."""
        buffers: dict[Value, Any] = {}
        for number, (value, kind) in enumerate(zip(self.graph.outputs, self._kinds(sizes))):
            if kind is None:
                continue
            if number in out:
                self._check_out(number, kind, out[number])
            if value in self.made and value not in buffers:
                fresh = number not in out
                buffers[value] = self.runner.device.room(kind, arrays) if fresh else out[number]
        return buffers

    def _kinds(self, sizes: Mapping[str, int]) -> list[TensorType | None]:
        """The types of the outputs at some sizes; None for what is no tensor."""
        key = tuple(sizes.items())
        found = self._known_kinds.get(key)
        if found is None:
            types = [value.type for value in self.graph.outputs]
            known = dict(zip(self._open, self._evaluate(sizes))) if self._open else {}
            found = [_known(t, known) if isinstance(t, TensorType) else None for t in types]
            if len(self._known_kinds) >= MOST_STAGES:
                self._known_kinds.clear()
            self._known_kinds[key] = found
        return found

    def _check_out(self, number: int, kind: TensorType, array: np.ndarray) -> None:
        if array.dtype != kind.numpy or array.shape != kind.shape:
            name = self.graph.output_names[number]
            raise InvalidInput(
                f"output {name!r} is {kind} in this run, the array given for it is "
                f"{array.dtype}{list(array.shape)}"
            )


def _known(kind: TensorType, numbers: Mapping[Any, int]) -> TensorType:
    """A type whose sizes are numbers."""
    return map_sizes(kind, lambda size: numbers.get(size, size))  # type: ignore[return-value]


def _as_array(x: Any) -> Any:
    """NumPy's scalars have no memory of their own that a kernel could read."""
    return np.asarray(x) if isinstance(x, np.generic) else x


class Stage:
    """As much of a graph as can be planned, then the operators whose result sizes only a run can
    tell, then the rest. The kernels are told the sizes that `ranges` names; `model` is the graph
    with the sizes as the model names them."""

    def __init__(
        self,
        runner: Runner,
        graph: Graph,
        ranges: Ranges | None = None,
        model: Graph | None = None,
    ) -> None:
        self.ranges = ranges or Ranges()
        self.model = model or graph
        self._met: Counter[StageKey] = Counter()
        self._counting = threading.Lock()
        known = frozenset(self.ranges.names)
        graph = counted(graph, known)
        self.runner, self.graph = runner, graph
        ready = ready_values(graph, known)
        self.frontier = frontier_of(graph, ready)
        first = first_part(graph, ready) if self.frontier else graph
        self.program = runner.program(first)
        self.most = self.ranges.arena(self.program.plan)
        if hasattr(self.program.executable, "least_arena") and hasattr(runner.device, "allocate"):
            self.program.executable.least_arena = self.most
        if not self.frontier:
            return
        self.carried = first.outputs
        self.rest = rest_of(graph, first, self.frontier)
        self.hosted = {v: _host_step(graph, v) for v in self.frontier}
        if runner.is_wide:
            runner.wide(self.rest, ranges_behind(self.rest, self.ranges))  # before a run meets it
        runner.prepared.note_reader(self, (v for f in self.frontier for v in _static_inputs(f)))
        runner.reference_ops.update(
            dict.fromkeys(
                name
                for v in self.frontier
                if not v.op.is_bookkeeping
                for name in graph.origins.get(v, (str(v.op),))
            )
        )

    def run(
        self,
        arrays: Arrays,
        out: Mapping[int, np.ndarray],
        sizes: Mapping[str, int] = {},
    ) -> list[Any]:
        """The graph's outputs; `sizes` are the named ones, as the model calls them."""
        told = self.ranges.values(sizes)
        if told:
            self._meet(sizes, told)
        if not self.frontier:
            return self.program.run(arrays, out, told)
        carried = self.program.run(arrays, {}, told)
        known = dict(zip(self.carried, carried))
        results = [r for v in self.frontier for r in self._compute(v, known, told)]
        return self.runner.execute(self.rest, (*carried, *results), out, told)

    def serves(self, sizes: Mapping[str, int]) -> bool:
        """Whether these sizes, as the model calls them, lie within the range."""
        if not self.ranges.serve(sizes):
            return False
        executable = cast(RangeExecutable, self.program.executable)
        return executable.serves(self.ranges.values(sizes))

    def answers(self, sizes: Mapping[str, int]) -> bool:
        """Whether its program is all there is, and has a shorter way to run with these sizes."""
        answers = getattr(self.program.executable, "answers", None)
        if answers is None or self.frontier or not self.ranges.sizes:
            return False
        return self.program.is_plain and bool(answers(self.ranges.values(sizes)))

    @property
    def arena(self) -> int:
        """The bytes of intermediate results: the most that is foreseen, or was needed so far."""
        program = self.program
        return max(self.most, getattr(program.executable, "arena", program.plan.arena))

    @property
    def is_alone(self) -> bool:
        """Whether its program is all there is, with sizes that are known."""
        return not self.frontier and not self.ranges.sizes

    @cached_property
    def demands(self) -> Demands:
        """What its operators ask of sizes."""
        return Demands(self.program.source)

    def _meet(self, sizes: Mapping[str, int], told: Mapping[str, int]) -> None:
        """Looks at sizes that are new, and has kernels made for those that have come back."""
        key = _stage_key(self.model, sizes)
        if key not in self._met:
            self.demands.check(told)
        with self._counting:
            if key not in self._met and len(self._met) > MOST_MET:
                self._met.clear()
            self._met[key] += 1
            is_enough = self._met[key] == ENOUGH_RUNS
        runner = self.runner
        if not is_enough:
            return
        if not runner.is_lazy:
            if (settle := getattr(self.program.executable, "settle", None)) is not None:
                settle(told)
        elif self.program.is_makeshift and not self.frontier:
            stage = weakref.ref(self)  # a session that is dropped meanwhile wants no kernels

            def plan() -> None:
                if (here := stage()) is not None:
                    here.runner.stage(here.model, sizes)

            cast(RangeDevice, runner.device).later(plan)
        else:
            executable = cast(RangeExecutable, self.program.executable)
            executable.specialise(told, runner.deterministic)

    def _compute(
        self, value: Value, known: Mapping[Value, Any], sizes: Mapping[str, int]
    ) -> tuple[Any, ...]:
        known = {**known, **self.runner.prepared.of(_static_inputs(value))}
        arrays = [None if i is None else _on_host(known[i]) for i in value.inputs]
        extra = [self.runner.run_graph] if value.op.runs_graphs else []
        start = time.perf_counter()
        try:
            outcomes = compute(value, [*extra, *arrays], sizes)
        except Error as error:
            raise located(error, self.graph.node(value)) from error.__cause__
        # Kernels read what lies without gaps; a part of an axis may not.
        results = tuple(map(_contiguous, outcomes))
        if (watched := trace.current.get()) is not None:
            taken = time.perf_counter() - start
            timing = trace.Timing(self.hosted[value], taken, start, sizes=sizes)
            watched.add(timing, {**known, **dict(zip(value.siblings, results))})
        return results


def _static_inputs(value: Value) -> list[Value]:
    """Those of an operator that weights alone make."""
    return [i for i in value.inputs if i is not None and i.is_static]


def _host_step(graph: Graph, value: Value) -> Step:
    """An operator between two plans, as a trace tells it."""
    reads = tuple(dict.fromkeys(i for i in value.inputs if i is not None))
    return Step(None, reads, value.siblings, value, tuple(graph.origins.get(value, ())))


def _on_host(x: Any) -> Any:
    """A tensor as operators on the host take it, wherever it lies."""
    return np.asarray(x) if hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray) else x


def _contiguous(x: Any) -> Any:
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) and x.ndim else x
