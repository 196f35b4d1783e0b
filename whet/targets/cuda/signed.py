"""8-bit activations with a sign: matrix units multiply int8 by int8 and add up in int32."""

from __future__ import annotations

from whet.ir.graph import Value, constant
from whet.ops.bits import BitCast
from whet.ops.elementwise import BitwiseXor

HALF = 128
"""What `signed` takes off bytes without sign."""


def signed(x: Value) -> Value:
    """Bytes less 128, as int8: the highest bit is turned; int8 as it is."""
    if x.dtype == "int8":
        return x
    flipped: Value = BitCast("int8")(BitwiseXor()(x, constant(HALF, "uint8")))
    return flipped
