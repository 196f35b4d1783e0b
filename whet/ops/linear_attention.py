"""Linear attention: a state for each head that every step decays, corrects, writes and reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import floor_divide
from whet.ir.types import TensorType
from whet.ops.contract import MatMul
from whet.ops.either import apply, shaped
from whet.ops.elementwise import Exp, require_equal
from whet.ops.movement import Concat, reshape, slice_axis
from whet.ops.reduce import narrowed, widened

MOST_UNROLLED = 4  # steps; decoding has one, and needs no loop


@operator
class LinearAttention(Op):
    """Attention with a state instead of a cache, step by step over the third axis.

    q[B, H, T, K] reads, k[B, G, T, K] and v[B, G, T, V] write state[B, G, K, V]; G divides H. Each
    step: the state is multiplied by exp(decay), decay[B, G, T, 1 or K] (Yang et al. 2023); with
    beta[B, 1 or G, T, 1] the value becomes beta * (v - k @ state), the delta rule (Schlag et al.
    2021); the outer product of k and v is added; scale * q @ state is the output.

    Results: outputs[B, H, T, V] and the last state, in the dtype of the first.
    """

    scale: float

    def infer(
        self,
        q: TensorType,
        k: TensorType,
        v: TensorType,
        state: TensorType,
        decay: TensorType | None = None,
        beta: TensorType | None = None,
    ) -> tuple[TensorType, TensorType]:
        if not q.rank == k.rank == v.rank == state.rank == 4:
            raise ShapeError(f"linear attention needs four axes, got {q}, {k}, {v} and {state}")
        require_equal(q.shape[2], k.shape[2], "the lengths of q and k")
        require_equal(k.shape[2], v.shape[2], "the lengths of k and v")
        return q.with_shape(*q.shape[:3], v.shape[3]), state

    def reference(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        state: np.ndarray,
        decay: np.ndarray | None = None,
        beta: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        dtypes = q.dtype, state.dtype
        wide = [None if a is None else a.astype(np.float64) for a in (q, k, v, decay, beta)]
        state = state.astype(np.float64)
        outputs = np.zeros((*q.shape[:3], v.shape[3]))
        for t in range(q.shape[2]):
            now = [None if a is None else a[:, :, t] for a in wide]
            outputs[:, :, t], state = self.step(state, *now)
        return outputs.astype(dtypes[0]), state.astype(dtypes[1])

    def lower(
        self,
        q: Value,
        k: Value,
        v: Value,
        state: Value,
        decay: Value | None = None,
        beta: Value | None = None,
    ) -> tuple[Value, Value]:
        """A few steps one after the other; more of them are left to a kernel with a loop."""
        steps = q.shape[2]
        if not isinstance(steps, int) or not 0 < steps <= MOST_UNROLLED:
            return self(q, k, v, state, decay, beta)
        outputs, last = [], widened(state)
        for t in range(steps):
            now = [None if x is None else _at(widened(x), t) for x in (q, k, v, decay, beta)]
            output, last = self.step(last, *now)
            outputs.append(reshape(output, *output.shape[:2], 1, output.shape[2]))
        joined = Concat(2)(*outputs) if steps > 1 else outputs[0]
        return narrowed(joined, q), narrowed(last, state)

    def step(self, state: Any, q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
        """The output [B, H, V] and the state after one step, of NumPy arrays or of Values."""
        batch, groups, key_size, value_size = state.shape
        if decay is not None:
            state = state * apply(Exp(), shaped(decay, *decay.shape, 1))
        v = shaped(v, batch, groups, 1, value_size)
        if beta is not None:
            found = apply(MatMul(), shaped(k, batch, groups, 1, key_size), state)
            v = shaped(beta, *beta.shape, 1) * (v - found)
        state = state + shaped(k, batch, groups, key_size, 1) * v
        rows = shaped(q, batch, groups, floor_divide(q.shape[1], groups), key_size)
        output = apply(MatMul(), rows, state) * self.scale
        return shaped(output, batch, q.shape[1], value_size), state


def _at(x: Value, t: int) -> Value:
    """x[:, :, t]"""
    return reshape(slice_axis(x, 2, t, 1), *x.shape[:2], x.shape[3])
