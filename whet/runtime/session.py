"""A Session: one engine, ready to run on one device."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.engine.weights import WeightStore
from whet.errors import Error, InvalidInput, InvalidSetting, OutOfMemory, ShapeError
from whet.ir.graph import Graph, Value
from whet.ir.types import TensorType, Type
from whet.plan.plan import Plan
from whet.plan.timeline import Recording
from whet.plan.trace import Look, Trace, tracing
from whet.runtime.debug import Readout, Tensors, names_in, outputs_of
from whet.runtime.inputs import accept
from whet.runtime.inspect import Inspection, inspect, inspect_run
from whet.runtime.memory import Memory
from whet.runtime.prebuilt import Better
from whet.runtime.prepared import Prepared
from whet.runtime.profile import Profile
from whet.runtime.program import MOST_STAGES, Runner
from whet.runtime.ranges import ranges_of

if TYPE_CHECKING:
    import onnx

    from whet.plan.target import Device


@dataclass(frozen=True)
class Now:
    """What a session's next run is: exchanged as a whole, and a run keeps the one it began with."""

    tensors: Tensors
    runner: Runner

    @property
    def graph(self) -> Graph:
        return self.tensors.graph


class Session:
    """Runs an engine. `run` may be called from any number of threads at once."""

    def __init__(
        self,
        tensors: Tensors,
        weights: WeightStore | Prepared,
        device: Device,
        threads: int,
        profiles: tuple[Profile, ...] = (),
        specialize: str = "lazy",
        deterministic: bool = False,
    ) -> None:
        graph, self.profiles = tensors.graph, profiles
        self._optimised = lru_cache(MOST_STAGES)(_optimised)
        self._way = specialize, deterministic
        self.inputs: dict[str, Type] = {v.op.name: v.type for v in graph.inputs}  # type: ignore[attr-defined]
        self._accepted = [(f"input {n!r}", n, kind, {}) for n, kind in self.inputs.items()]  # type: ignore[var-annotated]
        self._outputs = outputs_of(graph)
        self._now = Now(tensors, self._runner_for(graph, device, weights, threads))
        self.better: Better | None = None
        """What takes over when it has run a few times."""

    @property
    def graph(self) -> Graph:
        """What runs where nothing is read out."""
        return self._now.graph

    @property
    def _runner(self) -> Runner:
        return self._now.runner

    @property
    def prepared(self) -> Prepared:
        """The weights as its kernels read them."""
        return self._now.runner.prepared

    def runner_on(self, device: Device, weights: WeightStore | Prepared, threads: int) -> Runner:
        """What runs the engine on a device, compiled as far as it can be before a run."""
        return self._runner_for(self.graph, device, weights, threads)

    def _runner_for(
        self, graph: Graph, device: Device, weights: WeightStore | Prepared, threads: int
    ) -> Runner:
        runner = Runner(device, weights, threads, *self._way)
        if all(isinstance(v.type, TensorType) and v.type.is_static for v in graph.inputs):
            runner.stage(graph, {})
        elif runner.is_wide:
            runner.wide(graph, ranges_of(graph, self.profiles))
        return runner

    def use(self, runner: Runner, instead_of: Runner) -> None:
        """Later runs are done by another runner, unless something else took over meanwhile; those
        under way keep theirs to the end."""
        now = self._now
        if now.runner is instead_of:
            self.go_over(replace(now, runner=runner))

    def remade(self, tensors: Tensors, weights: Prepared) -> Now:
        """What runs another graph of the same inputs, with these weights."""
        runner = self._runner
        made = self._runner_for(tensors.graph, runner.device, weights, runner.threads)
        return Now(tensors, made)

    def go_over(self, now: Now) -> None:
        """Lets later runs be another one's."""
        self._now, self.better = now, None

    @property
    def reference_ops(self) -> tuple[str, ...]:
        """Names of the model's nodes that run their NumPy reference so far."""
        return tuple(self._runner.reference_ops)

    @property
    def threads(self) -> int:
        """How many threads take part in a run."""
        return self._runner.threads

    @property
    def weights(self) -> WeightStore:
        """The engine's weights."""
        return self._runner.weights

    @property
    def weight_budget(self) -> int | None:
        """Bytes of prepared weights that may be in memory at once; None where all are."""
        stream = self._runner.prepared.stream
        return None if stream is None else stream.most

    @property
    def memory(self) -> Memory:
        """What the plans compiled so far take: prepared weights, and arenas for each run at a
        time."""
        return self._runner.memory

    @property
    def architecture(self) -> str:
        """What code is generated for."""
        return str(self._runner.device.architecture)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What has been compiled so far: one Plan for each stage, for each set of sizes seen."""
        return self._runner.plans

    def source(self, plan: Plan) -> tuple[Graph, dict[Value, Value]]:
        """The graph that one of `plans` computes, and which of its Values the plan's stand for."""
        return self._runner.source(plan)

    def trace(
        self, inputs: Mapping[str, Any], look: Look | None = None, runs: int = 1
    ) -> Recording:
        """Runs and gives the times of each step; `look` is shown what each one wrote.

        Raises what `run` raises. Runs of other threads are not in it.
        `session.trace(inputs).to_perfetto("run.json")` writes a timeline.
        """
        _check_runs(runs)
        trace = Recording(look)
        with tracing(trace):
            for _ in range(runs):
                self.run(inputs)
        return trace

    def inspect(self, inputs: Mapping[str, Any] | None = None, runs: int = 20) -> Inspection:
        """What each kernel does, how it was chosen, and, with `inputs`, how long it takes and how
        near that is to the device's limit.

        Without inputs it is about the last plan whose sizes are known. Raises InvalidInput where
        there is none and no inputs are given, and what `run` raises.
        `session.inspect(inputs).to_json("kernels.json")` keeps it.
        """
        _check_runs(runs)
        device = self._runner.device
        if inputs is not None:
            self.run(inputs)
            trace = self.trace(inputs, runs=runs)
            return inspect_run(self.plans, trace, runs, device, self.threads)
        known = [plan for plan in self.plans if not plan.sizes and not plan.rooms.members]
        if not known:
            raise InvalidInput("the sizes are open: give inspect() inputs, whose sizes it can take")
        return inspect(known[-1], device, self.threads)

    def run(
        self,
        inputs: Mapping[str, Any],
        out: Mapping[str, np.ndarray] | None = None,
        stream: Any = None,
        debug: Mapping[str, Callable[[Any], None]] | None = None,
    ) -> dict[str, Any]:
        """The model's outputs, by name, for inputs by name.

        Inputs are NumPy arrays, or any tensor that speaks DLPack on the CPU, of exactly the model's
        dtypes.
        Outputs are fresh arrays, except those for which `out` gives an array to write to, be it the
        one of an input.
        On a GPU, `stream` is the caller's, for inputs that lie there: a handle, or an object that
        has one (PyTorch's, CuPy's, cuda.core's). The run is then only asked for, in order with all
        else on that stream, and so are its results; without it they are there when this returns.
        `debug`: callbacks by the names of tensors in the ONNX file; each is given its array when
        the kernel that computes it is done, and so also where a later one fails; what lies in
        bodies of control flow is told at the end, as a list. See `debug`.
        Raises InvalidInput for wrong names, dtypes or numbers of axes, ShapeError for sizes that do
        not fit, IndexOutOfRange for an index outside of its axis, OutOfMemory.
        """
        now = self._now
        if not debug:
            named = self._run(now, now.graph, inputs, out, stream)
            if now.graph.late is None:
                return named
            return {name: named[name] for name in self._outputs}
        if not isinstance(debug, Mapping) or not all(map(callable, debug.values())):
            raise InvalidInput(f"debug is callbacks by tensor name, not {debug!r}")
        graph = self._debug_graph(now, inputs, names_in(debug))
        readout = Readout(debug, lambda: now.runner.plans)
        with tracing(Trace(readout.look)):
            named = self._run(now, graph, inputs, out, stream)
        readout.finish(named)
        return {name: named[name] for name in self._outputs}

    def debug(
        self,
        inputs: Mapping[str, Any],
        names: str | Collection[str],
        model: str | os.PathLike[str] | bytes | onnx.ModelProto | None = None,
    ) -> dict[str, Any]:
        """Arrays by name of any tensors that the ONNX file has.

        Of one in the body of an If, a Loop, a Scan or a SequenceMap the list of its arrays, one for
        each time that the body ran, in order. Where bodies lie in others, in whatever order, it is
        one flat list as well: all runs of the inner body, those of the outer's first run first; it
        is empty where none ran.

        What is fused away is computed by a plan of its own, which is compiled the first time; its
        other kernels may be fused, and round, differently for that. An engine that was built with
        `refittable=False` and loaded from its file knows the tensors that were marked by
        `whet.build(debug=)`; for others, `model` is the ONNX file that it was built from. Raises
        InvalidInput with all names that are unknown, and what `run` raises.
        """
        names, now = names_in(names), self._now
        graph = self._debug_graph(now, inputs, names, model)
        named = self._run(now, graph, inputs)
        return {name: named[name] for name in names}

    def _debug_graph(
        self,
        now: Now,
        inputs: Mapping[str, Any],
        names: Collection[str],
        model: str | os.PathLike[str] | bytes | onnx.ModelProto | None = None,
    ) -> Graph:
        """The graph that also gives tensors of these names, for a run with such inputs."""

        def dtypes() -> Mapping[str, str]:
            prepared, late = now.runner.prepared, now.graph.late
            with prepared.pinned():
                self._run(now, now.graph, inputs)
                return {} if late is None else prepared.generation.late(late).stages.dtypes

        return now.tensors.graph_of(names, now.runner.weights, model, dtypes)

    def _run(
        self,
        now: Now,
        graph: Graph,
        inputs: Mapping[str, Any],
        out: Mapping[str, np.ndarray] | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """All outputs that a graph names."""
        runner, better = now.runner, self.better
        if better is not None:
            better.note_run(self)
        self._check_names(inputs)
        try:
            arrays, is_known = self._take(inputs, runner.device, stream)
            if self.profiles:
                self._check_profiles(arrays)
            if out:
                self._check_out(out)
                arrays = [_apart(array, out.values()) for array in arrays]
            else:
                out = {}
            if is_known and not out:
                answer = runner.answer(graph, arrays)
                if answer is not None:
                    return dict(zip(graph.output_names, answer))
            with runner.prepared.pinned():
                results = runner.execute(graph, arrays, _targets(graph, out))
                if graph.late is not None:
                    return self._finish(runner, graph, results, out)
        except MemoryError as error:
            if isinstance(error, Error):
                raise
            raise OutOfMemory(f"this run needs more memory than there is: {error}") from error
        return dict(zip(graph.output_names, results))

    def _finish(
        self, runner: Runner, graph: Graph, results: list[Any], out: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Runs the stages that could not be planned before."""
        named: dict[str, Any] = {}
        generation = runner.prepared.generation
        graph = replace(graph, late=generation.late(graph.late))
        while graph.late is not None:
            ready = len(graph.output_names)
            named.update(zip(graph.output_names, results))
            captured = dict(zip(graph.late.captured, results[ready:]))
            graph = self._optimised(graph.late.stage(captured, generation.weights.array))
            arrays = [captured[v.op.name] for v in graph.inputs]  # type: ignore[attr-defined]
            results = runner.execute(graph, arrays, _targets(graph, out))
        named.update(zip(graph.output_names, results))
        return named

    def _take(
        self, inputs: Mapping[str, Any], device: Device, stream: Any
    ) -> tuple[list[Any], bool]:
        """The inputs as kernels read them, and whether the device knew all of them at once."""
        quick, arrays, is_known = device.quick, [], device.quick is not None
        for what, name, kind, layouts in self._accepted:
            x = inputs[name]
            array = None if quick is None else quick(x, layouts, stream)
            if array is None:
                is_known, array = False, accept(what, x, kind, device, stream)
                device.learn(x, array, kind, layouts)
            arrays.append(array)
        return arrays, is_known

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        if type(inputs) is dict and inputs.keys() == self.inputs.keys():
            return
        if not isinstance(inputs, Mapping):
            raise InvalidInput(
                f"inputs are arrays by name, such as {{{next(iter(self.inputs), 'x')!r}: array}}, "
                f"not a {type(inputs).__name__}"
            )
        missing = [name for name in self.inputs if name not in inputs]
        unknown = [str(name) for name in inputs if name not in self.inputs]
        if missing or unknown:
            said = [f"missing: {', '.join(missing)}"] * bool(missing)
            said += [f"unknown: {', '.join(unknown)}"] * bool(unknown)
            raise InvalidInput(f"inputs {'; '.join(said)}; the model has {', '.join(self.inputs)}")

    def _check_profiles(self, arrays: list[Any]) -> None:
        # A list of tensors has no shape, and no profile.
        shapes = {n: a.shape for n, a in zip(self.inputs, arrays) if hasattr(a, "shape")}
        if not any(p.accepts(shapes) for p in self.profiles):
            given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            ranges = "; or ".join(map(str, self.profiles))
            raise ShapeError(
                f"the sizes lie in none of the engine's profiles: {given}; they are {ranges}"
            )

    def _check_out(self, out: Mapping[str, np.ndarray]) -> None:
        if not isinstance(out, Mapping):
            raise InvalidInput(f"out is arrays by output name, not a {type(out).__name__}")
        for name, array in out.items():
            if name not in self._outputs:
                raise InvalidInput(
                    f"there is no output {name!r}; the model has {', '.join(self._outputs)}"
                )
            if not (
                isinstance(array, np.ndarray) and array.flags.c_contiguous and array.flags.writeable
            ):
                raise InvalidInput(
                    f"the array for output {name!r} must be a writeable, C-contiguous NumPy array"
                )
        for (a, x), (b, y) in combinations(out.items(), 2):
            if np.may_share_memory(x, y):
                raise InvalidInput(f"the arrays for the outputs {a!r} and {b!r} overlap")


def _check_runs(runs: int) -> None:
    if not isinstance(runs, int) or runs < 1:
        raise InvalidSetting(f"runs={runs!r}; a number from 1 on is needed")


def _apart(x: Any, out: Iterable[np.ndarray]) -> Any:
    """An input, copied where a result is to be written over what later kernels may still read."""
    if isinstance(x, list):
        return [_apart(item, out) for item in x]
    overlaps = isinstance(x, np.ndarray) and any(np.may_share_memory(x, y) for y in out)
    return x.copy() if overlaps else x


def _targets(graph: Graph, out: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """The arrays to write to by the number of the output that a graph has under the name."""
    return {number: out[name] for number, name in enumerate(graph.output_names) if name in out}


def _optimised(graph: Graph) -> Graph:
    # The passes take longer to load than the start of a session may.
    from whet.passes.pipeline import optimise

    return optimise(graph)
