"""Choosing kernels by measuring: other schedules of a plan's kernels take turns in its runs.

Nothing is run for the sake of measuring: a run that is asked for walks one of several tables of
code, and is timed step by step. The schedules that take turns share the layout of the packed weight
and the order of each sum, so that results have the same bits whichever table is walked. What won is
kept in the cache, and the next start begins with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whet.plan.kernel import Kernel

ROUNDS = 8
"""Runs of each table; a step's time is the least of them."""
GAIN = 0.97
"""Another schedule is taken when it needs less than this part of the first one's time."""

Ways = Sequence[Kernel | None]
"""A kernel for each step of a plan."""


def tables(kernels: Ways, others: Mapping[Kernel, Sequence[Kernel]]) -> list[list[Kernel | None]]:
    """The kernels of a plan's steps, then as many further tables as a kernel has other schedules;
    where a step has fewer, it starts over."""
    most = max((len(ways) for ways in others.values()), default=0)
    found = [list(kernels)]
    for number in range(most):
        row: list[Kernel | None] = []
        for kernel in kernels:
            ways = others.get(kernel, ()) if kernel is not None else ()
            row.append(ways[number % len(ways)] if ways else kernel)
        found.append(row)
    return found


@dataclass(frozen=True)
class Turn:
    """One run's share of the trials: the table that it walks."""

    trials: Trials
    number: int

    @property
    def code(self) -> np.ndarray:
        """The addresses of the steps' code."""
        return self.trials.codes[self.number]

    def done(self, seconds: np.ndarray) -> None:
        """Notes what each step took."""
        self.trials.note(self.number, seconds)


class Trials:
    """Tables of kernels for one plan, and the least time seen of each of their steps."""

    def __init__(
        self,
        tables: Sequence[Ways],
        code: Callable[[Kernel], int],
        end: Callable[[list[Kernel | None]], None],
    ) -> None:
        self.tables, self._end = tables, end
        self.codes = [
            np.array([0 if k is None else code(k) for k in table], np.int64) for table in tables
        ]
        self.times = np.full((len(tables), len(tables[0])), np.inf)
        self._left = [number for _ in range(ROUNDS) for number in range(len(tables))]
        self._lock = threading.Lock()
        self._busy = False

    def turn(self) -> Turn | None:
        """The next table to walk; None while another run is being timed, and in the end."""
        with self._lock:
            if self._busy or not self._left:
                return None
            self._busy = True
            return Turn(self, self._left[0])

    def note(self, number: int, seconds: np.ndarray) -> None:
        """Keeps the least times; tells the fastest kernels once all tables had their turns."""
        with self._lock:
            self.times[number] = np.minimum(self.times[number], seconds)
            self._left.pop(0)
            self._busy = False
            if self._left:
                return
        self._end(self.fastest())

    def give_up(self) -> None:
        """A run that was to be timed failed."""
        with self._lock:
            self._busy = False

    def fastest(self) -> list[Kernel | None]:
        """For each step its first kernel, or another that is clearly faster wherever it stands."""
        first = self.tables[0]
        times: dict[Kernel, dict[Kernel, float]] = {}
        for step, kernel in enumerate(first):
            if kernel is None:
                continue
            ways: dict[Kernel, float] = {}
            for number, table in enumerate(self.tables):
                way = table[step]
                assert way is not None
                ways[way] = min(ways.get(way, np.inf), float(self.times[number, step]))
            # The same kernel may stand in several steps: the sum over them decides.
            summed = times.setdefault(kernel, {})
            for way, taken in ways.items():
                summed[way] = summed.get(way, 0.0) + taken
        best: dict[Kernel | None, Kernel | None] = {None: None}
        for kernel, summed in times.items():
            way = min(summed, key=lambda k: summed[k])
            best[kernel] = way if summed[way] < GAIN * summed[kernel] else kernel
        return [best[kernel] for kernel in first]
