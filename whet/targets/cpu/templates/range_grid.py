"""Tiles of an output whose sizes only a run tells.

An axis of unknown length is cut into tiles of one size, which the kernel chooses among a few when
it starts; the last tile begins earlier where it would reach beyond the end, and computes some
outputs a second time, to the same bits. Outputs whose taps lie outside the image in part are tiles
of their own, at both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.ir.sizes import Size
from whet.targets.cpu.llvm import Function, Index
from whet.targets.cpu.templates.tiling import Axis, Span, Tile

Resolve = Callable[[Size], Index]

NEVER = 1 << 60


@dataclass(frozen=True)
class Stretch:
    """An axis of `total` outputs, in tiles of one of `sizes`, which end with 1; `costs` compares
    them."""

    total: Size
    sizes: tuple[int, ...]
    costs: tuple[int, ...]

    @classmethod
    def of(cls, total: Size, most: int, vectors: int) -> Stretch:
        """Tiles of at most `most` outputs by so many vectors."""
        sizes = [most]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        # Products, loads and the latency of a sum bound a step, as costs.step_cycles has it.
        cycles = (max(n * vectors / 2, (n + vectors) / 2, 4) + 0.8 * vectors for n in sizes)
        return cls(total, tuple(sizes), tuple(round(16 * c) for c in cycles))

    def chosen(self, f: Function, total: Index, others: Index, sharers: Index) -> Chosen:
        """The size whose tiles take the busiest thread the shortest time."""
        best: tuple[str, str, str] | None = None
        for size, cost in zip(self.sizes, self.costs):
            count = f.div(f.add(total, size - 1), size)
            turns = f.div(f.add(f.mul(count, others), f.sub(sharers, 1)), sharers)
            fits = f.op(f"icmp sle i64 {size}, {total}")
            work = f.select(fits, "i64", str(f.mul(turns, cost)), str(NEVER))
            if best is None:
                best = work, str(size), str(count)
                continue
            less = f.compare("slt", "i64", work, best[0])
            better = zip((work, str(size), str(count)), best)
            best = tuple(f.select(less, "i64", a, b) for a, b in better)  # type: ignore[assignment]
        assert best is not None
        return Chosen(self, total, best[1], best[2])


@dataclass(frozen=True)
class Chosen:
    """A Stretch cut into `count` tiles of `size`."""

    stretch: Stretch
    total: Index
    size: Index
    count: Index

    def output(self, f: Function, place: Index) -> Index:
        """The first output of a tile."""
        return f.min(f.mul(place, self.size), f.sub(self.total, self.size))

    def each_size(self, f: Function, body: Callable[[int], None]) -> None:
        """Emits `body(size)` for every size, of which the one that was chosen runs."""
        *sizes, last = self.stretch.sizes

        def choose(rest: Sequence[int]) -> None:
            if not rest:
                body(last)
                return
            here = f.op(f"icmp eq i64 {self.size}, {rest[0]}")
            f.when(here, lambda: body(rest[0]), lambda: choose(rest[1:]))

        choose(sizes)


Take = Callable[[Span, Index], None]
"""What is done with a tile: the span that it belongs to, and its first output."""


@dataclass(frozen=True)
class Open:
    """A spatial axis whose length a run tells, in tiles of at most so many outputs by vectors."""

    axis: Axis
    most: int
    vectors: int

    def parts(self, f: Function, resolve: Resolve, others: Index, sharers: Index) -> list[Part]:
        """The outputs whose taps all lie inside the image, then those before and behind."""
        axis, total = self.axis, resolve(self.axis.output)
        stretch = Stretch.of(axis.output, self.most, self.vectors)
        if axis.never_outside:
            return [Inner(stretch.chosen(f, total, others, sharers), 0, axis.kernel)]
        first = f.min(-(-axis.before // axis.step), total)
        # One more than the last output whose last tap lies inside.
        reach = f.add(resolve(axis.size), axis.before + axis.step - 1)
        behind = f.div(f.max(f.sub(reach, (axis.kernel - 1) * axis.dilation), 0), axis.step)
        end = f.max(first, f.min(behind, total))
        inner = stretch.chosen(f, f.sub(end, first), others, sharers)
        edge = Span(0, 1, 1, None)
        return [
            Inner(inner, first, axis.kernel),
            Even(edge, 0, first),
            Even(edge, end, f.sub(total, end)),
        ]


@dataclass(frozen=True)
class Inner:
    """A stretch of outputs all of whose taps lie inside the image, from one on."""

    chosen: Chosen
    start: Index
    taps: int

    @property
    def count(self) -> Index:
        return self.chosen.count

    def take(self, f: Function, place: Index, body: Take) -> None:
        output = f.add(self.start, self.chosen.output(f, place))
        self.chosen.each_size(
            f, lambda n: body(Span(0, 1, n, (tuple(range(n)),) * self.taps), output)
        )


@dataclass(frozen=True)
class Even:
    """`count` tiles of one variant, from an output on."""

    span: Span
    start: Index
    count: Index

    def take(self, f: Function, place: Index, body: Take) -> None:
        body(self.span, f.add(f.mul(place, self.span.size), self.start))


Part = Inner | Even


@dataclass(frozen=True)
class OpenGrid:
    """A Grid whose extents are in registers, where its kernel begins."""

    extents: tuple[Index, ...]
    axes: tuple[list[Part], ...]
    tiles: Index

    @classmethod
    def of(
        cls,
        f: Function,
        batch: Size,
        axes: Sequence[list[Span] | Open],
        resolve: Resolve,
        sharers: Index,
    ) -> OpenGrid:
        """The grid with its sizes told; so many threads share the tiles."""
        counts: list[Index] = [resolve(batch)]
        opened: list[list[Part]] = []
        for axis in axes:
            if isinstance(axis, Open):
                parts = axis.parts(f, resolve, _product(f, counts), sharers)
            else:
                parts = [Even(span, span.start, resolve(span.count)) for span in axis]
            opened.append(parts)
            count: Index = 0
            for part in parts:
                count = f.add(count, part.count)
            counts.append(count)
        return cls(tuple(counts), tuple(opened), _product(f, counts))

    def each(
        self, f: Function, low: Index, high: Index, body: Callable[[Index, Tile], None]
    ) -> None:
        """Emits a loop over the tiles [low, high), with one branch for each variant of tile."""

        def turn(i: str, _: list[str]) -> None:
            rest: Index = i
            counters: list[Index] = []
            for extent in reversed(self.extents[1:]):
                counters.insert(0, f.rem(rest, extent))
                rest = f.div(rest, extent)
            self._dispatch(f, rest, counters, (), lambda tile: body(i, tile))

        f.loop(low, high, 1, turn, guard=True)

    def _dispatch(
        self,
        f: Function,
        batch: Index,
        counters: list[Index],
        chosen: tuple[tuple[Span, Index], ...],
        body: Callable[[Tile], None],
    ) -> None:
        number = len(chosen)
        if number == len(self.axes):
            body(Tile(batch, tuple(s for s, _ in chosen), tuple(o for _, o in chosen)))
            return
        axis, counter = self.axes[number], counters[number]

        def go_on(span: Span, output: Index) -> None:
            self._dispatch(f, batch, counters, (*chosen, (span, output)), body)

        def choose(which: int, first: Index) -> None:
            part = axis[which]
            place = f.sub(counter, first)
            if which + 1 == len(axis):
                part.take(f, place, go_on)
                return
            end = f.add(first, part.count)
            here = f.compare("slt", "i64", str(counter), str(end))
            f.when(here, lambda: part.take(f, place, go_on), lambda: choose(which + 1, end))

        choose(0, 0)


def _product(f: Function, counts: Sequence[Index]) -> Index:
    total: Index = 1
    for count in counts:
        total = f.mul(count, total)
    return total
