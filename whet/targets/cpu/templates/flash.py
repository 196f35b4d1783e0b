"""The code of an attention: heads, groups of tiles of queries, blocks of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from whet.plan.kernel import Template
from whet.targets.cpu import functions
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.expressions import Place
from whet.targets.cpu.llvm import Function, Index, Module, array_literal, literal, vector
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.templates.attention import Operand, Problem, Schedule
from whet.targets.cpu.templates.product import Run, by_run, runs_of
from whet.targets.cpu.templates.registers import PanelCopy, RegisterTile, dots
from whet.targets.cpu.templates.results import Results, buffer, output_offset

STATE_BYTES = 32 << 10  # of results that wait for further blocks of keys
LOWEST = float(np.finfo(np.float32).min)


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
        self.single = len(s.blocks) == 1
        self.tiles = runs_of(s.tiles)
        self.most_rows, self.most_keys = max(s.tiles, default=1), max(s.blocks, default=1)
        self.panel = s.vectors * self.lanes
        self.panel_bytes = self.padded(p.depth) * self.panel * 4
        # One more vector, so that the rows of a tile don't share sets of the cache.
        self.pitch = -(-self.most_keys // self.panel) * self.panel * 4 + 64
        state_bytes = self.most_rows * (self.padded(p.width) * 4 + 8)
        self.state_bytes = -(-state_bytes // self.size) * self.size
        self.group = len(s.tiles) if self.single else max(1, STATE_BYTES // self.state_bytes)
        self.emitted: set[str] = set()

    def padded(self, elements: int) -> int:
        """So many elements in whole vectors."""
        return -(-elements // self.lanes) * self.lanes

    def generate(self) -> Module:
        """The module with the kernel's function."""
        f = self.module.function(
            self.name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"}
        )
        p, tiles = self.p, len(self.s.tiles)
        total = p.batch * p.groups * tiles
        if total and p.width and p.keys:
            low = f.div(f.mul("%thread", total), "%threads")
            high = f.div(f.mul(f.add("%thread", 1), total), "%threads")
            k, v = (f.address(buffer(f, x.buffer), 4 * x.start) for x in (p.k, p.v))
            room = self._room(f)

            def unit(u: str, _: list[str]) -> None:
                skipped = f.mul(u, tiles)
                span = f.max(f.sub(low, skipped), 0), f.min(f.sub(high, skipped), tiles)
                batch, group = f.div(u, p.groups), f.rem(u, p.groups)
                keys = self._in_head(f, k, p.k, batch, group)
                values = self._in_head(f, v, p.v, batch, group)
                self._head(f, _Head(keys, values, batch, group, room), span)

            f.loop(f.div(low, tiles), f.div(f.add(high, tiles - 1), tiles), 1, unit, guard=True)
        f.end()
        return self.module

    def _in_head(self, f: Function, base: str, x: Operand, batch: Index, head: Index) -> str:
        offset = f.add(f.mul(batch, 4 * x.strides[0]), f.mul(head, 4 * x.strides[1]))
        return f.address(base, offset)

    def _room(self, f: Function) -> dict[str, str]:
        panels = -(-self.most_keys // self.panel)
        bytes = {
            "keys": panels * self.panel_bytes if self.s.packs else 0,
            "values": self.padded(self.most_keys) * self.padded(self.p.width) * 4,
            "scores": self.most_rows * self.pitch,
            "queries": self.most_rows * self.padded(self.p.depth) * 4,
            "state": (1 if self.single else self.group) * self.state_bytes,
        }
        if not self.s.packs:
            bytes["values"] = 0
        return {name: f.alloca(size) if size else "null" for name, size in bytes.items()}

    def _head(self, f: Function, head: _Head, span: tuple[Index, Index]) -> None:
        """All blocks of keys for one group of tiles after the other."""
        first, end = span
        blocks = runs_of(self.s.blocks)

        def group(low: Index) -> None:
            high = end if self.single else f.min(f.add(low, self.group), end)

            def one_block(b: Index, _: list[str]) -> None:
                by_run(
                    f, b, blocks, lambda run, start: self._block(f, head, (low, high), run, start)
                )

            if self.single:
                one_block(0, [])
            else:
                f.loop(0, len(self.s.blocks), 1, one_block)

        if self.single:
            group(first)
        else:
            f.loop(first, end, self.group, lambda low, _: group(low), guard=True)

    def _block(
        self, f: Function, head: _Head, span: tuple[Index, Index], run: Run, start: Index
    ) -> None:
        k = f.address(head.k, f.mul(start, 4 * self.p.k.strides[2]))
        v = f.address(head.v, f.mul(start, 4 * self.p.v.strides[2]))
        if self.s.packs:
            k = self._pack_keys(f, k, head.room["keys"], run.count)
            v = self._pack(f, "values", self.p.v, (v, head.room["values"]), run.count)

        def tile(t: str, _: list[str]) -> None:
            place = 0 if self.single else f.mul(f.sub(t, span[0]), self.state_bytes)
            state = f.address(head.room["state"], place)
            pointers = ["%args", k, v, head.room["scores"], head.room["queries"], state]

            def call(tile: Run, row: Index) -> None:
                given = [f"ptr {p}" for p in pointers]
                given += [f"i64 {i}" for i in (head.batch, head.group, row, start, run.count)]
                f.do(f"call void @{self._tile(tile.count)}({', '.join(given)})")

            by_run(f, t, self.tiles, call)

        f.loop(span[0], span[1], 1, tile, guard=True)

    def _pack_keys(self, f: Function, k: str, to: str, count: int) -> str:
        """Keys as columns, in panels as wide as a register tile."""
        whole, rest = divmod(count, self.panel)
        step = 4 * self.panel * self.p.k.strides[2]

        def one(panel: Index, columns: int) -> None:
            source = f.address(k, f.mul(panel, step))
            target = f.address(to, f.mul(panel, self.panel_bytes))
            self._pack(f, "keys", self.p.k, (source, target), self.p.depth, columns)

        if whole:
            f.loop(0, whole, 1, lambda panel, _: one(panel, self.panel))
        if rest:
            one(whole, rest)
        return to

    def _pack(
        self,
        f: Function,
        what: str,
        x: Operand,
        between: tuple[str, str],
        steps: int,
        columns: int = 0,
    ) -> str:
        """Steps of the sum after one another: the depth of keys, and the keys of values."""
        columns = columns or self.p.width
        outer, depth = (
            (x.strides[2], x.strides[3]) if what == "keys" else (x.strides[3], x.strides[2])
        )
        name = f"{self.name}_{what}{columns}"
        if name not in self.emitted:
            self.emitted.add(name)
            vectors = self.s.vectors if what == "keys" else 0
            PanelCopy(self.module, name, self.lanes, columns, outer, depth, vectors).emit()
        f.do(f"call void @{name}(ptr {between[0]}, ptr {between[1]}, i64 {steps})")
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


class FlashTile:
    """One function: a tile of queries meets one block of keys."""

    def __init__(self, code: FlashCode, name: str, rows: int) -> None:
        self.code, self.p, self.rows = code, code.p, rows
        self.lanes, self.type, self.size = code.lanes, code.type, code.size
        self.depth_bytes = code.padded(self.p.depth) * 4
        self.width_bytes = code.padded(self.p.width) * 4
        pointers = ("args", "k", "v", "scores", "queries", "state")
        parameters = dict.fromkeys(pointers, "ptr")
        parameters |= dict.fromkeys(("batch", "group", "row", "start", "count"), "i64")
        self.f = code.module.function(name, parameters, linkage="internal", attributes="noinline")
        # The state: results, then the maximum and the sum of each row.
        self.stats = self.f.address("%state", rows * self.width_bytes)

    def emit(self) -> None:
        """The whole function."""
        f, code = self.f, self.code
        kernel = code.kernel
        axis, offset = kernel.axes[-1], output_offset(kernel)
        results = Results(f, kernel, axis, self.lanes, kernel.epilogue, offset)
        q = self._base(self.p.q)
        self.mask_base = self._base(self.p.mask) if self.p.mask is not None else ""
        if code.single:
            self._start()
        else:
            f.when(f.op("icmp eq i64 %start, 0"), self._start)
        begin, end = self._seen()
        some = f.op(f"icmp slt i64 {begin}, {end}")

        def work() -> None:
            f.loop(0, self.rows, 1, lambda r, _: self._query(q, r))
            self._score(begin, end)
            f.loop(0, self.rows, 1, lambda r, _: self._weigh(r, begin, end))
            self._sum(begin, end)

        f.when(some, work)
        last = f.op(f"icmp eq i64 {f.add('%start', '%count')}, {self.p.keys}")
        f.when(last, lambda: self._finish(results))
        f.end()

    def _base(self, x: Operand) -> str:
        f = self.f
        base = f.address(buffer(f, x.buffer), 4 * x.start)
        return f.address(base, f.mul("%batch", 4 * x.strides[0]))

    def _place(self, r: str) -> tuple[Index, Index]:
        """The head and the query of a row of the tile."""
        f, row = self.f, self.f.add("%row", r)
        head = f.add(f.mul("%group", self.p.shared), f.div(row, self.p.queries))
        return head, f.rem(row, self.p.queries)

    def _start(self) -> None:
        """No key seen so far."""
        f = self.f

        def one(r: str, _: list[str]) -> None:
            stats = f.address(self.stats, f.mul(r, 8))
            f.store("float", literal("float", LOWEST), stats, 0)
            f.store("float", literal("float", 0.0), stats, 4)
            results = f.address("%state", f.mul(r, self.width_bytes))
            for at in range(0, self.width_bytes, self.size):
                f.store(self.type, literal(self.type, 0.0), results, at, self.size)

        f.loop(0, self.rows, 1, one)

    def _seen(self) -> tuple[Index, Index]:
        """The keys of the block that some row of the tile may see; the first one begins a panel."""
        f, p, op = self.f, self.p, self.p.op
        if not p.bounded:
            return 0, "%count"
        first = f.rem("%row", p.queries)
        last = f.add(first, self.rows - 1)
        wraps = f.op(f"icmp sge i64 {last}, {p.queries}")
        first = f.select(wraps, "i64", "0", str(first))
        last = f.select(wraps, "i64", str(p.queries - 1), str(last))
        begin: Index = 0
        end: Index = "%count"
        if op.right is not None:
            limit = f.sub(f.add(last, int(op.offset) + op.right + 1), "%start")
            end = f.max(f.min(limit, "%count"), 0)
        if op.left is not None:
            low = f.max(f.sub(f.add(first, int(op.offset) - op.left), "%start"), 0)
            begin = f.mul(f.div(low, self.code.panel), self.code.panel)
        return begin, end

    def _query(self, q: str, r: str) -> None:
        """One row of queries, scaled, where the products read it."""
        f, p = self.f, self.p
        head, i = self._place(r)
        source = f.address(q, f.add(f.mul(head, 4 * p.q.strides[1]), f.mul(i, 4 * p.q.strides[2])))
        target = f.address("%queries", f.mul(r, self.depth_bytes))
        step = p.q.strides[3]
        if step != 1:

            def one(d: str, _: list[str]) -> None:
                x = f.load("float", f.address(source, f.mul(d, 4 * step)))
                x = f.binary("fmul", "float", x, literal("float", p.op.scale))
                f.store("float", x, f.address(target, f.mul(d, 4)))

            f.loop(0, p.depth, 1, one)
            return
        scale = literal(self.type, p.op.scale)
        for d in range(0, p.depth, self.lanes):
            x = self._load(source, 4 * d, p.depth - d)
            f.store(self.type, f.binary("fmul", self.type, x, scale), target, 4 * d, self.size)

    def _load(self, base: str, offset: int, count: int) -> str:
        if count >= self.lanes:
            return self.f.load(self.type, base, offset)
        return self.f.masked_load(self.type, lane_mask(self.f, count, self.lanes), base, offset)

    def _score(self, begin: Index, end: Index) -> None:
        """Products of the tile's queries with the keys that it sees."""
        f, code = self.f, self.code
        if not code.s.packs:
            self._score_directly(begin, end)
            return
        step = code.panel * 4
        tile = RegisterTile(
            self.lanes, self.rows, code.s.vectors, self.depth_bytes, 4, step, self._unroll
        )

        def panel(n: str, _: list[str]) -> None:
            keys = f.address("%k", f.mul(n, code.panel_bytes))
            sums = tile.sum(f, "%queries", keys, self.p.depth, tile.zeros)
            scores = f.address("%scores", f.mul(n, step))
            for place, value in enumerate(sums):
                r, v = divmod(place, code.s.vectors)
                f.store(self.type, value, scores, r * code.pitch + v * self.size, self.size)

        first, last = f.div(begin, code.panel), f.div(f.add(end, code.panel - 1), code.panel)
        f.loop(first, last, 1, panel, guard=False)

    @property
    def _unroll(self) -> int:
        return 2 if self.rows > 6 else 4

    def _score_directly(self, begin: Index, end: Index) -> None:
        """Few queries: lanes run along the depth of queries and keys as they lie."""
        f, p, lanes = self.f, self.p, self.lanes
        step = 4 * p.k.strides[2]

        def some(j: Index, count: int) -> None:
            keys = f.address("%k", f.mul(j, step))

            def one(r: str, _: list[str]) -> None:
                query = f.address("%queries", f.mul(r, self.depth_bytes))
                scores = f.address("%scores", f.add(f.mul(r, self.code.pitch), f.mul(j, 4)))
                value = dots(f, lanes, query, keys, step, count, p.depth)
                f.store(self.type, value, scores, 0, self.size)

            f.loop(0, self.rows, 1, one)

        wanted = f.mul(f.div(f.add(end, lanes - 1), lanes), lanes)
        whole = f.min(wanted, f.mul(f.div("%count", lanes), lanes))
        f.loop(begin, whole, lanes, lambda j, _: some(j, lanes), guard=True)
        if rest := p.keys % lanes:
            f.when(f.op(f"icmp slt i64 {whole}, {wanted}"), lambda: some(whole, rest))

    def _weigh(self, r: str, begin: Index, end: Index) -> None:
        """Turns a row of scores into e**(score - maximum), and rescales what is there already."""
        f, type = self.f, self.type
        head, i = self._place(r)
        row = _Row(self, r, head, i)
        high = row.each(begin, end, row.largest, literal(type, LOWEST))
        high = across(f, type, high, lambda t, a, b: maximum(f, t, a, b))
        stats = f.address(self.stats, f.mul(r, 8))
        before = f.load("float", stats, 0)
        high = maximum(f, "float", high, before)
        spread = f.splat(type, high)

        def exponential(j: Index, total: str, inside: str) -> str:
            at = f.address(row.scores, f.mul(j, 4))
            x = f.binary("fsub", type, f.load(type, at, 0, self.size), spread)
            x = functions.exp_below_zero(f, type, x)
            f.store(type, x, at, 0, self.size)
            return f.binary("fadd", type, total, x)

        padded = f.mul(f.div(f.add(end, self.lanes - 1), self.lanes), self.lanes)
        zero = literal(type, 0.0)
        (total,) = f.loop(
            begin,
            padded,
            self.lanes,
            lambda j, values: [exponential(j, values[0], "")],
            [(type, zero)],
            guard=False,
        )
        total = across(f, type, total, lambda t, a, b: f.binary("fadd", t, a, b))
        if not self.code.single:
            shrink = functions.exp_below_zero(f, "float", f.binary("fsub", "float", before, high))
            total = f.fma("float", f.load("float", stats, 4), shrink, total)
            grown = f.compare("ogt", "float", high, before)
            f.when(grown, lambda: self._rescale(r, shrink))
        f.store("float", high, stats, 0)
        f.store("float", total, stats, 4)

    def _rescale(self, r: str, shrink: str) -> None:
        f = self.f
        results, factor = (
            f.address("%state", f.mul(r, self.width_bytes)),
            f.splat(self.type, shrink),
        )
        for at in range(0, self.width_bytes, self.size):
            x = f.binary("fmul", self.type, f.load(self.type, results, at, self.size), factor)
            f.store(self.type, x, results, at, self.size)

    def _sum(self, begin: Index, end: Index) -> None:
        """Adds the values, weighed, to the results, panel by panel of their columns."""
        f, code, lanes = self.f, self.code, self.lanes
        width, wide = self.p.width, code.s.vectors * lanes
        scores = f.address("%scores", f.mul(begin, 4))
        step = self.width_bytes if code.s.packs else 4 * self.p.v.strides[2]
        values = f.address("%v", f.mul(begin, step))
        steps = f.sub(end, begin)

        def panel(at: Index, columns: int) -> None:
            vectors = -(-columns // lanes)
            read = 0 if code.s.packs else columns
            tile = RegisterTile(
                lanes, self.rows, vectors, code.pitch, 4, step, self._unroll, read, code.s.packs
            )
            results, right = f.address("%state", at), f.address(values, at)
            places = [
                (r * self.width_bytes + v * self.size)
                for r in range(self.rows)
                for v in range(vectors)
            ]
            sums = tile.zeros
            if not code.single:
                sums = [f.load(self.type, results, place, self.size) for place in places]
            for place, value in zip(places, tile.sum(f, scores, right, steps, sums)):
                f.store(self.type, value, results, place, self.size)

        whole, rest = divmod(width, wide)
        if whole:
            f.loop(0, whole * wide * 4, wide * 4, lambda at, _: panel(at, wide))
        if rest:
            panel(whole * wide * 4, rest)

    def _finish(self, results: Results) -> None:
        """Divides the sums of values by the sums of weights; a query that sees no key gives 0."""
        f = self.f
        axes = self.code.kernel.axes

        def one(r: str, _: list[str]) -> None:
            head, i = self._place(r)
            total = f.load("float", f.address(self.stats, f.mul(r, 8)), 4)
            none = f.compare("oeq", "float", total, literal("float", 0.0))
            factor = f.binary("fdiv", "float", literal("float", 1.0), total)
            factor = f.splat(self.type, f.select(none, "float", literal("float", 0.0), factor))
            state = f.address("%state", f.mul(r, self.width_bytes))
            at = ("%batch", head, i)
            with results.at({axis.name: Place(index) for axis, index in zip(axes, at)}):
                for e in range(0, self.p.width, self.lanes):
                    x = f.load(self.type, state, 4 * e, self.size)
                    x = f.binary("fmul", self.type, x, factor)
                    place = {axes[3].name: Place(0, e)}
                    results.store(place, x, min(self.lanes, self.p.width - e))

        f.loop(0, self.rows, 1, one)


class _Row:
    """One row of scores on its way through cap, mask and bounds."""

    def __init__(self, tile: FlashTile, r: str, head: Index, i: Index) -> None:
        self.tile, self.f, self.p = tile, tile.f, tile.p
        self.type, self.lanes = tile.type, tile.lanes
        f, op = self.f, tile.p.op
        self.scores = f.address("%scores", f.mul(r, tile.code.pitch))
        self.low = self.high = ""
        if op.right is not None:
            bound = f.sub(f.add(i, int(op.offset) + op.right + 1), "%start")
            self.high = self._lanes(f.max(f.min(bound, "%count"), 0))
        elif op.left is not None:
            self.high = self._lanes("%count")
        if op.left is not None:
            self.low = self._lanes(f.max(f.sub(f.add(i, int(op.offset) - op.left), "%start"), 0))
        self.mask = self.flat_mask = ""
        if (m := tile.p.mask) is not None:
            offset = f.add(f.mul(head, 4 * m.strides[1]), f.mul(i, 4 * m.strides[2]))
            self.mask = f.address(tile.mask_base, f.add(offset, f.mul("%start", 4 * m.strides[3])))
            if m.strides[3] == 0:
                self.flat_mask = f.splat(self.type, f.load("float", self.mask))

    def _lanes(self, i: Index) -> str:
        """The number in each lane, as an i32."""
        f = self.f
        number = str(i) if isinstance(i, int) else f.convert("trunc", i, "i64", "i32")
        return f.splat(vector("i32", self.lanes), number)

    def each(
        self, begin: Index, end: Index, body: Callable[[Index, str, str], str], first: str
    ) -> str:
        """`body(key, carried, mask)` for each vector of keys; the mask is "" for all lanes."""
        f, lanes = self.f, self.lanes
        carried = [(self.type, first)]
        if self.p.bounded:
            padded = f.mul(f.div(f.add(end, lanes - 1), lanes), lanes)
            return f.loop(
                begin, padded, lanes, lambda j, c: [body(j, c[0], self._inside(j))], carried, False
            )[0]
        whole = f.mul(f.div(end, lanes), lanes)
        value = f.loop(begin, whole, lanes, lambda j, c: [body(j, c[0], "")], carried, True)[0]
        if self.p.keys % lanes == 0:
            return value
        # Only the last block has a rest, and there it is always the same.
        mask = lane_mask(f, self.p.keys % lanes, lanes)
        some = f.op(f"icmp slt i64 {whole}, {end}")
        return f.when(some, lambda: [body(whole, value, mask)], lambda: [value], [self.type])[0]

    def _inside(self, j: Index) -> str:
        f, kind = self.f, vector("i32", self.lanes)
        key = f.binary("add", kind, self._lanes(j), array_literal(kind, range(self.lanes)))
        inside = f.compare("slt", kind, key, self.high)
        if self.low:
            near = f.compare("sge", kind, key, self.low)
            inside = f.binary("and", vector("i1", self.lanes), inside, near)
        return inside

    def largest(self, j: Index, high: str, inside: str) -> str:
        """Finishes a vector of scores, and takes it into the maximum."""
        f, type = self.f, self.type
        at = f.address(self.scores, f.mul(j, 4))
        x = raw = f.load(type, at, 0, self.tile.size)
        if (cap := self.p.op.softcap) > 0:
            x = functions.tanh(f, type, f.binary("fmul", type, x, literal(type, 1 / cap)))
            x = f.binary("fmul", type, x, literal(type, cap))
        if self.mask:
            x = f.binary("fadd", type, x, self.flat_mask or self._masked(j, inside))
        if inside:
            x = f.select(inside, type, x, literal(type, -np.inf))
        if x != raw:
            f.store(type, x, at, 0, self.tile.size)
        return maximum(f, type, x, high)

    def _masked(self, j: Index, inside: str) -> str:
        """The mask's elements for a vector of keys."""
        f, m = self.f, self.p.mask
        assert m is not None
        at = f.address(self.mask, f.mul(j, 4 * m.strides[3]))
        if m.strides[3] == 1:
            return f.masked_load(self.type, inside, at) if inside else f.load(self.type, at)
        steps = array_literal(
            vector("i64", self.lanes), [4 * m.strides[3] * n for n in range(self.lanes)]
        )
        pointers = f.op(f"getelementptr i8, ptr {at}, {vector('i64', self.lanes)} {steps}")
        lanes = inside or "splat (i1 true)"
        return f.call(
            self.type,
            f"llvm.masked.gather.v{self.lanes}f32.v{self.lanes}p0",
            [
                (f"{vector('ptr', self.lanes)} align 4", pointers),
                (vector("i1", self.lanes), lanes),
                (self.type, "zeroinitializer"),
            ],
        )


def maximum(f: Function, type: str, a: str, b: str) -> str:
    """The greater one; b where a is NaN."""
    return f.select(f.compare("ogt", type, a, b), type, a, b)


def across(f: Function, type: str, value: str, combine: Callable[[str, str, str], str]) -> str:
    """All lanes of a vector combined, half by half."""
    from whet.targets.cpu.llvm import split_type

    element, lanes = split_type(type)
    while lanes > 1:
        kind, half = vector(element, lanes), lanes // 2
        if half == 1:
            low, high = f.extract(kind, value, 0), f.extract(kind, value, 1)
        else:
            low = f.shuffle(kind, value, "poison", range(half))
            high = f.shuffle(kind, value, "poison", range(half, lanes))
        value, lanes = combine(vector(element, half), low, high), half
    return value
