"""Fusion: which Values are computed together, as one kernel, and which are kept in memory between
kernels.

Groups grow backwards from the Values that must be in memory: an operator joins the group of the
operators that
read it when they are all in one group and nothing would be computed more often than it should be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from whet.ir.graph import Constant, Graph, Input, Parameter, Value, Weight
from whet.ir.sizes import Size, coefficient, product
from whet.ops import elementwise as ew
from whet.ops import gather, movement
from whet.ops.index import Iota
from whet.ops.reduce import Reduce
from whet.plan.kernel import Load, View
from whet.plan.lower import RULES, Lowering, loop_index
from whet.plan.nests import NESTS
from whet.plan.target import Capabilities

MOVEMENT = (movement.Reshape, movement.Transpose, movement.Broadcast, movement.Slice)
ELEMENTWISE = (ew.Elementwise, ew.Pow, ew.Where, ew.Cast)
READS = (
    movement.Concat,
    movement.Pad,
    movement.Sizes,
    movement.Gather,
    gather.GatherElements,
    gather.GatherND,
    Iota,
)
CHEAP = (
    ew.Add,
    ew.Sub,
    ew.Mul,
    ew.Max,
    ew.Min,
    ew.Neg,
    ew.Abs,
    ew.Cast,
    ew.Where,
    ew.Less,
    ew.Equal,
)
MOST_MEMBERS = 100  # operators in one group; beyond, code grows without gain


@dataclass(eq=False)
class Group:
    """What one kernel computes: `root`, through its members; `anchor` is run by a template, `host`
    by NumPy."""

    root: Value
    anchor: Value | None = None
    host: bool = False
    members: int = 1
    reduces: bool = False
    views: dict[int, tuple[Value, View]] = field(default_factory=dict)
    """For an anchor's inputs: what is in memory, and how the anchor sees it."""
    output: View | None = None
    """How the anchor's elements lie in the root's memory, where they don't lie as its own would."""


@dataclass(frozen=True)
class Traits:
    """How a member's elements relate to its group's root."""

    identity: bool  # same row-major offset, elementwise and reshaped all the way
    pure: bool  # one root element for each of its own
    aligned: bool  # same axes, stretched or reduced
    turns: int  # how often each element is computed


ROOT = Traits(True, True, True, 1)
OPAQUE = Traits(False, False, False, 1)


