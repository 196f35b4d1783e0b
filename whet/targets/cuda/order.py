"""Which launches must wait for which: what a graph's edges are where branches may overlap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Span = tuple[Hashable, int, int]
"""A piece of memory: whose it is, and its bytes from the first to that after the last."""


@dataclass(frozen=True)
class Use:
    """The memory that a launch reads, and that it writes."""

    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


def in_order(count: int) -> list[tuple[int, ...]]:
    """The same where each launch waits for the one before it."""
    return [(number - 1,) if number else () for number in range(count)]


def predecessors(uses: Sequence[Use]) -> list[tuple[int, ...]]:
    """For each launch, those before it that it waits for: who wrote what it reads, who reads or
    wrote what it overwrites. Those that others of them wait for are left out."""
    found: list[tuple[int, ...]] = []
    behind: list[int] = []
    """For each launch all that are done when it is, as bits."""
    for number, use in enumerate(uses):
        covered, direct = 0, list[int]()
        for earlier in range(number - 1, -1, -1):
            if not covered >> earlier & 1 and _conflict(uses[earlier], use):
                direct.append(earlier)
                covered |= behind[earlier]
        found.append(tuple(direct))
        behind.append(covered | 1 << number)
    return found


def _conflict(first: Use, then: Use) -> bool:
    return (
        meet(first.writes, then.reads)
        or meet(first.writes, then.writes)
        or meet(first.reads, then.writes)
    )


def meet(these: tuple[Span, ...], those: tuple[Span, ...]) -> bool:
    """Whether two sets of pieces have a byte in common."""
    return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in these for b in those)
