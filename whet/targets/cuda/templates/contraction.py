"""A tile of a product, as Triton text: any index maps for both sides, sums in parts, an epilogue.

Blocks are numbered so that neighbours share operands (Triton's grouped order). Where the sum is cut
into parts, each part is kept in scratch memory, and the block that comes last adds them all up in
their order: two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from whet.ir.sizes import Expr, Size, bounds, product
from whet.ir.types import NUMPY_DTYPES
from whet.plan.kernel import Axis, Expression, Store, Template
from whet.plan.loops import sizes_in
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import (
    BOTH,
    Emitter,
    Place,
    R,
    Tile,
    X,
    is_rough,
    size_bound,
)
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.templates import tiling
from whet.targets.cuda.text import Text
from whet.targets.cuda.told import SAFE, blocks_of, is_whole, reaches

GROUP = 8  # rows of tiles whose blocks run next to each other
MOST_PREFETCHED = 16 << 20  # bytes

Operand = Callable[["Code", Emitter, str], str]
"""Writes the load of one side's tile for the step of a number; gives its name."""


@dataclass(frozen=True)
class Problem:
    """y[batch, rows, column] = sum over k of left[batch, rows, k] * right[batch, k, column].

    Indices of `batch` differ by block, those of `rows` along x, that of `column` along r.
    """

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    column: Axis
    depth: Size
    left: Operand
    right: Operand
    places: Callable[[dict[str, Place]], dict[str, Place]]
    """What the epilogue's loop indices are in terms of those."""
    epilogue: Expression
    output: Size
    offsets: tuple[Size, ...]
    """What the operands' index maps may reach."""
    weight: tuple[int, Size]
    """The right side's buffer, and the offset of its elements."""


def integer(size: Size) -> int:
    """A size that is known."""
    assert isinstance(size, int)
    return size


def turns(axes: tuple[Axis, ...]) -> Size:
    """How often loops run together."""
    return product(axis.size for axis in axes)


@dataclass(frozen=True)
class Work:
    """A function's blocks, the counters that they need, and the bytes of scratch memory."""

    grid: tuple[Size, Size, Size]
    counters: Size = 0
    scratch: Size = 0


