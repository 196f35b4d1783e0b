"""Which tile, how many stages and how many parts of the sum: a model of what a product costs.

The numbers are of an H100 or H200; other devices differ in scale, not in which tile is best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from whet.targets.cuda.architecture import Architecture


@dataclass(frozen=True)
class Tile:
    """How a product is cut: rows, columns and depth of a step, and what a block is made of."""

    rows: int
    columns: int
    depth: int
    split: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Shape:
    """A product's sizes, `batch` of them; `bytes` of an element of both sides."""

    batch: int
    rows: int
    columns: int
    depth: int
    bytes: int


MATRIX_RATE = 6570.0  # 16-bit operations of a multiprocessor in a nanosecond, with large tiles
PLAIN_RATE = 380.0  # the same without matrix units
SHARED_RATE = 224.0  # bytes that its matrix units and copies move in shared memory in a nanosecond
L2_RATE = 90.0  # bytes that it reads from the second-level cache in a nanosecond
LATENCY = 960.0  # nanoseconds from asking for a step's operands to their being there
MEMORY_RATE = 2300.0  # bytes in a nanosecond, whole device
OVERHEAD, PIECE = 45.0, 40.0  # nanoseconds of a step's barriers and addresses; more for a piece
START = 1270.0  # nanoseconds of a block's beginning and end
RESULT_RATE = 31.0  # bytes of results that a multiprocessor computes and writes in a nanosecond
BOTH = 0.2  # the part of memory's time that does not pass beside the multiprocessors', or theirs
RAGGED = 1.1  # where columns end within a tile
SPLIT, PART = 505.0, 116.0  # nanoseconds of a sum in parts, and of each part
PARTIAL_RATE = 1770.0  # bytes of partial sums in a nanosecond, written and read
"""Fitted to some thousand kernels on an H200 (benchmarks/gpu_tiles.py)."""


def pieces(columns: int) -> tuple[tuple[int, int], ...]:
    """A tile's columns as powers of two, the first of each and how many: 192 are 128 and 64."""
    found: list[tuple[int, int]] = []
    begin = 0
    while begin < columns:
        count = 1 << ((columns - begin).bit_length() - 1)
        found.append((begin, count))
        begin += count
    return tuple(found)


def ranked(shape: Shape, architecture: Architecture) -> list[Tile]:
    """Tiles by their cost, the least first; of those that differ in depth and stages alone, the
    best."""
    costs = {t: cost(shape, t, architecture) for t in candidates(shape, architecture)}
    best: dict[tuple[int, int, int, int], Tile] = {}
    for tile in sorted(costs, key=lambda t: (costs[t], -t.stages)):
        best.setdefault((tile.rows, tile.columns, tile.split, tile.warps), tile)
    return list(best.values())


def close(shape: Shape, architecture: Architecture, factor: float) -> list[Tile]:
    """Tiles that cost at most so many times as much as the best, the best first."""
    costs = {t: cost(shape, t, architecture) for t in candidates(shape, architecture)}
    most = factor * min(costs.values())
    found = sorted((c, -t.stages, n, t) for n, (t, c) in enumerate(costs.items()) if c <= most)
    return [t for *_, t in found]


