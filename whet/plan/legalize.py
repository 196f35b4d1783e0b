"""What targets share of putting operators into their terms: what loops hold, what is made
simpler."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.ir.graph import Graph, Value, constant
from whet.ir.types import FLOATS, TensorType
from whet.ops.bits import BitCast
from whet.ops.cast import FEW_BITS
from whet.ops.elementwise import Cast, Pow, Where
from whet.ops.gather import ScatterElements, ScatterND
from whet.ops.reduce import Cumulative
from whet.plan.group import ELEMENTWISE, MOVEMENT, READS
from whet.plan.lower import RULES
from whet.plan.nests import NESTS

if TYPE_CHECKING:
    from whet.plan.target import Device

CARRIES = (*MOVEMENT, *READS, Where, BitCast, ScatterElements, ScatterND)
"""Operators that only carry elements, or their bits."""

COMBINING = (Cumulative, ScatterElements, ScatterND)
NARROW_FLOATS = FEW_BITS | {"float16", "bfloat16"}


def legal(graph: Graph, device: Device) -> Graph:
    """The graph in the device's own terms."""
    while True:
        new = graph.map(device.legalize)
        if new is graph:
            return graph
        graph = new


def loops_hold(value: Value, emit: Container[type], compute: Container[str]) -> bool:
    """Whether a loop nest can hold the operator, with these dtypes, on a target that has code for
    the elementwise operators in `emit` and the dtypes in `compute`."""
    kind = type(value.op)
    if issubclass(kind, ELEMENTWISE):
        if kind not in emit and kind is not Cast:
            return False
    elif kind not in (*RULES, *NESTS):
        return False
    if kind in COMBINING and value.dtype in NARROW_FLOATS:
        return value.op.kind is None  # type: ignore[attr-defined]
    types = [v.type for v in (value, *value.inputs) if v is not None]
    if any(isinstance(t, TensorType) and t.dtype in FEW_BITS for t in types):
        return isinstance(value.op, CARRIES)
    return all(isinstance(t, TensorType) and t.dtype in compute for t in types)


def simpler(value: Value, emits: Callable[[Value], bool]) -> Any:
    """One operator in simpler terms, or the Value itself."""
    if (nothing := _nothing(value)) is not None:
        return nothing
    if isinstance(value.op, Pow) and len({i.dtype for i in value.inputs if i is not None}) > 1:
        return _pow_of_one_dtype(value)
    if emits(value) or not hasattr(value.op, "lower"):
        return value
    return value.op.lower(*value.inputs)


def _nothing(value: Value) -> Value | None:
    """The constant that an operator's one result is where it is known to have no elements."""
    kind = value.type
    if not isinstance(kind, TensorType) or not value.inputs or len(value.siblings) > 1:
        return None
    if isinstance(value.op, ScatterElements | ScatterND):
        return None  # every index into nothing is an error that a run has to find
    if not kind.is_static or 0 not in kind.shape or kind.dtype == "string":
        return None
    return constant(np.empty(kind.shape, kind.numpy))


def _pow_of_one_dtype(value: Value) -> Value:
    """A power whose exponent has another dtype, computed in one that holds both."""
    base, exponent = value.inputs
    assert base is not None and exponent is not None
    floats = [v.dtype for v in (base, exponent) if v.dtype in FLOATS]
    wide = base.dtype if base.dtype in FLOATS else "float64" if floats else "int64"
    result = Pow()(_cast(base, wide), _cast(exponent, wide))
    return _cast(result, base.dtype)


def _cast(value: Value, dtype: str) -> Value:
    return value if value.dtype == dtype else Cast(dtype)(value)
