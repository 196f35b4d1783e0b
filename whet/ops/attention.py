"""Attention: one operator that a target may run whole, and how simpler operators make it."""

from __future__ import annotations

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, floor_divide, product
from whet.ir.types import NUMPY_DTYPES, TensorType
from whet.ops.contract import MatMul
from whet.ops.elementwise import (
    And,
    Exp,
    LessOrEqual,
    Max,
    Tanh,
    Where,
    broadcast_sizes,
    require_equal,
    same_dtype,
)
from whet.ops.index import number, positions
from whet.ops.movement import Concat, reshape, slice_axis, transpose
from whet.ops.reduce import Reduce, narrowed, widened


@operator
class Attention(Op):
    """softmax(scale * q @ k.T + mask) @ v (Vaswani et al. 2017).

    q[B, H, S, D], k[B, G, T, D], v[B, G, T, E] give y[B, H, S, E]; G divides H, and query head h
    reads head h // (H/G) of k and v (Ainslie et al. 2023). The mask, where there is one, broadcasts
    to [B, H, S, T] and is added. Query i stands at position p = i + offset and sees keys from
    p - left to p + right, all where the bound is None; causal is right = 0. A softcap c > 0 makes
    scores c * tanh(scores / c) before the mask. A query that sees no key gives 0.
    """

    scale: float = 1.0
    softcap: float = 0.0
    left: int | None = None
    right: int | None = None
    offset: Size = 0

    def infer(
        self, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None
    ) -> TensorType:
        same_dtype(q, k, v)
        if not q.rank == k.rank == v.rank == 4:
            raise ShapeError(f"attention needs four axes of q, k and v, got {q}, {k} and {v}")
        require_equal(q.shape[3], k.shape[3], "the head sizes of q and k")
        require_equal(k.shape[2], v.shape[2], "the lengths of k and v")
        require_equal(k.shape[1], v.shape[1], "the heads of k and v")
        require_equal(q.shape[1] % k.shape[1], 0, "the heads of q beyond a multiple of k's")
        batch = broadcast_sizes(q.shape[0], k.shape[0])
        if mask is not None:
            scores = (batch, q.shape[1], q.shape[2], k.shape[2])
            if mask.rank > 4:
                raise ShapeError(f"the mask {mask} does not stretch to {list(scores)}")
            for size, wanted in zip(reversed(mask.shape), reversed(scores)):
                broadcast_sizes(size, wanted)
        return q.with_shape(batch, *q.shape[1:3], v.shape[3])

    def operations(
        self, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None
    ) -> Size:
        # What a mask or a bound hides is counted too; a kernel may leave it out.
        return 2 * product(q.shape[:3]) * k.shape[2] * (q.shape[3] + v.shape[3])

    def reference(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None
    ) -> np.ndarray:
        wide = [a.astype(np.float64) for a in (q, k, v)]
        shared = q.shape[1] // max(k.shape[1], 1)
        keys, values = (np.repeat(a, shared, 1) for a in wide[1:])
        scores = self.scale * (wide[0] @ keys.swapaxes(2, 3))
        if self.softcap > 0:
            scores = self.softcap * np.tanh(scores / self.softcap)
        scores = scores if mask is None else scores + mask.astype(np.float64)
        i, j = np.ogrid[: q.shape[2], : k.shape[2]]
        if (seen := self._seen(i, j)) is not None:
            scores = np.where(seen, scores, -np.inf)
        return (_stable_softmax(scores) @ values).astype(q.dtype)

    def _seen(self, i: np.ndarray, j: np.ndarray) -> np.ndarray | None:
        """Which keys j query i sees, where a bound hides any."""
        seen = None
        if self.right is not None:
            seen = j <= i + (self.offset + self.right)
        if self.left is not None:
            near = j >= i + (self.offset - self.left)
            seen = near if seen is None else seen & near
        return seen

    def lower(self, q: Value, k: Value, v: Value, mask: Value | None = None) -> Value:
        probabilities = masked_softmax(self.masked(self.scores(q, k), mask))
        return narrowed(weigh(probabilities, v), q)

    def scores(self, q: Value, k: Value) -> Value:
        """The scaled products [B, H, S, T] in float32 or wider, before cap and mask."""
        return multiply_heads(widened(q), transpose(widened(k), 0, 1, 3, 2)) * self.scale

    def masked(self, scores: Value, mask: Value | None) -> Value:
        """The scores capped and masked."""
        if self.softcap > 0:
            scores = Tanh()(scores / self.softcap) * self.softcap
        scores = scores if mask is None else scores + narrowed(mask, scores)
        seen = self.seen(scores.shape[2], scores.shape[3])
        if seen is None:
            return scores
        return Where()(seen, scores, constant(-np.inf, scores.dtype))

    def seen(self, queries: Size, keys: Size) -> Value | None:
        """A bool [S, T] of which keys a query sees; None where all are seen."""
        if self.left is None and self.right is None:
            return None
        position = positions(queries, 2, 0) + number(self.offset, "int64")
        return window(position, positions(keys, 2, 1), self.left, self.right)


