"""How long work says where it is, and how it is stopped: phases made of steps.

with monitored(monitor):               # what a caller gives as `progress=`
    with phase("optimise", 11) as step:    # what the work says
        step()                             # raises Cancelled where the monitor says stop
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from whet.errors import Cancelled, InvalidSetting


class ProgressMonitor:
    """Is told of phases and their steps; subclass it, and give it as `progress=`.

    The methods are those of TensorRT's IProgressMonitor. All are called from the thread that asked
    for the work; phases may lie within phases, and each that was started is finished, whatever
    happens. An exception that a method raises ends the work as a cancel does.
    """

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins, within `parent_phase` where there is one."""

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Step 0, 1, … of a phase is done. Return False to cancel: the call that asked for the work
        then raises whet.Cancelled and leaves nothing behind."""
        return True

    def phase_finish(self, phase_name: str) -> None:
        """A phase ended: it is done, cancelled, or failed."""


@dataclass(frozen=True)
class Phase:
    """A phase that is over: when it began, on the clock of time.perf_counter, and how long it
    took."""

    name: str
    parent: str | None
    start: float
    seconds: float


class Recorder(ProgressMonitor):
    """Keeps when each phase was, and passes everything on to another monitor."""

    def __init__(self, monitor: ProgressMonitor | None = None) -> None:
        self.monitor = monitor or ProgressMonitor()
        self.phases: list[Phase] = []
        self._open: list[tuple[str, str | None, float]] = []

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._open.append((phase_name, parent_phase, time.perf_counter()))
        self.monitor.phase_start(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        return self.monitor.step_complete(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        self.monitor.phase_finish(phase_name)
        name, parent, start = self._open.pop()
        self.phases.append(Phase(name, parent, start, time.perf_counter() - start))


_current: ContextVar[tuple[ProgressMonitor, str | None] | None] = ContextVar(
    "whet progress", default=None
)
"""The monitor of this thread's work, and the phase that it is in."""


@contextmanager
def monitored(monitor: ProgressMonitor | None) -> Iterator[None]:
    """Within it, what this thread does is told to the monitor; None leaves the one around it."""
    if monitor is None:
        yield
        return
    if not isinstance(monitor, ProgressMonitor):
        raise InvalidSetting(f"progress={monitor!r}; a whet.ProgressMonitor is needed")
    token = _current.set((monitor, None))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def phase(name: str, steps: int) -> Iterator[Callable[[], None]]:
    """A phase of so many steps: what it gives is called after each, and raises Cancelled."""
    found = _current.get()
    if found is None:
        yield _unwatched
        return
    monitor, parent = found
    numbers = itertools.count()

    def step() -> None:
        answer = monitor.step_complete(name, next(numbers))
        # A method that forgets to return anything does not mean to cancel.
        if answer is not None and not answer:
            raise Cancelled(f"cancelled by its progress monitor, in the phase {name!r}")

    monitor.phase_start(name, parent, steps)
    token = _current.set((monitor, name))
    try:
        yield step
    finally:
        _current.reset(token)
        monitor.phase_finish(name)


def _unwatched() -> None:
    """Nobody is told."""
