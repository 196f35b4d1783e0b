"""Where a plan's buffers and sizes go in its kernels' arguments, and what a run's sizes tell of
it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from whet.ir.atoms import Atom, Symbol
from whet.ir.graph import Value
from whet.ir.sizes import Expr, Size, substitute
from whet.ir.types import TensorType, map_sizes
from whet.plan.plan import Plan

Slot = tuple[int, Size] | Expr | str | None
"""An argument: (number of a buffer, how much further), a size, a name for something of the
target's own, None for null."""

Sizes = Mapping[str, int]
NO_SIZES: Sizes = {}


class Layout:
    """Where in blocks of arguments, which lie one after the other, each thing goes.

    A block is the number of its step and its slots; `more` are sizes that are evaluated besides.
    """

    def __init__(
        self, plan: Plan, blocks: Iterable[tuple[int, Sequence[Slot]]], more: Iterable[Size] = ()
    ) -> None:
        self.length = 0
        self.starts: list[int] = []
        self.named: dict[str, list[tuple[int, int]]] = {}
        """For each name the arguments, and the numbers of their steps."""
        self.places: dict[Value, list[tuple[int, Size]]] = {}
        self.sizes: list[tuple[int, Expr]] = []
        for number, slots in blocks:
            self.starts.append(self.length)
            step = plan.steps[number]
            self._block(number, (*step.reads, *step.writes), slots)
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
        found_sizes: list[Size] = [size for _, size in (*self.open, *self.sizes)]
        found_sizes += (size for value in self.told for _, size in self.outside[value])
        found_sizes += (size for members in plan.rooms.members for size in members)
        self.evaluated = list(dict.fromkeys((*found_sizes, *more)))
        """All that a set of sizes is evaluated for, and numbers among it."""
        self._index = {size: n for n, size in enumerate(self.evaluated)}
        self.open_at = np.array([n for n, _ in self.open], np.int64)
        self.open_from = self.indices(size for _, size in self.open)
        self.sizes_from = self.indices(size for _, size in self.sizes)
        self.filled = np.array([*self.inside, *(place for place, _ in self.sizes)], np.int64)
        """Arguments that sizes tell: those that point into the arena, and those that are sizes."""
        members = (tuple(map(self._index.__getitem__, room)) for room in plan.rooms.members)
        self.rooms = replace(plan.rooms, members=tuple(members))
        """The rooms, with the places of their sizes among what is evaluated."""

    def indices(self, sizes: Iterable[Size]) -> np.ndarray:
        """Where some of what is evaluated stands."""
        return np.array([self._index[size] for size in sizes], np.int64)

    def place(self, size: Size) -> int | None:
        """Where a size stands among what is evaluated; None where it is not."""
        return self._index.get(size)

    def _block(self, number: int, buffers: Sequence[Value], slots: Sequence[Slot]) -> None:
        for slot in slots:
            if isinstance(slot, str):
                self.named.setdefault(slot, []).append((self.length, number))
            elif isinstance(slot, Expr):
                self.sizes.append((self.length, slot))
            elif isinstance(slot, tuple):
                self.places.setdefault(buffers[slot[0]], []).append((self.length, slot[1]))
            self.length += 1

    @cached_property
    def evaluate(self) -> Callable[[Sizes], tuple[int, ...]]:
        """Gives the numbers of all that is evaluated."""
        return evaluator(self.evaluated)


def evaluator(sizes: Sequence[Size]) -> Callable[[Sizes], tuple[int, ...]]:
    """What evaluates expressions, as Python compiles it: in a hundredth of the time that
    substitution takes."""
    expressions = [size for size in sizes if isinstance(size, Expr)]
    names = sorted({symbol.name for e in expressions for symbol in e.symbols})
    letters = {name: f"s{n}" for n, name in enumerate(names)}
    body = "".join(f"{_text(size, letters)}, " for size in sizes)
    made = eval(f"lambda {', '.join(letters.values())}: ({body})")
    return lambda sizes: made(*[sizes[name] for name in names])


def _text(size: Size, letters: Mapping[str, str]) -> str:
    """An expression as Python has it."""
    if not isinstance(size, Expr):
        return str(size)
    terms = ("*".join([str(f), *(_atom(a, letters) for a in mono)]) for mono, f in size.terms)
    return f"({'+'.join(terms)})"


def _atom(atom: Atom, letters: Mapping[str, str]) -> str:
    if isinstance(atom, Symbol):
        return letters[atom.name]
    args = [_text(arg, letters) for arg in atom.args]  # type: ignore[attr-defined]
    function: str = atom.function  # type: ignore[attr-defined]
    if function in ("//", "%"):
        return f"({args[0]}{function}{args[1]})"
    return f"{function}({', '.join(args)})"


def _table(values: Sequence[int]) -> np.ndarray:
    try:
        return np.array(values, np.int64)
    except OverflowError:  # no memory holds so much, which is found out later
        return np.array([min(value, 1 << 62) for value in values], np.int64)


class Bound:
    """A plan at the sizes of some runs: all that has to be evaluated for them."""

    def __init__(self, plan: Plan, layout: Layout, sizes: Sizes) -> None:
        self.sizes, self._plan = dict(sizes), plan
        self._layout, self._memo = layout, dict[Size, int]()
        values = layout.evaluate(sizes)
        self.table = _table(values)
        """The numbers of all that is evaluated, in the layout's order."""
        self._rooms, self.arena = np.zeros(0, np.int64), plan.arena
        starts = layout.starts_of
        if plan.rooms.members:
            places, self.arena = layout.rooms.layout(values.__getitem__)
            self._rooms = np.array(places, np.int64)
            starts = self._rooms[starts]
        inside = starts + layout.fixed
        inside[layout.open_at] += self.table[layout.open_from]
        self.arguments = np.concatenate((inside, self.table[layout.sizes_from]))
        """Those that sizes tell, in the layout's order; the first ones as distances in the
        arena."""
        self.outside: Mapping[Value, Sequence[tuple[int, int]]] = layout.outside  # type: ignore[assignment]
        """Arguments that point to what a run is given, and how far."""
        if layout.told:
            evaluated = {v: [(p, self.value(o)) for p, o in layout.outside[v]] for v in layout.told}
            self.outside = {**self.outside, **evaluated}

    def fill(self, arguments: np.ndarray, arena: int) -> None:
        """Writes what sizes tell into arguments."""
        found = self.arguments.copy()
        found[: len(self._layout.inside)] += arena
        arguments[self._layout.filled] = found

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
        place = self._layout.place(size)
        if place is not None:
            return int(self.table[place])
        if size not in self._memo:
            self._memo[size] = int(substitute(size, self.sizes))
        return self._memo[size]

    def tensor(self, kind: TensorType) -> TensorType:
        """A type whose sizes are numbers."""
        return map_sizes(kind, self.value)  # type: ignore[return-value]

    @property
    def evaluated(self) -> int:
        """How many expressions it took: the work of planning a new size."""
        return len(self._layout.evaluated) + len(self._memo)
