"""What can be planned, and compiled, before anything has run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from whet.errors import ShapeError
from whet.ir.atoms import Undecided
from whet.ir.graph import Graph, Input, Parameter, Value, make, topological
from whet.ir.types import TensorType, Type
from whet.ops.select import Prefix
from whet.plan.kernel import Kernel, size_symbols
from whet.plan.likely import likely
from whet.plan.plan import Plan
from whet.plan.target import Device
from whet.progress import phase
from whet.runtime.planned import planned
from whet.runtime.prepared import is_given
from whet.runtime.ranges import Ranges, image_sizes, names_shown

NO_RANGES = Ranges()


def compile_ahead(graph: Graph, device: Device, ranges: Ranges = NO_RANGES) -> dict[str, bytes]:
    """The code of all kernels that can be known before a run, by cache key; nothing is run. With
    `ranges`, of those that are told sizes as they run; those behind sizes that data tells are, too.
    """
    found: list[Kernel] = []
    moving: set[Kernel] = set()
    # As `Runner.wide` finds: else each set of sizes has a plan of its own.
    with suppress(Undecided, ShapeError):
        for plan in plans_ahead(graph, device, ranges):
            before = planned(Graph((), needed(plan, prepared_only=True)), device, prepare=True)
            found += before.kernels + plan.kernels
            moving |= plan.moving
    with phase(f"compile for {device.architecture}", 1) as step:
        made = device.objects(found, moving)
        step()
    return {device.key(kernel): code for kernel, code in made.items()}


def plan_ahead(graph: Graph, device: Device, ranges: Ranges = NO_RANGES) -> Plan:
    """The plan of all whose sizes can be known before a run; nothing is compiled."""
    return next(plans_ahead(graph, device, ranges))


def plans_ahead(graph: Graph, device: Device, ranges: Ranges = NO_RANGES) -> Iterator[Plan]:
    """The same, then the plans of what comes behind sizes that data tells."""
    known = frozenset(ranges.names)
    with likely({**image_sizes(graph), **ranges.likely}):
        graph = counted(graph.bind(ranges.sizes), known)
        ready = ready_values(graph, known)
        frontier = frontier_of(graph, ready)
        first = first_part(graph, ready) if frontier else graph
        plan = planned(first, device)
    yield plan
    if frontier and device.capabilities.ranges:
        rest = rest_of(graph, first, frontier)
        yield from plans_ahead(rest, device, ranges_behind(rest, ranges))


def ranges_behind(rest: Graph, ranges: Ranges) -> Ranges:
    """The sizes that runs tell of what comes after a part: any number of things may be found."""
    return ranges.inside().with_names(names_shown(rest), 0)


def needed(plan: Plan, prepared_only: bool = False) -> tuple[Value, ...]:
    """What a plan takes as given besides inputs, in the graph's order: prepared Values, and, unless
    told not to, the weights and constants that its steps read as they are."""
    read = set(plan.prepared)
    if not prepared_only:
        read.update(v for step in plan.steps for v in step.reads if is_given(v))
        read.update(v for v in plan.graph.outputs if is_given(v))
    return tuple(v for v in plan.graph.values if v in read)


def counted(graph: Graph, told: frozenset[str] = frozenset()) -> Graph:
    """The graph with operators that find a number of things in terms of kernels, where that goes;
    a Prefix tells the number."""
    new = graph.map(lambda value: _counted(value, told))
    if new is graph:
        return graph
    values = topological((*new.outputs, *new.definers.values()))
    found = {name: v for v in values if isinstance(v.op, Prefix) for name in v.op.symbols}
    return replace(new, definers={**new.definers, **found})


def _counted(value: Value, told: frozenset[str]) -> Any:
    """An operator that finds a number of things, as one that finds them in kernels and takes as
    many as there are."""
    known = all(i is None or _is_known(i.type, told) for i in value.inputs)
    if not (value.op.defines_sizes and known and hasattr(value.op, "lower")):
        return value
    return value.op.lower(*value.inputs)


def _is_known(kind: Type, told: frozenset[str]) -> bool:
    """Whether it is a tensor whose sizes are numbers, or told to kernels."""
    return isinstance(kind, TensorType) and size_symbols(*kind.shape) <= told


def ready_values(graph: Graph, told: frozenset[str]) -> set[Value]:
    """The Values that can be planned: tensors of known sizes, made from such."""
    ready: set[Value] = set()
    for value in graph.values:
        # All results come from one place: one that is no tensor keeps the others back.
        known = value.op.symbols <= told
        if value.op.graphs and value.op.symbols & told:
            # Each set of sizes would make new inner graphs of it.
            raise Undecided(f"the graphs in {value.op} use sizes from outside")
        if isinstance(value.op, Input | Parameter):
            ready.add(value)
            continue
        known = known and all(_is_known(s.type, told) for s in value.siblings)
        if known and all(i is None or i in ready for i in value.inputs):
            ready.add(value)
    return ready


def frontier_of(graph: Graph, ready: set[Value]) -> list[Value]:
    """The first operators that cannot be planned, one Value for each."""
    found: dict[Value, None] = {}
    for value in graph.values:
        before = (*value.inputs, *graph.needs(value))
        if value not in ready and all(i is None or i in ready for i in before):
            found[value.siblings[0]] = None
    return list(found)


def first_part(graph: Graph, ready: set[Value]) -> Graph:
    """What of a graph is planned before anything has run: it gives what the rest reads, and the
    outputs that are there already."""

    def carried(values: Iterable[Value | None]) -> Iterator[Value]:
        return (v for v in values if v is not None and v in ready and not v.is_static)

    # What has a name is told as soon as it is there, though its plan is not the last.
    named = dict(zip(graph.outputs, graph.output_names))
    names = {v: named[v] for v in carried(named)}
    later = (v for v in graph.values if v not in ready)
    outputs = dict.fromkeys((*names, *carried(i for v in later for i in v.inputs)))
    outputs.update(dict.fromkeys(carried(graph.outputs)))
    first = replace(graph, outputs=tuple(outputs), output_names=tuple(names.values()))
    return replace(first, guards=(), late=None)


def rest_of(graph: Graph, first: Graph, frontier: Sequence[Value]) -> Graph:
    """What of a graph comes after the first part and the frontier, whose results it reads."""
    siblings = [s for v in frontier for s in v.siblings]
    inputs = {
        v: make(Input(f"stage {n}", v.type), ())[0]
        for n, v in enumerate((*first.outputs, *siblings))
    }
    return replace(graph.substitute(inputs), inputs=tuple(inputs.values()))


def meanings(graph: Graph, device: Device) -> dict[Value, Value]:
    """For Values of `legal(graph, device)` the Values of the graph that have the same elements."""
    found = {value: value for value in graph.values}
    while True:
        firsts = iter(dict.fromkeys(value.siblings for value in graph.values))
        step: dict[Value, Value] = {}

        def legalize(value: Value) -> Any:
            olds, new = next(firsts), device.legalize(value)  # noqa: B023, map calls it at once
            news = value.siblings if new is value else (new,) if isinstance(new, Value) else new
            step.update(zip(news, olds))  # noqa: B023
            return new

        after = graph.map(legalize)
        if after is graph:
            return found
        found = {new: found[old] for new, old in step.items() if old in found}
        graph = after
