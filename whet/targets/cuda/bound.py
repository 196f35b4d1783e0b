"""A plan at sizes that a run tells, on a GPU: which launches there are, and how large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.ir.sizes import Expr, Size
from whet.plan.plan import Plan
from whet.targets import bound
from whet.targets.bound import Sizes, Slot
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.compile import Function
from whet.targets.cuda.memory import aligned
from whet.targets.cuda.tactics import MOST_SPREAD, Loaded, shared_by, shared_of
from whet.targets.cuda.told import SAFE

if TYPE_CHECKING:
    from whet.targets.cuda.launches import Launches

Code = Sequence[Loaded | None]
"""The functions of each step."""

Value = Callable[[Size], int]


class Layout(bound.Layout):
    """The arguments of all functions, also of those that some sizes have no use for."""

    def __init__(self, plan: Plan, code: Code, architecture: Architecture) -> None:
        self.architecture = architecture
        self.functions = [(n, f, m) for n, found in enumerate(code) for f, m in found or ()]
        """With the number of their step, and their code on the device."""
        steps: dict[int, list[int]] = {}
        for number, (step, _, _) in enumerate(self.functions):
            steps.setdefault(step, []).append(number)
        functions = [function for _, function, _ in self.functions]
        more = [0, *(size for function in functions for size in function.sizes)]
        blocks = ((n, slots_of(function)) for n, function, _ in self.functions)
        super().__init__(plan, blocks, more)
        self.members = plan.rooms.members
        self.steps = np.array([step for step, _, _ in self.functions], np.int64)
        """The step of each function."""
        self.grids = self.indices(n for f in functions for n in f.grid).reshape(-1, 3)
        self.needs = self.indices(n for f in functions for n in (f.counters, f.scratch))
        self.needs = self.needs.reshape(-1, 2)
        self.reach = self.indices(size for f in functions for size in f.reach)
        self.shared = _shared(functions, architecture)
        """The shared memory of each, by how many blocks a multiprocessor has."""
        # Where a step's functions are ways to do it, the first one whose limit holds is taken.
        ways = [s for s in steps.values() if any(functions[n].until for n in s)]
        flat = [n for s in ways for n in s]
        untils = [functions[n].until or (0, 1) for n in flat]
        self.measured = self.indices(size for size, _ in untils)
        self.limits = np.array([limit for _, limit in untils], np.int64)
        self.first = np.cumsum([0, *map(len, ways)])[:-1]
        """Where the ways of each such step begin,"""
        self.ways = np.array(flat, np.int64)
        """in all of them,"""
        self.always = np.array(sorted({*range(len(functions))} - {*flat}), np.int64)
        """and the functions of the others."""

    @property
    def most(self) -> float:
        """The bytes of the arena at the largest sizes there may be."""
        rooms = self.members
        return sum(max(m.bounds[1] if isinstance(m, Expr) else m for m in room) for room in rooms)


def _shared(functions: Sequence[Function], architecture: Architecture) -> np.ndarray:
    """Shared memory for up to MOST_SPREAD blocks of each function on a multiprocessor, and for
    more."""
    shared = np.array([f.shared for f in functions], np.int64)
    spread = np.array([f.spread and f.waits for f in functions], bool)
    found = []
    for each in range(MOST_SPREAD + 2):
        grids = np.full((len(functions), 1), each * architecture.multiprocessors)
        found.append(shared_by(shared, spread, grids, architecture))
    return np.stack(found, axis=1)


def slots_of(function: Function) -> list[Slot]:
    """A function's arguments as a layout has them."""
    slots: list[Slot] = [(slot, 0) if isinstance(slot, int) else slot for slot in function.slots]
    return slots + [None] * function.nulls


class Bound(bound.Bound):
    """What is evaluated for the sizes."""

    def __init__(self, plan: Plan, layout: Layout, sizes: Sizes) -> None:
        super().__init__(plan, layout, sizes)
        taken = self._taken(layout)
        grids = self.table[layout.grids[taken]]
        if not grids.all():
            has_blocks = grids.all(axis=1)
            taken, grids = taken[has_blocks], grids[has_blocks]
        self.functions, self.grids = taken, grids
        """The numbers of the functions that run, in order, and their blocks,"""
        each = -(-grids.prod(axis=1) // layout.architecture.multiprocessors)
        self.shared = layout.shared[taken, np.minimum(each, MOST_SPREAD + 1)]
        """and shared memory."""
        self.fits = int(self.table[layout.reach].max(initial=0)) < SAFE
        """Whether indices of 32 bits are enough."""
        counters, scratch = self.table[layout.needs[taken]].max(axis=0, initial=0).tolist()
        self.room = aligned(self.arena), aligned(4 * counters), aligned(scratch)
        """The bytes of the arena, of counters and of scratch."""
        self.is_wanted = False
        """Whether code for the very sizes was asked for."""
        self.is_special = False
        """Whether there is code for the very sizes."""
        self.code: Code = ()
        """That code."""
        self.special: dict[int, Launches] = {}
        """Its launches, by the number of the context that they belong to."""

    def take(self, code: Code, architecture: Architecture) -> None:
        """Lets runs go over to code for the very sizes, which may need more counters and scratch
        than the code for all sizes does."""
        needs = [self.room]
        for loaded in code:
            for function, _ in () if loaded is None else taken(loaded, self.value, architecture):
                counters, scratch = map(self.value, (function.counters, function.scratch))
                needs.append((0, aligned(4 * counters), aligned(scratch)))
        arena, counters, scratch = map(max, zip(*needs))
        self.room = arena, counters, scratch
        self.code = code

    def _taken(self, layout: Layout) -> np.ndarray:
        """The functions that run, of each step all or one."""
        if not len(layout.first):
            return layout.always
        passed = self.table[layout.measured] > layout.limits
        chosen = layout.ways[layout.first + np.add.reduceat(passed, layout.first, dtype=np.int64)]
        return np.sort(np.concatenate((layout.always, chosen)))


def taken(code: Loaded, value: Value, architecture: Architecture) -> Iterator[tuple[Function, Any]]:
    """The functions of a step that run at known sizes, with these as numbers: all, or one where
    they are ways to do it."""
    found = list(code)
    if any(function.until for function, _ in code):
        found = [next(pair for pair in code if pair[0].is_for(value))]
    for function, module in found:
        x, y, z = map(value, function.grid)
        if function.is_open:
            shared = shared_of(function, (x, y, z), architecture)
            function = replace(function, grid=(x, y, z), shared=shared)
        if x and y and z:
            yield function, module