@dataclass
class Code:
    """The function being written."""

    kernel: Template
    problem: Problem
    tile: tiling.Tile
    architecture: Architecture
    dtype: str

    def __post_init__(self) -> None:
        p = self.problem
        self.text = Text(self.kernel.sizes)
        self.number = self.text.number
        self.names = [f"b{n}" for n in range(len(self.kernel.buffers))]
        self.rows, self.columns = turns(p.rows), p.column.size
        self.tiles = (
            blocks_of(self.rows, self.tile.rows),
            blocks_of(self.columns, self.tile.columns),
        )
        self.count = self.tiles[0] * self.tiles[1] * turns(p.batch)
        self.steps = blocks_of(p.depth, self.tile.depth)
        self.pieces = tiling.pieces(self.tile.columns)
        sizes = [p.output, *p.offsets, *sizes_in(p.epilogue)]
        is_small = bool(self.kernel.sizes) or size_bound(iter(sizes)) < SAFE
        self.index = "tl.int32" if is_small else "tl.int64"
        # A tile's last lanes count on behind the end.
        behind = [self.count * GROUP, self.rows + self.tile.rows, p.depth + self.tile.depth]
        self.reach = reaches((*sizes, *behind), self.text.open) if self.kernel.sizes else ()

    def generate(self, name: str = "kernel") -> Source:
        """The whole kernel."""
        if self.architecture.has_dependent_launch:
            self._prefetch()
        self.text.wait(self.architecture)
        work = self.work()
        types = ["*i32", *(arithmetic.POINTER[d] for d in self.kernel.buffers)]
        shared = ("counters", "scratch") if work.counters != 0 else ()
        parts = "*i32" if self.dtype == "int8" else "*fp32"
        types += [*["i32"] * len(self.text.sizes), *["*i32", parts][: len(shared)]]
        names = ("error", *self.names, *self.text.sizes.values(), *shared)
        body = self.text.function(name, names)
        launch = Launch(
            name,
            work.grid,
            ("error", *range(len(self.names)), *self.text.sizes, *shared),
            tuple(types),
            self.tile.warps,
            self.tile.stages,
            work.counters,
            work.scratch,
            spread=True,
            reach=self.reach,
        )
        return Source(HEADER + arithmetic.helpers(body) + body, (launch,))

    @property
    def blocks(self) -> Size:
        """How many blocks there are, for each part of the sum."""
        return self.count

    def work(self) -> Work:
        """A tile, or a part of its sum, for each block."""
        text, t = self.text, self.tile
        text.line("pid = tl.program_id(0)")
        self.place("pid")
        if t.split == 1:
            self.accumulate("0", self.number(self.steps))
            self.epilogue()
            return Work((self.count, 1, 1))
        each, more = (self.number(n) for n in (self.steps // t.split, self.steps % t.split))
        text.line("part = tl.program_id(1)")
        begin = text.assign(f"part * {each} + tl.minimum(part, {more})", "p")
        end = text.assign(f"{begin} + {each} + (part < {more}).to(tl.int32)", "p")
        self.accumulate(begin, end)
        self._join()
        scratch = 4 * self.count * t.split * t.rows * t.columns
        return Work((self.count, t.split, 1), self.count, scratch)

    def _prefetch(self) -> None:
        """Asks for the right side, which is most often a weight that nobody read for a while."""
        buffer, offset = self.problem.weight
        size = (size_bound(iter([offset])) + 1) * NUMPY_DTYPES[self.dtype].itemsize
        if size <= MOST_PREFETCHED:
            parts, count = max(1, self.tile.split), self.number(self.blocks)
            block = "tl.program_id(0)" + f" + tl.program_id(1) * {count}" * (parts > 1)
            blocks = int(max(1, bounds(self.blocks)[0])) * parts
            more = isinstance(self.blocks, Expr)
            self.text.prefetch(self.names[buffer], int(size), block, blocks, more)

    def emitter(self, x: int, r: int) -> Emitter:
        rough = is_rough([self.problem.epilogue])
        return Emitter(self.text, self.names, Tile(str(x), str(r)), self.index, rough=rough)

    def arange(self, begin: str, count: int, dims: str) -> str:
        """Numbers from `begin` on, along x or r."""
        lanes = f"tl.arange(0, {count})[{':, None' if dims == 'x' else 'None, :'}]"
        lanes = lanes if self.index == "tl.int32" else f"{lanes}.to(tl.int64)"
        return f"{begin} + {lanes}"

    def place(self, block: str) -> None:
        """Which tile of which product the one of a number is."""
        text, t, (down, across) = self.text, self.tile, self.tiles
        batch, number = turns(self.problem.batch), self.number
        if self.index != "tl.int32":
            block = text.assign(f"{block}.to({self.index})", "p")
        if batch != 1:
            text.line(f"batch = {block} // {number(down * across)}")
            block = text.assign(f"{block} % {number(down * across)}", "p")
        if down != 1 and across != 1:
            group = text.assign(f"{block} // {number(GROUP * across)}", "p")
            first = text.assign(f"{group} * {GROUP}", "p")
            height = text.assign(f"tl.minimum({number(down)} - {first}, {GROUP})", "p")
            rest = text.assign(f"{block} % {number(GROUP * across)}", "p")
            text.line(f"row = {first} + {rest} % {height}")
            text.line(f"column = {rest} // {height}")
        else:
            text.line(f"row = {block if down != 1 else 0}")
            text.line(f"column = {block if across != 1 else 0}")
        text.line(f"m = {self.arange(f'row * {t.rows}', t.rows, 'x')}")
        whole = is_whole(self.rows, t.rows)
        self.row_mask = "" if whole else text.assign(f"m < {number(self.rows)}", "m")
        ragged = not is_whole(self.columns, t.columns)
        self.masks: list[str] = []
        for piece, (begin, count) in enumerate(self.pieces):
            first = f"column * {t.columns}" + f" + {begin}" * (begin > 0)
            text.line(f"n{piece} = {self.arange(first, count, 'r')}")
            mask = text.assign(f"n{piece} < {number(self.columns)}", "m") if ragged else ""
            self.masks.append(mask)
        e = self.emitter(1, 1)
        sizes = {a.name: a.size for a in self.problem.batch}
        self.batch = e.unjoin(Place("batch" if batch != 1 else "0"), sizes) if sizes else {}
        self.by_row = e.unjoin(Place("m", X), {a.name: a.size for a in self.problem.rows})

    def accumulate(self, begin: str, end: str) -> None:
        """The loop over the depth, from one step to another."""
        text, t, p = self.text, self.tile, self.problem
        # Triton 3.6 takes sums of integers only where it is told that they are.
        told = {"float32": ', input_precision="ieee"', "int8": ", out_dtype=tl.int32"}
        more = told.get(self.dtype, "")
        for count in self.each_piece():
            text.line(f"{self.sums} = tl.zeros(({t.rows}, {count}), {self.kind})")
        with text.block(f"for step in range({begin}, {end}):"):
            a = p.left(self, self.emitter(t.rows, t.depth), "step")
            for count in self.each_piece():
                b = p.right(self, self.emitter(t.depth, count), "step")
                text.line(f"{self.sums} = tl.dot({a}, {b}, {self.sums}{more})")

    def each_piece(self) -> Iterator[int]:
        """How many columns each piece has, while it is the one at hand."""
        for piece, (_, count) in enumerate(self.pieces):
            self.piece = piece
            yield count

    @property
    def kind(self) -> str:
        """The type of sums."""
        return "tl.int32" if self.dtype == "int8" else "tl.float32"

    @property
    def sums(self) -> str:
        """The sums of the piece of columns at hand."""
        return f"acc{self.piece}"

    @property
    def column(self) -> Place:
        """Where the column stands in the piece at hand."""
        return Place(f"n{self.piece}", R)

    @property
    def column_mask(self) -> str:
        """Which columns of the piece at hand there are."""
        return self.masks[self.piece]

    def depth_of(self, step: str) -> str:
        """The depth at which a step begins."""
        return self.text.assign(f"{step} * {self.tile.depth}", "k")

    def load(
        self, e: Emitter, buffer: int, offset: Size, masks: dict[str, str], fill: int = 0
    ) -> str:
        """The load of a tile; `fill` stands for what a mask leaves out."""
        with e.scope(masks=masks):
            pointer, mask, dims = e.address(buffer, offset)
        if dims != BOTH:
            # A tile that is the same along a dimension still has it.
            at = e.size(offset).text
            wide = f"tl.broadcast_to(tl.cast({at}, {self.index}), {e.tile.shape(BOTH)})"
            pointer, mask = (
                f"{self.names[buffer]} + {wide}",
                " & ".join([*masks.values(), *(g.text for g in e.guards)]),
            )
        where = f", mask={mask}, other=0" if mask else ""
        loaded = self.text.assign(f"tl.load({pointer}{where})", "t")
        if not (fill and mask):
            return loaded
        # As `other` of a load, Triton gets the bits of a negative integer of 8 wrong.
        outside = f"tl.full((1, 1), {fill}, tl.{self.dtype})"
        return self.text.assign(f"tl.where({mask}, {loaded}, {outside})", "t")

    def _join(self) -> None:
        """Keeps this block's part; the last block of a tile adds all parts up."""
        text, t = self.text, self.tile
        area = t.rows * t.columns
        lane = f"tl.arange(0, {t.rows})[:, None] * {t.columns} + tl.arange(0, {t.columns})[None, :]"
        text.line(f"lane = {lane}")
        wide = "pid.to(tl.int64)"
        text.line(f"parts = scratch + {wide} * {t.split * area}")
        text.line(f"tl.store(parts + part * {area} + lane, acc0)")
        text.line("tl.debug_barrier()")
        text.line('done = tl.atomic_add(counters + pid, 1, sem="acq_rel", scope="gpu")')
        with text.block(f"if done == {t.split - 1}:"):
            text.line("tl.debug_barrier()")
            text.line(f"acc0 = tl.zeros(({t.rows}, {t.columns}), {self.kind})")
            with text.block(f"for k in range({t.split}):"):
                text.line(f'acc0 += tl.load(parts + k * {area} + lane, cache_modifier=".cg")')
            text.line("tl.store(counters + pid, 0)")
            self.epilogue()

    def epilogue(self) -> None:
        """What is computed from the tile's sums."""
        for count in self.each_piece():
            self._finish(self.emitter(self.tile.rows, count))

    def _finish(self, e: Emitter) -> None:
        p = self.problem
        masks = {"x": self.row_mask, "r": self.column_mask}
        places = {**self.batch, **self.by_row, p.column.name: self.column}
        places = p.places(places)
        masks = {d: m for d, m in masks.items() if m}
        # Where there is one row or column alone, nothing else keeps its copies from being stored.
        guards = [Place(self.row_mask, X)] * (self.rows == 1)
        guards += [Place(self.column_mask, R)] * (self.columns == 1)
        hole = Place(self.sums, BOTH)
        with e.scope(places=places, masks=masks, hole=hole, guards=tuple(guards)):
            e.store(Store(self.kernel.output.buffer, p.output, p.epilogue))