class Grouping:
    """The groups of a graph, in an order in which they can run.

    Without `prepare`, what depends on weights and constants alone is `prepared`: taken as given.
    """

    def __init__(self, graph: Graph, target: Capabilities, prepare: bool = False) -> None:
        self.graph, self.target = graph, target
        self.prepare = prepare
        self.prepared: set[Value] = set()
        self.required: set[Value] = {o for o in graph.outputs if not is_leaf(o)}
        self.owner: dict[Value, Group] = {}
        self.transparent: set[Value] = set()
        self.traits: dict[Value, Traits] = {}
        self.readers: dict[Value, list[Value]] = {}
        self.wanted: dict[Value, dict[int, Group]] = {}
        self._follows: dict[Value, bool] = {}
        for value in graph.values:
            if value.index == 0 or value.siblings[0] not in self.readers:
                for i in value.inputs:
                    if i is not None:
                        self.readers.setdefault(i, []).append(value)
        done: set[Value] = set()
        for value in reversed(graph.values):
            first = value.siblings[0]
            if not is_leaf(value) and first not in done:
                done.add(first)
                self.place(first)
        # A group runs where the first of its results is needed.
        found = (self._of_root(v) for v in graph.values)
        self.groups = list(dict.fromkeys(group for group in found if group is not None))

    def _of_root(self, value: Value) -> Group | None:
        group = self.owner.get(value)
        return group if group is not None and group.root in value.siblings else None

    def place(self, value: Value) -> None:
        """Finds the group of one operator, whose readers all have theirs."""
        needed = any(s in self.required or s in self.wanted for s in value.siblings)
        if value.is_static and not self.prepare:
            self.place_static(value, needed)
        elif type(value.op) in self.target.templates:
            self.place_template(value)
        elif not self.target.emits(value) or not _is_loop(value):
            self.place_host(value)
        elif isinstance(value.op, MOVEMENT) and value not in self.required:
            self.transparent.add(value)
            for group in self.wanted.get(value, {}).values():
                self.want(value, group)
        else:
            self.place_loop(value)

    def place_static(self, value: Value, needed: bool) -> None:
        """What depends on weights alone is computed once, before the first run; not so its mere
        stretching."""
        if not needed:
            return
        shares_memory = isinstance(value.op, movement.Broadcast | movement.Reshape)
        if shares_memory and value not in self.required:
            self.transparent.add(value)
            for group in self.wanted[value].values():
                self.want(value, group)
        else:
            self.prepared.update(value.siblings)

    def want(self, reader: Value, group: Group) -> None:
        for i in reader.inputs:
            if i is not None and not is_leaf(i):
                self.wanted.setdefault(i, {})[id(group)] = group

    def place_loop(self, value: Value) -> None:
        groups = list(self.wanted.get(value, {}).values())
        if value not in self.required and len(groups) == 1:
            traits = self.traits_of(value, groups[0])
            if self.may_join(value, groups[0], traits):
                self.join(value, groups[0], traits)
                self.want(value, groups[0])
                return
        self.found(value, Group(value, reduces=not isinstance(value.op, ELEMENTWISE)))
        self.want(value, self.owner[value])

    def found(self, value: Value, group: Group) -> None:
        for sibling in value.siblings:
            self.owner[sibling] = group
            self.required.add(sibling)
        self.traits[value] = ROOT

    def join(self, value: Value, group: Group, traits: Traits) -> None:
        self.owner[value] = group
        self.traits[value] = traits
        group.members += 1
        group.reduces |= _reduces(value)

    def traits_of(self, value: Value, group: Group) -> Traits:
        """How value relates to the root, from how its readers do; movements are looked through."""
        found = [self.trait_through(value, reader) for reader in self.readers.get(value, ())]
        return Traits(
            all(t.identity for t in found),
            all(t.pure for t in found),
            all(t.aligned for t in found),
            sum(t.turns for t in found),
        )

    def trait_through(self, value: Value, reader: Value) -> Traits:
        if reader in self.transparent:
            known = [self.trait_through(reader, r) for r in self.readers.get(reader, ())]
            same = _count(value) == _count(reader)
            pure = same and isinstance(reader.op, movement.Reshape | movement.Transpose)
            flat = same and isinstance(reader.op, movement.Reshape)
            return Traits(
                flat and all(t.identity for t in known),
                pure and all(t.pure for t in known),
                False,
                sum(t.turns for t in known),
            )
        t = self.traits.get(reader, OPAQUE)
        if isinstance(reader.op, ELEMENTWISE):
            same = value.shape == reader.shape
            return Traits(
                t.identity and same,
                t.pure and same,
                t.aligned and value.rank == reader.rank,
                t.turns,
            )
        if isinstance(reader.op, Reduce):
            return Traits(False, False, t.aligned, 1)
        return Traits(False, False, False, max(t.turns, 1))

    def may_join(self, value: Value, group: Group, traits: Traits) -> bool:
        """Whether computing value inside the group costs no more than keeping it in memory."""
        if group.host or group.members >= MOST_MEMBERS or group.anchor is group.root:
            return False
        if type(value.op) not in RULES and not isinstance(value.op, ELEMENTWISE):
            return False  # it has nests of its own
        if not traits.identity and self.follows_template(value):
            return False  # better at the end of the template than spread over the loops of a reader
        if group.anchor is not None and not isinstance(value.op, ELEMENTWISE):
            return _count(value) == _count(group.root) and not _reduces(value)
        hoisted = traits.aligned and _is_prefix(value.shape, group.root.shape)
        if _reduces(value):
            again = traits.turns > 1 and _count(value) == _count(group.root)
            return traits.pure or (hoisted and not again)
        if isinstance(value.op, CHEAP) or not isinstance(value.op, ELEMENTWISE):
            return True
        if traits.turns > 2 and not hoisted:
            return False
        smaller = _static(_count(value)) * 4 <= _static(_count(group.root))
        return hoisted or not smaller

    def follows_template(self, value: Value) -> bool:
        """Whether value is elementwise work that can ride along with a template."""
        if value not in self._follows:
            # What is widened again takes more memory than before: its reader does that as it loads.
            rides = isinstance(value.op, ELEMENTWISE) and not _widens(value)
            self._follows[value] = rides and any(
                i is not None and i.type == value.tensor.with_dtype(i.dtype) and self._leads(i)
                for i in value.inputs
            )
        return self._follows[value]

    def _leads(self, value: Value) -> bool:
        # What others read too is kept in memory, and no template's work goes on behind it.
        readers = self.readers.get(value, ())
        if not all(isinstance(r.op, ELEMENTWISE) and r.shape == value.shape for r in readers):
            return False
        template = self.target.templates.get(type(value.op))
        return template.has_epilogue if template is not None else self.follows_template(value)

    def place_template(self, value: Value) -> None:
        template = self.target.templates[type(value.op)]
        groups = list(self.wanted.get(value, {}).values())
        group = None
        if value not in self.required and len(groups) == 1 and len(value.siblings) == 1:
            traits = self.traits_of(value, groups[0])
            candidate = groups[0]
            fits = template.has_epilogue and not candidate.host and candidate.anchor is None
            same = traits.identity and not candidate.reduces
            if fits and template.has_strided_output and not same:
                candidate.output = self.moved(value, candidate)
            if fits and (same or candidate.output is not None):
                group = candidate
                self.join(value, group, traits)
                group.reduces = False
        if group is None:
            group = Group(value)
            self.found(value, group)
        group.anchor = value
        for position, i in enumerate(value.inputs):
            if i is not None:
                group.views[position] = self.view(value, position, i)
                base = group.views[position][0]
                if not is_leaf(base):
                    self.required.add(base)

    def moved(self, value: Value, group: Group) -> View | None:
        """Where value's elements lie in the root, if only movement and elementwise work leads
        there."""
        chain: list[Value] = []
        reader = value
        while reader is not group.root:
            readers = self.readers.get(reader, [])
            if len(readers) != 1:
                return None
            (reader,) = readers
            chain.append(reader)
        if sum(v not in self.transparent for v in chain) != group.members:
            return None
        return view_back(value, chain)

    def view(self, reader: Value, position: int, value: Value) -> tuple[Value, View]:
        """How a template sees an input: through movements where it takes that, else the input
        itself."""
        template = self.target.templates[type(reader.op)]
        seen = view_of(value, lambda v: v not in self.required)
        if seen is not None and template.takes(reader.op, position, seen[1]):
            return seen
        base = value
        while isinstance(base.op, movement.Reshape) and base not in self.required:
            (base,) = base.inputs  # type: ignore[assignment]
        return base, contiguous(value)

    def place_host(self, value: Value) -> None:
        self.found(value, Group(value, host=True))
        for i in value.inputs:
            if i is not None and not is_leaf(i):
                self.required.add(i)

    def is_inside(self, group: Group, value: Value) -> bool:
        """Whether a kernel of the group computes value itself rather than loads it."""
        if value in self.transparent:
            return True
        return self.owner.get(value) is group and (
            value is group.root or value not in self.required
        )


