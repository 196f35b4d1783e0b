"""A Plan: the kernels of a graph in order, and where in memory each reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from whet.errors import Error, IndexOutOfRange, located
from whet.ir.evaluate import compute
from whet.ir.graph import Graph, Value
from whet.ir.sizes import Size, product
from whet.ir.types import TensorType
from whet.plan.branches import Branches
from whet.plan.group import Group, Grouping, contiguous, is_leaf
from whet.plan.kernel import Kernel, Loops, Nest, Template, View
from whet.plan.likely import likely_value
from whet.plan.loops import cut, rewrite_sizes, simplify
from whet.plan.lower import Lowering, reshaped_index, unflatten
from whet.plan.memory import Lifetime, Rooms, Tenant, assign, house, lodge
from whet.plan.nests import NESTS, Phase, axes_of, elements
from whet.plan.target import Capabilities


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel, or one operator on the host: `reads` then `writes` are its buffers, in order."""

    kernel: Kernel | None
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    value: Value
    nodes: tuple[str, ...]

    @property
    def is_host(self) -> bool:
        return self.kernel is None

    @property
    def name(self) -> str:
        return self.kernel.name if self.kernel else f"reference {type(self.value.op).__name__}"

    @property
    def where(self) -> str:
        """The nodes of the model that it is for, as errors name them."""
        return " + ".join(self.nodes) or str(self.value.op)

    def computed(
        self, arrays: Sequence[Any], sizes: Mapping[str, int], run_graph: Callable[..., Any]
    ) -> Sequence[Any]:
        """What its operator gives on the host; `run_graph` runs the graphs that it may have."""
        extra = [run_graph] if self.value.op.runs_graphs else []
        try:
            return compute(self.value, [*extra, *arrays], sizes)
        except Error as error:
            raise located(error, self.where) from error.__cause__

    def index_error(self) -> Error:
        """What a run raises where its kernel met an index outside of the axis."""
        text = "an index lies outside the axis that it chooses from"
        return located(IndexOutOfRange(text), self.where)


