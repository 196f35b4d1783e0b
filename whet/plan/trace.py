"""What a run tells whoever watches it: the time of each step, and what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from whet.ir.graph import Value
from whet.plan.plan import Step

Look = Callable[[Step, Mapping[Value, Any]], None]


@dataclass
class Trace:
    """The steps of one run in order, with their seconds.

    With `look`, steps run one by one, and each is shown the arrays of all Values so far: those in
    the arena are overwritten by later steps.
    """

    look: Look | None = None
    steps: list[tuple[Step, float]] = field(default_factory=list)

    def add(self, step: Step, seconds: float, values: Mapping[Value, Any]) -> None:
        self.steps.append((step, seconds))
        if self.look is not None:
            self.look(step, values)


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
