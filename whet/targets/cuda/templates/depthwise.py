"""Convolutions in which each result channel sees one channel: elements of a tile, tap by tap.

Pixels run along x and channels along r, so that every access is of neighbouring channels; what taps
share comes from the first-level cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import Size, floor_divide, product
from whet.ir.types import TensorType
from whet.ops.contract import Convolution
from whet.ops.movement import reshape, transpose
from whet.plan.kernel import Range, Store, Template, View
from whet.plan.loops import sizes_in
from whet.plan.lower import loop_index, within
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import BOTH, Emitter, Place, R, X, is_rough, size_bound
from whet.targets.cuda.expressions import Tile as Shape
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.templates.contraction import integer
from whet.targets.cuda.templates.matmul import DTYPES, offset_of
from whet.targets.cuda.text import Text
from whet.targets.cuda.told import SAFE, blocks_of, is_whole, reaches

MOST_UNROLLED = 25  # products


@operator
class Depthwise(Op):
    """Convolution of x[N, *S, C] with w[*K, O], O a multiple of C: result channel o sees channel
    o // (O / C)."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    shape: tuple[Size, ...]

    def infer(self, x: TensorType, w: TensorType) -> TensorType:
        return x.with_shape(x.shape[0], *self.shape, w.shape[-1])

    def operations(self, x: TensorType, w: TensorType) -> Size:
        return 2 * product((x.shape[0], *self.shape)) * product(w.shape)


