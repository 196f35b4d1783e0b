"""Tiles of an output whose batch, or number of columns, only a run tells.

An axis of unknown length is cut into tiles of one size, which the kernel chooses among a few when
it starts; the last tile begins earlier where it would reach beyond the end, and computes some
outputs a second time, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.ir.sizes import Size
from whet.targets.cpu.llvm import Function, Index
from whet.targets.cpu.templates.tiling import Span, Tile

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


@dataclass(frozen=True)
class OpenGrid:
    """A Grid whose extents are in registers, where its kernel begins."""

    extents: tuple[Index, ...]
    axes: tuple[list[Span] | Chosen, ...]
    tiles: Index

    @classmethod
    def of(
        cls,
        f: Function,
        batch: Size,
        axes: Sequence[list[Span] | Stretch],
        resolve: Resolve,
        sharers: Index,
    ) -> OpenGrid:
        """The grid with its sizes told; so many threads share the tiles."""
        counts: list[Index] = [resolve(batch)]
        opened: list[list[Span] | Chosen] = []
        for axis in axes:
            if isinstance(axis, Stretch):
                others: Index = 1
                for count in counts:
                    others = f.mul(count, others)
                chosen = axis.chosen(f, resolve(axis.total), others, sharers)
                opened.append(chosen)
                counts.append(chosen.count)
            else:
                opened.append(axis)
                counts.append(resolve(sum((span.count for span in axis), start=0)))
        tiles: Index = 1
        for count in counts:
            tiles = f.mul(count, tiles)
        return cls(tuple(counts), tuple(opened), tiles)

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

        if isinstance(axis, Chosen):
            output = axis.output(f, counter)
            axis.each_size(f, lambda n: go_on(Span(0, 1, n, (tuple(range(n)),)), output))
            return

        def choose(which: int, first: int) -> None:
            span = axis[which]

            def take() -> None:
                place = f.sub(counter, first)
                go_on(span, f.add(f.mul(place, span.size), span.start))

            if which + 1 == len(axis):
                take()
                return
            here = f.compare("slt", "i64", str(counter), str(first + span.count))
            f.when(here, take, lambda: choose(which + 1, first + span.count))

        choose(0, 0)
