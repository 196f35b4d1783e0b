"""8-bit activations without sign: integer kernels multiply bytes from 0 to 255 with signed weights.

A signed number plus 128 is the same bits but for the highest one. Quantise is made to give such
bytes, and the bit is turned behind whatever only moves or compares them, up to who needs the sign.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whet.ir.graph import Constant, Value, constant
from whet.ops.bits import BitCast
from whet.ops.elementwise import BitwiseXor
from whet.ops.movement import Concat, Reshape, Slice, Transpose
from whet.ops.quantize import SIGN, Dequantize, Quantize, signed
from whet.ops.window import Pool

MOVES = (Reshape, Transpose, Slice)


def unsigned(x: Value) -> Value:
    """int8 plus 128, as uint8; uint8 as it is."""
    if x.dtype == "uint8":
        return x
    inner = bytes_behind(x)
    if inner is not None:
        return inner
    if isinstance(x.op, Constant):
        return constant(np.asarray(x.op.data).view(np.uint8) ^ np.uint8(SIGN))
    flipped: Value = BitwiseXor()(BitCast("uint8")(x), constant(SIGN, "uint8"))
    return flipped


def bytes_behind(x: Value) -> Value | None:
    """The bytes that `signed` made x of."""
    if not isinstance(x.op, BitCast) or x.dtype != "int8":
        return None
    (bits,) = x.inputs
    if bits is None or not isinstance(bits.op, BitwiseXor):
        return None
    inner, mask = bits.inputs
    is_sign = (
        mask is not None and isinstance(mask.op, Constant) and bool((mask.op.data == SIGN).all())
    )
    return inner if is_sign else None


def without_sign(value: Value) -> Value | None:
    """The operator on bytes without sign, where it is one that gives or takes int8."""
    if value.is_static:
        return None
    op = value.op
    if isinstance(op, Quantize) and value.dtype == "int8":
        x, scale, *zero = value.inputs
        assert x is not None and scale is not None
        first = zero[0] if zero else None
        shift = constant(SIGN, "uint8") if first is None else unsigned(first)
        return signed(replace(op, to="uint8")(x, scale, shift))
    there = [i and bytes_behind(i) for i in value.inputs]
    if not there or there[0] is None:
        return None
    if isinstance(op, Dequantize):
        _, scale, *zero = value.inputs
        first = zero[0] if zero else None
        shift = constant(SIGN, "uint8") if first is None else unsigned(first)
        made: Value = op(there[0], scale, shift)
        return made
    if isinstance(op, MOVES) or (isinstance(op, Pool) and op.kind == "max"):
        return signed(op(there[0]))
    if isinstance(op, Concat) and all(i is not None for i in there):
        return signed(op(*there))
    return None
