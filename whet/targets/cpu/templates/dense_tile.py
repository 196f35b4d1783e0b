"""The register tile of the dense template: the function for one variant of tile.

Long sums are made in blocks whose results are added up in memory: one chain of n float32 additions
has an error that grows with the square root of n (Higham, Accuracy and Stability, section 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from whet.targets.cpu.llvm import Function, Index, split_type, vector
from whet.targets.cpu.templates.epilogue import BIAS, Origin, X, finish
from whet.targets.cpu.templates.specification import Convolution
from whet.targets.cpu.templates.tiling import (
    Span,
    runs,
    tap_range,
)

if TYPE_CHECKING:
    from whet.targets.cpu.templates.dense import Dense

BLOCK = 128
"""Products that are summed before the result is added to the total, more or less."""

Run = tuple[Index, Index, tuple[int, ...]]
"""A stretch [low, high) of a sum axis, and the outputs of the tile that it contributes to."""


@dataclass(frozen=True)
class SumAxis:
    """One loop of the sum: its stretches, and bytes from one step to the next in x and weight."""

    runs: tuple[Run, ...]
    x_step: Index
    weight_step: int
    length: int
    """Steps, those outside the image included."""


def taps_innermost(c: Convolution) -> bool:
    """Whether the sum runs over column taps inside of channels: where there are few of these."""
    return not merges_taps(c) and c.group_channels < c.kernel[-1]


def merges_taps(c: Convolution) -> bool:
    """Whether x continues evenly from the channels of one column tap to those of the next."""
    return c.dilations[-1] * c.x_strides[-2] == c.group_channels * c.x_strides[-1]


def sum_lengths(c: Convolution) -> tuple[int, ...]:
    """Steps of the loops of the sum from the outside in."""
    planes, height, width = c.kernel
    if merges_taps(c):
        return planes, height, width * c.group_channels
    inner = (c.group_channels, width) if taps_innermost(c) else (width, c.group_channels)
    return planes, height, *inner


class DenseTile:
    """Generates the function for one variant of tile."""

    fills = False
    """Whether taps outside the image are multiplied, too."""

    def __init__(self, kernel: Dense, tile: tuple[Span, ...], channels: int, name: str) -> None:
        self.k, self.c, self.tile, self.channels = kernel, kernel.c, tile, channels
        self.type, self.lanes = kernel.type, kernel.lanes
        self.vectors = -(-channels // self.lanes)
        parameters = kernel._tile_parameters()
        self.f = kernel.module.function(name, parameters, linkage="internal", attributes="noinline")
        self.given: dict[str, Index] = {p: f"%{p}" for p in parameters}
        told = kernel.epilogue.size
        self.strides = tuple(told(self.f, stride) for stride in self.c.x_strides)
        """Those of x in elements, as registers where a run tells sizes."""
        self.axes = [replace(axis, size=told(self.f, axis.size)) for axis in kernel.axes]
        _, height, width = (span.size for span in tile)
        self.places = [(y, x) for y in range(height) for x in range(width)]
        _, y_stride, x_stride = self.c.x_strides[1:4]
        _, y_step, x_step = self.c.steps
        self.x_offsets = [
            kernel.x_bytes * (y * y_step * y_stride + x * x_step * x_stride) for y, x in self.places
        ]

    def emit(self) -> None:
        """The whole function: start from the bias, sum, then the epilogue."""
        f = self.f
        sums = self._start()
        if "ahead" in self.given:
            sums.append(str(self.given["ahead"]))
        axes = self._sum_axes()
        self.total = self._total(axes, len(sums))
        x, weight = (self._x(), 0), (str(self.given["weight"]), 0)
        sums = self._sum(axes, x, weight, sums, tuple(range(len(self.places))))
        self._finish(self._with_total(sums))
        f.end()

    def _total(self, axes: list[SumAxis], count: int) -> str:
        """Memory for the sums of the blocks, zeros at first; none if there is one block."""
        axis, self.block_steps = block_of([axis.length for axis in axes], self.k.block)
        self.block_inner = len(axes) - 1 - axis
        if not self.block_steps:
            return ""
        size = self.lanes * 4
        vectors = len(self.places) * self.vectors
        total = self.f.alloca(vectors * size)
        for i in range(vectors):
            self.f.store(self.type, "zeroinitializer", total, i * size, size)
        return total

    def _with_total(self, sums: list[str]) -> list[str]:
        """The sums of the last block and of all before."""
        if not self.total:
            return sums
        f, size = self.f, self.lanes * 4
        whole = []
        for i in range(len(self.places) * self.vectors):
            before = f.load(self.type, self.total, i * size, size)
            whole.append(f.binary("fadd", self.type, before, sums[i]))
        return [*whole, *sums[len(whole) :]]

    def _new_block(self, sums: list[str]) -> list[str]:
        """Adds the sums to the totals, and begins at zero."""
        size, whole = self.lanes * 4, self._with_total(sums)
        vectors = len(self.places) * self.vectors
        for i in range(vectors):
            self.f.store(self.type, whole[i], self.total, i * size, size)
        return ["zeroinitializer"] * vectors + sums[vectors:]

    def _maybe_new_block(self, i: Index, sums: list[str]) -> list[str]:
        """A new block on every `block_steps`-th turn of an outer loop."""
        f, every = self.f, self.block_steps
        if every == 1 or isinstance(i, int):
            return self._new_block(sums) if every == 1 or int(i) % every == 0 else sums
        due = f.compare("eq", "i64", str(f.rem(i, every)), "0")
        types = [type for type, _ in self._carried(sums)]
        return f.when(due, lambda: self._new_block(sums), lambda: sums, types)

    def _start(self) -> list[str]:
        f, first = self.f, []
        if not self.c.bias:
            return ["zeroinitializer"] * (len(self.places) * self.vectors)
        bias = f.address(f.load("ptr", "%arguments", 8 * BIAS), f.mul("%channel", 4))
        for j in range(self.vectors):
            lanes = min(self.lanes, self.channels - j * self.lanes)
            value = f.load(vector(self.k.element, lanes), bias, 4 * j * self.lanes)
            first.append(widened(f, value, lanes, self.type))
        return first * len(self.places)

    def _x(self) -> str:
        """The address under the first tap of the first output; it may lie outside the image."""
        f, c, size = self.f, self.c, self.k.x_bytes
        offset = f.mul(self.given.get("n", 0), f.mul(self.strides[0], size))
        for name, stride, step, before in zip("zyx", self.strides[1:4], c.steps, c.before):
            first = f.sub(f.mul(self._output(name), step), before)
            offset = f.add(offset, f.mul(first, f.mul(stride, size)))
        group = f.mul(self.given.get("group", 0), size * c.group_channels * c.x_strides[-1])
        return f.address(f.load("ptr", "%arguments", 8 * X), f.add(offset, group))

    def _output(self, name: str) -> Index:
        return self.given.get(name, 0)

    def _sum_axes(self) -> list[SumAxis]:
        """The loops of the sum from the outside in, as the packed weight lies."""
        c = self.c
        step = self.k.step_bytes
        channels, (planes, height, width) = c.group_channels, c.kernel
        x_steps = self._x_steps()
        plane, row, column = (self._runs(axis) for axis in range(3))
        all_channels: Run = (0, channels, tuple(range(len(self.places))))
        outer = [
            SumAxis(plane, x_steps[0], height * width * channels * step, planes),
            SumAxis(row, x_steps[1], width * channels * step, height),
        ]
        x_channel = 4 * c.x_strides[-1]
        if merges_taps(c):
            f = self.f
            merged = tuple((f.mul(a, channels), f.mul(b, channels), p) for a, b, p in column)
            return [*outer, SumAxis(merged, x_channel, step, width * channels)]
        if taps_innermost(c):
            channel = SumAxis((all_channels,), x_channel, width * step, channels)
            return [*outer, channel, SumAxis(column, x_steps[2], step, width)]
        channel = SumAxis((all_channels,), x_channel, step, channels)
        return [*outer, SumAxis(column, x_steps[2], channels * step, width), channel]

    def _x_steps(self) -> list[Index]:
        """Bytes of x from a tap to the next, for each spatial axis."""
        f, pairs = self.f, zip(self.strides[1:4], self.c.dilations)
        return [f.mul(stride, dilation * self.k.x_bytes) for stride, dilation in pairs]

    def _runs(self, axis: int) -> tuple[Run, ...]:
        """The stretches of taps of a spatial axis, with the outputs of the tile they are for."""
        taps = self.tile[axis].taps
        everywhere = tuple(range(len(self.places)))
        if taps is None:
            low, high = tap_range(self.f, self.axes[axis], self._output("zyx"[axis]))
            return ((low, high, everywhere),)
        if axis == 0:
            return tuple((a, b, everywhere) for a, b, inside in runs(taps) if inside)
        found = []
        for low, high, inside in runs(taps):
            places = tuple(q for q, yx in enumerate(self.places) if yx[axis - 1] in inside)
            if places:
                found.append((low, high, places))
        return tuple(found)

    def _sum(
        self,
        axes: list[SumAxis],
        x: tuple[str, int],
        weight: tuple[str, int],
        sums: list[str],
        places: tuple[int, ...],
    ) -> list[str]:
        """The loops of the sum; x and weight are (address, known offset)."""
        axis, inner = axes[0], axes[1:]
        for low, high, inside in axis.runs:
            both = tuple(q for q in places if q in inside)
            if not both and not self.fills:
                continue
            if inner:
                sums = self._outer_loop(axis, inner, (low, high), x, weight, sums, both)
            else:
                sums = self._inner_loop(axis, (low, high), x, weight, sums, both)
        return sums

    def _carried(self, sums: list[str]) -> list[tuple[str, str]]:
        vectors = len(self.places) * self.vectors
        return [(self.type if i < vectors else "ptr", value) for i, value in enumerate(sums)]

    def _outer_loop(
        self,
        axis: SumAxis,
        inner: list[SumAxis],
        bounds: tuple[Index, Index],
        x: tuple[str, int],
        weight: tuple[str, int],
        sums: list[str],
        places: tuple[int, ...],
    ) -> list[str]:
        f, (low, high) = self.f, bounds
        blocks = self.block_steps > 0 and len(inner) == self.block_inner
        if isinstance(low, int) and isinstance(high, int) and high - low == 1:
            x, weight = f.ahead(x, low, axis.x_step), f.ahead(weight, low, axis.weight_step)
            sums = self._maybe_new_block(low, sums) if blocks else sums
            return self._sum(inner, x, weight, sums, places)

        def turn(i: str, values: list[str]) -> list[str]:
            x_here = (f.address(x[0], f.mul(i, axis.x_step)), x[1])
            weight_here = (f.address(weight[0], f.mul(i, axis.weight_step)), weight[1])
            values = self._maybe_new_block(i, values) if blocks else values
            return self._sum(inner, x_here, weight_here, values, places)

        return f.loop(low, high, 1, turn, self._carried(sums), self._guard(low, high))

    def _inner_loop(
        self,
        axis: SumAxis,
        bounds: tuple[Index, Index],
        x: tuple[str, int],
        weight: tuple[str, int],
        sums: list[str],
        places: tuple[int, ...],
    ) -> list[str]:
        """The innermost loop, `unroll` steps a turn, and the steps that are left over."""
        f, (low, high) = self.f, bounds
        unroll, moves = self._unroll(low, high), (axis.x_step, axis.weight_step)
        known = isinstance(low, int) and isinstance(high, int)
        end = low + (high - low) // unroll * unroll if known else high  # type: ignore[operator]

        def turn(i: Index, values: list[str]) -> list[str]:
            here = [(f.address(p, f.mul(i, s)), o) for (p, o), s in zip((x, weight), moves)]
            values = self._fetch_ahead(values)
            for u in range(unroll):
                x_here, weight_here = (f.ahead(h, u, s) for h, s in zip(here, moves))
                values = self._step(x_here, weight_here, values, places)
            return values

        def block(i: str, values: list[str]) -> list[str]:
            stop = f.min(f.add(i, self.block_steps), end)
            values = self._new_block(values)
            return f.loop(i, stop, unroll, turn, self._carried(values), guard=False)

        steps = self.block_steps if self.block_inner == 0 else 0
        if not known or end - low > unroll:  # type: ignore[operator]
            guard = self._guard(low, end)
            if steps and not (known and end - low <= steps):  # type: ignore[operator]
                sums = f.loop(low, end, steps, block, self._carried(sums), guard)
            else:
                if steps and end - low > steps // 3:  # type: ignore[operator]
                    sums = self._new_block(sums)
                sums = f.loop(low, end, unroll, turn, self._carried(sums), guard)
        elif end > low:  # type: ignore[operator]
            sums = turn(low, sums)
        for i in range(end, high) if known else ():  # type: ignore[arg-type]
            x_here, weight_here = (f.ahead(a, i, s) for a, s in zip((x, weight), moves))
            sums = self._step(x_here, weight_here, sums, places)
        return sums

    def _guard(self, low: Index, high: Index) -> bool:
        """Whether a loop may have no turns: where padding is wider than the kernel."""
        if isinstance(low, int) and isinstance(high, int):
            return low >= high
        return not all(axis.never_empty for axis in self.k.axes)

    def _unroll(self, low: Index, high: Index) -> int:
        wanted = self.k.schedule.unroll
        if taps_innermost(self.c):
            # Written-out taps would share elements of x, whose long lives cost spills.
            return 1
        if isinstance(low, int) and isinstance(high, int):
            return max(1, min(wanted, high - low))
        return math.gcd(wanted, self.c.group_channels)

    def _fetch_ahead(self, sums: list[str]) -> list[str]:
        if "ahead" not in self.given:
            return sums
        lines = self.k.ahead_lines
        for line in range(lines):
            self.f.prefetch(sums[-1], 64 * line, locality=2)
        return [*sums[:-1], self.f.address(sums[-1], 64 * lines)]

    def _step(
        self, x: tuple[str, int], weight: tuple[str, int], sums: list[str], places: tuple[int, ...]
    ) -> list[str]:
        """One product for each output and vector."""
        f, vectors = self.f, self.vectors
        size = self.lanes * 4
        row = [f.load(self.type, weight[0], weight[1] + size * j, size) for j in range(vectors)]
        distance = self.k.schedule.prefetch
        for line in range(0, vectors * size if distance else 0, 64):
            f.prefetch(weight[0], weight[1] + line + distance)
        sums = list(sums)
        for q in places:
            element = f.splat(self.type, f.load("float", x[0], x[1] + self.x_offsets[q]))
            for j in range(vectors):
                at = q * vectors + j
                sums[at] = f.fma(self.type, element, row[j], sums[at])
        return sums

    def _finish(self, sums: list[str]) -> None:
        """The epilogue, and the stores."""
        f, c, rank = self.f, self.c, self.k.rank
        indices = (self.given.get("n", 0), *(self._output(name) for name in "zyx"[-rank:]))
        results = []
        for q, place in enumerate(self.places):
            for j in range(self.vectors):
                lanes = min(self.lanes, self.channels - j * self.lanes)
                value = narrowed(f, sums[q * self.vectors + j], lanes, self.type)
                results.append(((0, *(0, *place)[-rank:], j * self.lanes), lanes, value))
        origin = Origin("%arguments", (*indices, "%channel"))
        y_strides = (c.y_strides[0], *c.y_strides[4 - rank :])
        finish(f, self.k.epilogue, origin, y_strides, results)


def block_of(lengths: list[int], block: int) -> tuple[int, int]:
    """(axis, steps of it) after which a new block of the sum begins; no steps: a single block."""
    if math.prod(lengths) <= block * 3 // 2:
        return 0, 0
    for axis in range(len(lengths)):
        inner = math.prod(lengths[axis + 1 :])
        if inner <= block * 5 // 4:
            break
    if axis + 1 < len(lengths):
        return axis, max(1, 3 * block // 4 // inner)
    blocks = -(-lengths[-1] // block)
    return axis, -(-lengths[-1] // blocks // 12) * 12


def widened(f: Function, value: str, lanes: int, to: str) -> str:
    """The value in the first lanes of a vector type."""
    element, count = split_type(to)
    if lanes == count:
        return value
    if lanes == 1:
        return f.insert(to, "poison", value, 0)
    order = [*range(lanes), *[-1] * (count - lanes)]
    return f.shuffle(vector(element, lanes), value, "poison", order)


def narrowed(f: Function, value: str, lanes: int, type: str) -> str:
    """The first `lanes` lanes of a vector type."""
    if lanes == split_type(type)[1]:
        return value
    if lanes == 1:
        return f.extract(type, value, 0)
    return f.shuffle(type, value, "poison", range(lanes))
