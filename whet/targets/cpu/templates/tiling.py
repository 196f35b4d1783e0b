"""Cutting the output into tiles, tiles into variants, and the work into one share per thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from whet.targets.cpu.llvm import Function, Index
from whet.targets.cpu.templates.specification import Convolution, Extent

Taps = tuple[tuple[int, ...], ...]
"""For each tap of an axis: the places of a tile whose input lies inside the image."""


@dataclass(frozen=True)
class Span:
    """`count` equal tiles of `size` outputs along one axis, from output `start` on.

    Without `taps` the tile is one output wide, and which taps lie inside is found at run time.
    """

    start: int
    count: Extent
    size: int
    taps: Taps | None


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution."""

    size: Extent
    output: Extent
    kernel: int
    step: int
    dilation: int
    before: int
    after: int

    def valid(self, output: int, tap: int) -> bool:
        """Whether the input under a tap lies inside the image."""
        return 0 <= output * self.step + tap * self.dilation - self.before < self.size

    def taps(self, start: int, size: int) -> Taps:
        """For each tap: the places of a tile that read inside the image."""
        return tuple(
            tuple(place for place in range(size) if self.valid(start + place, tap))
            for tap in range(self.kernel)
        )

    @property
    def inside(self) -> range:
        """The outputs all of whose taps lie inside the image."""
        first = -(-self.before // self.step)
        reach = self.size - 1 - (self.kernel - 1) * self.dilation + self.before
        last = min(reach // self.step, self.output - 1)
        return range(first, max(first, last + 1)) if first < self.output else range(0)

    @property
    def never_outside(self) -> bool:
        """Whether all taps of all outputs lie inside the image, whatever its size."""
        return self.before <= 0 and self.after <= 0

    @property
    def never_empty(self) -> bool:
        """Whether every output has a tap inside the image."""
        if not isinstance(self.output, int):
            # Taps side by side reach over a padding that is narrower than they are.
            reach = self.kernel if self.dilation == 1 else 1
            return self.before < reach and self.after < reach
        return all(any(self.valid(o, t) for t in range(self.kernel)) for o in range(self.output))


def split_even(total: int, most: int) -> list[int]:
    """Sizes that add up to `total`, at most `most` each, which differ by one at most."""
    parts = -(-total // most)
    size, larger = divmod(total, parts)
    return [size + 1] * larger + [size] * (parts - larger)


def runs(taps: Sequence[tuple[int, ...]]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(first tap, end, places) for each stretch of taps that are valid in the same places."""
    stretches = []
    at = 0
    for places, group in groupby(taps):
        count = len(list(group))
        stretches.append((at, at + count, places))
        at += count
    return stretches


def spans(axis: Axis, most: int, most_runs: int = 12) -> list[Span]:
    """Tiles of at most `most` outputs that cover the axis, equal neighbours together.

    Where the borders would take too many variants of code, they become tiles of one output.
    """
    return list(_cached_spans(axis, most, most_runs))


@lru_cache(maxsize=1024)
def _cached_spans(axis: Axis, most: int, most_runs: int) -> list[Span]:
    whole = _spans(axis, 0, axis.output, most)
    distinct = {span.taps for span in whole if span.taps is not None}
    if all(len(runs(taps)) <= most_runs for taps in distinct) and len(distinct) <= most_runs // 2:
        return whole
    inside = axis.inside
    if not inside:
        return [Span(0, axis.output, 1, None)]
    edges = [Span(0, inside.start, 1, None), Span(inside.stop, axis.output - inside.stop, 1, None)]
    middle = _spans(axis, inside.start, inside.stop, most)
    return [span for span in (edges[0], *middle, edges[1]) if span.count]


def _spans(axis: Axis, start: int, stop: int, most: int) -> list[Span]:
    found: list[Span] = []
    inside = axis.inside
    for size in split_even(stop - start, most):
        whole = start in inside and start + size - 1 in inside
        taps = (tuple(range(size)),) * axis.kernel if whole else axis.taps(start, size)
        last = found[-1] if found else None
        if last and (last.size, last.taps) == (size, taps):
            found[-1] = Span(last.start, last.count + 1, size, taps)
        else:
            found.append(Span(start, 1, size, taps))
        start += size
    return found


def run_time_spans(axis: Axis) -> list[Span]:
    """Tiles of one output each, whose valid taps are found at run time where they differ."""
    if not isinstance(axis.output, int):
        taps = ((0,),) * axis.kernel if axis.never_outside else None
        return [Span(0, axis.output, 1, taps)]
    if len(axis.inside) == axis.output:
        return [Span(0, axis.output, 1, axis.taps(0, 1) if axis.output else ())]
    return [Span(0, axis.output, 1, None)]


def tap_range(f: Function, axis: Axis, output: Index) -> tuple[Index, Index]:
    """First valid tap and end of one output, at run time."""
    first = f.sub(f.mul(output, axis.step), axis.before)
    low = f.max(f.sub(0, first), 0)
    high = f.max(f.sub(axis.size, first), 0)
    if axis.dilation > 1:
        low = f.div(f.add(low, axis.dilation - 1), axis.dilation)
        high = f.div(f.add(high, axis.dilation - 1), axis.dilation)
    return low, f.min(high, axis.kernel)


@dataclass(frozen=True)
class Share:
    """What one thread does: tiles [first_tile, end_tile) of panels [first_panel, end_panel)."""

    first_tile: Index
    end_tile: Index
    first_panel: Index
    end_panel: Index


def share(f: Function, thread: str, threads: str, tiles: Index, panels: int, columns: int) -> Share:
    """The thread's part of tiles x panels, for any number of threads.

    The threads form `columns` teams (0: one for each thread), more where there are fewer tiles than
    threads. A team takes panels in proportion to its size; its members share the tiles.
    """
    if panels == 1:
        return Share(*_part(f, thread, threads, tiles), 0, 1)
    wanted: Index = columns or threads
    if tiles != 1 or panels > 1:
        some = f.max(tiles, 1)  # a run may tell that there are none
        least = f.div(f.add(threads, f.sub(some, 1)), some)
        wanted = f.max(wanted, least)
    teams = f.min(f.min(wanted, threads), panels)
    team = f.div(f.mul(thread, teams), threads)
    begin = _ceil_part(f, team, threads, teams)
    end = _ceil_part(f, f.add(team, 1), threads, teams)
    size = f.sub(end, begin)
    first_panel = f.div(f.mul(begin, panels), threads)
    end_panel = f.div(f.mul(end, panels), threads)
    return Share(*_part(f, f.sub(thread, begin), size, tiles), first_panel, end_panel)


def _part(f: Function, member: Index, members: Index, total: Index) -> tuple[Index, Index]:
    first = f.div(f.mul(member, total), members)
    return first, f.div(f.mul(f.add(member, 1), total), members)


def _ceil_part(f: Function, team: Index, threads: Index, teams: Index) -> Index:
    """The first thread of a team: thread t belongs to team t * teams // threads."""
    return f.div(f.add(f.mul(team, threads), f.sub(teams, 1)), teams)


@dataclass(frozen=True)
class Tile:
    """One tile: the spans that it belongs to, and its first output on each axis."""

    batch: Index
    spans: tuple[Span, ...]
    outputs: tuple[Index, ...]


@dataclass(frozen=True)
class Grid:
    """All tiles of y but for the channels: batch x planes x rows x columns, the last fastest."""

    batch: Extent
    axes: tuple[list[Span], list[Span], list[Span]]

    @property
    def extents(self) -> tuple[int, ...]:
        return (self.batch, *(sum(span.count for span in spans) for spans in self.axes))

    @property
    def tiles(self) -> int:
        return math.prod(self.extents)

    def each(
        self, f: Function, low: Index, high: Index, body: Callable[[Index, Tile], None]
    ) -> None:
        """Emits a loop over the tiles [low, high), with one branch for each variant of tile."""

        def turn(i: str, counters: list[str]) -> list[str]:
            position = self._unpack(counters)
            self._dispatch(f, position[0], position[1:], (), lambda tile: body(i, tile))
            return self._advance(f, counters)

        start = [("i64", str(index)) for index in self._decode(f, low)]
        f.loop(low, high, 1, turn, start, guard=True)

    def _decode(self, f: Function, tile: Index) -> list[Index]:
        """The counters of a tile: one for each extent over 1."""
        counters: list[Index] = []
        for extent in reversed([e for e in self.extents if e > 1][1:]):
            counters.insert(0, f.rem(tile, extent))
            tile = f.div(tile, extent)
        return [tile, *counters] if self.tiles > 1 else []

    def _unpack(self, counters: list[str]) -> list[Index]:
        waiting = iter(counters)
        return [next(waiting) if extent > 1 else 0 for extent in self.extents]

    def _advance(self, f: Function, counters: list[str]) -> list[str]:
        """The counters of the next tile: add one to the last, carry to the left."""
        extents = [e for e in self.extents if e > 1]
        following: list[str] = []
        carry: Index = 1
        for counter, extent in reversed(list(zip(counters, extents))):
            more = str(f.add(counter, carry))
            if len(following) + 1 < len(counters):
                wraps = f.compare("eq", "i64", more, str(extent))
                more = f.select(wraps, "i64", "0", more)
                carry = f.convert("zext", wraps, "i1", "i64")
            following.insert(0, more)
        return following

    def _dispatch(
        self,
        f: Function,
        batch: Index,
        counters: list[Index],
        chosen: tuple[tuple[Span, Index], ...],
        body: Callable[[Tile], None],
    ) -> None:
        axis = len(chosen)
        if axis == 3:
            body(Tile(batch, tuple(s for s, _ in chosen), tuple(o for _, o in chosen)))
            return

        def choose(which: int, first: int) -> None:
            span = self.axes[axis][which]

            def take() -> None:
                place = f.sub(counters[axis], first)
                output = f.add(f.mul(place, span.size), span.start)
                self._dispatch(f, batch, counters, (*chosen, (span, output)), body)

            if which + 1 == len(self.axes[axis]):
                take()
                return
            end = first + span.count
            here = f.compare("slt", "i64", str(counters[axis]), str(end))
            f.when(here, take, lambda: choose(which + 1, end))

        choose(0, 0)


def axes_of(c: Convolution) -> tuple[Axis, Axis, Axis]:
    """The spatial axes of a convolution in three dimensions: planes, rows, columns."""
    parts = zip(c.size, c.outputs, c.kernel, c.steps, c.dilations, c.before, c.after)
    plane, row, column = (Axis(*part) for part in parts)
    return plane, row, column
