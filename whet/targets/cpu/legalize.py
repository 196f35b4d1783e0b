"""Operators in the CPU's terms: a template's where one fits, else simpler ones, down to what loops
can hold."""

from __future__ import annotations

from typing import Any

from whet.ir.graph import Value
from whet.ir.types import FLOATS, TensorType
from whet.ops.attention import Attention
from whet.ops.bits import BitCast
from whet.ops.cast import FEW_BITS
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Cast, Pow, Where
from whet.ops.gather import ScatterElements, ScatterND
from whet.ops.recurrent import Recurrent
from whet.ops.reduce import Cumulative
from whet.ops.select import Order, Suppression
from whet.plan.group import ELEMENTWISE, MOVEMENT, READS
from whet.plan.lower import RULES
from whet.plan.nests import NESTS
from whet.targets.cpu.arithmetic import COMPUTE, EMIT
from whet.targets.cpu.two_steps import in_two_steps
from whet.targets.cpu.unsigned import without_sign

CARRIES = (*MOVEMENT, *READS, Where, BitCast, ScatterElements, ScatterND)
"""Operators that only carry elements, or their bits."""

WHOLE = (Attention, Convolution, MatMul, Order, Recurrent, Suppression)
"""Operators that templates run, where they can."""

COMBINING = (Cumulative, ScatterElements, ScatterND)
NARROW_FLOATS = FEW_BITS | {"float16", "bfloat16"}


def emits(value: Value) -> bool:
    """Whether a loop nest can hold the operator, with these dtypes."""
    if (
        isinstance(value.op, ELEMENTWISE)
        and type(value.op) not in EMIT
        and not isinstance(value.op, Cast)
    ):
        return False
    if not isinstance(value.op, ELEMENTWISE) and type(value.op) not in (*RULES, *NESTS):
        return False
    if type(value.op) in COMBINING and value.dtype in NARROW_FLOATS:
        return value.op.kind is None  # type: ignore[attr-defined]
    types = [v.type for v in (value, *value.inputs) if v is not None]
    if any(isinstance(t, TensorType) and t.dtype in FEW_BITS for t in types):
        return isinstance(value.op, CARRIES)
    return all(map(_has_code, types))


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
    if (bytes_ := without_sign(value)) is not None:
        return bytes_
    if (parts := in_two_steps(value)) is not None:
        return parts
    if emits(value) or not hasattr(value.op, "lower"):
        return value
    return value.op.lower(*value.inputs)
