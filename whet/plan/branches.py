"""Steps that do not need each other may run at the same time: what may then share memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from whet.ir.graph import Value
from whet.plan.memory import Lifetime

if TYPE_CHECKING:
    from whet.plan.plan import Step


class Branches:
    """Which steps must be done before others, by what they read and write; `kept` is what is read
    behind all of them."""

    def __init__(self, steps: Sequence[Step], kept: Collection[Value] = ()) -> None:
        self._kept = frozenset(kept)
        self._before: list[int] = []
        """For each step those that are done before it begins, as bits."""
        self._writers: dict[Value, list[int]] = {}
        self._users: dict[Value, int] = {}
        """The steps that read or write a Value, as bits."""
        for number, step in enumerate(steps):
            before = 0
            for value in (*step.reads, *step.writes):
                for writer in self._writers.get(value, ()):
                    before |= self._before[writer] | 1 << writer
                self._users[value] = self._users.get(value, 0) | 1 << number
            self._before.append(before)
            for value in step.writes:
                self._writers.setdefault(value, []).append(number)

    def meet(self, a: Lifetime, b: Lifetime) -> bool:
        """Whether two buffers may be in use at the same time."""
        return self.overlap(a.key, b.key)  # type: ignore[arg-type]

    def overlap(self, a: Value, b: Value) -> bool:
        """Whether two Values may be in use at the same time."""
        return not (self._is_done(a, b) or self._is_done(b, a))

    def _is_done(self, first: Value, then: Value) -> bool:
        """Whether all that use the one are done before the other is written."""
        if first in self._kept or then not in self._writers:  # which is there before any step
            return False
        users = self._users[first]
        return all(users & ~self._before[writer] == 0 for writer in self._writers[then])
