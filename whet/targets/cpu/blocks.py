"""Nests whose loads and stores run along different loops: square blocks, transposed in registers.

Without blocks, each lane of a vector would be loaded on its own, from a cache line of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from whet.ir.sizes import Size, coefficient
from whet.plan.kernel import Apply, Axis, Expression, Index, Literal, Load, Nest, Store, walk
from whet.targets.cpu import arithmetic
from whet.targets.cpu.expressions import Emitter, Place
from whet.targets.cpu.llvm import Function, element_bytes, literal, vector
from whet.targets.cpu.llvm import Index as Number
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.transpose import transpose

ENOUGH_TURNS = 64
SMALL = 6
"""Operators in an expression that is written out for each vector of a block."""


def across_axis(nest: Nest, along: Axis, lanes: int) -> Axis | None:
    """The loop along which loads lie side by side that the vectors along `along` would gather."""
    if not all(isinstance(a.size, int) for a in nest.axes) or _number(along.size) * 2 < lanes:
        return None
    nodes = [node for store in nest.stores for node in walk(store.value)]
    if not all(isinstance(node, Load | Literal | Apply | Index) for node in nodes):
        return None
    found = {
        axis: sum(_crosses(node, along, axis) for node in set(nodes))
        for axis in nest.axes
        if axis is not along and _number(axis.size) * 2 >= lanes
    }
    best = max(found, key=lambda axis: found[axis], default=None)
    return best if best is not None and found[best] else None


def _number(size: Size) -> int:
    assert isinstance(size, int)
    return size


def _crosses(node: Expression, along: Axis, across: Axis) -> bool:
    """Whether a load's neighbours along one loop are neighbours in memory along the other."""
    if not isinstance(node, Load) or coefficient(node.offset, across.name) != 1:
        return False
    step = coefficient(node.offset, along.name)
    return isinstance(step, int) and step not in (0, 1)


