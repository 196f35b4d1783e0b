"""What is computed from weights alone: once for all sessions on a device, anew when they change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from whet.engine.refit import CurrentWeights
from whet.engine.weights import Source, WeightStore
from whet.errors import MissingWeights
from whet.ir.graph import Constant, Graph, Value, Weight, topological
from whet.ir.types import TensorType
from whet.plan.plan import Plan, nbytes
from whet.plan.target import Device
from whet.plan.trace import tracing
from whet.runtime.planned import drafted

if TYPE_CHECKING:
    from whet.runtime.debug import Tensors
    from whet.runtime.program import Runner
    from whet.runtime.session import Session


LEAST_PART = 16 << 20
"""Bytes of prepared weights that are always in memory at once while they are made."""
PART = 32 << 20
"""Bytes that are made at a time: what they are made of is let go before the next."""


class Generation:
    """One set of weights, and what has been made of them so far. A run keeps the one it began
    with, so that it sees the weights before a refit or those after it and never some of both."""

    def __init__(self, weights: WeightStore, arrays: Mapping[Value, Any] = {}) -> None:
        self.weights = weights
        self.arrays = dict(arrays)
        self.given: WeakKeyDictionary[Any, Given] = WeakKeyDictionary()
        """What each program reads, put together when it first runs with these weights."""
        self._regions: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def late(self, region: Any) -> Any:
        """The late region whose stages were made with these weights, some of which they read as
        shapes."""
        return self._regions.setdefault(region, replace(region))

    def keep_stages(self, before: Generation, changed: Set[str]) -> None:
        """Takes over the stages that the generation before made, where none of their weights
        changed."""
        regions = list(before._regions.items())
        self._regions.update((r, made) for r, made in regions if not changed & made.tensors.keys())


class Given(dict[Value, Any]):
    """What a program reads of one generation, which alone holds it: whoever remembers it otherwise
    does so weakly, as it would keep weights in memory that a refit has replaced."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How some Values are computed from weights: compiled once, run for each set of weights.

    Always the same kernels: so refit and build give the same bits.
    """

    plan: Plan
    outputs: Mapping[Value, Value]
    """For each Value that it makes, the one of its plan that stands for it."""

    def only(self, values: Iterable[Value]) -> Plan:
        """The steps that make some of the Values."""
        needed, steps = {self.outputs[v] for v in values}, []
        for step in reversed(self.plan.steps):
            if needed.intersection(step.writes):
                needed.update(step.reads)
                steps.append(step)
        # Others of the plan's outputs on the way have no place in its arena either.
        outputs = tuple(o for o in dict.fromkeys(self.plan.graph.outputs) if o in needed)
        graph = replace(self.plan.graph, outputs=outputs)
        return replace(self.plan, graph=graph, steps=tuple(reversed(steps)))


class Pin:
    """Holds a thread to one generation; a class of its own, as every run enters one."""

    __slots__ = ("before", "generation", "prepared")

    def __init__(self, prepared: Prepared, generation: Generation | None) -> None:
        self.prepared, self.generation = prepared, generation

    def __enter__(self) -> None:
        seen = self.prepared.seen
        self.before = getattr(seen, "generation", None)
        seen.generation = self.generation or self.before or self.prepared.current

    def __exit__(self, *error: object) -> None:
        self.prepared.seen.generation = self.before


class Prepared:
    """Weights as one device's kernels read them: folded, transposed, packed, merged."""

    def __init__(
        self, device: Device, weights: WeightStore, threads: int, stream: Any = None
    ) -> None:
        self.device, self.threads, self.stream = device, threads, stream
        self.current = Generation(weights)
        self._recipes: dict[Value, Recipe] = {}
        self._wanted: WeakKeyDictionary[Any, tuple[Value, ...]] = WeakKeyDictionary()
        """What each program or stage that is there reads."""
        self._lock = threading.RLock()
        self.seen = threading.local()
        """The generation that a thread's run began with, while there is one."""

    @property
    def generation(self) -> Generation:
        """The one that the calling thread's run began with; outside of runs, the newest."""
        found: Generation | None = getattr(self.seen, "generation", None)
        return found or self.current

    @property
    def weights(self) -> WeightStore:
        """The weights of the generation."""
        return self.generation.weights

    def pinned(self, generation: Generation | None = None) -> Pin:
        """Within it, this thread sees one generation."""
        return Pin(self, generation)

    @contextmanager
    def planning(self, values: Sequence[Value]) -> Iterator[Plan | None]:
        """Plans what computes the Values, which needs no weights; the plan's kernels are to be
        compiled within. None where there is nothing to plan.

        Outside of the lock: what is compiled in the background must not hold up a run. Threads
        that come together make the same; the first one's stays.
        """
        new = tuple(dict.fromkeys(v for v in values if not (is_given(v) or v in self._recipes)))
        recipes: dict[Value, Recipe] = {}
        if new:
            draft = drafted(Graph((), new), self.device, prepare=True)
            plan = draft.plan
            recipes = dict.fromkeys(new, Recipe(plan, dict(zip(new, plan.graph.outputs))))
            yield plan
            draft.keep()
        else:
            yield None
        with self._lock:
            self._recipes = {**recipes, **self._recipes}

    def note_reader(self, reader: Any, values: Iterable[Value]) -> None:
        """As long as the reader is there, the Values are made anew with each set of weights."""
        with self._lock:
            self._wanted[reader] = tuple(values)

    def _planned(self) -> dict[Value, None]:
        """What is read by what is there."""
        return {value: None for values in list(self._wanted.values()) for value in values}

    def paced(self, executable: Any, values: Sequence[Value]) -> AbstractContextManager[Any]:
        """What an executable's runs lie within, so that the weights they read come and go."""
        return nullcontext() if self.stream is None else self.stream.paced(executable, values)

    def of_program(self, program: Any, values: Sequence[Value]) -> Given:
        """The arrays of a program's Values; found at once when it has run with these weights."""
        generation = self.generation
        found = generation.given.get(program)
        if found is None:
            if self.stream is None:
                self._reserve(program, [v for v in values if v not in generation.arrays])
            with self.pinned(generation):
                found = generation.given[program] = Given(self.of(values))
        return found

    def _reserve(self, program: Any, values: Sequence[Value]) -> None:
        kinds = [v.type for v in values if isinstance(v.type, TensorType)]
        self.device.reserve(kinds, getattr(program.executable, "arena", program.plan.arena))

    def of(self, values: Sequence[Value]) -> dict[Value, Any]:
        """The arrays of Values that depend on weights alone; raises MissingWeights where some of
        these are not there yet."""
        generation = self.generation
        if any(v not in generation.arrays for v in values):
            with self._lock, self.pinned(generation), tracing(None):
                self._fill(generation, [v for v in values if v not in generation.arrays])
        return {v: generation.arrays[v] for v in values}

    def _fill(self, generation: Generation, values: Sequence[Value]) -> None:
        with self.planning(values) as plan:
            if plan is not None:
                self.device.executable(plan, self.threads)
        _check_there(generation.weights, values)
        made: dict[Value, Any] = {}
        wanted: dict[Recipe, list[Value]] = {}
        for value in values:
            if is_given(value):
                made[value] = self._kept_leaf(generation.weights, value)
            else:
                wanted.setdefault(self._recipes[value], []).append(value)
        for recipe, rest in wanted.items():
            for part in self._parts(rest):
                made.update(self._run(generation, recipe, part, made))
        generation.arrays.update(made)
        self.device.trim()

    def _parts(self, values: list[Value]) -> list[list[Value]]:
        """The Values by as many as are made at a time."""
        most = PART if self.stream is None else max(self.stream.budget // 2, LEAST_PART)
        parts, size = [list[Value]()], 0
        for value in values:
            if size and size + nbytes(value.tensor) > most:
                parts.append([])
                size = 0
            parts[-1].append(value)
            size += nbytes(value.tensor)
        return parts

    def _run(
        self,
        generation: Generation,
        recipe: Recipe,
        values: list[Value],
        known: Mapping[Value, Any],
    ) -> dict[Value, Any]:
        """Computes some of a recipe's Values."""
        plan = recipe.only(values)
        read = dict.fromkeys(i for step in plan.steps for i in step.reads if is_given(i))
        read.update(dict.fromkeys(o for o in plan.graph.outputs if is_given(o)))
        kept = {**generation.arrays, **known}
        given = {
            v: kept[v] if v in kept else self._leaf(generation.weights, v, False) for v in read
        }
        written = {o for step in plan.steps for o in step.writes}
        made = [o for o in plan.graph.outputs if o in written and isinstance(o.type, TensorType)]
        memory = self.device if self.stream is None else self.stream
        room = dict(zip(made, memory.arrays([o.tensor for o in made])))
        executable = self.device.executable(plan, self.threads)
        results = executable.run(given, (), room, self._runner().run_graph)
        if self.stream is not None:
            self.stream.let_go(room.values())
        planned = self._planned()
        for value in read:
            if isinstance(value.op, Weight) and value not in planned:
                generation.weights.release(value.op.name)
        return {v: results[recipe.outputs[v]] for v in values}

    def _kept_leaf(self, weights: WeightStore, value: Value) -> Any:
        if self.stream is None or not isinstance(value.op, Weight):
            return self._leaf(weights, value, True)
        copy = self.stream.copy(weights.array(value.op.name), value.tensor)
        self.stream.let_go([copy])
        weights.release(value.op.name)
        return copy

    def _leaf(self, weights: WeightStore, value: Value, kept: bool) -> Any:
        op = value.op
        array = op.data if isinstance(op, Constant) else weights.array(op.name)  # type: ignore[attr-defined]
        return self.device.given(array, kept)

    def _runner(self) -> Runner:
        """What runs inner graphs of operators that read weights alone."""
        from whet.runtime.program import Runner

        return Runner(self.device, self, self.threads)

    def emptied(self, weights: WeightStore) -> Prepared:
        """The same for other weights, with nothing prepared yet."""
        from whet.runtime.devices import stream_for

        budget = None if self.stream is None else self.stream.asked
        stream = None if budget is None else stream_for(self.device, budget)
        return Prepared(self.device, weights, self.threads, stream)

    def renewed(self, weights: WeightStore, changed: Set[str]) -> Generation:
        """All that was prepared, for other weights, of which `changed` differ; not in use yet."""
        with self._lock:
            planned = self._planned()
            kept = {
                v: array
                for v, array in self.current.arrays.items()
                if v in planned and not changed & weights_behind(v)
            }
            new = Generation(weights, kept)
            new.keep_stages(self.current, changed)
            if not weights.missing:
                with self.pinned(new):
                    self.of([v for v in planned if v not in kept])
            return new


class Shared:
    """What the sessions of an engine have in common, there for as long as one of them is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sessions: WeakSet[Session] = WeakSet()
        self._prepared: WeakValueDictionary[Any, Prepared] = WeakValueDictionary()
        self._devices: WeakValueDictionary[Any, Device] = WeakValueDictionary()

    def device(self, key: Any, open_one: Callable[[], Device]) -> Device:
        """The device that the key stands for, with the code loaded so far."""
        with self._lock:
            found = self._devices.get(key)
            if found is None:
                found = self._devices[key] = open_one()
            return found

    def prepared(
        self, device: Device, weights: CurrentWeights, threads: int, stream: Any = None
    ) -> Prepared:
        """The weights as a device's kernels read them; with `stream` they lie in a file."""
        number, budget = getattr(device, "number", 0), getattr(stream, "asked", None)
        key = type(device), str(device.architecture), number, budget
        with self._lock:
            found = self._prepared.get(key)
            if found is None:
                found = self._prepared[key] = Prepared(device, weights.store, threads, stream)
            return found

    @property
    def still(self) -> threading.Lock:
        """Within it, no weights are exchanged."""
        return self._lock

    def refit(self, weights: CurrentWeights, given: Mapping[str, Source]) -> None:
        """Exchanges weights everywhere, once all that is made of them has been made anew; within
        `still`."""
        store = weights.store.exchanged(given)
        for source in () if self._prepared else given.values():
            source.read()  # what is damaged must be found now
        new = [(p, p.renewed(store, given.keys())) for p in self._prepared.values()]
        weights.store = store
        for prepared, generation in new:
            prepared.current = generation

    def remade(self, store: WeightStore, tensors: Callable[[], Tensors]) -> Callable[[], None]:
        """For weights that the graph itself was made of: a new graph for every session, compiled,
        and what weights alone make of it. What is returned lets all of them go over."""
        before = dict(self._prepared)
        new = {old: old.emptied(store) for old in before.values()}
        sessions = [(s, s.remade(tensors(), new[s.prepared])) for s in list(self.sessions)]

        def go_over() -> None:
            for key, old in before.items():
                self._prepared[key] = new[old]
            for session, now in sessions:
                session.go_over(now)

        return go_over


def is_given(value: Value) -> bool:
    """Whether a Value is an array that is there before anything runs."""
    return isinstance(value.op, Constant | Weight)


def weights_behind(value: Value) -> frozenset[str]:
    """The names of the weights that a Value is made of."""
    found: set[str] = set()
    for v in topological((value,)):
        if isinstance(v.op, Weight):
            found.add(v.op.name)
        for graph in v.op.graphs:
            found.update(*map(weights_behind, graph.outputs))
    return frozenset(found)


def _check_there(weights: WeightStore, values: Iterable[Value]) -> None:
    missing = frozenset(weights.missing)
    if missing and any(missing & weights_behind(v) for v in values):
        raise MissingWeights(sorted(missing))