def window(position: Value, key: Value, left: int | None, right: int | None) -> Value:
    """Whether each key lies within the window around each query's position."""
    seen: Value | None = None
    if right is not None:
        seen = LessOrEqual()(key, position + right if right else position)
    if left is not None:
        near = LessOrEqual()(position - left if left else position, key)
        seen = near if seen is None else And()(seen, near)
    assert seen is not None
    return seen


def _stable_softmax(scores: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) along the last axis; 0 where every x is -inf."""
    if scores.shape[-1] == 0:
        return scores
    high = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isneginf(high), 0, high))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def masked_softmax(scores: Value) -> Value:
    """Softmax along the last axis that gives 0 where every score is -inf."""
    axes = (scores.rank - 1,)
    lowest = float(np.finfo(NUMPY_DTYPES[scores.dtype]).min)
    e = Exp()(scores - Max()(Reduce("max", axes)(scores), lowest))
    # Where a key is seen the greatest term is 1, so the bound only matters where the sum is 0.
    return e / Max()(Reduce("sum", axes)(e), 1e-30)


def multiply_heads(a: Value, b: Value) -> Value:
    """a[B, H, S, X] @ b[B, G, X, Y], the H/G heads that share one of b as rows of one product."""
    batch, heads, rows, inner = a.shape
    groups = b.shape[1]
    if heads == groups:
        return MatMul()(a, b)
    shared = reshape(a, batch, groups, floor_divide(heads, groups) * rows, inner)
    return reshape(MatMul()(shared, b), batch, heads, rows, b.shape[3])


def weigh(probabilities: Value, v: Value) -> Value:
    """probabilities[B, H, S, T] times v[B, G, T, E]."""
    return multiply_heads(probabilities, narrowed(v, probabilities))


def split_heads(x: Value, heads: Size) -> Value:
    """x[B, S, heads * D] as [B, heads, S, D]."""
    batch, length, hidden = x.shape
    size = floor_divide(hidden, heads)
    return transpose(reshape(x, batch, length, heads, size), 0, 2, 1, 3)


def merge_heads(x: Value) -> Value:
    """x[B, H, S, D] as [B, S, H * D]."""
    batch, heads, length, size = x.shape
    return reshape(transpose(x, 0, 2, 1, 3), batch, length, heads * size)


def rotate(x: Value, cosine: Value, sine: Value, interleaved: bool) -> Value:
    """Rotary embedding (Su et al. 2021): pairs of x's last axis turned by angles that broadcast.

    The pairs are (i, i + half), or neighbours when interleaved; what lies beyond twice the last
    size of `cosine` stays as it is.
    """
    half = cosine.shape[-1]
    turned, rest = slice_axis(x, -1, 0, 2 * half), x.shape[-1] - 2 * half
    pairs = (*x.shape[:-1], half, 2) if interleaved else (*x.shape[:-1], 2, half)
    axis = x.rank if interleaved else x.rank - 1
    pairs_of_x = reshape(turned, *pairs)
    a, b = (reshape(slice_axis(pairs_of_x, axis, i, 1), *x.shape[:-1], half) for i in range(2))
    parts = [a * cosine - b * sine, a * sine + b * cosine]
    if interleaved:
        lines = [reshape(p, *p.shape, 1) for p in parts]
        parts = [reshape(Concat(x.rank)(*lines), *x.shape[:-1], 2 * half)]
    if rest != 0:
        parts.append(slice_axis(x, -1, 2 * half, rest))
    return Concat(x.rank - 1)(*parts) if len(parts) > 1 else parts[0]