@dataclass
class BlockCode:
    """One nest, walked in blocks of as many elements along both loops as a vector has lanes."""

    f: Function
    nest: Nest
    e: Emitter
    along: Axis
    across: Axis
    store: Callable[[Store], None]
    hoist: Callable[[frozenset[str]], None]

    def __post_init__(self) -> None:
        self.lanes = self.e.full_lanes
        nodes = [node for store in self.nest.stores for node in walk(store.value)]
        crossing = [n for n in nodes if _crosses(n, self.along, self.across)]
        self.loads = list(dict.fromkeys(n for n in crossing if isinstance(n, Load)))
        self.small = sum(isinstance(n, Apply) for n in set(nodes)) <= SMALL
        self.outer = [a for a in self.nest.axes if a not in (self.along, self.across)]
        self.rooms: dict[Load, str] = {}

    def emit(self) -> None:
        """The nest: threads share outer loops, strips across, and pieces along, in this order."""
        f = self.f
        strips = -(-_number(self.across.size) // self.lanes)
        blocks = -(-_number(self.along.size) // self.lanes)
        turns = math.prod(_number(a.size) for a in self.outer) * strips
        pieces = min(blocks, -(-ENOUGH_TURNS // max(turns, 1)))
        total = turns * pieces
        self.rooms = {
            load: f.alloca(self.lanes * self.lanes * self._bytes(load)) for load in self.loads
        }
        low = f.div(f.mul("%thread", total), "%threads")
        high = f.div(f.mul(f.add("%thread", 1), total), "%threads")

        def turn(t: str, _: list[str]) -> None:
            piece, rest = f.rem(t, pieces), f.div(t, pieces)
            strip, rest = f.rem(rest, strips), f.div(rest, strips)
            places: dict[str, Place] = {}
            for axis in reversed(self.outer):
                places[axis.name] = Place(f.rem(rest, _number(axis.size)))
                rest = f.div(rest, _number(axis.size))
            first = f.div(f.mul(piece, blocks), pieces)
            end = f.div(f.mul(f.add(piece, 1), blocks), pieces)
            with self.e.scope(places={**self.e.places, **places}):
                self.hoist(frozenset(places))
                self._strip(f.mul(strip, self.lanes), (first, end), blocks)

        f.loop(low, high, 1, turn, guard=True)

    def _bytes(self, load: Load) -> int:
        return element_bytes(arithmetic.STORAGE[load.dtype])

    def _strip(self, start: Number, span: tuple[Number, Number], blocks: int) -> None:
        """One strip of columns: whole blocks, then what is left at the end of the loop along."""
        f, lanes = self.f, self.lanes
        rest_along, rest_across = (_number(a.size) % lanes for a in (self.along, self.across))

        def run(columns: int) -> None:
            end = f.min(span[1], blocks - 1) if rest_along else span[1]
            f.loop(
                span[0],
                end,
                1,
                lambda b, _: self._block(f.mul(b, lanes), lanes, start, columns),
                guard=True,
            )
            if rest_along:
                last = f.op(f"icmp eq i64 {span[1]}, {blocks}")
                at = (blocks - 1) * lanes
                f.when(last, lambda: self._block(at, rest_along, start, columns))

        if not rest_across:
            run(lanes)
            return
        whole = _number(self.across.size) - rest_across
        partial = f.op(f"icmp eq i64 {start}, {whole}")
        f.when(partial, lambda: run(rest_across), lambda: run(lanes))

    def _block(self, row: Number, rows: int, column: Number, columns: int) -> None:
        """`rows` elements along, which are lanes of the stores, by `columns` across."""
        f, lanes = self.f, self.lanes
        blocks = {load: self._transposed(load, row, rows, column, columns) for load in self.loads}
        mask = lane_mask(f, rows, lanes) if rows < lanes else None
        if self.small and columns == lanes:
            for c in range(columns):
                values = {load: block[c] for load, block in blocks.items()}
                self._vector(row, Place(column, c), mask, values)
            return
        for load, block in blocks.items():
            for c in range(columns):
                size = lanes * self._bytes(load)
                f.store(self._kind(load), block[c], self.rooms[load], c * size)

        def one(c: str, _: list[str]) -> None:
            values = {
                load: f.load(self._kind(load), f.address(room, f.mul(c, lanes * self._bytes(load))))
                for load, room in self.rooms.items()
            }
            self._vector(row, Place(f.add(column, c)), mask, values)

        f.loop(0, columns, 1, one)

    def _kind(self, load: Load) -> str:
        """Vectors on their way through a block: small floats as the integers that they are."""
        bytes = self._bytes(load)
        element = arithmetic.STORAGE[load.dtype]
        return vector(element if bytes >= 4 else f"i{8 * bytes}", self.lanes)

    def _transposed(
        self, load: Load, row: Number, rows: int, column: Number, columns: int
    ) -> list[str]:
        f, kind, lanes = self.f, self._kind(load), self.lanes
        mask = lane_mask(f, columns, lanes) if columns < lanes else None
        found = []
        for r in range(lanes):
            if r >= rows:
                found.append(literal(kind, 0))
                continue
            places = {self.along.name: Place(row, r), self.across.name: Place(column)}
            with self.e.scope(places={**self.e.places, **places}):
                base = self.e.buffers[load.buffer]
                at, delta = self.e._address(load.dtype, base, load.offset)
            if mask is None:
                found.append(f.load(kind, at, delta))
            else:
                found.append(f.masked_load(kind, mask, at, delta))
        return transpose(f, kind, found)

    def _vector(
        self, row: Number, column: Place, mask: str | None, values: dict[Load, str]
    ) -> None:
        """One vector of each store."""
        places = {self.along.name: Place(row), self.across.name: column}
        scope = {"places": {**self.e.places, **places}, "mask": mask}
        with self.e.scope(vector=self.along.name, lanes=self.lanes, **scope):
            for load, value in values.items():
                stored = arithmetic.storage_type(load.dtype, self.lanes)
                if stored != self._kind(load):
                    value = self.f.convert("bitcast", value, self._kind(load), stored)
                value = arithmetic.to_compute(self.f, value, load.dtype, self.lanes)
                self.e.scopes[-1].values[load] = value, self.lanes
            for store in self.nest.stores:
                self.store(store)
