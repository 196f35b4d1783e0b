"""A plan at the sizes of some runs, on a CPU: each step's code, and how many threads run it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from whet.plan.work import work_of
from whet.targets import bound
from whet.targets.bound import Sizes

if TYPE_CHECKING:
    from whet.targets.cpu.executable import Executable

MOST_STEPS_ALONE = 48
"""A plan of more steps has work enough for all threads, whatever they do."""
WAKE = 20e-6
"""Seconds within which one thread alone is done before another one would be of use."""
SLOW_BYTES, SLOW = 10e9, 20e9
"""Bytes and operations in a second of one thread, with small kernels."""


class Bound(bound.Bound):
    """What is evaluated for the sizes, and the code."""

    def __init__(self, executable: Executable, sizes: Sizes) -> None:
        super().__init__(executable.plan, executable.layout, sizes)
        self._most_threads = executable.threads
        self.code = executable.code
        """Addresses of the steps' code; replaced as a whole."""
        self.is_wanted = False
        """Whether code for the very sizes was asked for."""
        self.is_special = False
        """Whether that is code for the very sizes."""

    @cached_property
    def threads(self) -> int:
        """How many threads a run asks for: one where it ends before another would be awake."""
        steps = self._plan.steps
        if len(steps) > MOST_STEPS_ALONE:
            return self._most_threads
        works = [work_of(step, self.sizes) for step in steps]
        seconds = sum((w.read + w.written) / SLOW_BYTES + w.operations / SLOW for w in works)
        return 1 if seconds < WAKE else self._most_threads
