"""Convolutions in which each result channel sees one channel: elements of a tile, tap by tap.

Pixels run along x and channels along r, so that every access is of neighbouring channels; what taps
share comes from the first-level cache.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from whet.targets.cuda.expressions import BOTH, Emitter, Place, R, X, size_bound
from whet.targets.cuda.expressions import Tile as Shape
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.templates.contraction import SAFE, integer
from whet.targets.cuda.templates.matmul import DTYPES, offset_of
from whet.targets.cuda.text import Text

MOST_UNROLLED = 25  # taps


@operator
class Depthwise(Op):
    """Convolution of x[N, *S, C] with w[*K, O], O a multiple of C: result channel o sees channel
    o // (O / C)."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    shape: tuple[int, ...]

    def infer(self, x: TensorType, w: TensorType) -> TensorType:
        return x.with_shape(x.shape[0], *self.shape, w.shape[-1])

    def operations(self, x: TensorType, w: TensorType) -> Size:
        return 2 * product((x.shape[0], *self.shape)) * product(w.shape)


class DepthwiseTemplate:
    """A depthwise convolution of channels-last tensors."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        known = all(isinstance(s, int) for s in (*view.strides, *view.shape, view.offset))
        return known and position == 0 and view.strides[-1] == 1

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        op = value.op
        if type(op) is not Convolution or value.dtype not in DTYPES or op.accumulate is not None:
            return None
        x, w = value.inputs
        assert x is not None and w is not None
        if w.shape[-1] != 1 or op.groups == 1 or not (x.tensor.is_static and w.tensor.is_static):
            return None
        if 0 in (*value.shape, *x.shape):
            return None
        taps = reshape(w, *w.shape[:-1])
        order = (*range(1, taps.rank), 0)
        before = tuple(integer(n) for n in op.before)
        shape = tuple(integer(n) for n in value.shape[1:-1])
        y: Value = Depthwise(op.strides, op.dilations, before, shape)(x, transpose(taps, *order))
        return y

    def tiles(self, kernel: Template, architecture: Architecture) -> list[Tile]:
        return ranked(kernel, architecture)

    def generate(self, kernel: Template, architecture: Architecture, tile: Tile) -> Source:
        return Code(kernel, architecture, tile).generate()


@dataclass(frozen=True)
class Tile:
    """Pixels and channels of a block."""

    rows: int
    columns: int
    warps: int


def ranked(kernel: Template, architecture: Architecture) -> list[Tile]:
    """The tile that is likely to be fast, and others that may be."""
    channels = integer(kernel.axes[-1].size)
    pixels = 1
    for axis in kernel.axes[:-1]:
        pixels *= integer(axis.size)
    columns = min(64, max(16, 1 << (channels - 1).bit_length()))
    rows = 2048 // columns
    enough = 2 * architecture.multiprocessors
    while rows > 4 and -(-pixels // rows) * -(-channels // columns) < enough:
        rows //= 2
    shapes = [(rows, columns), (rows, 2 * columns), (rows // 2, columns), (rows // 4, columns)]
    shapes += [(rows, columns // 2), (2 * rows, columns // 2), (rows // 2, 2 * columns)]
    found = [
        Tile(r, c, max(1, min(8, r * c // part))) for part in (256, 128) for r, c in shapes if r > 1
    ]
    return list(dict.fromkeys(found))


class Code:
    """The function being written."""

    def __init__(self, kernel: Template, architecture: Architecture, tile: Tile) -> None:
        self.kernel, self.op, self.architecture = kernel, _op(kernel.op), architecture
        x, w = kernel.inputs
        assert x is not None and w is not None
        self.x, self.w = x, w
        *self.lead, self.last = kernel.axes
        self.pixels = 1
        for axis in self.lead:
            self.pixels *= integer(axis.size)
        self.channels = integer(self.last.size)
        self.rows, self.columns, self.warps = tile.rows, tile.columns, tile.warps
        self.text = Text()
        self.names = [f"b{n}" for n in range(len(kernel.buffers))]
        index = tuple(loop_index(a.name, a.size) for a in kernel.axes)
        self.output = offset_of(kernel.output, index)
        self.taps = tuple(integer(k) for k in w.shape[:-1])
        sizes = [self.output, self._source()[0], *sizes_in(kernel.epilogue)]
        self.index = "tl.int32" if size_bound(iter(sizes)) < SAFE else "tl.int64"
        self.e = Emitter(
            self.text, self.names, Shape(str(self.rows), str(self.columns)), self.index
        )

    def _blocks(self) -> int:
        return -(-self.pixels // self.rows) * -(-self.channels // self.columns)

    def _source(self) -> tuple[Size, tuple[Range, ...]]:
        """Where the element under a tap lies, and what must hold for it to be there."""
        index: list[Size] = [loop_index(self.lead[0].name, self.lead[0].size)]
        ranges: list[Range] = []
        for n, axis in enumerate(self.lead[1:]):
            tap = loop_index(f"tap{n}", self.taps[n]) * self.op.dilations[n]
            at = loop_index(axis.name, axis.size) * self.op.strides[n] + tap - self.op.before[n]
            index.append(at)
            ranges.append((at, self.x.shape[n + 1]))
        each = self.channels // integer(self.x.shape[-1])
        index.append(floor_divide(loop_index(self.last.name, self.last.size), each))
        return offset_of(self.x, tuple(index)), within(ranges)

    def generate(self, name: str = "kernel") -> Source:
        """The whole kernel."""
        text, e = self.text, self.e
        across = -(-self.channels // self.columns)
        text.overlap(self.architecture)
        text.line("pid = tl.program_id(0)")
        wide = "" if self.index == "tl.int32" else ".to(tl.int64)"
        row, column = (f"pid // {across}", f"pid % {across}") if across > 1 else ("pid", "0")
        text.line(f"m = (({row}) * {self.rows} + tl.arange(0, {self.rows})[:, None]){wide}")
        text.line(
            f"n = (({column}) * {self.columns} + tl.arange(0, {self.columns})[None, :]){wide}"
        )
        masks: dict[str, str] = {}
        if self.pixels % self.rows:
            masks["x"] = text.assign(f"m < {self.pixels}", "m")
        if self.channels % self.columns:
            masks["r"] = text.assign(f"n < {self.channels}", "m")
        places = e.unjoin(Place("m", X), {a.name: a.size for a in self.lead})
        places[self.last.name] = Place("n", R)
        text.line(f"acc = tl.zeros(({self.rows}, {self.columns}), tl.float32)")
        with e.scope(places=places, masks=masks):
            self._over_taps(0, {})
            with e.scope(hole=Place("acc", BOTH)):
                e.store(Store(self.kernel.output.buffer, self.output, self.kernel.epilogue))
        body = text.function(name, ("error", *self.names))
        launch = Launch(
            name,
            (self._blocks(), 1, 1),
            ("error", *range(len(self.names))),
            ("*i32", *(arithmetic.POINTER[d] for d in self.kernel.buffers)),
            self.warps,
            2,
        )
        return Source(HEADER + arithmetic.helpers(body) + body, (launch,))

    def _over_taps(self, axis: int, taps: dict[str, Place]) -> None:
        """Loops over the taps: all written out where they are few, else the innermost ones."""
        if axis == len(self.taps):
            self._tap(taps)
            return
        count = 1
        for k in self.taps[axis:]:
            count *= k
        last = axis + 1 == len(self.taps)
        loop = "tl.static_range" if count <= MOST_UNROLLED or last else "range"
        with self.text.block(f"for k{axis} in {loop}({self.taps[axis]}):"):
            self._over_taps(axis + 1, {**taps, f"tap{axis}": Place(f"k{axis}")})

    def _tap(self, taps: dict[str, Place]) -> None:
        text, e = self.text, self.e
        offset, ranges = self._source()
        weight = self.w.offset + loop_index(self.last.name, self.last.size)
        step = self.channels
        for n in reversed(range(len(self.taps))):
            weight = weight + loop_index(f"tap{n}", self.taps[n]) * step
            step *= self.taps[n]
        with e.scope(places=e.placed(taps)):
            tests = [e._within(i, n) for i, n in ranges]
            guards = tuple(Place(text.assign(t.text, "m"), t.dims) for t in tests)
            with e.scope(guards=guards):
                pointer, mask, _ = e.address(self.x.buffer, offset)
            where = f", mask={mask}, other=0" if mask else ""
            x = text.assign(f"tl.load({pointer}{where}).to(tl.float32)")
            pointer, mask, _ = e.address(self.w.buffer, weight)
            where = f", mask={mask}, other=0" if mask else ""
            w = text.assign(f"tl.load({pointer}{where}).to(tl.float32)")
            text.line(f"acc += {x} * {w}")


def _op(op: Any) -> Depthwise:
    assert isinstance(op, Depthwise)
    return op
