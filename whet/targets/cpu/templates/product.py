"""The code of a matrix product: panels of each batch, tiles of rows, blocks of the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from whet.plan.kernel import Template
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.expressions import Place
from whet.targets.cpu.llvm import Function, Index, Module, literal, vector
from whet.targets.cpu.templates.matmul import SUMS_BYTES, Problem, Schedule, Side, integer
from whet.targets.cpu.templates.registers import PanelCopy, RegisterTile, dots
from whet.targets.cpu.templates.results import Results, buffer, is_plain


@dataclass(frozen=True)
class Run:
    """Parts [first, end) of an axis, of `count` elements each, from element `start` on."""

    first: Index
    end: Index
    start: Index
    count: int


def runs_of(counts: Sequence[int]) -> list[Run]:
    """The runs of parts of the same size."""
    found: list[Run] = []
    first, start = 0, 0
    for count, group in groupby(counts):
        end = first + len(list(group))
        found.append(Run(first, end, start, count))
        first, start = end, start + (end - first) * count
    return found


def by_run(
    f: Function, part: Index, runs: Sequence[Run], body: Callable[[Run, Index], None]
) -> None:
    """Emits `body(run, start of the part)` for the run that a part belongs to."""
    run, *rest = runs

    def here() -> None:
        body(run, f.add(f.mul(f.sub(part, run.first), run.count), run.start))

    if not rest:
        here()
        return
    f.when(f.op(f"icmp slt i64 {part}, {run.end}"), here, lambda: by_run(f, part, rest, body))


class ProductCode:
    """Writes the kernel: threads share (batch, panel, tile of rows) evenly, in this order."""

    def __init__(
        self, kernel: Template, p: Problem, s: Schedule, architecture: Architecture, name: str
    ) -> None:
        self.kernel, self.p, self.s, self.name = kernel, p, s, name
        self.lanes = architecture.vector_bytes // 4
        self.type = vector("float", self.lanes)
        self.module = Module(architecture.vector_bytes * 8)
        self.blocked = s.block < p.depth
        columns = integer(p.columns.size)
        cut = [v * self.lanes for v in s.vectors]
        # The last panel is as narrow as what is left.
        self.panels = runs_of([*cut[:-1], columns - sum(cut[:-1])] if cut else [])
        self.tiles: list[Run] = []
        self.emitted: set[str] = set()

    def generate(self) -> Module:
        f = self.module.function(
            self.name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"}
        )
        panels = len(self.s.vectors)
        tiles, self.tiles = self._tiles(f)
        units = math.prod(integer(a.size) for a in self.p.batch) * panels
        total = f.mul(tiles, units)
        if total != 0:
            low = f.div(f.mul("%thread", total), "%threads")
            high = f.div(f.mul(f.add("%thread", 1), total), "%threads")
            tiles = f.max(tiles, 1)  # a run may tell that there are none
            sides = [self._base(f, side) for side in (self.p.left, self.p.right)]
            scratch = [self._panel(f), self._sums(f)]
            first, end = f.div(low, tiles), f.div(f.add(high, f.sub(tiles, 1)), tiles)

            def unit(u: str, _: list[str]) -> None:
                skipped = f.mul(u, tiles)
                span = f.max(f.sub(low, skipped), 0), f.min(f.sub(high, skipped), tiles)
                batch = self._batch(f, f.div(u, panels))
                left, right = (
                    self._in_batch(f, base, side, batch)
                    for base, side in zip(sides, (self.p.left, self.p.right))
                )
                here = Unit(left, right, span, batch, *scratch)
                by_run(
                    f, f.rem(u, panels), self.panels, lambda run, at: self._unit(f, here, run, at)
                )

            f.loop(first, end, 1, unit, guard=True)
        f.end()
        return self.module

    def _tiles(self, f: Function) -> tuple[Index, list[Run]]:
        """How many tiles of rows there are, and their runs."""
        return len(self.s.rows), runs_of(self.s.rows)

    def _base(self, f: Function, side: Side) -> str:
        return f.address(buffer(f, side.buffer), 4 * side.start)

    def _panel(self, f: Function) -> str:
        """Room for one block of a panel; transposed columns are written in whole vectors."""
        if not self.s.packs:
            return ""
        steps = -(-self.s.block // self.lanes) * self.lanes
        return f.alloca(steps * max(self.s.vectors) * self.lanes * 4)

    @cached_property
    def _group(self) -> int:
        """Tiles of rows that go through all blocks of the sum before the next ones do."""
        if not self.blocked:
            return len(self.s.rows)
        return max(1, SUMS_BYTES // self._tile_bytes)

    @property
    def _tile_bytes(self) -> int:
        return max(self.s.rows) * max(self.s.vectors) * self.lanes * 4

    def _sums(self, f: Function) -> str:
        return f.alloca(self._group * self._tile_bytes) if self.blocked else ""

    def _batch(self, f: Function, number: Index) -> list[Index]:
        index: list[Index] = []
        for axis in reversed(self.p.batch[1:]):
            index.insert(0, f.rem(number, integer(axis.size)))
            number = f.div(number, integer(axis.size))
        return [number, *index] if self.p.batch else []

    def _in_batch(self, f: Function, base: str, side: Side, batch: list[Index]) -> str:
        for index, stride in zip(batch, side.batch, strict=True):
            base = f.address(base, f.mul(index, 4 * stride))
        return base

    def _unit(self, f: Function, unit: Unit, panel: Run, column: Index) -> None:
        """One panel: all blocks of the sum for a group of tiles, group by group."""
        right = f.address(unit.right, f.mul(column, 4 * self.p.right.outer))
        first, end = unit.span
        if not self.blocked:
            packed = self._packed(f, unit, right, panel.count, self.p.depth, (column, 0))
            self._each_tile(f, unit, (first, end), packed, panel, column, 0, self.p.depth)
            return
        block, depth = self.s.block, self.p.depth

        def group(low: str, _: list[str]) -> None:
            span = low, f.min(f.add(low, self._group), end)

            def one_block(k: str, _: list[str]) -> None:
                steps = f.min(f.sub(depth, k), block)
                start = f.address(right, f.mul(k, 4 * self.p.right.depth))
                packed = self._packed(f, unit, start, panel.count, steps, (column, k))
                self._each_tile(f, unit, span, packed, panel, column, k, steps)

            f.loop(0, depth, block, one_block)

        f.loop(first, end, self._group, group, guard=True)

    def _packed(
        self, f: Function, unit: Unit, right: str, columns: int, steps: Index, at: tuple[Index, ...]
    ) -> str:
        """Where a block of a panel lies; `at` is its first column and step."""
        if not self.s.packs:
            return right
        name = f"{self.name}_pack{columns}"
        if name not in self.emitted:
            self.emitted.add(name)
            side = self.p.right
            copy = PanelCopy(self.module, name, self.lanes, columns, side.outer, side.depth)
            copy.emit()
        f.do(f"call void @{name}(ptr {right}, ptr {unit.panel}, i64 {steps})")
        return unit.panel

    def _each_tile(
        self,
        f: Function,
        unit: Unit,
        span: tuple[Index, Index],
        right: str,
        panel: Run,
        column: Index,
        k: Index,
        steps: Index,
    ) -> None:
        left = f.address(unit.left, f.mul(k, 4 * self.p.left.depth))
        first = f.op(f"icmp eq i64 {k}, 0")
        last = f.op(f"icmp eq i64 {f.add(k, steps)}, {self.p.depth}")

        def tile(t: str, _: list[str]) -> None:
            place = f.mul(f.sub(t, span[0]), self._tile_bytes)
            sums = f.address(unit.sums, place) if self.blocked else "null"

            def call(run: Run, row: Index) -> None:
                at = f.address(left, f.mul(row, 4 * self.p.left.outer))
                given = [f"ptr {p}" for p in ("%args", at, right, sums)]
                given += [f"i64 {i}" for i in (steps, row, column, *unit.batch)]
                given += [f"i1 {first}", f"i1 {last}"]
                f.do(f"call void @{self._tile(run.count, panel.count)}({', '.join(given)})")

            by_run(f, t, self.tiles, call)

        f.loop(span[0], span[1], 1, tile, guard=True)

    def _tile(self, rows: int, columns: int) -> str:
        name = f"{self.name}_tile{rows}x{columns}"
        if name not in self.emitted:
            self.emitted.add(name)
            (DotTile if self.s.dots else Tile)(self, name, rows, columns).emit()
        return name


@dataclass(frozen=True)
class Unit:
    """One panel of one batch, as the main loop sees it."""

    left: str
    right: str
    span: tuple[Index, Index]
    batch: list[Index]
    panel: str
    sums: str


class Tile:
    """One function: a tile of rows x columns, through one block of the sum."""

    def __init__(self, code: ProductCode, name: str, rows: int, columns: int) -> None:
        self.code, self.p, self.rows, self.columns = code, code.p, rows, columns
        self.lanes, self.type = code.lanes, code.type
        self.vectors = -(-columns // self.lanes)
        self.batch = [f"batch{n}" for n in range(len(code.p.batch))]
        parameters = dict.fromkeys(("args", "left", "right", "sums"), "ptr")
        parameters |= dict.fromkeys(("steps", "row", "column", *self.batch), "i64")
        parameters |= dict.fromkeys(("first", "last"), "i1")
        self.f = code.module.function(name, parameters, linkage="internal", attributes="noinline")
        self.places = [(r, v) for r in range(rows) for v in range(self.vectors)]

    def emit(self) -> None:
        """The whole function."""
        f = self.f
        plain = is_plain(self.p.epilogue)
        room = "%sums" if self.code.blocked else ""
        if not room and not plain:
            room = f.alloca(len(self.places) * self.lanes * 4)
        results = Results(
            f, self.code.kernel, self.p.columns, self.lanes, self.p.epilogue, self.p.output
        )
        sums = self.sum(self.start())
        if not self.code.blocked and plain:
            for (row, v), value in zip(self.places, sums):
                with results.at(self.at(Place("%row", row))):
                    self.store(results, v, value)
        else:
            for n, value in enumerate(sums):
                f.store(self.type, value, room, n * self.lanes * 4, self.lanes * 4)
            if self.code.blocked:
                f.when("%last", lambda: self.finish(results, room))
            else:
                self.finish(results, room)
        f.end()

    def start(self) -> list[str]:
        """The sums so far."""
        f, n = self.f, len(self.places)
        if not self.code.blocked:
            return [literal(self.type, 0.0)] * n
        size = self.lanes * 4
        return f.when(
            "%first",
            lambda: [literal(self.type, 0.0)] * n,
            lambda: [f.load(self.type, "%sums", i * size, size) for i in range(n)],
            [self.type] * n,
        )

    def at(self, row: Place) -> dict[str, Place]:
        """Where the loop indices stand in a row of the tile."""
        batch = {axis.name: Place(f"%{name}") for axis, name in zip(self.p.batch, self.batch)}
        return {**batch, self.p.rows.name: row}

    def finish(self, results: Results, room: str) -> None:
        """The results row by row, in a loop that keeps the code of a long epilogue small."""
        f, size = self.f, self.lanes * 4

        def one_row(r: str, _: list[str]) -> None:
            sums = f.address(room, f.mul(r, self.vectors * size))
            with results.at(self.at(Place(f.add("%row", r)))):
                for v in range(self.vectors):
                    self.store(results, v, f.load(self.type, sums, v * size, size))

        f.loop(0, self.rows, 1, one_row)

    def store(self, results: Results, v: int, value: str) -> None:
        count = min(self.lanes, self.columns - v * self.lanes)
        results.store({self.p.columns.name: Place("%column", v * self.lanes)}, value, count)

    def sum(self, sums: list[str]) -> list[str]:
        """The products added to the sums."""
        schedule, size = self.code.s, self.lanes * 4
        steps: Index = "%steps" if self.code.blocked else self.p.depth
        tile = RegisterTile(
            self.lanes,
            self.rows,
            self.vectors,
            4 * self.p.left.outer,
            4 * self.p.left.depth,
            self.vectors * size if schedule.packs else 4 * self.p.right.depth,
            schedule.unroll,
            0 if schedule.packs else self.columns,
            schedule.packs,
        )
        return tile.sum(self.f, "%left", "%right", steps, sums)


class DotTile(Tile):
    """A row times as many columns as there are lanes, each a sum along lanes."""

    def sum(self, sums: list[str]) -> list[str]:
        distance = 4 * self.p.right.outer
        columns = self.columns, self.p.depth
        return [dots(self.f, self.lanes, "%left", "%right", distance, *columns)]
