"""Loop kernels as Triton text: one function, in which each nest has its own range of blocks.

A nest without reductions is a flat line of elements, or tiles where loads and stores step along
different axes. One with reductions has rows (the loops that reductions depend on) along x, and
along r the reductions and then the rest of the loops: softmax and normalisations are one function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from whet.ir.sizes import Size, coefficient, minimum, product
from whet.plan.kernel import Axis, Load, Loops, Nest, Reduction, walk
from whet.plan.loops import sizes_of
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import NONE, Emitter, Place, Tile, X, is_rough, size_bound
from whet.targets.cuda.reductions import along_r, hoist, reductions_in, total
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.text import Text
from whet.targets.cuda.told import SAFE, blocks_of, is_whole, most, reaches, usual

FLAT = 1024  # elements of a block where nothing is reduced
LONGEST = 4096  # elements of a row that one block holds at once
OPEN_ROW = 512  # the same of a row whose length a run tells
FEW_TURNS = (
    64  # a reduction this short is done by each element for itself, if rows lie side by side
)


def generate(kernel: Loops, architecture: Architecture, name: str = "kernel") -> Source:
    """The kernel's text and launch."""
    text = Text(kernel.sizes)
    text.wait(architecture)
    text.line("pid = tl.program_id(0)")
    begin: Size = 0
    schedules = [schedule_of(nest, architecture) for nest in kernel.nests]
    for nest, schedule in zip(kernel.nests, schedules):
        if schedule.blocks == 0:
            continue
        end = begin + schedule.blocks
        if len(kernel.nests) == 1:
            NestCode(text, nest, schedule, kernel.buffers).emit("pid")
        else:
            first, last = text.number(begin), text.number(end)
            with text.block(f"if (pid >= {first}) & (pid < {last}):"):
                block = text.assign(f"pid - {first}", "p")
                NestCode(text, nest, schedule, kernel.buffers).emit(block)
        begin = end
    warps = max((s.warps for s in schedules), default=4)
    types = ("*i32", *(arithmetic.POINTER[dtype] for dtype in kernel.buffers))
    slots = ("error", *range(len(kernel.buffers)))
    names = ("error", *(f"b{n}" for n in range(len(kernel.buffers))), *text.sizes.values())
    slots, types = (*slots, *text.sizes), (*types, *["i32"] * len(text.sizes))
    body = text.function(name, names)
    launch = Launch(
        name, (begin, 1, 1), slots, types, warps, stages=2, reach=_reach(kernel, text.open)
    )
    return Source(HEADER + arithmetic.helpers(body) + body, (launch,) if begin != 0 else ())


def _reach(kernel: Loops, open: frozenset[str]) -> tuple[Size, ...]:
    """What must be less than 2^31 for the indices to be."""
    if not open:
        return ()
    nodes = [n for nest in kernel.nests for s in nest.stores for n in walk(s.value)]
    totals = [total(n) for n in nodes if isinstance(n, Reduction)]
    # A block's last lanes count on behind the end.
    turns = [_turns(nest.axes) + 2 * LONGEST for nest in kernel.nests]
    return reaches((*totals, *turns, *(s for n in kernel.nests for s in sizes_of(n))), open)


@dataclass(frozen=True)
class Schedule:
    """How a nest is cut into blocks."""

    rows: tuple[Axis, ...]
    """Along x."""
    line: tuple[Axis, ...]
    """Along r, all of it in one block; where nothing is reduced, over the blocks."""
    apart: tuple[Axis, ...]
    """One turn for each block."""
    x: int
    r: int
    blocks: Size
    warps: int
    reduces: bool
    index: str = "tl.int32"


def schedule_of(nest: Nest, architecture: Architecture) -> Schedule:
    """How the nest is cut into blocks."""
    reductions = [r for s in nest.stores for r in reductions_in(s.value)]
    # Where sizes are open, no run is given to the kernel that has more: see `Launch.reach`.
    is_open = bool(nest.sizes)
    is_small = size_bound(sizes_of(nest)) < SAFE and most(_turns(nest.axes)) < SAFE
    index = "tl.int32" if is_open or is_small else "tl.int64"
    if nest.ordered:
        return _ordered(nest, index)
    if reductions:
        return _rows(nest, reductions, architecture, index)
    return _tiles(nest, index) or _flat(nest, index)


def _ordered(nest: Nest, index: str) -> Schedule:
    """Loops that run in order are loops of every element of the others."""
    rows = tuple(a for a in nest.axes if a.name not in nest.ordered)
    line = tuple(a for a in nest.axes if a.name in nest.ordered)
    count = _turns(rows)
    x = min(128, power_of_two(usual(count)))
    # One warp: what one turn stores, the next may read.
    return Schedule(rows, line, (), x, 1, blocks_of(count, x), 1, False, index)


