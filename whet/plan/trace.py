"""What a run tells whoever watches it: when each step ran, on which threads, and what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from whet.ir.graph import Value
from whet.plan.plan import Step

Look = Callable[[Step, Mapping[Value, Any]], None]


@dataclass(frozen=True)
class Timing:
    """One step of a run: its seconds, and where the clock was then.

    `start` is on the clock of time.perf_counter, None where that is not known.
    `threads` are the numbers of those that took part, with the second at which each was done;
    `sizes` are the named sizes of the run.
    """

    step: Step
    seconds: float
    start: float | None = None
    threads: tuple[tuple[int, float], ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Trace:
    """The steps of a run, or of several, in order, with their times.

    With `look`, steps run one by one, and each is shown the arrays of all Values so far: those in
    the arena are overwritten by later steps.
    """

    look: Look | None = None
    timings: list[Timing] = field(default_factory=list)

    @property
    def steps(self) -> list[tuple[Step, float]]:
        """Each step with its seconds."""
        return [(timing.step, timing.seconds) for timing in self.timings]

    def per_run(self, runs: int) -> dict[Step, float]:
        """The steps in order, with what each takes of a run: its median, as often as it runs."""
        found: dict[Step, list[float]] = {}
        for timing in self.timings:
            found.setdefault(timing.step, []).append(timing.seconds)
        return {step: median(times) * len(times) / runs for step, times in found.items()}

    def add(self, timing: Timing, values: Mapping[Value, Any]) -> None:
        self.timings.append(timing)
        if self.look is not None:
            self.look(timing.step, values)


current: ContextVar[Trace | None] = ContextVar("current", default=None)
"""The trace of the calling thread's run; other threads' runs are not watched."""


@contextmanager
def tracing(trace: Trace | None) -> Iterator[None]:
    """Within it, runs of this thread are watched, or, with None, are not."""
    token = current.set(trace)
    try:
        yield
    finally:
        current.reset(token)
