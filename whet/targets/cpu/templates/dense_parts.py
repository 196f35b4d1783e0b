"""Long sums in parts: all tiles add one part of the sum before any of them goes on to the next.

A part's weights stay in the first-level cache while the tiles use them one after the other; what a
tile has added up so far waits in memory (the loop order of Goto and van de Geijn, Anatomy of
High-Performance Matrix Multiplication, 2008, with results in place of copies of x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.targets.cpu.llvm import Function, Index
from whet.targets.cpu.templates.dense_tile import DenseTile, Run, SumAxis


@dataclass(frozen=True)
class Parts:
    """A sum over axes of some lengths, cut into parts: `steps` of one axis with all that is inside
    of it."""

    lengths: tuple[int, ...]
    axis: int
    steps: int

    @classmethod
    def of(cls, lengths: Sequence[int], depth: int) -> Parts:
        """Parts of about `depth` products each, nearly equal."""
        axis = 0
        while math.prod(lengths[axis + 1 :]) > depth:
            axis += 1
        length, inner = lengths[axis], math.prod(lengths[axis + 1 :])
        steps = -(-length // -(-length * inner // depth))
        if axis + 1 == len(lengths):
            steps = -(-steps // 4) * 4
        return cls(tuple(lengths), axis, steps)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many parts lie along each axis down to the one that is cut."""
        return (*self.lengths[: self.axis], -(-self.lengths[self.axis] // self.steps))

    @property
    def count(self) -> int:
        return math.prod(self.counts)

    @property
    def depth(self) -> int:
        """Products of a whole part."""
        return self.steps * math.prod(self.lengths[self.axis + 1 :])

    def coordinates(self, f: Function, part: Index) -> list[Index]:
        """Which part it is along each of the axes."""
        found: list[Index] = []
        for count in reversed(self.counts[1:]):
            found.insert(0, f.rem(part, count))
            part = f.div(part, count)
        return [part, *found]


class PartTile(DenseTile):
    """The function for one variant of tile that adds one part of the sum."""

    block_steps = block_inner = 0
    """A part is one block."""

    def emit(self) -> None:
        """Sum, add what was there, and keep the result or give it to the epilogue."""
        f, parts, part = self.f, self.k.parts, self.given["part"]
        assert parts is not None
        vectors = len(self.places) * self.vectors
        self.coordinates = parts.coordinates(f, part)
        start = ["zeroinitializer"] * vectors
        if "ahead" in self.given:
            start.append(str(self.given["ahead"]))
        x, weight = (self._x(), 0), (str(self.given["weight"]), 0)
        sums = self._sum(self._sum_axes(), x, weight, start, tuple(range(len(self.places))))
        is_first = f.compare("eq", "i64", str(part), "0")
        types = [self.type] * vectors
        before = f.when(is_first, self._start, lambda: self._kept(vectors), types)
        whole = [f.binary("fadd", self.type, a, b) for a, b in zip(before, sums)]
        is_last = f.compare("eq", "i64", str(part), str(parts.count - 1))
        f.when(is_last, lambda: self._finish(whole), lambda: self._keep(whole))
        f.end()

    def _kept(self, vectors: int) -> list[str]:
        size = self.lanes * 4
        return [self.f.load(self.type, "%sums", i * size, size) for i in range(vectors)]

    def _keep(self, sums: list[str]) -> None:
        for i, value in enumerate(sums):
            self.f.store(self.type, value, "%sums", i * self.lanes * 4, self.lanes * 4)

    def _sum(
        self,
        axes: list[SumAxis],
        x: tuple[str, int],
        weight: tuple[str, int],
        sums: list[str],
        places: tuple[int, ...],
    ) -> list[str]:
        """As for the whole sum, but outside of the axis that is cut there is one step for each
        part, and along it there is a stretch."""
        parts = self.k.parts
        assert parts is not None
        number = len(parts.lengths) - len(axes)
        if number > parts.axis or axes[0].length == 1:
            return super()._sum(axes, x, weight, sums, places)
        if number < parts.axis:
            return self._one_step(axes, self.coordinates[number], x, weight, sums, places)
        return super()._sum([self._stretch(axes[0]), *axes[1:]], x, weight, sums, places)

    def _one_step(
        self,
        axes: list[SumAxis],
        step: Index,
        x: tuple[str, int],
        weight: tuple[str, int],
        sums: list[str],
        places: tuple[int, ...],
    ) -> list[str]:
        f, axis = self.f, axes[0]
        x = f.address(x[0], f.mul(step, axis.x_step)), x[1]
        weight = f.address(weight[0], f.mul(step, axis.weight_step)), weight[1]
        types = [type for type, _ in self._carried(sums)]
        for low, high, inside in axis.runs:
            both = tuple(q for q in places if q in inside)
            if not both:
                continue
            before = sums

            def here(both: tuple[int, ...] = both, before: list[str] = before) -> list[str]:
                return self._sum(axes[1:], x, weight, before, both)

            def skip(before: list[str] = before) -> list[str]:
                return before

            if (low, high) == (0, axis.length):
                sums = here()
                continue
            after_low = f.compare("sge", "i64", str(step), str(low))
            before_high = f.compare("slt", "i64", str(step), str(high))
            sums = f.when(f.binary("and", "i1", after_low, before_high), here, skip, types)
        return sums

    def _stretch(self, axis: SumAxis) -> SumAxis:
        """The part of an axis that belongs to this part of the sum."""
        f, parts = self.f, self.k.parts
        assert parts is not None
        begin = f.mul(self.coordinates[parts.axis], parts.steps)
        even = axis.length % parts.steps == 0
        end = f.add(begin, parts.steps)
        found: list[Run] = []
        for low, high, inside in axis.runs:
            whole = (low, high) == (0, axis.length)
            first = begin if whole else f.max(low, begin)
            found.append((first, end if whole and even else f.min(high, end), inside))
        return SumAxis(tuple(found), axis.x_step, axis.weight_step, axis.length)

    def _guard(self, low: Index, high: Index) -> bool:
        """A part may lie outside of a run."""
        return True

    def _unroll(self, low: Index, high: Index) -> int:
        """Stretches begin and end at multiples of a part's steps, or of the channels."""
        assert self.k.parts is not None
        unroll = super()._unroll(low, high)
        return unroll if isinstance(low, int) else math.gcd(unroll, self.k.parts.steps)
