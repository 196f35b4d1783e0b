"""Direct convolution and matrix product: a tile of outputs x vectors of channels in registers.

Each step of the sum loads the vectors of the packed weight and multiplies them by one element of
x for each output (a broadcast); there is no im2col, no copy of x and no border in memory. Taps
outside the image are left out when the code is made, by variants of the tile, or by loop bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, Index, Module, vector
from whet.targets.cpu.templates.dense_parts import Parts, PartTile
from whet.targets.cpu.templates.dense_tile import BLOCK, DenseTile, sum_lengths, taps_innermost
from whet.targets.cpu.templates.epilogue import WEIGHT, Epilogue
from whet.targets.cpu.templates.packing import Packing
from whet.targets.cpu.templates.range_grid import Open, OpenGrid
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution
from whet.targets.cpu.templates.tiling import (
    Grid,
    Share,
    Span,
    Tile,
    axes_of,
    run_time_spans,
    runs,
    share,
    spans,
)


@dataclass(frozen=True)
class Panels:
    """Output channels of each group in panels of `vectors` vectors, the last perhaps narrower."""

    groups: int
    channels: int
    lanes: int
    vectors: int

    @classmethod
    def balanced(cls, groups: int, channels: int, lanes: int, most: int) -> Panels:
        """Panels of nearly equal width."""
        vectors = -(-channels // lanes)
        panels = -(-vectors // most)
        return cls(groups, channels, lanes, -(-vectors // panels))

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def per_group(self) -> int:
        return -(-self.channels // self.width)

    @property
    def count(self) -> int:
        return self.groups * self.per_group

    @property
    def last(self) -> int:
        """Channels of the last panel of a group."""
        return self.channels - (self.per_group - 1) * self.width


def packing(c: Convolution, schedule: Schedule, architecture: Architecture) -> Packing:
    """[group, panel, *taps, channel, lane], or channels before column taps (`taps_innermost`)."""
    lanes = architecture.vector_bytes // 4
    p = Panels.balanced(c.groups, c.group_filters, lanes, schedule.vectors)
    taps = c.in_three_dimensions().kernel
    depth = (*taps, c.group_channels)
    order = (0, 1, 3, 4, 6, 5, 2) if taps_innermost(c) else (0, 1, 3, 4, 5, 6, 2)
    return Packing(
        shape=(c.groups, c.group_filters, *depth),
        padded=(c.groups, p.per_group * p.width, *depth),
        split=(c.groups, p.per_group, p.width, *depth),
        order=order,
    )


FETCHING = 3
"""Of tiles whose number only a run tells so many fetch the next panel; those behind them what is
there already."""


WAITING = 32
"""Of such tiles as many add up a sum in parts together: there is room for so many sums."""


class Dense:
    """Generates one kernel."""

    element = "float"
    """What is summed, four bytes wide."""
    x_bytes, weight_bytes = 4, 4
    """Bytes of an element of x, and of what a step multiplies with it for each channel of y."""
    tile_class: type[DenseTile] = DenseTile

    def __init__(
        self,
        convolution: Convolution,
        schedule: Schedule,
        architecture: Architecture,
        epilogue: Epilogue,
        name: str,
        module: Module | None = None,
        block: int = BLOCK,
    ) -> None:
        self.block = block
        self.rank, self.c = convolution.rank, convolution.in_three_dimensions()
        if convolution.is_told and schedule.depth and not schedule.block:
            schedule = replace(schedule, block=WAITING)
        self.schedule, self.epilogue, self.name = schedule, epilogue, name
        self.module = module or Module(architecture.vector_bytes * 8)
        self.lanes = architecture.vector_bytes // 4
        self.type = vector(self.element, self.lanes)
        self.panels = Panels.balanced(
            self.c.groups, self.c.group_filters, self.lanes, schedule.vectors
        )
        self.step_bytes = self.panels.width * self.weight_bytes
        self.panel_bytes = self.steps * self.step_bytes
        self.axes = axes_of(self.c)
        spans = tile_spans(self.c, schedule.outputs, self.panels.vectors)
        self.grid = Grid(self.c.batch, spans)
        self.walked: Grid | OpenGrid = self.grid
        """The grid, its numbers in registers where a run tells them."""
        self.parts = Parts.of(sum_lengths(self.c), schedule.depth) if schedule.depth else None
        self.ahead_lines = self.lines_ahead()
        self.tiles: dict[tuple[tuple[Span, ...], int], str] = {}

    def generate(self) -> str:
        """The kernel and its tile functions as LLVM assembly."""
        parameters = {"arguments": "ptr noalias", "thread": "i64", "threads": "i64"}
        f = self.module.function(self.name, parameters)
        arguments, thread, threads = f.parameters
        if self.c.is_told:
            self.walked = self._open_grid(f, threads)
        tiles = self.walked.tiles
        part = share(f, thread, threads, tiles, self.panels.count, self.schedule.teams)
        weight = f.load("ptr", arguments, 8 * WEIGHT)
        block = self.schedule.block
        if self.parts is not None:
            most = block if self.c.is_told else min(block or self.grid.tiles, self.grid.tiles)
            self.sums = f.alloca(most * self.sums_bytes)

        def one_block(first: str, _: list[str]) -> None:
            end = f.min(f.add(first, block), part.end_tile)
            self._each_panel(f, Share(first, end, part.first_panel, part.end_panel), weight)

        if block and (not isinstance(tiles, int) or block < tiles):
            f.loop(part.first_tile, part.end_tile, block, one_block, guard=True)
        else:
            self._each_panel(f, part, weight)
        f.end()
        return self.module.text()

    def _each_panel(self, f: Function, part: Share, weight: str) -> None:
        p = self.panels

        def one_panel(panel: str, _: list[str]) -> None:
            group, place = f.div(panel, p.per_group), f.rem(panel, p.per_group)
            packed = f.address(weight, f.mul(panel, self.panel_bytes))
            first = f.add(f.mul(group, p.channels), f.mul(place, p.width))

            def tiles(channels: int) -> None:
                if self.parts is None:
                    following = f.address(packed, self.panel_bytes)
                    self._each_tile(f, part, packed, following, group, first, channels)
                    return
                self._each_part(f, self.parts, part, packed, group, first, channels)

            if p.last == p.width or p.per_group == 1:
                tiles(p.last)
                return
            is_last = f.compare("eq", "i64", str(place), str(p.per_group - 1))
            f.when(is_last, lambda: tiles(p.last), lambda: tiles(p.width))

        f.loop(part.first_panel, part.end_panel, 1, one_panel, guard=True)

    def _each_part(
        self,
        f: Function,
        parts: Parts,
        share: Share,
        packed: str,
        group: Index,
        channel: Index,
        channels: int,
    ) -> None:
        """All tiles add a part of the sum, then all of them the next."""

        def one_part(part: str, _: list[str]) -> None:
            following = f.address(packed, f.mul(f.add(part, 1), parts.depth * self.step_bytes))
            self._each_tile(f, share, packed, following, group, channel, channels, part)

        f.loop(0, parts.count, 1, one_part)

    def _each_tile(
        self,
        f: Function,
        share: Share,
        packed: str,
        following: str,
        group: Index,
        channel: Index,
        channels: int,
        part: Index = 0,
    ) -> None:
        arguments = f.parameters[0]

        def call(i: Index, tile: Tile) -> None:
            function = self.tile(tile.spans, channels)
            is_own = self.parts is not None or self.c.is_told
            number = f.sub(i, share.first_tile) if is_own else i
            named = {"arguments": arguments, "weight": packed, "channel": channel, "group": group}
            named |= {"n": tile.batch, "part": part} | dict(zip(("z", "y", "x"), tile.outputs))
            if self.ahead_lines:
                named["ahead"] = f.address(following, self._ahead_offset(f, number))
            if self.parts is not None:
                named["sums"] = f.address(self.sums, f.mul(number, self.sums_bytes))
            values = [named[name] for name in self._tile_parameters()]
            types = self._tile_parameters().values()
            given = ", ".join(f"{type} {value}" for type, value in zip(types, values, strict=True))
            f.do(f"call void @{function}({given})")

        self.walked.each(f, share.first_tile, share.end_tile, call)

    def _tile_parameters(self) -> dict[str, str]:
        """Name and type of what a tile function is told; indices that are always 0 are left out."""
        names = {"arguments": "ptr", "weight": "ptr", "channel": "i64"}
        if self.ahead_lines:
            names["ahead"] = "ptr"
        if self.parts is not None:
            names |= {"part": "i64", "sums": "ptr"}
        if self.c.groups > 1:
            names["group"] = "i64"
        indices = zip(("n", "z", "y", "x"), self.walked.extents)
        return names | {name: "i64" for name, extent in indices if extent not in (0, 1)}

    def _open_grid(self, f: Function, threads: str) -> OpenGrid:
        """The tiles, now that their numbers are in registers."""
        sharers = 1 if self.schedule.teams == 0 and self.panels.count > 1 else threads
        return OpenGrid.of(
            f, self.c.batch, self.grid.axes, lambda size: self.epilogue.size(f, size), sharers
        )

    @property
    def steps(self) -> int:
        """Steps of the sum of one result."""
        return self.c.depth

    @cached_property
    def turns(self) -> int:
        """Turns of the innermost sum loop in a full tile."""
        return max(1, self._stretch_steps // self.schedule.unroll)

    @property
    def sums_bytes(self) -> int:
        """Room for what a tile has added up."""
        return self.schedule.outputs * self.panels.vectors * self.lanes * 4

    @property
    def _stretch_steps(self) -> int:
        """Steps of the sum that all tiles make before any goes on."""
        return self.steps if self.parts is None else self.parts.depth

    @property
    def _stretch_bytes(self) -> int:
        return self._stretch_steps * self.step_bytes

    def lines_ahead(self) -> int:
        """Cache lines of the next panel or part that each turn fetches, so that all tiles fetch
        all."""
        if not self.schedule.ahead or (self.panels.count == 1 and self.parts is None):
            return 0
        tiles = FETCHING if self.c.is_told else self.grid.tiles
        return max(1, -(-self._stretch_bytes // (64 * tiles * self.turns)))

    def _ahead_offset(self, f: Function, number: Index) -> Index:
        """Where in the next panel or part a tile begins to fetch."""
        fetched = self.turns * self.ahead_lines * 64
        if not self.c.is_told:
            return f.mul(number, min(fetched, self._stretch_bytes // self.grid.tiles))
        return f.min(f.mul(number, fetched), max(self._stretch_bytes - fetched, 0))

    def tile(self, tile: tuple[Span, ...], channels: int) -> str:
        """The name of the function for a variant of tile."""
        key = (tile, channels)
        if key not in self.tiles:
            self.tiles[key] = f"{self.name}_tile{len(self.tiles)}"
            kind = self.tile_class if self.parts is None else PartTile
            kind(self, tile, channels, self.tiles[key]).emit()
        return self.tiles[key]


def tile_spans(
    c: Convolution, most: int, vectors: int = 1
) -> tuple[list[Span], list[Span], list[Span]]:
    """Tiles of a row of outputs, or of several whole rows where these are short."""
    plane, row, column = axes_of(c)
    if not isinstance(column.output, int):
        columns: Any = Open(column, most, vectors)
        return run_time_spans(plane), run_time_spans(row), columns
    columns = spans(column, most)
    height = min(most // column.output, row.output) if isinstance(row.output, int) else 0
    if height > 1 and len(columns) == 1 and columns[0].taps is not None:
        rows = spans(row, height, most_runs=3)
        if rows[0].taps is not None and rows[0].size > 1 and len(runs(columns[0].taps)) <= 5:
            return run_time_spans(plane), rows, columns
    return run_time_spans(plane), run_time_spans(row), columns
