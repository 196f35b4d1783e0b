"""Large products whose blocks stay: as many as run at a time take tile after tile, and tensor-map
descriptors, which each block makes once, say where both sides lie.

A block asks for a tile's first operands while the results of the one before are computed and
stored. Tiles come in the order in which plain blocks do, and a tile's sum is one block's.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace

from whet.ir.sizes import Size, coefficient, substitute
from whet.ir.types import NUMPY_DTYPES
from whet.plan.kernel import Axis, Template
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import Emitter
from whet.targets.cuda.templates import tiling
from whet.targets.cuda.templates.contraction import Code, Problem, Work, integer

WIDTH = 2  # bytes of a number
ALIGNED = 16 // WIDTH  # numbers: what a descriptor's address and strides are multiples of
MOST_STRIDE = 2**40 // WIDTH
DESCRIPTOR = 128  # bytes
DEPTH = 64  # of a step: as many numbers as the widest swizzle of shared memory mixes

FEWEST_NANOSECONDS = 40e3
FEWEST_WAVES = 2.0
"""Of a product that is tried so, by the model of its cost: making descriptors takes some 2 us."""

MOST_EACH = 8 * 128 * 256
"""Results of a multiprocessor: with more, plain tiles were faster (H200: with 4 tiles of 128 x 256
each, 4096^3, 0.97 of a plain tile's time; with 10 and 15, 1.05 and 1.07)."""

FEWEST_ROWS = 64  # of a tile
MOST_RESULTS = 32 << 10  # bytes of 16-bit results that pass through shared memory at a time

PLACES = (1, 3)
"""Among a product's tiles: never the first, which is taken where nothing is measured."""


@dataclass(frozen=True)
class Persistent(tiling.Tile):
    """A tile of blocks that stay."""


@dataclass(frozen=True)
class Matrix:
    """One side as it lies in memory: lines of numbers side by side, `stride` numbers apart."""

    buffer: int
    offset: int
    lines: int
    width: int
    stride: int
    is_turned: bool
    """Whether lines are columns of the product's side."""


def matrices(kernel: Template, p: Problem) -> tuple[Matrix, Matrix] | None:
    """Both sides as descriptors may say where they lie; None where they cannot."""
    a, b = kernel.inputs
    assert a is not None and b is not None
    if kernel.sizes or NUMPY_DTYPES[a.dtype].itemsize != WIDTH:
        return None
    depth = (Axis("depth", p.depth),)
    left = _matrix(a.buffer, p.offsets[0], p.rows, depth)
    right = _matrix(b.buffer, p.offsets[1], depth, (p.column,))
    return None if left is None or right is None else (left, right)


def _matrix(
    buffer: int, offset: Size, rows: tuple[Axis, ...], columns: tuple[Axis, ...]
) -> Matrix | None:
    """A side whose elements lie evenly, and those of rows or of columns side by side."""
    base = substitute(offset, {axis.name: 0 for axis in (*rows, *columns)})
    steps = [_step(offset, axes) for axes in (rows, columns)]
    # Where there are several products, the base depends on which it is.
    if not isinstance(base, int) or 1 not in steps:
        return None
    is_turned = steps[1] != 1
    stride = steps[is_turned]
    sizes = [math.prod(integer(axis.size) for axis in axes) for axes in (rows, columns)]
    lines, width = reversed(sizes) if is_turned else sizes
    is_near = 0 < stride < MOST_STRIDE and max(sizes) < 2**31
    if not is_near or base % ALIGNED or stride % ALIGNED:
        return None
    return Matrix(buffer, base, lines, width, stride, is_turned)


def _step(offset: Size, axes: tuple[Axis, ...]) -> int:
    """How far apart elements of neighbouring turns of all loops are; 0 where not evenly."""
    steps = [coefficient(offset, axis.name) for axis in axes]
    last, turns = steps[-1], 1
    for axis, step in zip(reversed(axes), reversed(steps)):
        if not isinstance(last, int) or step != last * turns:
            return 0
        turns *= integer(axis.size)
    return int(last)  # type: ignore[arg-type]


def among(
    tiles: list[tiling.Tile], kernel: Template, p: Problem, shape: tiling.Shape, a: Architecture
) -> list[tiling.Tile]:
    """A product's tiles with those of blocks that stay, where they may pay."""
    least = tiling.cost(shape, tiles[0], a)
    found = list(tiles)
    if shape.rows * shape.columns > MOST_EACH * a.multiprocessors:
        return found
    for place, tile in zip(PLACES, ways(kernel, p, shape, a)):
        waves = tiling.count(shape, tile) / a.multiprocessors
        if least >= FEWEST_NANOSECONDS and waves >= FEWEST_WAVES:
            found.insert(place, tile)
    return found


def ways(
    kernel: Template, p: Problem, shape: tiling.Shape, architecture: Architecture
) -> list[Persistent]:
    """All tiles of blocks that stay, the most promising first."""
    if not architecture.has_tensor_memory_access or matrices(kernel, p) is None:
        return []
    plain = tiling.candidates(shape, architecture, (DEPTH,))
    fitting = [
        Persistent(*astuple(tile))
        for tile in plain
        if tile.split == 1 and tile.rows >= FEWEST_ROWS and room(tile) <= architecture.shared_bytes
    ]
    fitting.sort(key=lambda t: (tiling.cost(shape, t, architecture), -t.stages))
    best: dict[tuple[int, int, int], Persistent] = {}
    for tile in fitting:
        best.setdefault((tile.rows, tile.columns, tile.warps), tile)
    return list(best.values())


def room(tile: tiling.Tile) -> int:
    """Bytes of shared memory: operands of the next tile come while results pass through it."""
    steps = tile.stages * (tile.rows + tile.columns) * tile.depth * WIDTH
    results = tile.rows * max(count for _, count in tiling.pieces(tile.columns)) * WIDTH
    return steps + min(results, MOST_RESULTS) + 1024


@dataclass(frozen=True)
class Described:
    """One side, through its descriptors."""

    matrix: Matrix
    is_left: bool

    def __call__(self, code: Code, e: Emitter, step: str) -> str:
        """The load of the tile of a step; what lies outside is 0."""
        t, (begin, count) = code.tile, code.pieces[code.piece]
        depth = code.depth_of(step)
        first = f"row * {t.rows}"
        if not self.is_left:
            first = f"column * {t.columns}" + f" + {begin}" * (begin > 0)
        if code.index != "tl.int32":
            first = f"tl.cast({first}, tl.int32)"  # corners are of 32 bits, whatever offsets are
        name = self.name(t.rows if self.is_left else count)
        corner = (first, depth) if self.is_left else (depth, first)
        at = ", ".join(reversed(corner) if self.matrix.is_turned else corner)
        return code.text.assign(f"{name}.load([{at}])" + ".T" * self.matrix.is_turned, "t")

    def make(self, code: Code) -> int:
        """Writes a descriptor for each size of box; how many."""
        t, m = code.tile, self.matrix
        counts = {t.rows} if self.is_left else {count for _, count in code.pieces}
        base = code.names[m.buffer] + f" + {m.offset}" * (m.offset != 0)
        for count in sorted(counts):
            box = [count, t.depth] if self.is_left != m.is_turned else [t.depth, count]
            where = f"{base}, [{m.lines}, {m.width}], [{m.stride}, 1], {box}"
            code.text.line(f"{self.name(count)} = tl.make_tensor_descriptor({where})")
        return len(counts)

    def name(self, count: int) -> str:
        """Of the descriptor of boxes of so many rows or columns."""
        return f"{'left' if self.is_left else 'right'}{count}"


class PersistentCode(Code):
    """The function being written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        found = matrices(self.kernel, self.problem)
        assert found is not None
        rows, columns, depth = map(integer, (self.rows, self.columns, self.problem.depth))
        self.shape = tiling.Shape(1, rows, columns, depth, WIDTH)
        self.sides = Described(found[0], True), Described(found[1], False)
        self.problem = replace(self.problem, left=self.sides[0], right=self.sides[1])

    @property
    def blocks(self) -> int:
        """As many as run at a time."""
        t = self.tile
        together = max(1, self.architecture.shared_bytes // room(t))
        together = min(together, tiling.resident(t, self.shape, self.architecture))
        return min(integer(self.count), self.architecture.multiprocessors * together)

    def work(self) -> Work:
        """Tiles a grid apart."""
        blocks = self.blocks
        # Behind the wait: where descriptors lie, the kernel before may have its own until then.
        descriptors = sum(side.make(self) for side in self.sides)
        self.text.line("pid = tl.program_id(0)")
        tiles = f"tl.range(pid, {self.count}, {blocks}, flatten=True)"
        with self.text.block(f"for tile in {tiles}:"):
            self.place("tile")
            self.accumulate("0", str(self.steps))
            self.epilogue()
        return Work((blocks, 1, 1), scratch=DESCRIPTOR * descriptors * blocks)