def is_leaf(value: Value) -> bool:
    """Whether a Value is in memory before anything runs."""
    return isinstance(value.op, Input | Weight | Parameter | Constant)


def contiguous(value: Value) -> View:
    """A tensor as it lies in its buffer, row-major."""
    strides, step = [], 1
    for size in reversed(value.shape):
        strides.append(step)
        step = step * size  # type: ignore[assignment]
    return View(0, value.dtype, value.shape, tuple(reversed(strides)))


def view_of(value: Value, through: object) -> tuple[Value, View] | None:
    """The Value in memory behind movements, and the strides with which they read it, where it is
    affine."""
    if not isinstance(value.op, MOVEMENT):
        return None
    assert callable(through)
    lowering = Lowering(lambda v: isinstance(v.op, MOVEMENT) and through(v))
    names = [f"i{axis}" for axis in range(value.rank)]
    index = tuple(loop_index(name, size) for name, size in zip(names, value.shape))
    element = lowering.pull(value, index)
    if not isinstance(element, Load):
        return None
    strides = [coefficient(element.offset, name) for name in names]
    if any(s is None for s in strides):
        return None
    start: Size = element.offset
    for i, stride in zip(index, strides):
        start = start - i * stride  # type: ignore[operator]
    (base,) = lowering.buffers
    return base, View(0, value.dtype, value.shape, tuple(strides), start)  # type: ignore[arg-type]