def segments(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Runs of steps that go to the device as one; a step on the host stands alone."""
    found: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        if found and not step.is_host and not steps[found[-1][0]].is_host:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


@dataclass(frozen=True, eq=False)
class Plan:
    """What runs for one graph, whose sizes are known, or are expressions that a run evaluates.

    Values that the graph is given (inputs, weights, constants) and its outputs have memory of their
    own, or may be `guests`; `offsets` are the places of all others in the arena where sizes are
    known, else `rooms` are what they share.
    """

    graph: Graph
    steps: tuple[Step, ...]
    offsets: dict[Value, int]
    arena: int
    prepared: frozenset[Value]
    """What depends on weights alone, and is to be computed before the first run."""
    rooms: Rooms = field(default_factory=Rooms)

    @property
    def kernels(self) -> list[Kernel]:
        """Those of all steps that have one."""
        return [step.kernel for step in self.steps if step.kernel is not None]

    @property
    def moving(self) -> set[Kernel]:
        """Kernels that read inputs or write outputs, which lie elsewhere in each run."""
        ends = {*self.graph.inputs, *self.graph.outputs}
        return {s.kernel for s in self.steps if s.kernel and ends & {*s.reads, *s.writes}}

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """The named sizes that a run tells the kernels."""
        found = {name for step in self.steps if step.kernel for name in step.kernel.sizes}
        return tuple(sorted(found))

    @cached_property
    def guests(self) -> dict[Value, int]:
        """Where inputs and outputs find room in the arena, while a run copies them from the host
        and to it; those without room there have memory of their own. An input is there until all
        of its readers are done, an output from the step that writes it on, also where steps that
        do not need each other overlap."""
        if not self.arena or not self.graph.inputs or self.sizes or self.rooms.members:
            return {}
        touched = {v for s in self.steps if not s.is_host for v in (*s.reads, *s.writes)}
        ends = [v for v in (*self.graph.inputs, *self.graph.outputs) if v in touched]
        # What weights alone make lies with the weights.
        sizes = {v: nbytes(v.tensor) for v in ends if v.tensor.is_static and not v.is_static}
        used = {v for s in self.steps for v in s.writes}
        hosts = {v: (at, at + nbytes(v.tensor)) for v, at in self.offsets.items() if v in used}
        overlap = Branches(self.steps, self.graph.outputs).overlap
        return lodge(sizes, hosts, self.arena, overlap)  # type: ignore[arg-type, return-value]

    @cached_property
    def reference_ops(self) -> tuple[str, ...]:
        """The nodes that run their NumPy reference."""
        references = [s for s in self.steps if s.is_host and not s.value.op.is_bookkeeping]
        return tuple(name for step in references for name in step.nodes)

    def __str__(self) -> str:
        lines = [
            f"{' + '.join(step.nodes) or step.value.op}: {step.kernel or step.name}"
            for step in self.steps
        ]
        return "\n".join([*lines, f"arena {self.arena} bytes"])


def make_plan(graph: Graph, target: Capabilities, prepare: bool = False) -> Plan:
    """The plan of a graph, its operators already in the target's terms.

    Named sizes are allowed where the target's kernels take them when they run. With `prepare` it is
    the plan that computes what other plans take as prepared.
    """
    grouping = Grouping(graph, target, prepare)
    steps = tuple(step for group in grouping.groups for step in _steps(grouping, group))
    kept = frozenset(grouping.prepared)
    lives = _lives(graph, steps)
    if any(not value.tensor.is_static for value in lives):
        return Plan(graph, steps, {}, 0, kept, _house(lives))
    lifetimes = [Lifetime(v, nbytes(v.tensor), *life) for v, life in lives.items()]
    # What runs on the host is met one by one, and what prepares runs once.
    overlap = target.overlaps and not prepare and not any(step.is_host for step in steps)
    offsets, arena = assign(lifetimes, Branches(steps).meet if overlap else Lifetime.meets)
    return Plan(graph, steps, offsets, arena, kept)  # type: ignore[arg-type]


def _steps(grouping: Grouping, group: Group) -> list[Step]:
    nodes = tuple(dict.fromkeys(_nodes(grouping, group)))
    if group.host:
        reads = tuple(dict.fromkeys(i for i in group.root.inputs if i is not None))
        return [Step(None, reads, group.root.siblings, group.root, nodes)]
    if group.anchor is not None:
        return [_template_step(grouping, group, nodes)]
    phases = NESTS.get(type(group.root.op), (elements,))
    return [_loops_step(grouping, group, nodes, phase) for phase in phases]


def _nodes(grouping: Grouping, group: Group) -> Iterator[str]:
    """The user's nodes behind a group, in the order of the graph."""
    for value in _members(grouping, group):
        yield from grouping.graph.origins.get(value, ())


def _members(grouping: Grouping, group: Group) -> list[Value]:
    found: list[Value] = []
    seen: set[Value] = set()
    stack = [group.root]
    while stack:
        value = stack.pop()
        if value in seen or not (
            value is group.root or value is group.anchor or grouping.is_inside(group, value)
        ):
            continue
        seen.add(value)
        found.append(value)
        if value is not group.anchor:
            stack.extend(i for i in value.inputs if i is not None)
    return found[::-1]


def _loops_step(grouping: Grouping, group: Group, nodes: tuple[str, ...], phase: Phase) -> Step:
    root = group.root
    lowering = Lowering(lambda v: grouping.is_inside(group, v))
    nests = phase(lowering, root)
    reads = tuple(lowering.buffers)
    output = len(reads)
    nests = [piece for nest in nests for piece in cut(simplify(_with_output(nest, output)))]
    kernel = Loops((*(v.dtype for v in reads), root.dtype), 1, tuple(nests))
    return Step(kernel, reads, (root,), root, nodes)


def _with_output(nest: Nest, buffer: int) -> Nest:
    return replace(nest, stores=tuple(replace(s, buffer=buffer) for s in nest.stores))


def _template_step(grouping: Grouping, group: Group, nodes: tuple[str, ...]) -> Step:
    anchor, root = group.anchor, group.root
    assert anchor is not None
    lowering = Lowering(lambda v: grouping.is_inside(group, v), anchor)
    views: list[View | None] = []
    for position, value in enumerate(anchor.inputs):
        if value is None:
            views.append(None)
            continue
        base, view = group.views[position]
        buffer = lowering.buffers.setdefault(base, len(lowering.buffers))
        views.append(View(buffer, view.dtype, view.shape, view.strides, view.offset))
    axes, index = axes_of(anchor.shape)
    output = group.output
    if output is None:
        output = contiguous(anchor)
        index = reshaped_index(index, anchor.shape, root.shape)
    else:
        offset = sum((i * s for i, s in zip(index, output.strides)), start=0)
        index = unflatten(offset, root.shape)
    epilogue = rewrite_sizes(lowering.pull(root, index), lambda size: size)
    reads = tuple(lowering.buffers)
    outputs = (root,) if len(anchor.siblings) == 1 else anchor.siblings
    kernel = Template(
        anchor.op,
        tuple(views),
        (*(v.dtype for v in reads), *(v.dtype for v in outputs)),
        axes,
        epilogue,
        View(len(reads), root.dtype, output.shape, output.strides),
    )
    return Step(kernel, reads, outputs, anchor, nodes)


def nbytes(type: TensorType) -> int:
    """The bytes of a tensor whose sizes are known."""
    return math.prod(int(s) for s in type.shape) * type.numpy.itemsize


def size_in_bytes(type: TensorType) -> Size:
    """The bytes of a tensor, as an expression over its sizes."""
    return product(type.shape) * type.numpy.itemsize


def _lives(graph: Graph, steps: tuple[Step, ...]) -> dict[Value, tuple[int, int]]:
    """The steps between which each buffer of the arena is in use; text is Python's objects, which
    lie elsewhere."""
    kept = set(graph.outputs)
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for number, step in enumerate(steps):
        for value in step.writes:
            first.setdefault(value, number)
            last[value] = number
        for value in step.reads:
            last[value] = number
    return {
        value: (first[value], last[value])
        for value in first
        if value not in kept
        and not is_leaf(value)
        and isinstance(value.type, TensorType)
        and value.type.dtype != "string"
    }


def _house(lives: dict[Value, tuple[int, int]]) -> Rooms:
    sizes = {value: size_in_bytes(value.tensor) for value in lives}
    return house([Tenant(v, sizes[v], likely_value(sizes[v]), *life) for v, life in lives.items()])
