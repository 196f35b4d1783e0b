"""Attention without a matrix of scores in memory (Dao et al., FlashAttention, 2022).

A block has some queries of one head, and meets tile after tile of keys: the greatest score so far
and the sum of exponentials are kept with the result, which is rescaled when the greatest grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from whet.ir.graph import operator
from whet.ir.sizes import Size
from whet.ops.attention import Attention
from whet.plan.kernel import Store, Template, View
from whet.plan.loops import sizes_in
from whet.plan.lower import loop_index
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import BOTH, Emitter, Place, R, X, is_rough, size_bound
from whet.targets.cuda.expressions import Tile as Shape
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.templates.contraction import integer
from whet.targets.cuda.templates.matmul import offset_of
from whet.targets.cuda.text import Text
from whet.targets.cuda.told import SAFE, blocks_of, is_whole, most, reached, reaches

FEW_KEYS = 32  # whose weights' roundings do not even out
LOG2E = math.log2(math.e)


@operator
class FlashAttention(Attention):
    """Attention that this target runs whole; scores and sums are float32."""


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a step."""

    rows: int
    keys: int
    warps: int
    stages: int


def padded(width: int) -> int:
    """A width as matrix units take it."""
    return max(16, 1 << (width - 1).bit_length())


class Code:
    """The function being written."""

    def __init__(self, kernel: Template, architecture: Architecture, tile: Tile) -> None:
        assert isinstance(kernel.op, FlashAttention)
        self.kernel, self.op, self.architecture = kernel, kernel.op, architecture
        self.tile = tile
        self.q, self.k, self.v = (view_of(view) for view in kernel.inputs[:3])
        self.mask = kernel.inputs[3] if len(kernel.inputs) > 3 else None
        self.batch, heads, self.queries, width = (a.size for a in kernel.axes)
        self.heads, self.width = integer(heads), integer(width)
        self.groups, self.keys = integer(self.k.shape[1]), self.k.shape[2]
        self.depth = integer(self.q.shape[3])
        self.text = Text(kernel.sizes)
        self.number = self.text.number
        self.names = [f"b{n}" for n in range(len(kernel.buffers))]
        index = tuple(loop_index(a.name, a.size) for a in kernel.axes)
        self.output = offset_of(kernel.output, index)
        open, sizes = self.text.open, [self.output, *sizes_in(kernel.epilogue)]
        for view in (v for v in kernel.inputs if v is not None):
            parts = [view.offset, *(n * s for n, s in zip(view.shape, view.strides))]
            sizes.append(sum((reached(part, open) for part in parts), start=0))
        is_small = bool(open) or size_bound(iter(sizes)) < SAFE
        self.index = "tl.int32" if is_small else "tl.int64"
        self.blocks = blocks_of(self.queries, tile.rows)
        self.count = self.batch * self.heads * self.blocks
        """Along x: along y no more than 65,535 blocks may lie."""
        sizes += [self.queries + tile.rows, self.keys + tile.keys, self.count]
        self.reach = reaches(sizes, open) if open else ()
        self.precision = ', input_precision="ieee"' if self.q.dtype == "float32" else ""
        scaled = self.mask is not None or self.op.softcap > 0 or self.op.scale <= 0
        self.unit = LOG2E if scaled else self.op.scale * LOG2E
        """What a score is multiplied by to be a power of two, with its scale where it can be."""
        self.is_exact = self.q.dtype != "float32" and most(self.keys) <= FEW_KEYS
        """Whether weights are multiplied as the sum of two 16-bit floats."""

    def generate(self, name: str = "kernel") -> Source:
        """The whole kernel."""
        self._begin()
        self._over_keys()
        self._end()
        told, t = self.text.sizes, self.tile
        body = self.text.function(name, ("error", *self.names, *told.values()))
        types = (*(arithmetic.POINTER[d] for d in self.kernel.buffers), *["i32"] * len(told))
        launch = Launch(
            name,
            (self.count, 1, 1),
            ("error", *range(len(self.names)), *told),
            ("*i32", *types),
            t.warps,
            t.stages,
            spread=True,
            reach=self.reach,
        )
        return Source(HEADER + arithmetic.helpers(body) + body, (launch,))

    def _lanes(self, count: int, dims: str) -> str:
        lanes = f"tl.arange(0, {count})[{':, None' if dims == 'x' else 'None, :'}]"
        return lanes if self.index == "tl.int32" else f"{lanes}.to(tl.int64)"

    def _begin(self) -> None:
        text, t = self.text, self.tile
        text.wait(self.architecture)
        wide = "" if self.index == "tl.int32" else ".to(tl.int64)"
        blocks = self.number(self.blocks)
        text.line("pid = tl.program_id(0)")
        text.line(f"line = pid // {blocks}")
        # The last queries first: with a causal bound, theirs are the longest rows.
        block = f"pid % {blocks}"
        block = f"{blocks} - 1 - {block}" if self.op.right is not None else block
        text.line(f"begin = ({block}) * {t.rows}")
        text.line(f"batch = (line // {self.heads}){wide}")
        text.line(f"head = (line % {self.heads}){wide}")
        text.line(f"m = begin + {self._lanes(t.rows, 'x')}")
        text.line(f"e = {self._lanes(padded(self.width), 'r')}")
        text.line(f"dr = {self._lanes(padded(self.depth), 'r')}")
        text.line(f"dx = {self._lanes(padded(self.depth), 'x')}")
        group = f"head // {self.heads // self.groups}" if self.groups != self.heads else "head"
        text.line(f"group = {group}")
        mask = all_of(
            self._queries_mask(), f"(dr < {self.depth})" * (padded(self.depth) != self.depth)
        )
        text.line(f"q = {self._load(self.q, 'head', 'm', 'dr', mask)}")
        text.line(f'top = tl.full(({t.rows}, 1), float("-inf"), tl.float32)')
        text.line(f"total = tl.zeros(({t.rows}, 1), tl.float32)")
        text.line(f"acc = tl.zeros(({t.rows}, {padded(self.width)}), tl.float32)")

    def _queries_mask(self) -> str:
        whole = is_whole(self.queries, self.tile.rows)
        return "" if whole else f"(m < {self.number(self.queries)})"

    def _load(self, view: View, head: str, row: str, column: str, mask: str) -> str:
        """A tile of a tensor of four axes."""
        n, h, s, d = view.strides
        n = 0 if view.shape[0] == 1 else n
        number = self.number
        terms = [f"batch * {number(n)}"] if n != 0 else []
        terms += [f"{head} * {number(h)}"] if view.shape[1] != 1 else []
        terms += [f"{row} * {number(s)}", f"{column} * {number(d)}" if d != 1 else column]
        terms += [number(view.offset)] if view.offset != 0 else []
        where = f", mask={mask}, other=0" if mask else ""
        return f"tl.load({self.names[view.buffer]} + ({' + '.join(terms)}){where})"

    def _over_keys(self) -> None:
        """All tiles of keys that some query sees, those that all see without asking each."""
        op, t, text = self.op, self.tile, self.text
        first, keys = "0", self.number(self.keys)
        end = keys
        if op.left is not None:
            low = f"tl.maximum(begin + {op.offset - op.left}, 0)"
            first = text.assign(f"{low} // {t.keys} * {t.keys}", "k")
        if op.right is not None:
            high = f"begin + {t.rows + op.offset + op.right}"
            end = text.assign(f"tl.minimum(tl.maximum({high}, 0), {keys})", "k")
        ragged = not is_whole(self.keys, t.keys)
        if op.left is None and op.right is not None:
            # Up to the bound of the first query, every query sees every key.
            whole = f"tl.minimum(tl.maximum(begin + {op.offset + op.right + 1}, 0), {keys})"
            middle = text.assign(f"{whole} // {t.keys} * {t.keys}", "k")
            self._loop(first, middle, bounded=False, ragged=False)
            self._loop(middle, end, bounded=True, ragged=ragged)
        else:
            self._loop(first, end, bounded=op.left is not None, ragged=ragged)

    def _loop(self, first: str, end: str, bounded: bool, ragged: bool) -> None:
        text, t = self.text, self.tile
        with text.block(f"for start in range({first}, {end}, {t.keys}):"):
            text.line(f"nr = start + {self._lanes(t.keys, 'r')}")
            text.line(f"nx = start + {self._lanes(t.keys, 'x')}")
            keys = self.number(self.keys)
            inside = f"(nr < {keys})" * ragged
            deep = f"(dx < {self.depth})" * (padded(self.depth) != self.depth)
            text.line(f"k = {self._load(self.k, 'group', 'nr', 'dx', all_of(inside, deep))}")
            self._scores()
            self._hide(bounded, inside)
            text.line("grown = tl.maximum(top, tl.max(s, 1)[:, None])")
            text.line('safe = tl.where(grown == float("-inf"), 0.0, grown)')
            self._weigh()
            text.line("total = total * shrink + tl.sum(p, 1)[:, None]")
            below = f"(nx < {keys})" * ragged
            wide = f"(e < {self.width})" * (padded(self.width) != self.width)
            text.line(f"v = {self._load(self.v, 'group', 'nx', 'e', all_of(below, wide))}")
            text.line(f"acc = tl.dot(p.to(v.dtype), v, acc * shrink{self.precision})")
            if self.is_exact:
                text.line("rest = p - p.to(v.dtype).to(tl.float32)")
                text.line("acc = tl.dot(rest.to(v.dtype), v, acc)")
            text.line("top = grown")

    def _scores(self) -> None:
        text, op = self.text, self.op
        text.line(f"s = tl.dot(q, k{self.precision})")
        if op.softcap > 0:
            text.line(f"s = {op.softcap} * libdevice.tanh(s * {op.scale / op.softcap})")
        elif self.unit == LOG2E:
            text.line(f"s = s * {op.scale}")
        if self.mask is not None:
            steps: list[Size] = [0] * (4 - len(self.mask.shape))
            steps += [0 if n == 1 else s for n, s in zip(self.mask.shape, self.mask.strides)]
            names = ("batch", "head", "m", "nr")
            number, offset = self.number, self.mask.offset
            terms = [f"{name} * {number(s)}" for name, s in zip(names, steps) if s != 0]
            terms += [number(offset)] if offset != 0 or not terms else []
            rows = self._queries_mask() if steps[2] != 0 else ""
            ragged = steps[3] != 0 and not is_whole(self.keys, self.tile.keys)
            keys = f"(nr < {number(self.keys)})" * ragged
            where = f", mask={all_of(rows, keys)}, other=0" if all_of(rows, keys) else ""
            loaded = f"tl.load({self.names[self.mask.buffer]} + ({' + '.join(terms)}){where})"
            text.line(f"s = s + {loaded}.to(tl.float32)")

    def _weigh(self) -> None:
        """The weight of each score, and by how much those before are less now."""
        text, unit = self.text, self.unit
        if self.mask is not None:
            # It may have the least number there is, which has no multiple.
            text.line(f"p = tl.exp2((s - safe) * {unit})")
            text.line(f"shrink = tl.exp2((top - safe) * {unit})")
            return
        # One multiplication and subtraction for each score, as one instruction.
        text.line(f"low = safe * {unit}")
        text.line(f"p = tl.exp2(s * {unit} - low)")
        text.line(f"shrink = tl.exp2(top * {unit} - low)")

    def _hide(self, bounded: bool, inside: str) -> None:
        """What no query may see is as far below as can be."""
        op = self.op
        tests = [inside]
        if bounded and op.right is not None:
            tests.append(f"(nr <= m + {op.offset + op.right})")
        if bounded and op.left is not None:
            tests.append(f"(nr >= m + {op.offset - op.left})")
        if seen := all_of(*tests):
            self.text.line(f's = tl.where({seen}, s, float("-inf"))')

    def _end(self) -> None:
        """The result by the sum of its weights, and what is computed from it."""
        self.text.line("acc = acc / tl.where(total == 0.0, 1.0, total)")
        self._store(self.tile.rows, padded(self.width))

    def _store(self, rows: int, columns: int) -> None:
        """Writes what is computed from so many rows and columns of the result."""
        text = self.text
        shape = Shape(str(rows), str(columns))
        rough = is_rough([self.kernel.epilogue])
        e = Emitter(text, self.names, shape, self.index, rough=rough)
        masks = {"x": self._queries_mask()}
        masks["r"] = f"(e < {self.width})" * (columns != self.width)
        names = [a.name for a in self.kernel.axes]
        found = (Place("batch"), Place("head"), Place("m", X), Place("e", R))
        masks = {d: text.assign(m, "m") for d, m in masks.items() if m}
        guards = [Place(masks["x"], X)] if self.queries == 1 else []
        guards += [Place(masks["r"], R)] if self.width == 1 else []
        hole = Place("acc", BOTH)
        places = dict(zip(names, found))
        with e.scope(places=places, masks=masks, hole=hole, guards=tuple(guards)):
            e.store(Store(self.kernel.output.buffer, self.output, self.kernel.epilogue))


def view_of(view: View | None) -> View:
    assert view is not None
    return view


def all_of(*tests: str) -> str:
    return " & ".join(test for test in tests if test)
