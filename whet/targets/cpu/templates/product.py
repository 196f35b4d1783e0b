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
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.templates.matmul import SUMS_BYTES, Problem, Schedule, Side, integer
from whet.targets.cpu.templates.results import Results, buffer, is_plain
from whet.targets.cpu.transpose import transpose


@dataclass(frozen=True)
class Run:
    """Parts [first, end) of an axis, of `count` elements each, from element `start` on."""

    first: int
    end: int
    start: int
    count: int


def runs_of(counts: Sequence[int]) -> list[Run]:
    """The runs of parts of the same size."""
    found, first, start = [], 0, 0
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
        self.tiles = runs_of(s.rows)
        self.emitted: set[str] = set()

    def generate(self) -> Module:
        f = self.module.function(
            self.name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"}
        )
        tiles, panels = len(self.s.rows), len(self.s.vectors)
        units = math.prod(integer(a.size) for a in self.p.batch) * panels
        total = units * tiles
        if total:
            low = f.div(f.mul("%thread", total), "%threads")
            high = f.div(f.mul(f.add("%thread", 1), total), "%threads")
            sides = [self._base(f, side) for side in (self.p.left, self.p.right)]
            scratch = [self._panel(f), self._sums(f)]
            first, end = f.div(low, tiles), f.div(f.add(high, tiles - 1), tiles)

            def unit(u: str, _: list[str]) -> None:
                skipped = f.mul(u, tiles)
                span = f.max(f.sub(low, skipped), 0), f.min(f.sub(high, skipped), tiles)
                batch = self._batch(f, f.div(u, panels))
                left, right = (
                    self._in_batch(f, base, side, batch)
                    for base, side in zip(sides, (self.p.left, self.p.right))
                )
                here = _Unit(left, right, span, batch, *scratch)
                by_run(
                    f, f.rem(u, panels), self.panels, lambda run, at: self._unit(f, here, run, at)
                )

            f.loop(first, end, 1, unit, guard=True)
        f.end()
        return self.module

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

    def _unit(self, f: Function, unit: _Unit, panel: Run, column: Index) -> None:
        """One panel: all blocks of the sum for a group of tiles, group by group."""
        right = f.address(unit.right, f.mul(column, 4 * self.p.right.outer))
        first, end = unit.span
        if not self.blocked:
            packed = self._packed(f, unit, right, panel.count, self.p.depth)
            self._each_tile(f, unit, (first, end), packed, panel, column, 0, self.p.depth)
            return
        block, depth = self.s.block, self.p.depth

        def group(low: str, _: list[str]) -> None:
            span = low, f.min(f.add(low, self._group), end)

            def one_block(k: str, _: list[str]) -> None:
                steps = f.min(f.sub(depth, k), block)
                start = f.address(right, f.mul(k, 4 * self.p.right.depth))
                packed = self._packed(f, unit, start, panel.count, steps)
                self._each_tile(f, unit, span, packed, panel, column, k, steps)

            f.loop(0, depth, block, one_block)

        f.loop(first, end, self._group, group, guard=True)

    def _packed(self, f: Function, unit: _Unit, right: str, columns: int, steps: Index) -> str:
        if not self.s.packs:
            return right
        name = f"{self.name}_pack{columns}"
        if name not in self.emitted:
            self.emitted.add(name)
            Packing(self, name, columns).emit()
        f.do(f"call void @{name}(ptr {right}, ptr {unit.panel}, i64 {steps})")
        return unit.panel

    def _each_tile(
        self,
        f: Function,
        unit: _Unit,
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
class _Unit:
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
        """The loop over the steps, several a turn."""
        f, unroll = self.f, self.code.s.unroll
        steps: Index = "%steps" if self.code.blocked else self.p.depth
        whole = f.mul(f.div(steps, unroll), unroll)
        for low, high, count in ((0, whole, unroll), (whole, steps, 1)):
            if low != high:
                sums = self.loop(low, high, count, sums)
        return sums

    def loop(self, low: Index, high: Index, count: int, sums: list[str]) -> list[str]:
        f = self.f
        left_step, right_step = 4 * self.p.left.depth, self.right_step

        def turn(k: str, values: list[str]) -> list[str]:
            left = f.address("%left", f.mul(k, left_step))
            right = f.address("%right", f.mul(k, right_step))
            for u in range(count):
                values = self.step((left, u * left_step), (right, u * right_step), values)
            return values

        return f.loop(low, high, count, turn, [(self.type, s) for s in sums])

    @property
    def right_step(self) -> int:
        """Bytes from one step's vectors to the next one's."""
        return self.vectors * self.lanes * 4 if self.code.s.packs else 4 * self.p.right.depth

    def step(self, left: tuple[str, int], right: tuple[str, int], sums: list[str]) -> list[str]:
        f, size, outer = self.f, self.lanes * 4, 4 * self.p.left.outer
        row = [self.load_right(right[0], right[1] + v * size, v) for v in range(self.vectors)]
        result = []
        for r in range(self.rows):
            element = f.splat(self.type, f.load("float", left[0], left[1] + r * outer))
            before = sums[r * self.vectors : (r + 1) * self.vectors]
            result += [f.fma(self.type, element, *pair) for pair in zip(row, before)]
        return result

    def load_right(self, base: str, offset: int, v: int) -> str:
        f = self.f
        if self.code.s.packs:
            return f.load(self.type, base, offset, self.lanes * 4)
        count = self.columns - v * self.lanes
        if count >= self.lanes:
            return f.load(self.type, base, offset)
        return f.masked_load(self.type, lane_mask(f, count, self.lanes), base, offset)


class DotTile(Tile):
    """A row times as many columns as there are lanes, each a sum along lanes."""

    def sum(self, sums: list[str]) -> list[str]:
        f, depth = self.f, self.p.depth
        whole = depth // self.lanes * self.lanes
        totals = [literal(self.type, 0.0)] * self.columns
        if whole:
            carried = [(self.type, t) for t in totals]
            totals = f.loop(0, whole, self.lanes, lambda k, t: self.dots(k, t, ""), carried)
        if whole < depth:
            totals = self.dots(whole, totals, lane_mask(f, depth - whole, self.lanes))
        return [self.joined(totals)]

    def dots(self, k: Index, totals: list[str], mask: str) -> list[str]:
        f = self.f
        at = f.mul(k, 4)

        def load(base: str, offset: int) -> str:
            base = f.address(base, at)
            if mask:
                return f.masked_load(self.type, mask, base, offset)
            return f.load(self.type, base, offset)

        row, step = load("%left", 0), 4 * self.p.right.outer
        return [f.fma(self.type, row, load("%right", c * step), t) for c, t in enumerate(totals)]

    def joined(self, totals: list[str]) -> str:
        """One lane for each total: neighbours are added pair by pair, log2(lanes) times over."""
        f, n = self.f, self.lanes
        totals = totals + [literal(self.type, 0.0)] * (n - len(totals))
        while len(totals) > 1:
            totals = [
                f.binary(
                    "fadd",
                    self.type,
                    f.shuffle(self.type, a, b, range(0, 2 * n, 2)),
                    f.shuffle(self.type, a, b, range(1, 2 * n, 2)),
                )
                for a, b in zip(totals[::2], totals[1::2])
            ]
        return totals[0]


class Packing:
    """One function: copies a block of a panel so that each step's vectors are neighbours."""

    def __init__(self, code: ProductCode, name: str, columns: int) -> None:
        self.right, self.columns = code.p.right, columns
        self.lanes, self.type = code.lanes, code.type
        self.vectors = -(-columns // self.lanes)
        self.pitch = self.vectors * self.lanes * 4
        parameters = {"right": "ptr", "panel": "ptr", "steps": "i64"}
        self.f = code.module.function(name, parameters, linkage="internal", attributes="noinline")

    def emit(self) -> None:
        """The whole function."""
        if self.right.outer == 1:
            self.f.loop(0, "%steps", 1, self.row)
        elif self.right.depth == 1:
            self.transposed()
        else:
            self.f.loop(0, "%steps", 1, self.gathered)
        self.f.end()

    def row(self, k: str, _: list[str]) -> None:
        """Columns that are neighbours already."""
        f = self.f
        source, target = self.addresses(k)
        for v in range(self.vectors):
            at, count = 4 * v * self.lanes, self.columns - v * self.lanes
            if count >= self.lanes:
                value = f.load(self.type, source, at)
            else:
                value = f.masked_load(self.type, lane_mask(f, count, self.lanes), source, at)
            f.store(self.type, value, target, at, self.lanes * 4)

    def addresses(self, k: Index) -> tuple[str, str]:
        f = self.f
        source = f.address("%right", f.mul(k, 4 * self.right.depth))
        return source, f.address("%panel", f.mul(k, self.pitch))

    def gathered(self, k: str, _: list[str]) -> None:
        f = self.f
        source, target = self.addresses(k)

        def one(c: str, _: list[str]) -> None:
            value = f.load("float", f.address(source, f.mul(c, 4 * self.right.outer)))
            f.store("float", value, f.address(target, f.mul(c, 4)))

        f.loop(0, self.columns, 1, one)
        for c in range(self.columns, self.vectors * self.lanes):
            f.store("float", literal("float", 0.0), target, 4 * c)

    def transposed(self) -> None:
        """Columns whose steps are neighbours, block by block through registers."""
        f, lanes = self.f, self.lanes
        whole = f.mul(f.div("%steps", lanes), lanes)
        f.loop(0, whole, lanes, lambda k, _: self.blocks(k, ""))
        rest = f.sub("%steps", whole)
        some = f.op(f"icmp ne i64 {rest}, 0")
        f.when(some, lambda: self.blocks(whole, lane_mask(f, rest, lanes)))

    def blocks(self, k: Index, mask: str) -> None:
        f, lanes = self.f, self.lanes
        source, target = self.addresses(k)
        for v in range(self.vectors):
            rows = []
            for c in range(v * lanes, (v + 1) * lanes):
                at = 4 * c * self.right.outer
                if c >= self.columns:
                    rows.append(literal(self.type, 0.0))
                elif mask:
                    rows.append(f.masked_load(self.type, mask, source, at))
                else:
                    rows.append(f.load(self.type, source, at))
            for i, column in enumerate(transpose(f, self.type, rows)):
                f.store(self.type, column, target, i * self.pitch + 4 * v * lanes, lanes * 4)
