"""The code of an attention: heads, groups of tiles of queries, blocks of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whet.plan.kernel import Template
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, Index, Module, vector
from whet.targets.cpu.templates.attention import Operand, Problem, Schedule
from whet.targets.cpu.templates.flash_tile import FlashTile
from whet.targets.cpu.templates.product import by_run, runs_of
from whet.targets.cpu.templates.range_grid import Chosen, Stretch
from whet.targets.cpu.templates.registers import PanelCopy
from whet.targets.cpu.templates.results import buffer, named_sizes

STATE_BYTES = 128 << 10  # of results that wait for further blocks of keys


class FlashCode:
    """Writes the kernel: threads share (batch, head of keys, tile of queries) evenly."""

    def __init__(
        self, kernel: Template, p: Problem, s: Schedule, architecture: Architecture, name: str
    ) -> None:
        self.kernel, self.p, self.s, self.name = kernel, p, s, name
        self.lanes = architecture.vector_bytes // 4
        self.type = vector("float", self.lanes)
        self.size = self.lanes * 4
        self.module = Module(architecture.vector_bytes * 8)
        self.single = len(s.blocks) == 1 and isinstance(p.keys, int)
        self.tiles = runs_of(s.tiles)
        self.named = named_sizes(kernel)
        self.most_rows, self.most_keys = max(s.tiles, default=1), max(s.blocks, default=1)
        self.panel = s.vectors * self.lanes
        self.panel_bytes = self.padded(p.depth) * self.panel * 4
        # One more vector, so that the rows of a tile don't share sets of the cache.
        self.pitch = -(-self.most_keys // self.panel) * self.panel * 4 + 64
        state_bytes = self.most_rows * (self.padded(p.width) * 4 + 8)
        self.state_bytes = -(-state_bytes // self.size) * self.size
        self.waiting = 1 if self.single else max(1, STATE_BYTES // self.state_bytes)
        """Tiles whose results may wait for further blocks of keys."""
        self.emitted: set[str] = set()

    def padded(self, elements: int) -> int:
        """So many elements in whole vectors."""
        return -(-elements // self.lanes) * self.lanes

    def generate(self) -> Module:
        """The module with the kernel's function."""
        f = self.module.function(
            self.name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"}
        )
        p, heads = self.p, f.mul(self.named.index(f, self.p.batch), self.p.groups)
        tiles: Index = len(self.s.tiles)
        self.chosen: Chosen | None = None
        if not isinstance(p.rows, int):
            rows = self.named.index(f, p.rows)
            stretch = Stretch.of(p.rows, self.most_rows, self.s.vectors)
            self.chosen = stretch.chosen(f, rows, heads, "%threads")
            tiles = self.chosen.count
        total = f.mul(heads, tiles)
        if total != 0 and p.width and p.keys != 0:
            low = f.div(f.mul("%thread", total), "%threads")
            high = f.div(f.mul(f.add("%thread", 1), total), "%threads")
            tiles = f.max(tiles, 1)  # a run may tell that there are none
            k, v = (self._start_of(f, x) for x in (p.k, p.v))
            room = self._room(f)

            def unit(u: str, _: list[str]) -> None:
                skipped = f.mul(u, tiles)
                span = f.max(f.sub(low, skipped), 0), f.min(f.sub(high, skipped), tiles)
                batch, group = f.div(u, p.groups), f.rem(u, p.groups)
                keys = self._in_head(f, k, p.k, batch, group)
                values = self._in_head(f, v, p.v, batch, group)
                self._head(f, _Head(keys, values, batch, group, room), span)

            end = f.div(f.add(high, f.sub(tiles, 1)), tiles)
            f.loop(f.div(low, tiles), end, 1, unit, guard=True)
        f.end()
        return self.module

    def _in_head(self, f: Function, base: str, x: Operand, batch: Index, head: Index) -> str:
        batch_step, head_step = (self.named.index(f, 4 * s) for s in x.strides[:2])
        return f.address(base, f.add(f.mul(batch, batch_step), f.mul(head, head_step)))

    def _start_of(self, f: Function, x: Operand) -> str:
        return f.address(buffer(f, x.buffer), self.named.index(f, 4 * x.start))

    def _room(self, f: Function) -> dict[str, str]:
        panels = -(-self.most_keys // self.panel)
        bytes = {
            "keys": panels * self.panel_bytes if self.s.packs else 0,
            "values": self.padded(self.most_keys) * self.padded(self.p.width) * 4,
            "scores": self.most_rows * self.pitch,
            "queries": self.most_rows * self.padded(self.p.depth) * 4,
            "state": self.waiting * self.state_bytes,
        }
        if not self.s.packs:
            bytes["values"] = 0
        return {name: f.alloca(size) if size else "null" for name, size in bytes.items()}

    def _head(self, f: Function, head: _Head, span: tuple[Index, Index]) -> None:
        """All blocks of keys for one group of tiles after the other."""
        first, end = span
        each = self._each_block(f)

        def group(low: Index) -> None:
            high = end if self.single else f.min(f.add(low, self.waiting), end)
            each(lambda count, start: self._block(f, head, (low, high), count, start))

        if self.single:
            group(first)
        else:
            f.loop(first, end, self.waiting, lambda low, _: group(low), guard=True)

    def _each_block(self, f: Function) -> Callable[[Callable[[Index, Index], None]], None]:
        """Emits `body(count, start)` for each block of keys."""
        if not isinstance(self.p.keys, int):
            return self._told_blocks(f)
        blocks = runs_of(self.s.blocks)

        def each(body: Callable[[Index, Index], None]) -> None:
            def one(b: Index, _: list[str]) -> None:
                by_run(f, b, blocks, lambda run, start: body(run.count, start))

            if self.single:
                one(0, [])
            else:
                f.loop(0, len(self.s.blocks), 1, one)

        return each

    def _told_blocks(self, f: Function) -> Callable[[Callable[[Index, Index], None]], None]:
        """As few blocks as hold all keys, nearly equal, whole vectors but for the last; where there
        are no keys, one of none, behind which results are 0."""
        keys, lanes = self.named.index(f, self.p.keys), self.lanes
        vectors = f.div(f.add(keys, lanes - 1), lanes)
        most = self.most_keys // lanes
        blocks = f.max(f.div(f.add(vectors, most - 1), most), 1)
        step = f.mul(f.div(f.add(vectors, f.sub(blocks, 1)), blocks), lanes)

        def each(body: Callable[[Index, Index], None]) -> None:
            def one(b: str, _: list[str]) -> None:
                start = f.mul(b, step)
                count = f.min(f.sub(keys, start), step)
                some = f.op(f"icmp slt i64 {start}, {f.max(keys, 1)}")
                f.when(some, lambda: body(count, start))

            f.loop(0, blocks, 1, one)

        return each

    def _block(
        self, f: Function, head: _Head, span: tuple[Index, Index], count: Index, start: Index
    ) -> None:
        k = f.address(head.k, f.mul(start, 4 * self.p.k.strides[2]))
        v = f.address(head.v, f.mul(start, 4 * self.p.v.strides[2]))
        if self.s.packs:
            k = self._pack_keys(f, k, head.room["keys"], count)
            v = self._pack(f, "values", self.p.v, (v, head.room["values"]), count)

        def tile(t: str, _: list[str]) -> None:
            place = 0 if self.single else f.mul(f.sub(t, span[0]), self.state_bytes)
            state = f.address(head.room["state"], place)
            pointers = ["%args", k, v, head.room["scores"], head.room["queries"], state]

            def call(rows: int, row: Index) -> None:
                given = [f"ptr {p}" for p in pointers]
                given += [f"i64 {i}" for i in (head.batch, head.group, row, start, count)]
                f.do(f"call void @{self._tile(rows)}({', '.join(given)})")

            if self.chosen is not None:
                row = self.chosen.output(f, t)
                self.chosen.each_size(f, lambda rows: call(rows, row))
                return
            by_run(f, t, self.tiles, lambda run, row: call(run.count, row))

        f.loop(span[0], span[1], 1, tile, guard=True)

    def _pack_keys(self, f: Function, k: str, to: str, count: Index) -> str:
        """Keys as columns, in panels as wide as a register tile."""
        whole, rest = f.div(count, self.panel), f.rem(count, self.panel)
        step = 4 * self.panel * self.p.k.strides[2]

        def one(panel: Index, columns: Index) -> None:
            source = f.address(k, f.mul(panel, step))
            target = f.address(to, f.mul(panel, self.panel_bytes))
            self._pack(f, "keys", self.p.k, (source, target), self.p.depth, columns)

        if whole != 0:
            f.loop(0, whole, 1, lambda panel, _: one(panel, self.panel))
        if isinstance(rest, str):
            f.when(f.op(f"icmp ne i64 {rest}, 0"), lambda: one(whole, rest))
        elif rest:
            one(whole, rest)
        return to

    def _pack(
        self,
        f: Function,
        what: str,
        x: Operand,
        between: tuple[str, str],
        steps: Index,
        columns: Index = 0,
    ) -> str:
        """Steps of the sum after one another: the depth of keys, and the keys of values."""
        columns = columns or self.p.width
        told = isinstance(columns, str)
        outer, depth = (
            (x.strides[2], x.strides[3]) if what == "keys" else (x.strides[3], x.strides[2])
        )
        name = f"{self.name}_{what}{'' if told else columns}"
        if name not in self.emitted:
            self.emitted.add(name)
            vectors = self.s.vectors if what == "keys" else 0
            most = self.panel if isinstance(columns, str) else columns
            PanelCopy(self.module, name, self.lanes, most, outer, depth, vectors, told).emit()
        given = f"ptr {between[0]}, ptr {between[1]}, i64 {steps}"
        given += f", i64 {columns}" if told else ""
        f.do(f"call void @{name}({given})")
        return between[1]

    def _tile(self, rows: int) -> str:
        name = f"{self.name}_tile{rows}"
        if name not in self.emitted:
            self.emitted.add(name)
            FlashTile(self, name, rows).emit()
        return name


@dataclass(frozen=True)
class _Head:
    """One head of keys, as the main loop sees it."""

    k: str
    v: str
    batch: Index
    group: Index
    room: dict[str, str]