def view_back(value: Value, chain: Sequence[Value]) -> View | None:
    """How value's elements lie in the memory of the last of the operators that follow it, if
    evenly."""
    root = chain[-1]
    strides = contiguous(root).strides
    for after, before in zip(reversed(chain), (*reversed(chain[:-1]), value)):
        if isinstance(after.op, movement.Transpose):
            placed = dict(zip(after.op.order, strides))
            strides = tuple(placed[axis] for axis in range(before.rank))
        elif isinstance(after.op, movement.Reshape):
            found = _strides_before(after.shape, strides, before.shape)
            if found is None:
                return None
            strides = found
        elif not isinstance(after.op, ELEMENTWISE) or before.shape != after.shape:
            return None
    return View(0, root.dtype, value.shape, strides)


def _strides_before(
    shape: Sequence[Size], strides: Sequence[Size], source: Sequence[Size]
) -> tuple[Size, ...] | None:
    """The strides that a tensor had before a reshape, where each axis has one; inner axes first."""
    if not all(isinstance(n, int) and n > 0 for n in (*shape, *source)):
        return None
    axes = [(n, s) for n, s in zip(shape, strides) if n != 1]
    result: list[Size] = []
    for size in reversed(source):
        step: Size = 0
        have = 1
        while have < size:  # type: ignore[operator]
            n, stride = axes.pop()
            take = math.gcd(n, size // have)
            if take == 1 or (have > 1 and stride != step * have):
                return None
            step = stride if have == 1 else step
            have *= take
            if n != take:
                axes.append((n // take, stride * take))
        result.insert(0, step)
    return tuple(result)


def _is_loop(value: Value) -> bool:
    return isinstance(value.op, ELEMENTWISE) or type(value.op) in RULES or type(value.op) in NESTS


def _reduces(value: Value) -> bool:
    """Whether each element takes a loop of its own to compute."""
    return not isinstance(value.op, (*ELEMENTWISE, *MOVEMENT, *READS))


def _widens(value: Value) -> bool:
    """Whether an element takes more memory than what it is cast from."""
    (x, *_) = value.inputs
    if not isinstance(value.op, ew.Cast) or x is None:
        return False
    return value.tensor.numpy.itemsize > x.tensor.numpy.itemsize


def _count(value: Value) -> Size:
    return product(value.shape)


def _static(size: Size) -> int:
    return size if isinstance(size, int) else 1 << 20


def _is_prefix(shape: Sequence[Size], whole: Sequence[Size]) -> bool:
    """Whether a shape is that of the outer axes, with size 1 for all the inner ones."""
    if len(shape) != len(whole):
        return False
    inner = False
    for size, full in zip(shape, whole):
        if size == full and not inner:
            continue
        if size != 1:
            return False
        inner = inner or full != 1
    return True
