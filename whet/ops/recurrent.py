"""Recurrent layers: one operator for LSTM, GRU and the plain RNN, and the step that it repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, product
from whet.ir.types import TensorType
from whet.ops.contract import MatMul
from whet.ops.either import apply, cut, like, parts, row, where
from whet.ops.elementwise import (
    Abs,
    Clip,
    Exp,
    Less,
    LessOrEqual,
    Log,
    Max,
    Min,
    Relu,
    Sigmoid,
    Tanh,
    Where,
    require_equal,
)
from whet.ops.movement import Concat, reshape, slice_axis, unsqueeze
from whet.ops.reduce import narrowed, widened

MOST_UNROLLED = 4  # steps; a streaming model has one, and needs no loop

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
FUNCTIONS = {"lstm": 3, "gru": 2, "rnn": 1}

Activation = tuple[str, float, float]
"""A function's name, and its two parameters where it has any."""


@operator
class Recurrent(Op):
    """One direction of a recurrent layer over sequences whose input products are already made.

    gates[T, B, G*H] holds x @ W + b for each step, weight[H, G*H] multiplies the state, bias[H] is
    added to the candidate's state product (GRU with `reset_after` only), peephole[3, H] reaches the
    gates from the cell (LSTM only: input, output, forget). hidden[B, H] and cell[B, H] are the
    initial states. Steps at or beyond lengths[B] leave the state alone and give 0. `backward` runs
    from the last step to the first.

    Results: outputs[T, B, H], the last hidden[B, H], and for an LSTM the last cell[B, H].
    Gates stand as ONNX has them: input, output, forget, candidate (Hochreiter and Schmidhuber
    1997; Gers et al. 2000); update, reset, candidate (Cho et al. 2014).
    """

    kind: Annotated[str, Literal["lstm", "gru", "rnn"]]
    activations: tuple[Activation, ...]
    backward: bool = False
    clip: float | None = None
    reset_after: bool = False
    coupled: bool = False

    def infer(
        self,
        gates: TensorType,
        weight: TensorType,
        hidden: TensorType,
        cell: TensorType | None = None,
        bias: TensorType | None = None,
        peephole: TensorType | None = None,
        lengths: TensorType | None = None,
    ) -> tuple[TensorType, ...]:
        if gates.rank != 3 or weight.rank != 2 or hidden.rank != 2:
            raise ShapeError(f"a recurrent layer does not fit {gates}, {weight} and {hidden}")
        names = [name for name, _, _ in self.activations]
        if len(names) != FUNCTIONS[self.kind] or not ACTIVATIONS.keys() >= set(names):
            raise TypeMismatch(f"a recurrent layer of kind {self.kind} does not have {names}")
        require_equal(weight.shape[1], gates.shape[2], "the columns of the weight and the gates")
        require_equal(hidden.shape[1], weight.shape[0], "the state's size and the weight's rows")
        steps, batch = gates.shape[:2]
        state = gates.with_shape(batch, hidden.shape[1])
        outputs = gates.with_shape(steps, batch, hidden.shape[1])
        return (outputs, state, state) if self.kind == "lstm" else (outputs, state)

    def operations(self, gates: TensorType, weight: TensorType, *rest: TensorType | None) -> Size:
        return 2 * product(gates.shape[:2]) * product(weight.shape)

    def reference(
        self,
        gates: np.ndarray,
        weight: np.ndarray,
        hidden: np.ndarray,
        cell: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        peephole: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> tuple[np.ndarray, ...]:
        dtype = gates.dtype
        gates, weight, hidden = (a.astype(np.float64) for a in (gates, weight, hidden))
        cell, bias, peephole = (
            None if a is None else a.astype(np.float64) for a in (cell, bias, peephole)
        )
        outputs = np.zeros((*gates.shape[:2], hidden.shape[1]))
        steps = range(len(gates))
        for t in reversed(steps) if self.backward else steps:
            h, c = self.step(gates[t], weight, hidden, cell, bias, peephole)
            alive = np.ones((1, 1), bool) if lengths is None else (t < lengths)[:, None]
            outputs[t] = np.where(alive, h, 0)
            hidden = np.where(alive, h, hidden)
            cell = None if cell is None else np.where(alive, c, cell)
        results = (outputs, hidden) if cell is None else (outputs, hidden, cell)
        return tuple(a.astype(dtype) for a in results)

    def lower(self, *inputs: Value | None) -> tuple[Value, ...]:
        """A few steps one after the other; more of them are left to a kernel with a loop."""
        given: list[Value | None] = [*inputs, *[None] * (7 - len(inputs))]
        gates, weight, h, c, bias, peephole, lengths = given
        assert gates is not None and weight is not None and h is not None
        steps = gates.shape[0]
        if not isinstance(steps, int) or not 0 < steps <= MOST_UNROLLED:
            return self(*inputs)
        first_h, first_c = h, c
        gates, weight, h = widened(gates), widened(weight), widened(h)
        c, bias, peephole = (None if v is None else widened(v) for v in (c, bias, peephole))
        outputs: dict[int, Value] = {}
        for t in reversed(range(steps)) if self.backward else range(steps):
            now = reshape(slice_axis(gates, 0, t, 1), *gates.shape[1:])
            new_h, new_c = self.step(now, weight, h, c, bias, peephole)
            outputs[t] = new_h
            if lengths is not None:
                alive = Less()(constant(t, lengths.dtype), unsqueeze(lengths, 1))
                outputs[t] = Where()(alive, new_h, constant(0, new_h.dtype))
                new_h = Where()(alive, new_h, h)
                new_c = None if c is None else Where()(alive, new_c, c)
            h, c = new_h, new_c
        lines = [unsqueeze(outputs[t], 0) for t in range(steps)]
        result = narrowed(Concat(0)(*lines) if len(lines) > 1 else lines[0], first_h)
        if c is None or first_c is None:
            return result, narrowed(h, first_h)
        return result, narrowed(h, first_h), narrowed(c, first_c)

    def step(self, gates: Any, weight: Any, h: Any, c: Any, bias: Any, peephole: Any) -> Any:
        """The hidden and cell state after one step, of NumPy arrays or of Values alike."""
        if self.kind == "lstm":
            return self._lstm(gates + apply(MatMul(), h, weight), c, peephole)
        if self.kind == "gru":
            return self._gru(gates, weight, h, bias), None
        return self.squash(0, gates + apply(MatMul(), h, weight)), None

    def _lstm(self, gates: Any, c: Any, peephole: Any) -> Any:
        rows = None if peephole is None else [row(peephole, k) for k in range(3)]
        return self.lstm_cell(parts(gates, 4), c, rows)

    def lstm_cell(self, gates: Any, c: Any, peephole: Any = None) -> tuple[Any, Any]:
        """The hidden and cell state from the sums of the four gates, element by element."""
        i, o, f, g = gates
        if peephole is not None:
            from_input, from_output, from_forget = peephole
            i, f = i + from_input * c, f + from_forget * c
        i = self.squash(0, i)
        f = 1 - i if self.coupled else self.squash(0, f)
        c = f * c + i * self.squash(1, g)
        o = self.squash(0, o if peephole is None else o + from_output * c)
        return o * self._squash_state(2, c), c

    def _gru(self, gates: Any, weight: Any, h: Any, bias: Any) -> Any:
        size = h.shape[-1]
        own_z, own_r, own_g = parts(gates, 3)
        update_reset, candidate = cut(weight, 0, 2 * size), cut(weight, 2 * size, size)
        z, r = parts(apply(MatMul(), h, update_reset), 2)
        z, r = self.squash(0, own_z + z), self.squash(0, own_r + r)
        if self.reset_after:
            from_state = apply(MatMul(), h, candidate)
            from_state = r * (from_state if bias is None else from_state + bias)
        else:
            from_state = apply(MatMul(), r * h, candidate)
        return self.gru_state(z, own_g + from_state, h)

    def gru_state(self, z: Any, candidate: Any, h: Any) -> Any:
        """The hidden state from the update gate and the candidate's sum, element by element."""
        return (1 - z) * self.squash(1, candidate) + z * h

    def squash(self, index: int, x: Any) -> Any:
        """An activation, of what is clipped first."""
        if self.clip is not None:
            limit = [like(bound, x) for bound in (-self.clip, self.clip)]
            x = apply(Clip(), x, *limit)
        return activate(self.activations[index], x)

    def _squash_state(self, index: int, x: Any) -> Any:
        return activate(self.activations[index], x)


def activate(activation: Activation, x: Any) -> Any:
    """An activation of ONNX's recurrent operators, of a NumPy array or of a Value."""
    name, alpha, beta = activation
    return ACTIVATIONS[name](x, alpha, beta)


def _softplus(x: Any, alpha: float, beta: float) -> Any:
    # log(1 + exp(x)) without overflow.
    bound = apply(Max(), x, like(0, x))
    return bound + apply(Log(), 1 + apply(Exp(), 0 - apply(Abs(), x)))


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    return apply(Clip(), x * alpha + beta, like(0, x), like(1, x))


def _elu(x: Any, alpha: float, beta: float) -> Any:
    below = alpha * (apply(Exp(), apply(Min(), x, like(0, x))) - 1)
    return where(apply(LessOrEqual(), like(0, x), x), x, below)


# fmt: off
ACTIVATIONS: dict[str, Callable[[Any, float, float], Any]] = {
    "relu": lambda x, alpha, beta: apply(Relu(), x),
    "tanh": lambda x, alpha, beta: apply(Tanh(), x),
    "sigmoid": lambda x, alpha, beta: apply(Sigmoid(), x),
    "affine": lambda x, alpha, beta: x * alpha + beta,
    "leakyrelu": lambda x, alpha, beta: where(apply(Less(), x, like(0, x)), x * alpha, x),
    "thresholdedrelu": lambda x, alpha, beta: where(apply(Less(), like(alpha, x), x), x, 0),
    "scaledtanh": lambda x, alpha, beta: apply(Tanh(), x * beta) * alpha,
    "hardsigmoid": _hard_sigmoid,
    "elu": _elu,
    "softsign": lambda x, alpha, beta: x / (1 + apply(Abs(), x)),
    "softplus": _softplus,
}
# fmt: on

DEFAULTS = {
    "leakyrelu": (0.01, 0.0),
    "thresholdedrelu": (1.0, 0.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, 0.0),
    "affine": (1.0, 0.0),
    "scaledtanh": (1.0, 1.0),
}
"""What alpha and beta are where a model does not say."""