def _turns(axes: tuple[Axis, ...]) -> Size:
    return product(a.size for a in axes)


def _flat(nest: Nest, index: str) -> Schedule:
    turns = _turns(nest.axes)
    block = min(FLAT, max(128, power_of_two(usual(turns))))
    return Schedule((), nest.axes, (), 1, block, blocks_of(turns, block), 4, False, index)


def _tiles(nest: Nest, index: str) -> Schedule | None:
    """Tiles of two axes, where something is read along another axis than results are written."""
    written = _side_by_side([s.offset for s in nest.stores], nest.axes)
    if written is None or usual(written.size) < 8:
        return None
    for load in loads_of(nest):
        read = _side_by_side([load.offset], nest.axes)
        if read is None or read is written or usual(read.size) < 8:
            continue
        if coefficient(load.offset, written.name) in (0, 1):
            continue
        apart = tuple(a for a in nest.axes if a not in (read, written))
        x, r = (min(64, power_of_two(usual(a.size))) for a in (read, written))
        tiles = blocks_of(read.size, x) * blocks_of(written.size, r)
        blocks = tiles * _turns(apart)
        return Schedule((read,), (written,), apart, x, r, blocks, 4, False, index)
    return None


def _side_by_side(offsets: list, axes: tuple[Axis, ...]) -> Axis | None:
    """The loop whose neighbours are neighbours in memory."""
    for axis in axes:
        if all(coefficient(o, axis.name) == 1 for o in offsets):
            return axis
    return None


def loads_of(nest: Nest) -> list[Load]:
    """What a nest reads."""
    return [n for s in nest.stores for n in walk(s.value) if isinstance(n, Load)]


