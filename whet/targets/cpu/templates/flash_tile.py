"""A tile of queries meets a block of keys: products, weights, and the values that they weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from whet.ir.sizes import Size
from whet.targets.cpu import functions
from whet.targets.cpu.expressions import Place
from whet.targets.cpu.llvm import Index, literal
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.templates.attention import Operand
from whet.targets.cpu.templates.registers import RegisterTile, dots
from whet.targets.cpu.templates.results import Results, buffer, output_offset
from whet.targets.cpu.templates.scores import ScoreRow, across, maximum

if TYPE_CHECKING:
    from whet.targets.cpu.templates.flash import FlashCode

LOWEST = float(np.finfo(np.float32).min)


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
        last = f.op(f"icmp eq i64 {f.add('%start', '%count')}, {self.told(self.p.keys)}")
        f.when(last, lambda: self._finish(results))
        f.end()

    def _base(self, x: Operand) -> str:
        f = self.f
        base = f.address(buffer(f, x.buffer), self.told(4 * x.start))
        return f.address(base, f.mul("%batch", self.told(4 * x.strides[0])))

    def told(self, size: Size) -> Index:
        """A size as a number."""
        return self.code.named.index(self.f, size)

    def _place(self, r: str) -> tuple[Index, Index]:
        """The head and the query of a row of the tile."""
        f, row = self.f, self.f.add("%row", r)
        if self.p.shared == 1:
            return "%group", row
        queries = self.told(self.p.queries)
        head = f.add(f.mul("%group", self.p.shared), f.div(row, queries))
        return head, f.rem(row, queries)

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
        queries = self.told(p.queries)
        first = f.rem("%row", queries)
        last = f.add(first, self.rows - 1)
        wraps = f.op(f"icmp sge i64 {last}, {queries}")
        first = f.select(wraps, "i64", "0", str(first))
        last = f.select(wraps, "i64", str(f.sub(queries, 1)), str(last))
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
        offset = f.mul(head, self.told(4 * p.q.strides[1]))
        source = f.address(q, f.add(offset, f.mul(i, 4 * p.q.strides[2])))
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
        row = ScoreRow(self, r, head, i)
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
