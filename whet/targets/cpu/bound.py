"""Where a plan's buffers and sizes go in its kernels' arguments, and what a run's sizes tell of
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.ir.graph import Value
from whet.ir.sizes import Expr, Size, substitute
from whet.ir.types import TensorType, map_sizes
from whet.plan.plan import Plan, Step
from whet.plan.work import work_of
from whet.targets.cpu import codegen

if TYPE_CHECKING:
    from whet.targets.cpu.executable import Executable

MOST_STEPS_ALONE = 48
"""A plan of more steps has work enough for all threads, whatever they do."""
WAKE = 20e-6
"""Seconds within which one thread alone is done before another one would be of use."""
SLOW_BYTES, SLOW = 10e9, 20e9
"""Bytes and operations in a second of one thread, with small kernels."""

Sizes = Mapping[str, int]
NO_SIZES: Sizes = {}


class Layout:
    """Where in the argument blocks, which lie one after the other, each thing goes."""

    def __init__(self, plan: Plan) -> None:
        self.length = 0
        self.starts: list[int] = []
        self.errors: list[tuple[int, int]] = []
        self.places: dict[Value, list[tuple[int, Size]]] = {}
        self.sizes: list[tuple[int, Expr]] = []
        for number, step in enumerate(plan.steps):
            self.starts.append(self.length)
            if step.kernel is not None:
                self._block(number, step, codegen.slots(step.kernel))
        lie: Mapping[Any, int] = {**plan.rooms.rooms, **plan.offsets}
        found = [(p, at, o) for v, at in lie.items() for p, o in self.places.get(v, ())]
        self.inside = np.array([p for p, _, _ in found], np.int64)
        """Arguments that point into the arena,"""
        self.starts_of = np.array([at for _, at, _ in found], np.int64)
        """the rooms, or where sizes are known the offsets, of their buffers,"""
        self.fixed = np.array([o if isinstance(o, int) else 0 for _, _, o in found], np.int64)
        self.open = [(n, o) for n, (_, _, o) in enumerate(found) if not isinstance(o, int)]
        """and how much further they point, as numbers or as sizes by their place here."""
        self.outside = {v: p for v, p in self.places.items() if v not in lie}
        self.told = [
            v for v, p in self.outside.items() if not all(isinstance(o, int) for _, o in p)
        ]

    def _block(self, number: int, step: Step, slots: list[codegen.Slot]) -> None:
        buffers = (*step.reads, *step.writes)
        for slot in slots:
            if slot == "error":
                self.errors.append((self.length, number))
            elif isinstance(slot, Expr):
                self.sizes.append((self.length, slot))
            elif isinstance(slot, tuple):
                self.places.setdefault(buffers[slot[0]], []).append((self.length, slot[1]))
            self.length += 1


class Bound:
    """A plan at the sizes of some runs: all that has to be evaluated for them."""

    def __init__(self, executable: Executable, sizes: Sizes) -> None:
        plan, layout = executable.plan, executable.layout
        self.sizes = dict(sizes)
        self._steps, self._most_threads = plan.steps, executable.threads
        self.code = executable.code
        """Addresses of the steps' code; replaced as a whole."""
        self.is_special = False
        """Whether that is code for the very sizes."""
        self._memo: dict[Size, int] = {}
        self._rooms, self._plan, self.arena = np.zeros(0, np.int64), plan, plan.arena
        starts = layout.starts_of
        if plan.rooms.members:
            places, self.arena = plan.rooms.layout(sizes)
            self._rooms = np.array(places, np.int64)
            starts = self._rooms[starts]
        self.inside = starts + layout.fixed
        """How far into the arena the arguments point that do."""
        for number, size in layout.open:
            self.inside[number] += self.value(size)
        numbers = [(place, self.value(size)) for place, size in layout.sizes]
        self.numbers = np.array(numbers, np.int64).reshape(-1, 2)
        """Arguments that are sizes, and which."""
        self.outside: Mapping[Value, Sequence[tuple[int, int]]] = layout.outside  # type: ignore[assignment]
        """Arguments that point to what a run is given, and how far."""
        if layout.told:
            evaluated = {v: [(p, self.value(o)) for p, o in layout.outside[v]] for v in layout.told}
            self.outside = {**self.outside, **evaluated}

    @property
    def offsets(self) -> dict[Value, int]:
        """Where buffers lie in the arena."""
        rooms = self._plan.rooms.rooms.items()
        found = {v: int(self._rooms[n]) for v, n in rooms}
        return {**self._plan.offsets, **found}  # type: ignore[dict-item]

    def value(self, size: Size) -> int:
        """A size as a number."""
        if isinstance(size, int):
            return size
        if size not in self._memo:
            self._memo[size] = int(substitute(size, self.sizes))
        return self._memo[size]

    def tensor(self, kind: TensorType) -> TensorType:
        """A type whose sizes are numbers."""
        return map_sizes(kind, self.value)  # type: ignore[return-value]

    @cached_property
    def threads(self) -> int:
        """How many threads a run asks for: one where it ends before another would be awake."""
        if len(self._steps) > MOST_STEPS_ALONE:
            return self._most_threads
        works = [work_of(step, self.sizes) for step in self._steps]
        seconds = sum((w.read + w.written) / SLOW_BYTES + w.operations / SLOW for w in works)
        return 1 if seconds < WAKE else self._most_threads

    @cached_property
    def evaluated(self) -> int:
        """How many expressions it took: the work of planning a new size."""
        return len(self._memo)
