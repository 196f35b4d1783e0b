"""Products with weights of a few bits and a scale for each block: how language models ship."""

from __future__ import annotations

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import ceil_divide
from whet.ir.types import TensorType
from whet.ops.contract import MatMul
from whet.ops.elementwise import BitwiseAnd, Cast, Shift, require_equal
from whet.ops.movement import Gather, reshape, slice_axis, transpose, unsqueeze
from whet.ops.reduce import narrowed, widened


@operator
class BlockQuantizedMatMul(Op):
    """a[..., K] times the transpose of w[N, K], whose elements are (q - zero) * scale.

    codes[N, blocks, bytes] holds q of `bits` bits, the first in the lowest bits; each block of
    `block` elements of a row has one of scales[N, blocks] and of zeros[N, blocks], floats; without
    zeros the middle 2**(bits-1) stands for 0.
    """

    inner: int
    bits: int
    block: int

    def infer(
        self, a: TensorType, codes: TensorType, scales: TensorType, zeros: TensorType | None = None
    ) -> TensorType:
        require_equal(a.shape[-1], self.inner, "the rows of the weight and the last axis of a")
        blocks = ceil_divide(self.inner, self.block)
        if codes.rank != 3 or codes.shape[1:] != (blocks, self.block * self.bits // 8):
            raise ShapeError(f"{codes} does not hold {blocks} blocks of {self.block} codes a row")
        return a.with_shape(*a.shape[:-1], codes.shape[0])

    def reference(
        self, a: np.ndarray, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None
    ) -> np.ndarray:
        rows, blocks = codes.shape[:2]
        bits = np.unpackbits(codes.astype(np.uint8), axis=2, bitorder="little")
        q = bits.reshape(rows, blocks, -1, self.bits) @ (1 << np.arange(self.bits))
        middle = 2 ** (self.bits - 1)
        zero = np.float64(middle) if zeros is None else zeros.astype(np.float64)[..., None]
        w = (q - zero) * scales.astype(np.float64).reshape(rows, blocks, 1)
        w = w.reshape(rows, -1)[:, : self.inner]
        return (a.astype(np.float64) @ w.T).astype(a.dtype)

    def lower(self, a: Value, codes: Value, scales: Value, zeros: Value | None = None) -> Value:
        q = unpacked(codes, self.bits)
        w = dequantized(q, scales, zeros, self.bits, widened(a).dtype)
        w = slice_axis(reshape(w, w.shape[0], w.shape[1] * w.shape[2]), 1, 0, self.inner)
        return narrowed(MatMul()(widened(a), transpose(w, 1, 0)), a)


def dequantized(q: Value, scales: Value, zeros: Value | None, bits: int, dtype: str) -> Value:
    """(q - zero) * scale of q[N, blocks, block] in a floating-point dtype."""
    scale = Cast(dtype)(reshape(scales, *q.shape[:2], 1))
    if zeros is None:
        return (Cast(dtype)(q) - float(2 ** (bits - 1))) * scale
    return (Cast(dtype)(q) - Cast(dtype)(unsqueeze(zeros, 2))) * scale


def unpacked(codes: Value, bits: int) -> Value:
    """Codes of `bits` bits from the bytes of the last axis, the first in the lowest bits."""
    if bits == 8:
        return codes
    bytes_, rest = codes.shape[-1], codes.shape[:-1]
    if 8 % bits == 0:
        shifts = constant(np.arange(0, 8, bits), "uint8")
        parts = Shift(left=False)(unsqueeze(codes, codes.rank), shifts)
        return BitwiseAnd()(reshape(parts, *rest, bytes_ * (8 // bits)), 2**bits - 1)
    # Eight codes fill `bits` bytes; each lies within two neighbouring ones.
    first = np.arange(0, 8 * bits, bits)
    groups = Cast("uint16")(reshape(codes, *rest, ceil_divide(bytes_, bits), bits))
    low, high = first // 8, np.minimum(first // 8 + 1, bits - 1)
    pair = Gather(codes.rank)(groups, constant(low))
    pair = pair + Gather(codes.rank)(groups, constant(high)) * 256
    parts = Shift(left=False)(pair, constant(first % 8, "uint16"))
    return reshape(BitwiseAnd()(parts, 2**bits - 1), *rest, ceil_divide(bytes_, bits) * 8)
