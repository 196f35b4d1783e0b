"""One arena for all intermediate tensors: offsets such that no two that are alive at once
overlap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer's bytes, and the steps from the one that writes it to the last that reads it."""

    key: Hashable
    size: int
    first: int
    last: int


def assign(lifetimes: Sequence[Lifetime]) -> tuple[dict[Hashable, int], int]:
    """Offsets by key, and the arena's size: largest first, each in the smallest gap that fits.

    Greedy by size (Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference,
    2020).
    """
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[Hashable, int] = {}
    for life in sorted(lifetimes, key=lambda x: (-x.size, x.first)):
        size = max(-(-life.size // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        busy = sorted(
            (start, end)
            for start, end, other in placed
            if other.first <= life.last and life.first <= other.last
        )
        offsets[life.key] = start = _smallest_gap(busy, size)
        placed.append((start, start + size, life))
    return offsets, max((end for _, end, _ in placed), default=0)


def _smallest_gap(busy: list[tuple[int, int]], size: int) -> int:
    best: tuple[int, int] | None = None
    at = 0
    for start, end in busy:
        gap = start - at
        if gap >= size and (best is None or gap < best[0]):
            best = gap, at
        at = max(at, end)
    return best[1] if best is not None else at
