"""Operators in the CPU's terms: a template's where one fits, else simpler ones, down to what loops
can hold."""

from __future__ import annotations

from typing import Any

from whet.ir.graph import Value
from whet.ir.types import FLOATS, TensorType
from whet.ops.elementwise import Cast, Pow
from whet.plan.group import ELEMENTWISE
from whet.plan.lower import RULES
from whet.targets.cpu.arithmetic import COMPUTE, EMIT


def emits(value: Value) -> bool:
    """Whether a loop nest can hold the operator, with these dtypes."""
    if (
        isinstance(value.op, ELEMENTWISE)
        and type(value.op) not in EMIT
        and not isinstance(value.op, Cast)
    ):
        return False
    if not isinstance(value.op, ELEMENTWISE) and type(value.op) not in RULES:
        return False
    return all(_has_code(t) for v in (value, *value.inputs) if v is not None for t in (v.type,))


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


def _has_code(type: Any) -> bool:
    return isinstance(type, TensorType) and type.dtype in COMPUTE


def legalize(value: Value) -> Any:
    """One operator in simpler terms, or the Value itself."""
    if isinstance(value.op, Pow) and len({i.dtype for i in value.inputs if i is not None}) > 1:
        return _pow_of_one_dtype(value)
    if emits(value) or not hasattr(value.op, "lower"):
        return value
    return value.op.lower(*value.inputs)
