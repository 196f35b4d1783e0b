"""Which schedules are likely to be fast: cycles counted from registers, loads and cache lines.

The constants were fitted to kernels on one AVX-512 processor; only their ratios matter, since the
guess ranks schedules, and measuring has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.templates import lanewise, winograd
from whet.targets.cpu.templates.dense import Panels, tile_spans
from whet.targets.cpu.templates.dense_tile import BLOCK
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution
from whet.targets.cpu.templates.tiling import Grid, split_even

L1, L1_WAYS, L2 = 32 << 10, 8, 1 << 20
"""Bytes of a core's caches and ways of the first, the least of today's processors."""
LATENCY = 4
"""Cycles until a sum can be used again; two products start in each cycle."""
LINE_FROM_L2 = 4.0
"""Cycles lost for each line of x that is not in the first-level cache."""
WEIGHT_FROM_L2 = 1 / 80
"""Cycles lost for each byte of weight that streams from the second-level cache."""
WEIGHT_FROM_L3 = 1 / 5
"""Cycles that one core waits for each byte beyond that, if it does nothing else meanwhile."""
AHEAD_FROM = 3
"""Tiles of a panel, between which the next panel's weights are fetched."""
EXPOSED, EXPOSED_AHEAD = 0.9, 0.6
"""How much of the shorter of computing and waiting comes on top of the longer."""
X_FROM_L3 = 1 / 24
SCATTERED = 1 / 12
"""Cycles lost for each byte of a large y that is written panel by panel, or by several cores."""
BLOCK_TILES = 8
MOST_PANEL = 256 << 10
"""Bytes of a panel of weights that every tile may walk as a whole."""
PART = 24 << 10
"""Bytes of weight that stay in the first-level cache while all tiles use them."""
SUMS = 96 << 10
"""Bytes of sums that may wait on a thread's stack meanwhile."""
TILE = 40.0
"""Cycles to call a tile, and STORE for each of its vectors."""
STORE = 1.5
PATCH = 48.0
"""Cycles to transform one vector of a patch, there or back."""


def candidates(
    c: Convolution, architecture: Architecture, threads: int, transforms: bool = False
) -> list[Schedule]:
    """Schedules worth measuring, the best guess first."""
    ranked = weighed(c, architecture, threads, transforms)
    likely = [s for s in ranked if ranked[s] <= 1.3 * min(ranked.values())][:6]
    return [in_parts(c, s, architecture, threads) for s in likely]


def weighed(
    c: Convolution, architecture: Architecture, threads: int, transforms: bool = False
) -> dict[Schedule, float]:
    """Every schedule that was thought of, with its cost, the least first."""
    if lanewise.fits(c, architecture):
        return dict.fromkeys(_lanewise_candidates(c, architecture, threads), 1.0)
    costs: dict[Schedule, float] = {}
    tiles = list(register_tiles(c, architecture))
    for tile in tiles:
        for schedule in walks(c, *tile, threads):
            costs.setdefault(schedule, DenseCost(c, schedule, architecture, threads).cycles)
    if transforms and winograd.fits(c):
        for schedule in _transforming(c, tiles, architecture, threads):
            cost = WinogradCost(c, schedule, architecture, threads)
            costs.setdefault(schedule, cost.cycles)
    return {s: costs[s] for s in sorted(costs, key=lambda schedule: costs[schedule])}


def _transforming(
    c: Convolution, tiles: list[tuple[int, int]], architecture: Architecture, threads: int
) -> Iterator[Schedule]:
    """Schedules of Winograd's filtering whose patches have room on a thread's stack."""
    few, lanes = architecture.vector_registers - 4, architecture.vector_bytes // 4
    tiles = [*tiles, (few, 1)] if winograd.patches(c) <= few else tiles
    for outputs, vectors in tiles:
        if winograd.group_bytes(c, outputs, vectors * lanes) > winograd.STACK:
            continue
        for schedule in walks(c, outputs, vectors, threads):
            yield replace(schedule, winograd=True, unroll=4, block=0)


def alike(
    c: Convolution, schedule: Schedule, architecture: Architecture, threads: int, most: int
) -> list[Schedule]:
    """Other schedules that may be faster, and give the same bits from the same packed weight."""
    ranked = weighed(c, architecture, threads, schedule.winograd)
    lanes = architecture.vector_bytes // 4
    width = Panels.balanced(c.groups, c.group_filters, lanes, schedule.vectors)
    # Where a sum of several taps is cut into blocks, the borders of a tile decide where.
    blocks = c.taps > 1 and c.depth > BLOCK and not (schedule.depth or schedule.winograd)
    fixed = blocks or lanewise.fits(c, architecture)
    found = []
    for other in ranked:
        other = in_parts(c, other, architecture, threads)
        same_panels = Panels.balanced(c.groups, c.group_filters, lanes, other.vectors) == width
        same = (other.winograd, other.depth) == (schedule.winograd, schedule.depth)
        same = same and (other.outputs == schedule.outputs or not fixed)
        if same_panels and same and other != schedule:
            found.append(other)
    return found[:most]


