"""Convolutions and products of 8-bit integers, summed in int32: exact.

The dense template with four channels in the place of one float: a step multiplies the same four
bytes of x, in every lane, with four weights of each output channel. One instruction does that where
the processor has VNNI; elsewhere the bytes are split into even and odd ones, 16 bits wide, whose
products are added in pairs. Depthwise kernels compute in float32, which holds their sums exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, Index, literal, vector
from whet.targets.cpu.templates import lanewise
from whet.targets.cpu.templates.costs import DenseCost, register_tiles, walks
from whet.targets.cpu.templates.dense import Dense, Panels
from whet.targets.cpu.templates.dense_tile import DenseTile, Run, SumAxis, merges_taps
from whet.targets.cpu.templates.epilogue import Epilogue
from whet.targets.cpu.templates.lanewise import Lanewise, LanewiseTile
from whet.targets.cpu.templates.packing import Packing
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution
from whet.targets.cpu.templates.tiling import Span, runs, tap_range

ONE_BLOCK = 1 << 40
"""Integers add up exactly: their sums need no blocks."""

BYTES_OF_16 = 0x00FF00FF
"""The even bytes of an i32 as two numbers of 16 bits."""

EXACT = 1 << 24
"""Up to here every integer is a float32."""


@dataclass(frozen=True)
class Quads:
    """The sum of one output in steps of four bytes of x that lie side by side."""

    taps: int
    """Runs of such bytes on the last spatial axis of the kernel: its taps, or one where they
    join."""
    bytes: int
    """Bytes of a run."""
    joins: bool
    """Whether a run goes through all taps."""

    @property
    def count(self) -> int:
        return -(-self.bytes // 4)


def quads_of(c: Convolution) -> Quads:
    """How the bytes under a row of the kernel come in fours."""
    c = c.in_three_dimensions()
    joins = merges_taps(c) and not c.before[-1] and not c.after[-1]
    if joins:
        return Quads(1, c.kernel[-1] * c.group_channels, True)
    return Quads(c.kernel[-1], c.group_channels, False)


def candidates(c: Convolution, architecture: Architecture, threads: int) -> list[Schedule]:
    """Schedules of the dense template, the best guess first: four bytes cost what a float does."""
    fours = replace(c, channels=c.groups * -(-c.group_channels // 4), x_strides=(), y_strides=())
    found = {
        schedule: DenseCost(fours, schedule, architecture, threads).cycles
        for tile in register_tiles(fours, architecture)
        for schedule in walks(fours, *tile, threads)
    }
    return sorted(found, key=lambda schedule: found[schedule])


def is_quick(architecture: Architecture, weight: str) -> bool:
    """Whether one instruction multiplies and adds four bytes of x with such a weight."""
    return architecture.vnni and weight == "int8" and architecture.level != "neon"


def packing(c: Convolution, schedule: Schedule, architecture: Architecture, weight: str) -> Packing:
    """[group, panel, *taps, quad, channel of y, 4]; or [..., quad, odd, channel of y, 2]."""
    lanes = architecture.vector_bytes // 4
    p = Panels.balanced(c.groups, c.group_filters, lanes, schedule.vectors)
    quads = quads_of(c)
    rows = c.in_three_dimensions().kernel[:-1]
    lead = (c.groups, c.group_filters, *rows, quads.taps)
    wide = (c.groups, p.per_group * p.width, *rows, quads.taps)
    split = (c.groups, p.per_group, p.width, *rows, quads.taps, quads.count)
    shape, padded = (*lead, quads.bytes), (*wide, 4 * quads.count)
    if is_quick(architecture, weight):
        return Packing(shape, padded, (*split, 4), (0, 1, 3, 4, 5, 6, 2, 7))
    return Packing(shape, padded, (*split, 2, 2), (0, 1, 3, 4, 5, 6, 8, 2, 7))


class IntegerDense(Dense):
    """Generates one kernel; taps outside the image meet the byte `fill`."""

    element, x_bytes = "i32", 1
    tile_class: type[DenseTile]

    def __init__(
        self,
        convolution: Convolution,
        schedule: Schedule,
        architecture: Architecture,
        epilogue: Epilogue,
        name: str,
        weight: str,
        fill: int,
    ) -> None:
        self.architecture, self.weight, self.fill = architecture, weight, fill
        self.quick = is_quick(architecture, weight)
        self.weight_bytes = 4 if self.quick else 8
        self.quads = quads_of(convolution)
        self.tile_class = IntegerTile
        schedule = replace(schedule, depth=0)  # no sum waits in memory
        super().__init__(convolution, schedule, architecture, epilogue, name, None, ONE_BLOCK)

    @property
    def steps(self) -> int:
        return math.prod(self.c.kernel[:-1]) * self.quads.taps * self.quads.count


class IntegerTile(DenseTile):
    """Generates the function for one variant of tile."""

    k: IntegerDense
    rest = 0
    """Bytes of the last quad of a run, 0 for whole ones."""

    @property
    def fills(self) -> bool:  # type: ignore[override]
        return self.k.fill != 0

    def _sum_axes(self) -> list[SumAxis]:
        c, quads, step = self.c, self.k.quads, self.k.step_bytes
        planes, height, _ = c.kernel
        x_steps = self._x_steps()
        everywhere = tuple(range(len(self.places)))
        whole = quads.bytes // 4
        parts: list[Run] = [(0, whole, everywhere)] if whole else []
        parts += [(whole, quads.count, everywhere)] if whole < quads.count else []
        row = quads.taps * quads.count * step
        outer = [
            SumAxis(self._runs(0), x_steps[0], height * row, planes),
            SumAxis(self._runs(1), x_steps[1], row, height),
        ]
        if not quads.joins:
            outer.append(SumAxis(self._runs(2), x_steps[2], quads.count * step, quads.taps))
        return [*outer, SumAxis(tuple(parts), 4, step, quads.count)]

    def _runs(self, axis: int) -> tuple[Run, ...]:
        """With a fill, also the stretches of taps that lie outside."""
        if not self.fills:
            return super()._runs(axis)
        taps, everywhere = self.tile[axis].taps, tuple(range(len(self.places)))
        if taps is None:
            low, high = tap_range(self.f, self.axes[axis], self._output("zyx"[axis]))
            low = self.f.min(low, self.c.kernel[axis])
            high = self.f.max(low, high)
            return (0, low, ()), (low, high, everywhere), (high, self.c.kernel[axis], ())
        return tuple(
            (low, high, tuple(q for q, yx in enumerate(self.places) if yx[axis - 1] in inside))
            if axis
            else (low, high, everywhere if inside else ())
            for low, high, inside in runs(taps)
        )

    def _guard(self, low: Index, high: Index) -> bool:
        if isinstance(low, int) and isinstance(high, int):
            return low >= high
        return self.fills or super()._guard(low, high)

    def _unroll(self, low: Index, high: Index) -> int:
        assert isinstance(low, int) and isinstance(high, int)
        return max(1, min(self.k.schedule.unroll, high - low))

    def _inner_loop(
        self,
        axis: SumAxis,
        bounds: tuple[Index, Index],
        x: tuple[str, int],
        weight: tuple[str, int],
        sums: list[str],
        places: tuple[int, ...],
    ) -> list[str]:
        size = self.k.quads.bytes
        self.rest = size % 4 if bounds[0] == size // 4 else 0
        return super()._inner_loop(axis, bounds, x, weight, sums, places)

    def _step(
        self, x: tuple[str, int], weight: tuple[str, int], sums: list[str], places: tuple[int, ...]
    ) -> list[str]:
        """One quad multiplied for each output and vector."""
        sums = list(sums)
        filled = range(len(self.places)) if self.fills else places
        quads = {q: self._quad(x[0], x[1] + self.x_offsets[q]) for q in places}
        for half in range(1 if self.k.quick else 2):
            row = self._weights(weight, half)
            for q in filled:
                element = self._bytes(quads[q], half) if q in quads else self._outside()
                for j in range(self.vectors):
                    at = q * self.vectors + j
                    sums[at] = self._multiply(sums[at], element, row[j])
        return sums

    def _weights(self, weight: tuple[str, int], half: int) -> list[str]:
        size = self.lanes * 4
        first = weight[1] + half * self.k.panels.width * 4
        return [
            self.f.load(self.type, weight[0], first + size * j, size) for j in range(self.vectors)
        ]

    def _quad(self, x: str, offset: int) -> str:
        """Four bytes of x in every lane; those beyond the run are 0."""
        f = self.f
        if not self.rest:
            return f.splat(self.type, f.load("i32", x, offset, align=1))
        value = ""
        for at, bits in {1: ((0, 8),), 2: ((0, 16),), 3: ((0, 16), (2, 8))}[self.rest]:
            part = f.convert("zext", f.load(f"i{bits}", x, offset + at, 1), f"i{bits}", "i32")
            part = f.binary("shl", "i32", part, str(8 * at)) if at else part
            value = f.binary("or", "i32", value, part) if value else part
        return f.splat(self.type, value)

    def _bytes(self, quad: str, half: int) -> str:
        """The four bytes, or the even or the odd ones of them in 16 bits each."""
        if self.k.quick:
            return quad
        f = self.f
        if half == 0:
            return f.binary("and", self.type, quad, literal(self.type, BYTES_OF_16))
        pairs = vector("i16", 2 * self.lanes)
        words = f.convert("bitcast", quad, self.type, pairs)
        odd = f.binary("lshr", pairs, words, literal(pairs, 8))
        return f.convert("bitcast", odd, pairs, self.type)

    def _outside(self) -> str:
        unit = 0x01010101 if self.k.quick else 0x00010001
        number = unit * self.k.fill
        return literal(self.type, number - (1 << 32) if number >> 31 else number)

    def _multiply(self, total: str, x: str, weight: str) -> str:
        """total + the products of the numbers in each lane."""
        if self.k.quick:
            return dot_of_bytes(self.f, self.lanes, total, x, weight)
        return dot_of_pairs(self.f, self.k.architecture, total, x, weight)


def dot_of_bytes(f: Function, lanes: int, total: str, x: str, weight: str) -> str:
    """total + the four products of unsigned bytes and signed ones, in each i32."""
    type, bytes_ = vector("i32", lanes), vector("i8", 4 * lanes)
    given = [f.convert("bitcast", value, type, bytes_) for value in (x, weight)]
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return f.call(type, name, [(type, total), *((bytes_, value) for value in given)])


PAIRS = {
    "avx512": "llvm.x86.avx512.pmaddw.d.512",
    "avx2": "llvm.x86.avx2.pmadd.wd",
    "sse2": "llvm.x86.sse2.pmadd.wd",
}


def dot_of_pairs(f: Function, architecture: Architecture, total: str, x: str, weight: str) -> str:
    """total + the two products of numbers of 16 bits, in each i32."""
    lanes = architecture.vector_bytes // 4
    type, words = vector("i32", lanes), vector("i16", 2 * lanes)
    if architecture.level not in PAIRS:
        return _dot_by_shifts(f, type, total, x, weight)
    given = [(words, f.convert("bitcast", value, type, words)) for value in (x, weight)]
    if architecture.vnni:
        return f.call(type, f"llvm.x86.avx512.vpdpwssd.{32 * lanes}", [(type, total), *given])
    return f.binary("add", type, total, f.call(type, PAIRS[architecture.level], given))


def _dot_by_shifts(f: Function, type: str, total: str, x: str, weight: str) -> str:
    """The same with plain instructions."""
    sixteen = literal(type, 16)
    for side in (True, False):
        a, b = (
            f.binary("ashr", type, f.binary("shl", type, v, sixteen) if side else v, sixteen)
            for v in (x, weight)
        )
        total = f.binary("add", type, total, f.binary("mul", type, a, b))
    return total


def fits_lanewise(c: Convolution, architecture: Architecture, most: int) -> bool:
    """Whether lanes are channels, and float32 holds sums of products up to `most` exactly."""
    return lanewise.fits(c, architecture) and c.depth * most < EXACT


class IntegerLanewise(Lanewise):
    """Generates a kernel that sums (x - zero) * weight: 0 outside the image."""

    x_bytes = 1

    def __init__(
        self,
        convolution: Convolution,
        schedule: Schedule,
        architecture: Architecture,
        epilogue: Epilogue,
        name: str,
        x: str,
        zero: int,
    ) -> None:
        super().__init__(convolution, schedule, architecture, epilogue, name)
        self.x, self.zero = x, zero

    def emit_tile(self, tile: tuple[Span, ...], name: str) -> None:
        IntegerLanewiseTile(self, tile, name).emit()


class IntegerLanewiseTile(LanewiseTile):
    """Generates the function for one variant of tile."""

    k: IntegerLanewise

    def _load(self, x: str, offset: int, lanes: int) -> str:
        f, type = self.f, vector("float", lanes)
        value = f.load(vector("i8", lanes), x, offset)
        how = "uitofp" if self.k.x == "uint8" else "sitofp"
        value = f.convert(how, value, vector("i8", lanes), type)
        if not self.k.zero:
            return value
        return f.binary("fsub", type, value, literal(type, self.k.zero))

    def _result(self, value: str, lanes: int) -> str:
        return self.f.convert("fptosi", value, vector("float", lanes), vector("i32", lanes))