def candidates(
    shape: Shape, architecture: Architecture, depths: tuple[int, ...] = (32, 64, 128)
) -> Iterator[Tile]:
    """The tiles that fit an architecture and are not mostly empty."""
    if shape.bytes > 2:
        yield from _plain(shape)
        return
    for rows, columns, warps in TILES:
        if rows >= 2 * max(16, _power_of_two(shape.rows)):
            continue
        if columns >= 2 * max(32, _power_of_two(shape.columns)):
            continue
        if rows * columns > 128 * 128 and not architecture.has_warp_groups:
            continue
        for depth in depths:
            if depth > 32 and depth >= 2 * _power_of_two(shape.depth):
                continue
            if depth * shape.bytes > 128 and rows * columns >= 64 * 128:
                continue  # room for more steps on their way is worth more
            steps = -(-shape.depth // depth)
            for stages in (3, 4, 5):
                if stages > max(3, steps):
                    continue
                if (
                    stages * (rows + columns) * depth * shape.bytes
                    > architecture.shared_bytes - 2048
                ):
                    continue
                whole = len(pieces(columns)) > 1
                for split in SPLITS[: 1 if whole else None]:
                    tile = Tile(rows, columns, depth, split, warps, stages)
                    if split == 1 or (steps >= 2 * split and scratch(shape, tile) <= MOST_SCRATCH):
                        yield tile
                if (
                    not whole
                    and shape.bytes == 2
                    and rows * columns >= 64 * 64
                    and steps >= 8
                    and _may_stream(shape, tile, architecture)
                ):
                    yield replace(tile, split=STREAM)


def count(shape: Shape, tile: Tile) -> int:
    """How many tiles a product is cut into."""
    return shape.batch * -(-shape.rows // tile.rows) * -(-shape.columns // tile.columns)


def _may_stream(shape: Shape, tile: Tile, architecture: Architecture) -> bool:
    """Whether the last of a few waves of blocks may leave many multiprocessors idle."""
    return 0.5 <= count(shape, tile) / architecture.multiprocessors <= 8


def streams(tile: Tile, architecture: Architecture, steps: int) -> int:
    """How many blocks share so many steps."""
    together = 2 if tile.rows * tile.columns <= 64 * 128 else 1
    return min(steps, architecture.multiprocessors * together)


def scratch(shape: Shape, tile: Tile) -> int:
    """Bytes of a product's partial sums."""
    return 4 * count(shape, tile) * tile.rows * tile.columns * tile.split


MOST_SCRATCH = 64 << 20

TILES = (
    (16, 32, 2),
    (16, 64, 4),
    (16, 128, 4),
    (32, 32, 2),
    (32, 64, 4),
    (32, 128, 4),
    (64, 32, 4),
    (64, 64, 4),
    (64, 128, 4),
    (128, 32, 4),
    (128, 64, 4),
    (128, 128, 8),
    (128, 128, 4),
    (64, 256, 4),
    (64, 256, 8),
    (256, 64, 8),
    (128, 256, 8),
    (256, 128, 8),
    (128, 96, 8),
    (128, 192, 8),
    (64, 192, 4),
    (256, 192, 8),
)
"""Rows, columns and warps. Columns that are no power of two are there for products that would leave
many multiprocessors idle; their sums are not cut into parts."""
STREAM = 0
"""In place of a number of parts: every block does as many steps, from any tile to any other."""

SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)


def _plain(shape: Shape) -> Iterator[Tile]:
    """Without matrix units, registers hold the tiles: small ones."""
    for rows, columns in ((16, 32), (32, 32), (32, 64), (64, 32), (64, 64)):
        for split in SPLITS:
            if split == 1 or shape.depth >= 64 * split:
                yield Tile(rows, columns, 16, split, 4, 2)


def cost(shape: Shape, tile: Tile, architecture: Architecture) -> float:
    """About how many nanoseconds the product takes."""
    tiles = count(shape, tile)
    if tile.split == STREAM:
        return _stream_cost(shape, tile, architecture, tiles)
    blocks = tiles * tile.split
    each = -(-blocks // architecture.multiprocessors)
    steps = -(-shape.depth // (tile.depth * tile.split))
    together = min(each, resident(tile, shape, architecture))
    step = _step(shape, tile, together)
    result = tile.rows * tile.columns * shape.bytes / RESULT_RATE
    alone = steps * step + START + result
    busy = max(each * (steps * step + result) + START, -(-each // together) * alone)
    busy *= RAGGED if shape.columns % tile.columns else 1.0
    partial = 0.0
    if tile.split > 1:
        bytes_of_sums = 8.0 * shape.batch * shape.rows * shape.columns * tile.split
        partial = SPLIT + bytes_of_sums / PARTIAL_RATE + PART * tile.split
    sides = shape.rows * shape.depth + shape.depth * shape.columns + shape.rows * shape.columns
    memory = shape.batch * sides * shape.bytes / MEMORY_RATE
    return max(busy, memory) + BOTH * min(busy, memory) + partial


def _step(shape: Shape, tile: Tile, together: int) -> float:
    work = 2.0 * tile.rows * tile.columns * tile.depth
    moved = (tile.rows + tile.columns) * tile.depth * shape.bytes
    if shape.bytes > 2:
        return max(work / PLAIN_RATE, moved / L2_RATE) + OVERHEAD
    counts = [count for _, count in pieces(tile.columns)]
    # Each group of 64 rows reads its own rows once for each piece, and all columns.
    read = (
        -(-tile.rows // 64) * sum(min(64, tile.rows) + n for n in counts) * tile.depth * shape.bytes
    )
    bounds = (
        work * shape.bytes / (2 * MATRIX_RATE * _efficiency(tile)),  # of 8 bits twice as many
        (read + moved) / SHARED_RATE,
        moved / L2_RATE,
        LATENCY / ((tile.stages - 1) * together),
    )
    return max(bounds) + OVERHEAD + PIECE * (len(counts) - 1)


def _stream_cost(shape: Shape, tile: Tile, architecture: Architecture, tiles: int) -> float:
    steps = tiles * -(-shape.depth // tile.depth)
    share = steps / architecture.multiprocessors * _step(shape, tile, 1)
    result = tile.rows * tile.columns * shape.bytes / RESULT_RATE
    parts = 16.0 * streams(tile, architecture, steps) * tile.rows * tile.columns / PARTIAL_RATE
    results = result * (tiles / architecture.multiprocessors + 1)
    return share + START + results + SPLIT + 2 * PART + parts


def _efficiency(tile: Tile) -> float:
    """The part of the matrix units' rate that a tile of this size can reach."""
    area = math.sqrt(tile.rows * tile.columns)
    room = 128 * 32 * tile.warps - tile.rows * tile.columns
    crowded = 0.64 if room < 0 else 0.9 if room == 0 and tile.warps <= 4 else 1.0
    return min(1.0, 0.2 + 0.013 * area) * (0.185 if tile.rows < 64 else 1.0) * crowded


def resident(tile: Tile, shape: Shape, architecture: Architecture) -> int:
    """How many blocks share a multiprocessor."""
    shared = tile.stages * (tile.rows + tile.columns) * tile.depth * shape.bytes + 1024
    registers = tile.rows * tile.columns // (tile.warps * 32) + 64
    by_registers = 65536 // (registers * tile.warps * 32)
    return max(1, min(architecture.shared_bytes // shared, by_registers, 8))


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