def register_tiles(c: Convolution, architecture: Architecture) -> Iterator[tuple[int, int]]:
    """(outputs, vectors) whose sums, weights and one element of x fit into the registers: as many
    as do, and where those are two tiles, three smaller ones, between which weights come in."""
    spare = 2 if architecture.vector_registers > 16 else 1
    spare += 0 if architecture.fma else 1
    registers = architecture.vector_registers - spare
    needed = -(-c.group_filters // (architecture.vector_bytes // 4))
    most_outputs = c.batch * math.prod(c.outputs)
    for vectors in (1,) if needed == 1 else (2, 3, 4, 6, 8):
        outputs = (registers - vectors) // vectors
        if vectors <= needed and outputs >= 1 and (vectors <= 4 or most_outputs <= 4):
            outputs = min(outputs, 28)
            yield outputs, vectors
            if outputs < most_outputs <= 2 * outputs:
                yield -(-most_outputs // AHEAD_FROM), vectors


def walks(c: Convolution, outputs: int, vectors: int, threads: int) -> Iterator[Schedule]:
    """The ways to walk the output with one register tile."""
    unroll = 2 if c.taps > 1 else 4
    # Where x and y overflow a core's cache, a few tiles at a time go through all panels.
    overflow = activation_bytes(c) / threads > L2 and c.weight_bytes < L2 // 2
    block = BLOCK_TILES if overflow and c.filters * 4 > vectors * 64 else 0
    yield Schedule(outputs, vectors, unroll=unroll, teams=1, block=block)
    if c.filters * 4 > vectors * 64 and (threads > 1 or c.weight_bytes > L2 // 4):
        yield Schedule(outputs, vectors, unroll=unroll, teams=0)
        if c.weight_bytes > L2 // 4:
            yield Schedule(outputs, vectors, unroll=unroll, teams=0, ahead=True)


def in_parts(
    c: Convolution, schedule: Schedule, architecture: Architecture, threads: int
) -> Schedule:
    """The schedule with its sum in parts, where a panel of weights takes too much of the caches to
    be walked tile by tile."""
    panels = Panels.balanced(
        c.groups, c.group_filters, architecture.vector_bytes // 4, schedule.vectors
    )
    tiles = Grid(c.batch, tile_spans(c.in_three_dimensions(), schedule.outputs)).tiles
    few = tiles < 3 * (threads if schedule.teams == 1 else 1)
    large = 4 * c.depth * panels.width > MOST_PANEL
    if schedule.winograd or few or not large or c.group_channels % 4:
        return schedule
    depth = PART // (4 * panels.width)
    most = max(1, SUMS // (schedule.outputs * panels.width * 4))
    block = min(schedule.block or tiles, most) if most < tiles else schedule.block
    return replace(schedule, depth=depth, block=block, unroll=4, ahead=True)


def activation_bytes(c: Convolution) -> int:
    """Bytes of x and y."""
    x, y = math.prod(c.size) * c.channels, math.prod(c.outputs) * c.filters
    return 4 * c.batch * (x + y)


def step_cycles(
    architecture: Architecture, outputs: int, vectors: int, weights: int, reuse: float
) -> float:
    """Cycles for one step of a sum; `weights` are the bytes of a panel."""
    products = outputs * vectors * (0.5 if architecture.fma else 1.0)
    cycles = max(products, (outputs + vectors) / 2, LATENCY)
    if weights > L1 // 2:
        cycles += vectors * architecture.vector_bytes * WEIGHT_FROM_L2
    return cycles + LINE_FROM_L2 * outputs * reuse * 4 / 64


@dataclass
class DenseCost:
    """An estimate for the dense template."""

    c: Convolution
    schedule: Schedule
    architecture: Architecture
    threads: int

    @property
    def cycles(self) -> float:
        """Cycles of the thread with the most work."""
        c = self.c.in_three_dimensions()
        lanes = self.architecture.vector_bytes // 4
        panels = Panels.balanced(c.groups, c.group_filters, lanes, self.schedule.vectors)
        grid = Grid(c.batch, tile_spans(c, self.schedule.outputs))
        tiles, columns = self._shares(grid.tiles, panels.count)
        full = self._tile_cycles(grid, panels.vectors, panels)
        last = self._tile_cycles(grid, -(-panels.last // lanes), panels)
        rest = 1 / panels.per_group
        per_panel = full * (1 - rest) + last * rest
        compute = columns * tiles * per_panel
        compute += self._activation_cycles(tiles / grid.tiles, columns / c.groups)
        ahead = self.schedule.ahead and grid.tiles >= AHEAD_FROM
        return overlapped(compute, c.weight_bytes * columns / panels.count, ahead)

    def _activation_cycles(self, share: float, panels: float) -> float:
        """Cycles to wait for x and y where a core's cache does not hold them."""
        c, s = self.c, self.schedule
        x_bytes = 4 * c.batch * math.prod(c.size) * c.channels * share
        y_bytes = 4 * c.batch * math.prod(c.outputs) * c.filters / self.threads
        if x_bytes + y_bytes <= L2:
            return 0.0
        passes = 1.0 if s.block else panels
        x_cycles = X_FROM_L3 * x_bytes * passes if x_bytes > L2 else 0.0
        scattered = s.teams != 1 or (panels > 1 and not s.block)
        return x_cycles + (SCATTERED * y_bytes if scattered else 0.0)

    def _shares(self, tiles: int, panels: int) -> tuple[int, int]:
        """Tiles and panels of the busiest thread."""
        teams = self.schedule.teams or self.threads
        teams = min(max(teams, -(-self.threads // tiles)), self.threads, panels)
        members = max(1, self.threads // teams)
        return -(-tiles // members), -(-panels // teams)

    def _tile_cycles(self, grid: Grid, vectors: int, panels: Panels) -> float:
        """Cycles of an average tile of one panel."""
        total = 0.0
        for row in grid.axes[1]:
            for column in grid.axes[2]:
                outputs = row.size * column.size
                step = self._step_cycles(outputs, vectors, panels)
                store = TILE + STORE * outputs * vectors
                total += row.count * column.count * (self.c.depth * step + store)
        return total * sum(span.count for span in grid.axes[0]) * grid.batch / grid.tiles

    def _step_cycles(self, outputs: int, vectors: int, panels: Panels) -> float:
        """Cycles for one step of the sum in a tile."""
        weights = self.c.depth * vectors * self.architecture.vector_bytes
        reuse = 1.0 if self.c.taps == 1 else 0.4
        cycles = step_cycles(self.architecture, outputs, vectors, weights, reuse)
        return cycles * (1.3 if self._conflicts(outputs) > L1_WAYS - 2 else 1.0)

    def _conflicts(self, outputs: int) -> int:
        """How many elements of x that a step reads lie in one set of the first-level cache."""
        distance = 4 * self.c.x_strides[-2] * self.c.steps[-1] % 4096
        return outputs if distance < 64 else -(-outputs * min(distance, 4096 - distance) // 4096)


def overlapped(compute: float, weights: float, ahead: bool) -> float:
    """Cycles to compute while bytes of weight come from far."""
    traffic = weights * WEIGHT_FROM_L3
    exposed = EXPOSED_AHEAD if ahead else EXPOSED
    return max(compute, traffic) + exposed * min(compute, traffic)


@dataclass
class WinogradCost:
    """An estimate for the Winograd template."""

    c: Convolution
    schedule: Schedule
    architecture: Architecture
    threads: int

    @property
    def cycles(self) -> float:
        """Cycles of the thread with the most work."""
        c, s = self.c, self.schedule
        lanes = self.architecture.vector_bytes // 4
        panels = Panels.balanced(1, c.filters, lanes, s.vectors)
        sizes = split_even(winograd.patches(c), s.outputs)
        outputs, groups = sizes[0], len(sizes)
        teams = self.threads if s.teams == 0 else max(1, self.threads // groups)
        teams = min(teams, panels.count)
        mine = -(-winograd.patches(c) // (self.threads // teams))
        columns = -(-panels.count // teams)
        size = winograd.POINTS * c.channels * panels.width * 4
        step = step_cycles(self.architecture, outputs, panels.vectors, size, 1.0)
        products = winograd.POINTS * (c.channels * step + TILE + STORE * outputs * panels.vectors)
        transforms = PATCH * (-(-c.channels // lanes) + columns * panels.vectors)
        held = max(1, winograd.STACK // (winograd.POINTS * outputs * c.channels * 4))
        passes = -(-mine // (held * outputs)) if size * columns > L2 else 1
        compute = mine * (products * columns / outputs + transforms)
        if activation_bytes(c) > L2 * self.threads:
            compute += SCATTERED * activation_bytes(c) / 2 / self.threads
        exposed = WEIGHT_FROM_L3 * (0.8 if s.ahead else 1.0)
        return 1.1 * (compute + size * columns * passes * exposed)


def _lanewise_candidates(
    c: Convolution, architecture: Architecture, threads: int
) -> list[Schedule]:
    """Widths that the registers hold, and heights that keep x in the caches."""
    width = c.outputs[-1]
    taps = min(c.kernel[-1], lanewise.MOST_COLUMNS)
    most = max(1, min(14, architecture.vector_registers - taps - 2))
    # A few taps don't repay the wider tile, whose borders have more variants.
    widths = [most, 8] if taps > 3 or width <= most else [8, most]
    fits_l2 = 4 * math.prod(c.size) * c.channels <= threads * L2
    heights = (7, 14, 4, 1) if fits_l2 else (1, 4)
    found = [_lanewise_tile(c, threads, widths[0], height) for height in heights]
    found.append(_lanewise_tile(c, threads, min(widths[1], most), heights[0]))
    return list(dict.fromkeys(found))


def _lanewise_tile(c: Convolution, threads: int, most_width: int, most_height: int) -> Schedule:
    """A tile of at most that size; threads share the chunks where tiles would not come out even."""
    height, width = c.in_three_dimensions().outputs[1:]
    columns, rows = -(-width // most_width), -(-height // most_height)
    tiles = c.batch * rows * columns
    teams = 0 if tiles < 2 * threads and tiles % threads else 1
    return Schedule(-(-width // columns), rows=-(-height // rows), teams=teams)