class DepthwiseTemplate:
    """A depthwise convolution of channels-last tensors."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        return position == 0 and view.strides[-1] == 1

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        op = value.op
        if type(op) is not Convolution or value.dtype not in DTYPES or op.accumulate is not None:
            return None
        x, w = value.inputs
        assert x is not None and w is not None
        if w.shape[-1] != 1 or op.groups == 1 or not w.tensor.is_static:
            return None
        if not all(isinstance(n, int) for n in (*op.before, x.shape[-1])):
            return None
        if 0 in (*value.shape, *x.shape):
            return None
        taps = reshape(w, *w.shape[:-1])
        order = (*range(1, taps.rank), 0)
        before = tuple(integer(n) for n in op.before)
        shape = value.shape[1:-1]
        y: Value = Depthwise(op.strides, op.dilations, before, shape)(x, transpose(taps, *order))
        return y

    def tiles(self, kernel: Template, architecture: Architecture) -> list[Tile]:
        return ranked(kernel, architecture)

    def generate(
        self, kernel: Template, architecture: Architecture, tile: Tile, name: str = "kernel"
    ) -> Source:
        return Code(kernel, architecture, tile).generate(name)


@dataclass(frozen=True)
class Tile:
    """Groups of pixels, and channels, of a block; the neighbouring pixels of a group share what
    they read."""

    rows: int
    columns: int
    span: int
    warps: int


SPANS = (1, 2, 4, 7)
SHAPES = ((1, 128), (2, 64), (8, 16))
"""Rows and columns of a warp: four elements to a thread."""

FEWEST_WARPS = (1200, 3000, 13000)
"""With fewer warps of single pixels than these, groups of 2, 4 and 7 leave too few of them."""

MOST_WASTED = 1.35


def ranked(kernel: Template, architecture: Architecture) -> list[Tile]:
    """Tiles by how near they are to what was found fastest on an H200; the nearest first."""
    results = math.prod(integer(a.size) for a in kernel.axes)
    width, channels = (integer(a.size) for a in kernel.axes[-2:])
    warps = results / 128 * 132 / architecture.multiprocessors
    likely = sum(warps >= fewest for fewest in FEWEST_WARPS)
    fits = [-(-channels // c) * c <= MOST_WASTED * channels for _, c in SHAPES]
    costs: dict[Tile, float] = {}
    for number, (rows, columns) in enumerate(SHAPES):
        for place, span in enumerate(SPANS):
            wasted = -(-width // span) * span / width - 1
            cost = abs(place - likely) + 3 * wasted + 0.3 * number + 2 * (not fits[number])
            costs[Tile(rows, columns, span, 1)] = cost
    return sorted(costs, key=costs.__getitem__)


class Code:
    """The function being written."""

    def __init__(self, kernel: Template, architecture: Architecture, tile: Tile) -> None:
        self.kernel, self.op, self.architecture = kernel, _op(kernel.op), architecture
        x, w = kernel.inputs
        assert x is not None and w is not None
        self.x, self.w = x, w
        *self.lead, self.along, self.last = kernel.axes
        # Neighbours that no row has would be stored in the place of those that it has.
        most = self.along.size if isinstance(self.along.size, int) else tile.span
        self.tile = tile = replace(tile, span=min(tile.span, most))
        self.groups = blocks_of(self.along.size, tile.span)
        self.rows = product(axis.size for axis in self.lead) * self.groups
        self.channels = integer(self.last.size)
        self.text = Text(kernel.sizes)
        self.names = [f"b{n}" for n in range(len(kernel.buffers))]
        index = tuple(loop_index(a.name, a.size) for a in kernel.axes)
        self.output = offset_of(kernel.output, index)
        self.taps = tuple(integer(k) for k in w.shape[:-1])
        self.reach = (tile.span - 1) * self.op.strides[-1]
        self.reach += (self.taps[-1] - 1) * self.op.dilations[-1] + 1
        sizes = [self.output, self._source()[0], *sizes_in(kernel.epilogue)]
        is_small = bool(kernel.sizes) or size_bound(iter(sizes)) < SAFE
        self.index = "tl.int32" if is_small else "tl.int64"
        sizes += [self.rows + tile.rows]
        self.limits = reaches(sizes, self.text.open) if kernel.sizes else ()
        shape = Shape(str(tile.rows), str(tile.columns))
        rough = is_rough([kernel.epilogue])
        self.e = Emitter(self.text, self.names, shape, self.index, rough=rough)

    def _source(self) -> tuple[Size, tuple[Range, ...]]:
        """Where an element lies that a group's first pixel sees so many columns on, under a tap of
        the other axes; and what must hold for it to be there."""
        first, *spatial = (*self.lead, self.along)
        index: list[Size] = [loop_index(first.name, first.size)]
        ranges: list[Range] = []
        for n, axis in enumerate(spatial):
            tap = loop_index(f"tap{n}", self.taps[n]) * self.op.dilations[n]
            tap = loop_index("seen", self.reach) if axis is self.along else tap
            at = loop_index(axis.name, axis.size) * self.op.strides[n] + tap - self.op.before[n]
            index.append(at)
            ranges.append((at, self.x.shape[n + 1]))
        each = self.channels // integer(self.x.shape[-1])
        index.append(floor_divide(loop_index(self.last.name, self.last.size), each))
        return offset_of(self.x, tuple(index)), within(ranges)

    def generate(self, name: str = "kernel") -> Source:
        """The whole kernel."""
        text, t = self.text, self.tile
        across = -(-self.channels // t.columns)
        text.wait(self.architecture)
        wide = "" if self.index == "tl.int32" else ".to(tl.int64)"
        text.line(f"pid = tl.program_id(0){wide}")
        row, column = (f"pid // {across}", f"pid % {across}") if across > 1 else ("pid", "0")
        text.line(f"m = (({row}) * {t.rows} + tl.arange(0, {t.rows})[:, None]){wide}")
        text.line(f"n = (({column}) * {t.columns} + tl.arange(0, {t.columns})[None, :]){wide}")
        masks: dict[str, str] = {}
        if not is_whole(self.rows, t.rows):
            masks["x"] = text.assign(f"m < {text.number(self.rows)}", "m")
        if self.channels % t.columns:
            masks["r"] = text.assign(f"n < {self.channels}", "m")
        sizes: dict[str, Size] = {a.name: a.size for a in self.lead}
        places = self.e.unjoin(Place("m", X), {**sizes, self.along.name: self.groups})
        group = places[self.along.name].text
        text.line(f"first = {group if t.span == 1 else f'{group} * {t.span}'}")
        places |= {self.along.name: Place("first", X), self.last.name: Place("n", R)}
        for p in range(t.span):
            text.line(f"acc{p} = tl.zeros(({t.rows}, {t.columns}), tl.float32)")
        with self.e.scope(places=places, masks=masks):
            self._over_taps(0, {})
            for p in range(t.span):
                self._store(p)
        types = (*(arithmetic.POINTER[d] for d in self.kernel.buffers), *["i32"] * len(text.sizes))
        body = text.function(name, ("error", *self.names, *text.sizes.values()))
        launch = Launch(
            name,
            (blocks_of(self.rows, t.rows) * across, 1, 1),
            ("error", *range(len(self.names)), *text.sizes),
            ("*i32", *types),
            t.warps,
            2,
            reach=self.limits,
        )
        return Source(HEADER + arithmetic.helpers(body) + body, (launch,))

    def _store(self, p: int) -> None:
        """A group's pixel, and what is computed from it."""
        e, masks = self.e, dict(self.e.masks)
        place = Place("first" if p == 0 else self.text.assign(f"first + {p}", "i"), X)
        if not is_whole(self.along.size, self.tile.span):
            inside = f"{place.text} < {self.text.number(self.along.size)}"
            whole = masks.get("x")
            masks["x"] = self.text.assign(f"{whole} & ({inside})" if whole else inside, "m")
        places = e.placed({self.along.name: place})
        # Where there is one row or column alone, nothing else keeps its copies from being stored.
        guards = (Place("m < 1", X),) * (self.rows == 1) + (Place("n < 1", R),) * (
            self.channels == 1
        )
        guards = tuple(Place(self.text.assign(g.text, "m"), g.dims) for g in guards)
        with e.scope(places=places, masks=masks, hole=Place(f"acc{p}", BOTH), guards=guards):
            e.store(Store(self.kernel.output.buffer, self.output, self.kernel.epilogue))

    def _over_taps(self, axis: int, taps: dict[str, Place]) -> None:
        """Loops over the taps of all axes but the last, written out where they are few."""
        if axis + 1 == len(self.taps):
            self._columns(taps)
            return
        count = math.prod(self.taps[axis:]) * self.tile.span
        loop = "tl.static_range" if count <= MOST_UNROLLED else "range"
        with self.text.block(f"for k{axis} in {loop}({self.taps[axis]}):"):
            self._over_taps(axis + 1, {**taps, f"tap{axis}": Place(self.e.wide(f"k{axis}"))})

    def _columns(self, taps: dict[str, Place]) -> None:
        """All that a group sees in one row, each element once, for every pixel that sees it."""
        stride, dilation = self.op.strides[-1], self.op.dilations[-1]
        offset, ranges = self._source()
        weights: dict[int, str] = {}
        for seen in range(self.reach):
            pairs = [(p, (seen - p * stride) // dilation) for p in range(self.tile.span)]
            pairs = [
                (p, k)
                for p, k in pairs
                if 0 <= k < self.taps[-1] and p * stride + k * dilation == seen
            ]
            if not pairs:
                continue
            with self.e.scope(places=self.e.placed({**taps, "seen": Place(str(seen))})):
                guards = tuple(self.e.inside((r,)) for r in ranges)
                with self.e.scope(guards=guards):
                    x = self._load(self.x.buffer, offset)
            for p, k in pairs:
                if k not in weights:
                    weights[k] = self._weight({**taps, f"tap{len(self.taps) - 1}": Place(str(k))})
                self.text.line(f"acc{p} += {x} * {weights[k]}")

    def _weight(self, taps: dict[str, Place]) -> str:
        weight = self.w.offset + loop_index(self.last.name, self.last.size)
        step = self.channels
        for n in reversed(range(len(self.taps))):
            weight = weight + loop_index(f"tap{n}", self.taps[n]) * step
            step *= self.taps[n]
        with self.e.scope(places=self.e.placed(taps)):
            return self._load(self.w.buffer, weight)

    def _load(self, buffer: int, offset: Size) -> str:
        pointer, mask, _ = self.e.address(buffer, offset)
        where = f", mask={mask}, other=0" if mask else ""
        return self.text.assign(f"tl.load({pointer}{where}).to(tl.float32)")


def _op(op: Any) -> Depthwise:
    assert isinstance(op, Depthwise)
    return op