def _rows(nest: Nest, reductions: list, architecture: Architecture, index: str) -> Schedule:
    needed = frozenset().union(*(r.symbols for r in reductions))
    rows = tuple(a for a in nest.axes if a.name in needed)
    line = tuple(a for a in nest.axes if a.name not in needed)
    blocks, count = _turns(rows), usual(_turns(rows))
    longest = max(_length(total(r)) for r in reductions)
    along = rows[-1] if rows and _reads_along(nest, reductions, rows[-1]) else None
    if along is not None and not line and (longest <= FEW_TURNS or count >= 1 << 16):
        # Neighbouring rows are neighbours in memory: each element of a tile has one to itself.
        others = tuple(a for a in rows if a is not along)
        return _grid(others, along, architecture, index)
    r = min(LONGEST, power_of_two(max(longest, _length(_turns(line)))))
    if along is not None:
        x = min(power_of_two(usual(along.size)), 32)
        r = min(r, 64)
    else:
        # Short rows share a block, as long as there are blocks enough.
        x = 1
        while x * r < 1024 and x < count and count // (2 * x) >= 2 * architecture.multiprocessors:
            x *= 2
        while x * r < 128 and x < count:
            x *= 2
    warps = min(8, max(1, x * r // 256))
    # Where there is nothing to write, there may be nothing to read either.
    some = minimum(_turns(line), 1)
    return Schedule(rows, line, (), x, r, blocks_of(blocks, x) * some, warps, True, index)


def _length(count: Size) -> int:
    """The elements of a row that a block is made for."""
    return count if isinstance(count, int) else int(min(most(count), OPEN_ROW))


def _grid(rows: tuple[Axis, ...], along: Axis, architecture: Architecture, index: str) -> Schedule:
    """Tiles of all loops but one along x, and that one along r."""
    count, width = usual(_turns(rows)), usual(along.size)
    r = min(64, max(8, power_of_two(width)))
    x = min(power_of_two(count), 1024 // r)
    across = -(-width // r)
    while x > 1 and x * r > 128 and -(-count // x) * across < 2 * architecture.multiprocessors:
        x //= 2
    warps = max(1, min(4, x * r // 256))
    blocks = blocks_of(_turns(rows), x) * blocks_of(along.size, r)
    return Schedule(rows, (along,), (), x, r, blocks, warps, False, index)


def _reads_along(nest: Nest, reductions: list, axis: Axis) -> bool:
    """Whether most of what is reduced lies side by side along an axis of the result."""
    along = own = 0
    for reduction in reductions:
        names = {a.name for a in reduction.axes}
        for load in walk(reduction.body):
            if isinstance(load, Load):
                along += coefficient(load.offset, axis.name) == 1
                own += any(coefficient(load.offset, n) == 1 for n in names)
    return along > own


def power_of_two(count: int) -> int:
    """The least power of two that is not below a count."""
    return 1 << max(0, count - 1).bit_length()


@dataclass
class NestCode:
    """One nest being written."""

    text: Text
    nest: Nest
    schedule: Schedule
    buffers: tuple[str, ...]
    e: Emitter = field(init=False)

    def __post_init__(self) -> None:
        s = self.schedule
        names = [f"b{n}" for n in range(len(self.buffers))]
        rough = is_rough(store.value for store in self.nest.stores)
        self.e = Emitter(self.text, names, Tile(str(s.x), str(s.r)), s.index, rough=rough)

    def emit(self, block: str) -> None:
        """The code of the block with this number."""
        if self.schedule.index != "tl.int32":
            block = self.text.assign(f"{block}.to(tl.int64)", "p")
        if self.nest.ordered:
            self.in_order(block)
        elif self.schedule.reduces:
            self.reduce(block)
        elif self.schedule.x > 1 or self.schedule.rows:
            self.tiles(block)
        else:
            self.flat(block)

    def flat(self, block: str) -> None:
        s = self.schedule
        begin = self.text.assign(f"{block} * {s.r}", "k")
        self.along(begin, _turns(s.line), s.line)

    def along(self, begin: str, turns: Size, axes: tuple[Axis, ...]) -> None:
        """The stores of one stretch along r."""
        place, mask = along_r(self.e, begin, turns, self.schedule.r)
        places = self.e.unjoin(place, {a.name: a.size for a in axes}) if axes else {}
        masks = {**self.e.masks, **({"r": mask} if mask else {})}
        with self.e.scope(places=self.e.placed(places), masks=masks):
            self.stores()

    def stores(self) -> None:
        for store in self.nest.stores:
            self.e.store(store)

    def across(self, begin: str, count: Size) -> tuple[Place, str]:
        """The numbers of a block's rows, and which of them there are."""
        x = self.schedule.x
        lanes = f"tl.arange(0, {x})[:, None]"
        lanes = lanes if self.e.index == "tl.int32" else f"{lanes}.to({self.e.index})"
        if x == 1:
            return Place(begin, NONE), ""
        flat = self.text.assign(f"{begin} + {lanes}", "x")
        if is_whole(count, x):
            return Place(flat, X), ""
        return Place(flat, X), self.text.assign(f"{flat} < {self.text.number(count)}", "m")

    def tiles(self, block: str) -> None:
        s = self.schedule
        count, width = _turns(s.rows), _turns(s.line)
        rows, columns = blocks_of(count, s.x), blocks_of(width, s.r)
        sizes = sizes_of_axes(s.apart) | {"row": rows, "column": columns}
        found = self.e.unjoin(Place(block), sizes)
        row, column = found.pop("row").text, found.pop("column").text
        place, mask = self.across(self.text.assign(f"{row} * {s.x}", "k"), count)
        found |= self.e.unjoin(place, sizes_of_axes(s.rows))
        with self.e.scope(places=found, masks={"x": mask} if mask else {}):
            self.along(self.text.assign(f"{column} * {s.r}", "k"), width, s.line)

    def in_order(self, block: str) -> None:
        s = self.schedule
        turns = self.text.number(_turns(s.line))
        with self.in_rows(block), self.text.block(f"for k in range({turns}):"):
            found = self.e.unjoin(Place(self.e.wide("k")), sizes_of_axes(s.line))
            with self.e.scope(places=self.e.placed(found)):
                self.stores()
            self.text.line("tl.debug_barrier()")

    def in_rows(self, block: str) -> Any:
        """A scope in which the block's rows are places."""
        s = self.schedule
        begin = block if s.x == 1 else self.text.assign(f"{block} * {s.x}", "k")
        place, mask = self.across(begin, _turns(s.rows))
        places = self.e.unjoin(place, sizes_of_axes(s.rows)) if s.rows else {}
        return self.e.scope(places=places, masks={"x": mask} if mask else {})

    def reduce(self, block: str) -> None:
        s = self.schedule
        with self.in_rows(block):
            for store in self.nest.stores:
                hoist(self.e, store.value, frozenset(self.e.places))
            turns = _turns(s.line)
            if not s.line:
                self.stores()
            elif most(turns) <= s.r:
                self.along("0", turns, s.line)
            else:
                name, end = self.text.fresh("k"), self.text.number(turns)
                with self.text.block(f"for {name} in range(0, {end}, {s.r}):"):
                    self.along(name, turns, s.line)


def sizes_of_axes(axes: tuple[Axis, ...]) -> dict[str, Size]:
    """The loops' sizes by name."""
    return {a.name: a.size for a in axes}
