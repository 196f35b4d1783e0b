"""Where a budget bounds them: which weights stay in a device's memory, and which come in ahead of
their kernels, window by window."""

from __future__ import annotations

import mmap
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import InvalidSetting
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.knobs import a_size
from whet.plan.kernel import Expression, Let, Load, Loops, size_symbols
from whet.plan.plan import Plan, Step, nbytes

SMALL = 64 << 10
"""Bytes of a weight that is not worth the trouble: it stays in memory."""

PARTS = 8
"""A window is an eighth of the budget, unless one kernel reads more."""


class Budget:
    """How many bytes of prepared weights may be in memory, and which of them stay there."""

    def __init__(self, asked: int | str, free: Callable[[], int | None]) -> None:
        self.asked = asked
        self._limit = parsed(asked, free)
        self.budget: int | None = None
        """Bytes that may be in memory; known with the first plan, where it was asked for in
        percent."""
        self.resident: set[Value] = set()
        self.needed = 0
        """Bytes that plans need at once, where one kernel reads more than the budget allows."""

    @property
    def most(self) -> int:
        """Bytes that are in memory at most."""
        return max(self.budget or 0, self.needed)

    def limit(self, total: int) -> int:
        """The budget in bytes, for weights of `total` bytes."""
        if self.budget is None:
            self.budget = self._limit(total)
        return self.budget


def parsed(budget: int | str, free: Callable[[], int | None]) -> Any:
    """What a budget (bytes, `500M`, `50%`, `auto`) is for weights of a number of bytes."""
    if budget == "auto":
        return lambda total: min(total, (free() or 2 * total) // 2)
    try:
        if isinstance(budget, str) and budget.endswith("%"):
            share = float(budget[:-1]) / 100
            if not 0 <= share <= 1:
                raise ValueError
            return lambda total: int(total * share)
        size = a_size(budget) if isinstance(budget, str) else operator.index(budget)
        if size < 0:
            raise ValueError
    except (ValueError, TypeError):
        raise InvalidSetting(
            f"weight_budget={budget!r}; bytes, 500M, 50% or auto are needed"
        ) from None
    return lambda total: size


def is_streamed(kind: TensorType) -> bool:
    return nbytes(kind) >= SMALL


def pages_of(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


@dataclass(frozen=True)
class Schedule:
    """Segments of a plan's steps, and the weights that each brings in and lets go of."""

    segments: tuple[tuple[int, int], ...]
    windows: tuple[tuple[Value, ...], ...]
    touched: tuple[tuple[Value, ...], ...]
    """Tables of which data says what is read: that comes in as it is read."""
    budget: int
    """What the plan really needs: more than was asked for where one kernel reads more."""

    @property
    def is_still(self) -> bool:
        """Whether nothing comes or goes: all weights stay."""
        return not any(self.windows) and not any(self.touched)

    def ahead(self, number: int) -> bool:
        """Whether a window may come in while the one before is in use."""
        if not 0 < number < len(self.windows):
            return False
        return total(self.windows[number - 1]) + total(self.windows[number]) <= self.budget


def total(values: Iterable[Value]) -> int:
    return sum(pages_of(nbytes(v.tensor)) for v in values)


def schedule(
    plan: Plan, segments: Sequence[tuple[int, int]], given: Sequence[Value], stream: Budget
) -> Schedule:
    """Which weights stay, and where the plan's segments are cut for the others."""
    streamed = {v for v in given if is_streamed(v.tensor)}
    tables = [[v for v in chosen_from(step) if v in streamed] for step in plan.steps]
    reads = [
        [v for v in dict.fromkeys(step.reads) if v in streamed and v not in chosen]
        for step, chosen in zip(plan.steps, tables)
    ]
    order = list(dict.fromkeys(v for values in reads for v in values))
    small = sum(nbytes(v.tensor) for v in given if v not in streamed)
    budget = stream.limit(total(order) + small) - small
    if total(order) + total(stream.resident.difference(order)) <= budget:
        stream.resident.update(order)
        cut = list(segments)
        return Schedule(tuple(cut), ((),) * len(cut), _touched(tables, cut, stream), budget)
    largest = max(map(total, reads), default=0)
    window = max(budget // PARTS, largest)
    _stay(stream, order, budget - 2 * window)
    cut, windows = [], []
    for begin, end in segments:
        for first, last, values in _windows(reads, begin, end, window, stream.resident):
            cut.append((first, last))
            windows.append(values)
    needed = total(stream.resident) + max(map(total, windows), default=0)
    stream.needed = max(stream.needed, needed + small)
    own = max(budget, needed) - total(stream.resident)
    return Schedule(tuple(cut), tuple(windows), _touched(tables, cut, stream), own)


def _touched(
    tables: Sequence[Sequence[Value]], segments: Sequence[tuple[int, int]], stream: Budget
) -> tuple[tuple[Value, ...], ...]:
    """The tables that each segment reads some rows of."""
    return tuple(
        tuple({v: None for values in tables[a:b] for v in values if v not in stream.resident})
        for a, b in segments
    )


def chosen_from(step: Step) -> list[Value]:
    """What a step reads at indices that are data: perhaps a few rows of a large table."""
    if not isinstance(step.kernel, Loops):
        return []
    found: set[int] = set()
    for nest in step.kernel.nests:
        for store in nest.stores:
            _find_chosen(store.value, frozenset(), found)
    return [v for number, v in enumerate(step.reads) if number in found]


def _find_chosen(expression: Expression, names: frozenset[str], found: set[int]) -> None:
    """Adds the buffers that an expression loads from at an index among the names."""
    if isinstance(expression, Load) and names & size_symbols(expression.offset):
        found.add(expression.buffer)
    if isinstance(expression, Let):
        names |= {expression.name}
    for child in expression.children:
        _find_chosen(child, names, found)


def _stay(stream: Budget, order: Sequence[Value], room: int) -> None:
    """Chooses weights that stay in memory, as evenly over the plan as their sizes allow: then
    there is work to do while each of the others comes in."""
    room -= total(stream.resident)
    rest = [v for v in order if v not in stream.resident]
    share, owed = max(room, 0) / max(total(rest), 1), 0.0
    for value in rest:
        size = total([value])
        owed += share * size
        if size <= min(owed, room):
            stream.resident.add(value)
            owed, room = owed - size, room - size


def _windows(
    reads: Sequence[Sequence[Value]], begin: int, end: int, most: int, resident: set[Value]
) -> Iterable[tuple[int, int, tuple[Value, ...]]]:
    """Cuts a segment so that no part of it reads more than `most` bytes from the file."""
    values: dict[Value, None] = {}
    first = begin
    for number in range(begin, end):
        new = dict.fromkeys(v for v in reads[number] if v not in resident)
        if values and total({**values, **new}) > most:
            yield first, number, tuple(values)
            first, values = number, {}
        values.update(new)
    yield first, end, tuple(values)
