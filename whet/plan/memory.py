"""One arena for all intermediate tensors: offsets such that no two that are alive at once
overlap."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.ir.sizes import Size

ALIGNMENT = 64

GUEST_ALIGNMENT = 256
"""What comes from outside lies as it would in memory of its own."""


@dataclass(frozen=True)
class Lifetime:
    """A buffer's bytes, and the steps from the one that writes it to the last that reads it."""

    key: Hashable
    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both are in use at some step, where steps run in order."""
        return other.first <= self.last and self.first <= other.last


def assign(
    lifetimes: Sequence[Lifetime], meet: Callable[[Lifetime, Lifetime], bool] = Lifetime.meets
) -> tuple[dict[Hashable, int], int]:
    """Offsets by key, and the arena's size: largest first, each in the smallest gap that fits.
    `meet` says which two may be in use at the same time.

    Greedy by size (Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference,
    2020).
    """
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[Hashable, int] = {}
    for life in sorted(lifetimes, key=lambda x: (-x.size, x.first)):
        size = _aligned(max(life.size, 1), ALIGNMENT)
        busy = sorted((start, end) for start, end, other in placed if meet(life, other))
        offsets[life.key] = start = _smallest_gap(busy, size)
        placed.append((start, start + size, life))
    return offsets, max((end for _, end, _ in placed), default=0)


def lodge(
    guests: Mapping[Hashable, int],
    hosts: Mapping[Hashable, tuple[int, int]],
    arena: int,
    meet: Callable[[Any, Any], bool],
) -> dict[Hashable, int]:
    """Offsets of guests, whose bytes are given, in an arena where hosts have their places, each
    from its first byte to that after its last; guests that it has no room for are left out."""
    offsets: dict[Hashable, int] = {}
    placed = dict(hosts)
    for guest in sorted(guests, key=lambda key: -guests[key]):
        size = _aligned(max(guests[guest], 1), GUEST_ALIGNMENT)
        busy = sorted(
            (start // GUEST_ALIGNMENT * GUEST_ALIGNMENT, _aligned(end, GUEST_ALIGNMENT))
            for other, (start, end) in placed.items()
            if meet(guest, other)
        )
        start = _smallest_gap([*busy, (arena, arena)], size)
        if start + size <= arena:
            offsets[guest], placed[guest] = start, (start, start + size)
    return offsets


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to


def _smallest_gap(busy: list[tuple[int, int]], size: int) -> int:
    best: tuple[int, int] | None = None
    at = 0
    for start, end in busy:
        gap = start - at
        if gap >= size and (best is None or gap < best[0]):
            best = gap, at
        at = max(at, end)
    return best[1] if best is not None else at


@dataclass(frozen=True)
class Rooms:
    """The same for sizes that only a run tells: who shares a piece of memory with whom is fixed,
    how large the pieces are is not."""

    members: tuple[tuple[Size, ...], ...] = ()
    """For each room the bytes that it must hold: the most of them counts."""
    rooms: Mapping[Hashable, int] = field(default_factory=dict)
    """The number of each buffer's room."""

    def layout(self, value: Callable[[Size], int]) -> tuple[list[int], int]:
        """Where each room begins, and the bytes of all; `value` tells sizes."""
        places, at = [], 0
        for members in self.members:
            places.append(at)
            most = max(map(value, members))
            at += _aligned(max(most, 1), ALIGNMENT)
        return places, at


@dataclass(frozen=True)
class Tenant:
    """A Lifetime whose bytes are an expression, `likely` their most likely number."""

    key: Hashable
    size: Size
    likely: int
    first: int
    last: int


def house(tenants: Sequence[Tenant]) -> Rooms:
    """Rooms for buffers, the largest first, each in the smallest room that is free then."""
    inside: list[list[Tenant]] = []
    rooms: dict[Hashable, int] = {}
    for tenant in sorted(tenants, key=lambda t: (-t.likely, t.first)):
        free = [
            number
            for number, others in enumerate(inside)
            if all(other.last < tenant.first or tenant.last < other.first for other in others)
        ]
        number = min(free, key=lambda n: inside[n][0].likely, default=len(inside))
        if number == len(inside):
            inside.append([])
        inside[number].append(tenant)
        rooms[tenant.key] = number
    return Rooms(tuple(tuple(dict.fromkeys(t.size for t in room)) for room in inside), rooms)
