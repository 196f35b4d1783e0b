"""Sizes that a run tells: how kernels are cut that do not know them, and how far their indices go.

Every size is a number or an expression over named sizes. What needs a number to choose a schedule
takes a usual one, which is the same in every process: code is kept under the kernel alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from whet.ir.atoms import Atom, Symbol
from whet.ir.sizes import Expr, Size, bounds, floor_divide, modulo, substitute

USUAL = 64
"""What a schedule takes a named size to be."""

SAFE = 2**31 - 2**16
"""Indices below it are 32 bits."""


def usual(size: Size) -> int:
    """A number in the place of a size, at least 1 where it is open."""
    if not isinstance(size, Expr):
        return size
    return max(1, int(substitute(size, {s.name: USUAL for s in size.symbols})))


def most(size: Size) -> float:
    """The most that a size may be."""
    return bounds(size)[1]


def blocks_of(size: Size, block: int) -> Size:
    """How many blocks of so many hold a number of things. Terms stay positive, so that it is seen
    how few there may be."""
    return floor_divide(size + block - 1, block)


def is_whole(size: Size, block: int) -> bool:
    """Whether blocks of so many are all full, and there is at least one."""
    return bounds(size)[0] > 0 and modulo(size, block) == 0


def reaches(sizes: Iterable[Size], open: frozenset[str]) -> tuple[Size, ...]:
    """How large what index expressions consist of may get, in terms of the open sizes."""
    return tuple(dict.fromkeys(reach for s in sizes if isinstance(reach := reached(s, open), Expr)))


def reached(size: Size, open: frozenset[str]) -> Size:
    """How large what an index expression consists of may get."""
    if not isinstance(size, Expr):
        return abs(size)
    total: Size = 0
    for mono, factor in size.terms:
        term: Size = abs(factor)
        for atom in mono:
            term = term * _reach_of_atom(atom, open)
        total = total + term
    return total


def _reach_of_atom(atom: Atom, open: frozenset[str]) -> Size:
    if isinstance(atom, Symbol):
        if atom.name in open:
            return Expr((((atom,), 1),))
        # A loop's index: its size is known, or told.
        return SAFE if atom.high is None else reached(atom.high, open)
    # What is divided, or compared, is computed first.
    total: Size = 0
    for arg in atom.args:  # type: ignore[attr-defined]
        total = total + reached(arg, open)
    return total
