"""Depthwise convolution, and groups of few channels: each lane of a vector is a channel of y.

A chunk is as many whole groups as fill a vector. Each vector of x in the tile's footprint is loaded
once and feeds every tap that needs it; where groups have several channels, a shuffle brings the
same channel of each group to all of that group's lanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Index, Module, vector
from whet.targets.cpu.templates.epilogue import BIAS, WEIGHT, Epilogue, Origin, X, finish
from whet.targets.cpu.templates.packing import Packing
from whet.targets.cpu.templates.range_grid import Open, OpenGrid
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution
from whet.targets.cpu.templates.tiling import (
    Grid,
    Span,
    Taps,
    Tile,
    axes_of,
    run_time_spans,
    runs,
    share,
    spans,
    tap_range,
)

MOST_COLUMNS = 8
"""Column taps that are written out; more become a loop."""

LATENCY = 8
"""Products that a core has under way at once: 4 cycles of 2."""

Met = tuple[int, list[tuple[int, int]]]


@dataclass(frozen=True)
class Chunks:
    """Groups in chunks of a vector each, the last one perhaps with fewer."""

    groups: int
    inputs: int
    outputs: int
    """Channels of x and of y in a group."""
    most: int
    """Groups in a chunk."""

    @property
    def count(self) -> int:
        return -(-self.groups // self.most)

    @property
    def whole(self) -> int:
        return self.groups // self.most

    @property
    def lanes(self) -> int:
        return self.most * self.outputs


def chunks_of(c: Convolution, architecture: Architecture) -> Chunks:
    """The chunks of a convolution whose groups fit twice into a vector."""
    lanes = architecture.vector_bytes // 4
    return Chunks(c.groups, c.group_channels, c.group_filters, lanes // c.group_filters)


def fits(c: Convolution, architecture: Architecture) -> bool:
    """Whether this template is the one to use."""
    lanes = architecture.vector_bytes // 4
    narrow = c.group_filters * 2 <= lanes and c.group_channels <= lanes // 2
    return c.groups > 1 and narrow and c.x_strides[-1] == 1


def packing(c: Convolution, schedule: Schedule, architecture: Architecture) -> Packing:
    """[chunk, *taps, input channel of a group, group of the chunk, output channel of a group]."""
    p = chunks_of(c, architecture)
    depth = (*c.in_three_dimensions().kernel, c.group_channels)
    return Packing(
        shape=(c.groups, c.group_filters, *depth),
        padded=(p.count * p.most, c.group_filters, *depth),
        split=(p.count, p.most, c.group_filters, *depth),
        order=(0, 3, 4, 5, 6, 1, 2),
    )


class Lanewise:
    """Generates one kernel."""

    x_bytes = 4
    """Bytes of an element of x."""

    def __init__(
        self,
        convolution: Convolution,
        schedule: Schedule,
        architecture: Architecture,
        epilogue: Epilogue,
        name: str,
    ) -> None:
        self.rank, self.c = convolution.rank, convolution.in_three_dimensions()
        self.schedule, self.epilogue, self.name = schedule, epilogue, name
        self.module = Module(architecture.vector_bytes * 8)
        self.chunks = chunks_of(self.c, architecture)
        self.axes = axes_of(self.c)
        self.grid = Grid(self.c.batch, tile_spans(self.c, schedule))
        self.walked: Grid | OpenGrid = self.grid
        self.tiles: dict[tuple[Span, ...], str] = {}

    def generate(self) -> str:
        """The kernel and its tile functions as LLVM assembly."""
        parameters = {"arguments": "ptr noalias", "thread": "i64", "threads": "i64"}
        f = self.module.function(self.name, parameters)
        _, thread, threads = f.parameters
        if self.c.is_told:
            resolve = lambda size: self.epilogue.size(f, size)  # noqa: E731
            self.walked = OpenGrid.of(f, self.c.batch, self.grid.axes, resolve, threads)
        part = share(f, thread, threads, self.walked.tiles, self.chunks.count, self.schedule.teams)

        def call(i: Index, tile: Tile) -> None:
            named: dict[str, Index] = {"arguments": "%arguments", "n": tile.batch}
            named |= {"first": part.first_panel, "end": part.end_panel}
            named |= dict(zip("zyx", tile.outputs))
            types = self._tile_parameters()
            given = ", ".join(f"{type} {named[name]}" for name, type in types.items())
            f.do(f"call void @{self._tile(tile.spans)}({given})")

        self.walked.each(f, part.first_tile, part.end_tile, call)
        f.end()
        return self.module.text()

    def _tile_parameters(self) -> dict[str, str]:
        """Name and type of what a tile function is told; indices that are always 0 are left out."""
        indices = zip("nzyx", self.walked.extents)
        names = {"arguments": "ptr", "first": "i64", "end": "i64"}
        return names | {name: "i64" for name, extent in indices if extent not in (0, 1)}

    def _tile(self, tile: tuple[Span, ...]) -> str:
        if tile not in self.tiles:
            self.tiles[tile] = f"{self.name}_tile{len(self.tiles)}"
            self.emit_tile(tile, self.tiles[tile])
        return self.tiles[tile]

    def emit_tile(self, tile: tuple[Span, ...], name: str) -> None:
        """Writes the function for a variant of tile."""
        LanewiseTile(self, tile, name).emit()


class LanewiseTile:
    """Generates the function for one variant of tile: all its chunks, and in each all its rows."""

    def __init__(self, kernel: Lanewise, tile: tuple[Span, ...], name: str) -> None:
        self.k, self.c, self.chunks, self.tile = kernel, kernel.c, kernel.chunks, tile
        parameters = kernel._tile_parameters()
        self.f = kernel.module.function(name, parameters, linkage="internal", attributes="noinline")
        self.at: dict[str, Index] = {p: f"%{p}" for p in parameters}
        """Batch and output indices: 0 where they always are."""
        told = kernel.epilogue.size
        self.strides = tuple(told(self.f, stride) for stride in self.c.x_strides)
        """Those of x in elements, as registers where a run tells sizes."""
        self.axes = [replace(axis, size=told(self.f, axis.size)) for axis in kernel.axes]
        self.weight_step = 4 * self.chunks.lanes
        """Bytes from one packed weight vector to the next."""

    def emit(self) -> None:
        """The whole function: a loop over whole chunks, then the last one if it is narrower."""
        f, chunks = self.f, self.chunks
        self.x, self.weight, self.bias = (
            f.load("ptr", "%arguments", 8 * slot) for slot in (X, WEIGHT, BIAS)
        )
        first_row = self.at.get("y", 0)
        all_rows = self.k.epilogue.size(f, self.c.outputs[1])
        rows = first_row, f.min(f.add(first_row, self.tile[1].size), all_rows)

        def chunk(i: Index, groups: int) -> None:
            f.loop(*rows, 1, lambda y, _: self._row(i, groups, y), guard=False)

        if chunks.whole:
            end = f.min("%end", chunks.whole)
            f.loop("%first", end, 1, lambda i, _: chunk(i, chunks.most))
        if chunks.whole < chunks.count:
            is_last = f.compare("eq", "i64", "%end", str(chunks.count))
            f.when(is_last, lambda: chunk(chunks.whole, chunks.groups - chunks.whole * chunks.most))
        f.end()

    def _row(self, chunk: Index, groups: int, y: str) -> None:
        """The outputs of one row of the tile, for one chunk."""
        f, c, rank = self.f, self.c, self.k.rank
        self.at["y"] = y
        self.bounds = [
            tap_range(f, axis, self.at.get(name, 0)) if span.taps is None else None
            for axis, span, name in zip(self.axes, self.tile, "zyx")
        ]
        lanes = groups * self.chunks.outputs
        channel = f.mul(chunk, self.chunks.lanes)
        first = "zeroinitializer" if lanes > 1 else "0.0"
        if c.bias:
            first = f.load(vector("float", lanes), self.bias, f.mul(channel, 4))
        weight = f.address(self.weight, f.mul(chunk, self.weight_step * c.depth))
        sums = [first] * self.tile[2].size
        sums = self._sum(0, groups, (self._x(chunk), weight), sums)
        indices = (self.at.get("n", 0), *(self.at.get(name, 0) for name in "zyx"[-rank:]))
        origin = Origin("%arguments", (*indices, channel))
        sums = [self._result(value, lanes) for value in sums]
        results = [((*[0] * rank, place, 0), lanes, value) for place, value in enumerate(sums)]
        y_strides = (c.y_strides[0], *c.y_strides[4 - rank :])
        finish(f, self.k.epilogue, origin, y_strides, results)

    def _result(self, value: str, lanes: int) -> str:
        """A sum as what comes after it wants it."""
        return value

    def _x(self, chunk: Index) -> str:
        """The address under the first tap of the first output; it may lie outside the image."""
        f, c, size = self.f, self.c, self.k.x_bytes
        offset = f.mul(self.at.get("n", 0), f.mul(self.strides[0], size))
        for name, stride, step, before in zip("zyx", self.strides[1:4], c.steps, c.before):
            first = f.sub(f.mul(self.at.get(name, 0), step), before)
            offset = f.add(offset, f.mul(first, f.mul(stride, size)))
        offset = f.add(offset, f.mul(chunk, size * self.chunks.most * self.chunks.inputs))
        return f.address(self.x, offset)

    def _sum(self, axis: int, groups: int, at: tuple[str, str], sums: list[str]) -> list[str]:
        """The loops over the taps from an axis on; `at` is (x, weight)."""
        taps, bounds = self.tile[axis].taps, self.bounds[axis]
        if axis == 2 and taps is not None and len(taps) <= MOST_COLUMNS:
            return self._patch(groups, at, sums, taps)
        stretches = [(*bounds, (0,))] if bounds else runs(taps or ())
        for low, high, places in stretches:
            if places:
                sums = self._loop(axis, (low, high), groups, at, sums, places)
        return sums

    def _loop(
        self,
        axis: int,
        bounds: tuple[Index, Index],
        groups: int,
        at: tuple[str, str],
        sums: list[str],
        places: tuple[int, ...],
    ) -> list[str]:
        """A loop over taps of one axis."""
        f, c, (low, high) = self.f, self.c, bounds
        x_step = f.mul(self.strides[axis + 1], self.k.x_bytes * c.dilations[axis])
        weight_step = self.weight_step * c.group_channels * math.prod(c.kernel[axis + 1 :])

        def turn(tap: Index, values: list[str]) -> list[str]:
            x, weight = at
            here = f.address(x, f.mul(tap, x_step)), f.address(weight, f.mul(tap, weight_step))
            if axis == 2:
                return self._patch(groups, here, values, (places,))
            return self._sum(axis + 1, groups, here, values)

        if isinstance(low, int) and isinstance(high, int) and high - low <= 1:
            return turn(low, sums) if low < high else sums
        type = vector("float", groups * self.chunks.outputs)
        # Where an axis has one output only, one of the bounds may be known and the other not.
        is_known = isinstance(low, int) and isinstance(high, int)
        guard = not (is_known or self.k.axes[axis].never_empty)
        return f.loop(low, high, 1, turn, [(type, value) for value in sums], guard)

    def _patch(self, groups: int, at: tuple[str, str], sums: list[str], columns: Taps) -> list[str]:
        """Written-out column taps: each vector of x is loaded once for all that need it."""
        f, (x, weight), sums = self.f, at, list(sums)
        type = vector("float", groups * self.chunks.outputs)
        for channel in range(self.c.group_channels):
            taps = {
                tap: f.load(
                    type, weight, (tap * self.c.group_channels + channel) * self.weight_step
                )
                for tap, places in enumerate(columns)
                if places
            }
            for column, pairs in self._order(columns):
                value = self._input(groups, x, column, channel)
                for place, tap in pairs:
                    sums[place] = f.fma(type, value, taps[tap], sums[place])
        return sums

    def _order(self, columns: Taps) -> list[Met]:
        """The products in an order in which none waits for the one before."""
        if isinstance(self.k.axes[2].output, int):
            return interleaved(self._reach(columns))
        # An output may be in tiles of several widths: its sum must not depend on which.
        step, dilation = self.c.steps[2], self.c.dilations[2]
        return [
            (place * step + tap * dilation, [(place, tap)])
            for tap, places in enumerate(columns)
            for place in places
        ]

    def _reach(self, columns: Taps) -> list[Met]:
        """Each input column under the tile, with the (place, tap) pairs that meet there."""
        step, dilation = self.c.steps[2], self.c.dilations[2]
        met: dict[int, list[tuple[int, int]]] = {}
        for tap, places in enumerate(columns):
            for place in places:
                met.setdefault(place * step + tap * dilation, []).append((place, tap))
        return sorted(met.items())

    def _input(self, groups: int, x: str, column: int, channel: int) -> str:
        """One input channel of each group, in all lanes of the group."""
        f, inputs, outputs = self.f, self.chunks.inputs, self.chunks.outputs
        type = vector("float", groups * inputs)
        value = self._load(x, self.k.x_bytes * column * self.c.x_strides[3], groups * inputs)
        if inputs == outputs == 1:
            return value
        lanes = [group * inputs + channel for group in range(groups) for _ in range(outputs)]
        if len(lanes) == 1:
            return f.extract(type, value, lanes[0])
        if groups * inputs == 1:
            return f.splat(vector("float", outputs), value)
        return f.shuffle(type, value, "poison", lanes)

    def _load(self, x: str, offset: int, lanes: int) -> str:
        """Neighbouring channels of x."""
        return self.f.load(vector("float", lanes), x, offset)


def interleaved(columns: list[Met]) -> list[Met]:
    """The columns in an order in which products for the same sum are LATENCY products apart.

    Neighbouring columns feed the same sums: taken in turn they would wait for each other.
    """
    products = max((len(pairs) for _, pairs in columns), default=1)
    waves = max(1, min(len(columns), -(-LATENCY // products)))
    length = -(-len(columns) // waves)
    order = (wave * length + i for i in range(length) for wave in range(waves))
    return [columns[i] for i in order if i < len(columns)]


def tile_spans(c: Convolution, schedule: Schedule) -> tuple[list[Span], list[Span], list[Span]]:
    """Tiles of `rows` rows, that are walked at run time, by `outputs` columns."""
    plane, row, column = axes_of(c)
    (all_rows,) = run_time_spans(row)
    rows = Span(0, (row.output + schedule.rows - 1) // schedule.rows, schedule.rows, all_rows.taps)
    is_known = isinstance(column.output, int)
    columns: Any = (
        spans(column, schedule.outputs) if is_known else Open(column, schedule.outputs, 1)
    )
    return run_time_spans(plane), [rows], columns
