"""Operators in the CPU's terms: a template's where one fits, else simpler ones, down to what loops
can hold."""

from __future__ import annotations

from typing import Any

from whet.ir.graph import Value
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.recurrent import Recurrent
from whet.ops.select import Order, Suppression
from whet.plan.legalize import loops_hold, simpler
from whet.targets.cpu.arithmetic import COMPUTE, EMIT
from whet.targets.cpu.two_steps import in_two_steps
from whet.targets.cpu.unsigned import without_sign

WHOLE = (Attention, Convolution, MatMul, Order, Recurrent, Suppression)
"""Operators that templates run, where they can."""


def emits(value: Value) -> bool:
    """Whether a loop nest can hold the operator, with these dtypes."""
    return loops_hold(value, EMIT, COMPUTE)


def legalize(value: Value) -> Any:
    """One operator in simpler terms, or the Value itself."""
    for parts in (without_sign(value), in_two_steps(value)):
        if parts is not None:
            return parts
    return simpler(value, emits)
