"""Loop kernels as LLVM text: outer loops shared among threads, one loop along vector lanes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from whet.ir.sizes import Size, coefficient
from whet.plan.kernel import (
    Axis,
    Expression,
    Load,
    Loops,
    Nest,
    Reduction,
    Store,
    size_symbols,
    walk,
)
from whet.targets.cpu import arithmetic
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.blocks import BlockCode, across_axis
from whet.targets.cpu.expressions import Emitter, Place
from whet.targets.cpu.interleave import interleaved, woven
from whet.targets.cpu.llvm import Function, Index, Module, vector
from whet.targets.cpu.named import NamedSizes
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.rows import kept_row, with_reciprocals

# Outer loops are joined until they run this often, so that threads get even shares.
ENOUGH_TURNS = 64


def generate(kernel: Loops, architecture: Architecture, name: str) -> Module:
    """The function `void name(ptr args, i64 thread, i64 threads)`; args: the error word, the
    buffers, then named sizes."""
    module = Module(architecture.vector_bytes * 8)
    f = module.function(name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"})
    error = f.load("ptr", "%args", 0)
    buffers = [f.load("ptr", "%args", 8 * (i + 1)) for i in range(len(kernel.buffers))]
    lanes = architecture.vector_bytes // 4
    places = NamedSizes(kernel.sizes, 1 + len(buffers)).places(f)
    for nest in kernel.nests:
        emitter = Emitter(f, list(buffers), lanes, error)
        emitter.places = places
        _NestCode(f, nest, emitter).emit()
    f.end()
    return module


def vector_axis(nest: Nest) -> Axis | None:
    """The loop whose neighbours should be lanes: where stores lie side by side, unless loads prefer
    their own."""
    best: Axis | None = None
    most = 0.0
    chosen = {name for s in nest.stores for c in s.choices for name in c.value.symbols}
    for axis in nest.axes:
        if axis.name in nest.ordered or axis.name in chosen:
            continue
        if any(coefficient(s.offset, axis.name) != 1 for s in nest.stores):
            continue
        score = sum(_benefit(node, axis, 1.0) for s in nest.stores for node in _tops(s.value)) + 1.0
        if score > most:
            best, most = axis, score
    return best


def _tops(expression: Expression) -> list[Expression]:
    return [n for n in walk(expression) if isinstance(n, Load)] + [
        n for n in walk(expression) if isinstance(n, Reduction)
    ]


def _benefit(node: Expression, axis: Axis, weight: float) -> float:
    """How much a load gains from lanes along the axis; a reduction whose own loop reads along lanes
    loses."""
    if isinstance(node, Load):
        step = coefficient(node.offset, axis.name)
        return weight if step in (0, 1) else -0.05
    assert isinstance(node, Reduction)
    if axis.name not in node.symbols:
        return 0.0
    along, own = 0, 0
    for load in walk(node.body):
        if isinstance(load, Load):
            along += coefficient(load.offset, axis.name) == 1
            own += any(coefficient(load.offset, a.name) == 1 for a in node.axes) and coefficient(
                load.offset, axis.name
            ) not in (0, 1)
    return -4.0 if own > along else 0.0


@dataclass
class _NestCode:
    """One nest being written."""

    f: Function
    nest: Nest
    e: Emitter
    kept: tuple[Store, Store] | None = None
    """A store of part of each row to the stack, and the nest's store, which reads it there."""
    weaves: bool = False
    """Whether the vectors of all stores lie in memory interleaved."""

    def emit(self) -> None:
        few = interleaved(self.nest, self.e.full_lanes)
        self.weaves = few is not None
        self.nest, lanes_axis = few or (self.nest, vector_axis(self.nest))
        nest = self.nest
        if lanes_axis is not None and not nest.ordered and not self.weaves:
            across = across_axis(nest, lanes_axis, self.e.full_lanes)
            if across is not None:
                code = BlockCode(self.f, nest, self.e, lanes_axis, across, self.store, self.hoist)
                code.emit()
                return
        if lanes_axis is not None and not nest.ordered:
            self.share_rows(lanes_axis)
            nest = self.nest
        ordered = tuple(a for a in nest.axes if a.name in nest.ordered)
        outer = tuple(a for a in nest.axes if a is not lanes_axis and a not in ordered)
        joined, rest = self.join(outer)
        turns = self.product(joined)
        whole = self.product(outer)
        few_rows = isinstance(whole, int) and whole < 8
        if lanes_axis is not None and few_rows and self.kept is None:
            # Few rows: threads share each row instead.
            self.loops((*outer, *ordered), lanes_axis, frozenset(), {}, shared=True)
            return
        low, high = self.share(turns)
        inner = (*rest, *ordered)
        if not joined:
            # Nothing to share: one thread does it.
            self.f.when(
                self.f.op("icmp eq i64 %thread, 0"),
                lambda: self.loops(inner, lanes_axis, frozenset(), {}),
            )
            return

        def turn(t: str, _: list[str]) -> None:
            places = self.unjoin(t, joined)
            self.loops(inner, lanes_axis, frozenset(a.name for a in joined), places)

        self.f.loop(low, high, 1, turn)

    def share_rows(self, axis: Axis) -> None:
        """Computes once what the elements of a row and its reductions have in common."""
        stores = tuple(replace(s, value=with_reciprocals(s.value, axis)) for s in self.nest.stores)
        self.nest = replace(self.nest, stores=stores)
        if len(stores) != 1:
            return
        self.kept = kept_row(stores[0], axis, len(self.e.buffers))
        if self.kept is not None and self.kept[0].buffer == len(self.e.buffers):
            assert isinstance(axis.size, int)
            self.e.buffers.append(self.f.alloca(4 * axis.size))

    def join(self, outer: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
        """The outermost loops that become one, to be shared among threads, and those that stay
        inside."""
        turns: Size = 1
        for count, axis in enumerate(outer):
            if isinstance(turns, int) and turns >= ENOUGH_TURNS:
                return outer[:count], outer[count:]
            turns = turns * axis.size
        return outer, ()

    def product(self, axes: tuple[Axis, ...]) -> Index:
        total: Index = 1
        for axis in axes:
            total = self.f.mul(self.e.size(axis.size), total)
        return total

    def share(self, turns: Index) -> tuple[Index, Index]:
        """This thread's part of a number of turns."""
        f = self.f
        low = f.op(f"udiv i64 {f.mul('%thread', turns)}, %threads")
        high = f.op(f"udiv i64 {f.mul(f.add('%thread', 1), turns)}, %threads")
        return low, high

    def unjoin(self, t: str, axes: tuple[Axis, ...]) -> dict[str, Place]:
        places: dict[str, Place] = {}
        rest: Index = t
        for axis in reversed(axes[1:]):
            size = self.e.size(axis.size)
            places[axis.name] = Place(self.f.rem(rest, size))
            rest = self.f.div(rest, size)
        places[axes[0].name] = Place(rest)
        return places

    def loops(
        self,
        axes: tuple[Axis, ...],
        lanes_axis: Axis | None,
        known: frozenset[str],
        places: dict[str, Place],
        shared: bool = False,
    ) -> None:
        """The inner loops, with what does not change inside computed before each."""
        with self.e.scope(places={**self.e.places, **places}):
            if axes or shared or self.kept is None:
                self.hoist(known)
            else:
                self.hoist_from(self.kept[0].value, known)
            if axes:
                name = axes[0].name
                self.f.loop(
                    0,
                    self.e.size(axes[0].size),
                    1,
                    lambda i, _: self.loops(
                        axes[1:], lanes_axis, known | {name}, {name: Place(i)}, shared
                    ),
                )
            elif lanes_axis is not None and self.kept is not None and not shared:
                keep, rest = self.kept
                self.row(lanes_axis, False, (keep,))
                self.hoist_from(rest.value, known)
                self.row(lanes_axis, False, (rest,))
            elif lanes_axis is not None:
                self.row(lanes_axis, shared, self.nest.stores)
            else:
                for store in self.nest.stores:
                    self.store(store)

    def hoist(self, known: frozenset[str]) -> None:
        named = frozenset(a.name for a in self.nest.axes)
        inner = named - known
        for store in self.nest.stores:
            available = (store.value.symbols | size_symbols(store.offset)) - inner
            self.e.hoist(store.value, available)
            for choice in store.choices:
                self.e.hoist(choice.value, choice.value.symbols - inner)

    def hoist_from(self, value: Expression, known: frozenset[str]) -> None:
        """What the value holds that depends on known indices and named sizes alone."""
        self.e.hoist(value, value.symbols - (frozenset(a.name for a in self.nest.axes) - known))

    def row(self, axis: Axis, shared: bool, stores: tuple[Store, ...]) -> None:
        """The innermost loop, in vectors; the lanes of the last one that are beyond the end are
        masked."""
        f, lanes = self.f, self.e.full_lanes
        size = self.e.size(axis.size)
        blocks = f.div(size, lanes)
        low, high = self.share(blocks) if shared else (0, blocks)

        def vector_turn(i: str, _: list[str]) -> None:
            with self.e.scope(
                vector=axis.name, lanes=lanes, places={**self.e.places, axis.name: Place(i)}
            ):
                self.vector_of(stores)

        if blocks != 0:
            f.loop(f.mul(low, lanes), f.mul(high, lanes), lanes, vector_turn)
        rest = f.rem(size, lanes)
        if rest == 0:
            return

        def tail() -> None:
            with self.e.scope(
                vector=axis.name,
                lanes=lanes,
                mask=lane_mask(f, rest, lanes),
                places={**self.e.places, axis.name: Place(f.mul(blocks, lanes))},
            ):
                self.vector_of(stores)

        if shared:
            f.when(f.op("icmp eq i64 %thread, 0"), tail)
        else:
            tail()

    def vector_of(self, stores: tuple[Store, ...]) -> None:
        """One vector of each store."""
        if self.weaves:
            self.weave(stores)
            return
        for store in stores:
            self.store(store)

    def weave(self, stores: tuple[Store, ...]) -> None:
        """One vector of each store, stored as the neighbours that they are."""
        e, f, dtype = self.e, self.f, stores[0].value.dtype
        count, kind = len(stores), arithmetic.storage_type(dtype, e.lanes)
        values = [arithmetic.to_storage(f, e.widened(s.value), dtype, e.lanes) for s in stores]
        value, wide = woven(f, kind, values), arithmetic.storage_type(dtype, count * e.lanes)
        at, delta = e._address(dtype, e.buffers[stores[0].buffer], stores[0].offset)
        if e.mask is None:
            f.store(wide, value, at, delta)
            return
        mask = vector("i1", e.lanes)
        f.masked_store(wide, value, woven(f, mask, [e.mask] * count), at, delta)

    def store(self, store: Store) -> None:
        if store.choices:
            self.chosen(store)
            return
        e, f, dtype = self.e, self.f, store.value.dtype
        lanes = e.lanes if e.vector is not None else 1
        mask = e.mask if lanes > 1 else None
        value = e.widened(store.value) if lanes > 1 else e.emit(store.value)[0]
        kind = arithmetic.storage_type(dtype, lanes)
        at, delta = e._address(dtype, e.buffers[store.buffer], store.offset)
        if store.combine is not None:
            there = f.masked_load(kind, mask, at, delta) if mask else f.load(kind, at, delta)
            before = arithmetic.to_compute(f, there, dtype, lanes)
            value = arithmetic.emit(f, store.combine, [dtype, dtype], dtype, [before, value], lanes)
        stored = arithmetic.to_storage(f, value, dtype, lanes)
        if mask:
            f.masked_store(kind, stored, mask, at, delta)
        else:
            f.store(kind, stored, at, delta)

    def chosen(self, store: Store) -> None:
        """A store at indices that are data, left out where one of them is outside."""
        e = self.e
        choice, rest = store.choices[0], store.choices[1:]
        value, _ = e.emit(choice.value)
        limit = str(e.size(choice.limit))
        i, inside = e.checked(e.as_index(value, choice.value.dtype, 1), limit, 1)

        def inner() -> None:
            with e.scope(places={**e.places, choice.name: Place(i)}):
                self.store(replace(store, choices=rest))

        self.f.when(inside, inner)
