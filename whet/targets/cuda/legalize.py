"""Operators in this target's terms: a template's where one fits, else simpler ones, down to what
loops can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from whet.ir.atoms import Symbol, Undecided
from whet.ir.graph import Input, Value, make
from whet.ir.sizes import Expr, substitute
from whet.ir.types import TensorType, Type, map_sizes
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.recurrent import Recurrent
from whet.ops.select import Suppression
from whet.plan.legalize import loops_hold, simpler
from whet.targets.cuda.arithmetic import COMPUTE, EMIT
from whet.targets.cuda.told import USUAL

WHOLE = (Attention, Convolution, MatMul, Recurrent, Suppression)
"""Operators that templates run, where they can."""


def check_sizes(value: Value, legalize: Callable[[Value], Any]) -> None:
    """Raises Undecided where a template would run the operator if its sizes were known: each set
    of them has a plan of its own then."""
    if not isinstance(value.op, WHOLE):
        return
    names = {s.name for i in value.inputs if i is not None for s in _symbols(i.type)}
    sizes = dict.fromkeys(names | value.op.symbols, USUAL)
    if not sizes:
        return
    inputs: list[Value | None] = []
    for number, i in enumerate(value.inputs):
        kind = None if i is None else map_sizes(i.type, lambda n: substitute(n, sizes))
        inputs.append(None if kind is None else make(Input(f"x{number}", kind), ())[0])
    if legalize(make(value.op.bind(sizes), inputs)[0]) is not None:
        raise Undecided(f"no kernel of this target is told the sizes of {value.op}")


def _symbols(kind: Type) -> Iterator[Symbol]:
    shape = kind.shape if isinstance(kind, TensorType) else ()
    return (symbol for size in shape if isinstance(size, Expr) for symbol in size.symbols)


def emits(value: Value) -> bool:
    """Whether a loop nest can hold the operator, with these dtypes."""
    return loops_hold(value, EMIT, COMPUTE)


def legalize(value: Value) -> Any:
    """One operator in simpler terms, or the Value itself."""
    return simpler(value, emits)
