"""Operators in this target's terms: a template's where one fits, else simpler ones, down to what
loops can hold."""

from __future__ import annotations

from typing import Any

from whet.ir.graph import Value
from whet.plan.legalize import loops_hold, simpler
from whet.targets.cuda.arithmetic import COMPUTE, EMIT


def emits(value: Value) -> bool:
    """Whether a loop nest can hold the operator, with these dtypes."""
    return loops_hold(value, EMIT, COMPUTE)


def legalize(value: Value) -> Any:
    """One operator in simpler terms, or the Value itself."""
    return simpler(value, emits)
