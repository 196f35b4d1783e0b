"""float32 models in 16 bits, where the caller asks for it: what gains by it, and what is safe.

Products, convolutions and attention take and give 16-bit floats; their sums are float32 all the
same. Movement and the elementwise operators that cannot leave a small range by much follow their
inputs. All else (exponentials, sums over axes, norms, softmax alone, recurrences, random numbers)
stays in float32, with conversions around it that ride along with its loops. Inputs and outputs of
the model keep their dtypes, weights are converted once.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes

from whet.errors import InvalidSetting
from whet.ir.graph import Graph, Op, Value, constant, make, map_inner
from whet.ir.types import NUMPY_DTYPES, TensorType
from whet.ops import elementwise as ew
from whet.ops import movement
from whet.ops.attention import Attention
from whet.ops.cast import Cast
from whet.ops.contract import Convolution, MatMul
from whet.ops.window import Pool

WIDE = "float32"
PRECISIONS = ("float16", "bfloat16")

GAIN: tuple[type[Op], ...] = (MatMul, Convolution, Attention)
FOLLOW: tuple[type[Op], ...] = (
    *(ew.Add, ew.Sub, ew.Mul, ew.Div, ew.Neg, ew.Abs, ew.Max, ew.Min, ew.Clip, ew.Where),
    *(ew.Relu, ew.Sigmoid, ew.Silu, ew.Gelu, ew.Tanh, ew.Erf),
    *(movement.Reshape, movement.Transpose, movement.Broadcast, movement.Slice, movement.Pad),
    *(movement.Concat, movement.Gather, movement.Reverse),
)


def lowered(graph: Graph, precision: str) -> Graph:
    """The graph with its float32 work in another precision, where that is safe.

    Raises InvalidSetting for a precision that there is not.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise InvalidSetting(f"precision={precision!r}; one of {known}, or None, is needed")
    graph = map_inner(graph, lambda body: lowered(body, precision))
    new: dict[Value, Value] = {}
    origins: dict[Value, tuple[str, ...]] = {}
    for old in graph.values:
        if old in new:
            continue
        inputs = [i and new[i] for i in old.inputs]
        results = (old,) if not inputs else make(old.op, _converted(old, inputs, precision))
        for before, after in zip(old.siblings, results):
            new[before] = after
            graph._inherit(origins, before, after)
    ends = {o: as_it_was(new[o], o) for o in (*graph.outputs, *graph.definers.values())}
    return graph.replaced(ends, origins)


def as_it_was(new: Value, old: Value) -> Value:
    """A Value in the dtype that it had."""
    return ew.cast_to(new, old.dtype) if isinstance(old.type, TensorType) else new


def _converted(
    old: Value, inputs: Sequence[Value | None], precision: str
) -> tuple[Value | None, ...]:
    """What was float32 in the precision that the operator is to have."""
    wide = [i is not None and _is_wide(i) for i in old.inputs]
    narrow = _narrows(old, inputs, wide, precision)
    convert = (lambda x: narrowed(x, precision)) if narrow else (lambda x: ew.cast_to(x, WIDE))
    return tuple(convert(x) if x is not None and is_wide else x for x, is_wide in zip(inputs, wide))


def _is_wide(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.dtype == WIDE


def _narrows(
    old: Value, inputs: Sequence[Value | None], wide: Sequence[bool], precision: str
) -> bool:
    """Whether an operator is to work in the lower precision."""
    if old.is_static or not all(_is_wide(s) for s in old.siblings):
        return False
    if isinstance(old.op, GAIN):
        return True
    follows = isinstance(old.op, FOLLOW) or (isinstance(old.op, Pool) and old.op.kind == "max")
    given = (x for x, is_wide in zip(inputs, wide) if is_wide)
    return follows and any(x is not None and x.dtype == precision for x in given)


def narrowed(x: Value, precision: str) -> Value:
    """x in 16 bits, whose greatest finite number stands for what is beyond it, such as the -3.4e38
    of a mask."""
    if x.dtype == precision:
        return x
    if isinstance(x.op, Cast) and x.inputs[0] is not None and x.inputs[0].dtype == precision:
        return x.inputs[0]
    most = float(ml_dtypes.finfo(NUMPY_DTYPES[precision]).max)
    return Cast(precision)(ew.Clip()(x, constant(-most, WIDE), constant(most, WIDE)))
