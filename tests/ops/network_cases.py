"""Rows of the case table for neural-network operators: products, windows, attention, recurrence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.ops.draw import Case, Spec, flags, ints, x
from whet.ir.graph import Value, constant
from whet.ops import index
from whet.ops.attention import Attention
from whet.ops.block_quantized import BlockQuantizedMatMul
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Exp, Gelu, Silu, Tanh, Where
from whet.ops.linear_algebra import Determinant, Inverse
from whet.ops.linear_attention import LinearAttention
from whet.ops.recurrent import DEFAULTS, Recurrent
from whet.ops.reduce import LayerNorm, LogSoftmax, RMSNorm, Softmax
from whet.ops.signal import Fourier
from whet.ops.window import ArgPool, Pool

FLOATING = ("float32", "float64", "float16", "bfloat16")
WIDE = ("float32", "float64")


def rows(
    dtypes: tuple[str, ...], name: str, build: Callable[..., Any], *inputs: Spec, **bounds: Any
) -> Iterator[Case]:
    """A row for each of the dtypes; sums of products may differ by several roundings."""
    case = Case(name, build, inputs, **{"sums": 16.0, **bounds})
    return (case.of_dtype(dtype) for dtype in dtypes)


def network() -> Iterator[Case]:
    yield from products()
    yield from windows()
    yield from attention()
    yield from recurrence()
    yield from transforms()
    yield from few_bits()


def products() -> Iterator[Case]:
    yield from rows(FLOATING, "matmul", MatMul(), x(2, 3, 4), x(4, 5))
    yield from rows(("int32", "int8"), "matmul", MatMul("int32"), x(2, 3, 4), x(2, 4, 5))
    for groups in (1, 2):
        op = Convolution((2, 1), (1, 2), (1, 0), (0, 2), groups)
        w = x(6, 3, 2, 4 // groups)
        yield from rows(WIDE, f"convolution-{groups}", op, x(2, 7, 9, 4), w, named_sizes=False)
    for filters in (3, 4, 8, 12, 20):
        image = x(1, 5, 4, 7)
        yield from rows(WIDE, f"silu-of-{filters}", activated(filters), image, named_sizes=False)
    for taps in (1, 3):
        image, gate = x(1, 25, 21, 20), x(1, 1, 1, 20)
        yield from rows(
            WIDE, f"convolution-gated-{taps}", gated(taps), image, gate, named_sizes=False
        )
    yield from rows(WIDE, "matmul-gated", gated(0), x(40, 20), x(20), named_sizes=False)
    square = x(2, 4, 4)
    for n in (1, 2, 3, 4):
        loose: dict[str, Any] = {"sums": 64.0, "named_sizes": n > 3}
        yield from rows(WIDE, f"determinant-{n}", Determinant(), x(2, n, n), **loose)
    yield from rows(WIDE, "inverse", regular_inverse, square, sums=64)
    yield Case("iota-up-to", lambda n: index.IotaUpTo(7)(n), (ints(low=7, high=7),))


def activated(filters: int) -> Callable[[Value], Value]:
    """Activations at the end of a product whose last vector is narrow."""

    def build(x: Value) -> Value:
        weight = np.random.default_rng(4).uniform(-1, 1, (filters, 1, 1, 7))
        y = Convolution((1, 1), (1, 1), (0, 0), (0, 0))(x, constant(weight, x.dtype))
        return Tanh()(Silu()(y) + Gelu(True)(y)) + Exp()(y)

    return build


def gated(taps: int) -> Callable[[Value, Value], Value]:
    """A factor for each channel, then a product with few constant weights: a matrix's for 0."""

    def build(x: Value, gate: Value) -> Value:
        weight = np.random.default_rng(3).uniform(-1, 1, (6, taps, taps, 20) if taps else (20, 4))
        if not taps:
            return MatMul()(gate * x, constant(weight, x.dtype))
        op = Convolution((1, 1), (1, 1), (taps // 2,) * 2, (taps // 2,) * 2)
        return op(x * gate, constant(weight, x.dtype))

    return build


def regular_inverse(x: Value) -> Value:
    return Inverse()(x + constant(9 * np.eye(4), x.dtype))


def windows() -> Iterator[Case]:
    geometry = (3, 2), (2, 1), (1, 2), (1, 0), (4, 7)
    for kind in ("max", "sum"):
        yield from rows(
            WIDE, f"pool-{kind}", Pool(kind, *geometry), x(2, 7, 9, 3), named_sizes=False
        )
    arg = ArgPool(*geometry)
    yield from rows((*WIDE, "int8"), "argpool", arg, x(2, 7, 9, 3), named_sizes=False)
    ties = ints(2, 7, 9, 3, low=0, high=2, dtype="int32")
    yield Case("argpool-ties", arg, (ties,), named_sizes=False)
    least = Spec((1, 6, 1), "float32", _least)
    yield Case("argpool-least", ArgPool((2,), (1,), (1,), (1,), (6,)), (least,))


def _least(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, -np.inf)


def attention() -> Iterator[Case]:
    q, k, v = x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 6)
    yield from rows(FLOATING, "attention", Attention(0.35), q, k, v)
    yield from rows(WIDE, "attention-mask", Attention(0.35), q, k, v, x(2, 1, 3, 5))
    yield from rows(WIDE, "attention-cap", Attention(0.35, softcap=2.0), q, k, v, x(3, 5))
    yield from rows(WIDE, "attention-causal", Attention(0.35, right=0, offset=2), q, k, v)
    yield from rows(WIDE, "attention-hidden", Attention(0.35, right=0, offset=-2), q, k, v)
    window = Attention(0.35, left=1, right=1, offset=1)
    yield from rows(WIDE, "attention-window", window, q, k, v)

    def hidden(q: Value, k: Value, v: Value, seen: Value, zero: Value) -> Value:
        return Attention(0.35)(q, k, v, Where()(seen, zero, zero - np.inf))

    yield from rows(WIDE, "attention-hides", hidden, q, k, v, flags(2, 1, 3, 5), x(low=0, high=0))
    for name, op in {"softmax": Softmax(1), "logsoftmax": LogSoftmax(1)}.items():
        yield from rows(FLOATING, f"{name}-inner", op, x(3, 7, 2), ulps=16)
    scale, bias = x(4, 5), x(5)
    yield from rows(FLOATING, "layernorm-two", LayerNorm(2), x(3, 4, 5), scale, bias)
    yield from rows(FLOATING, "rmsnorm-two", RMSNorm(2), x(3, 4, 5), scale)


def recurrence() -> Iterator[Case]:
    tanh, sigmoid = ("tanh", 0.0, 0.0), ("sigmoid", 0.0, 0.0)
    h, lengths = x(2, 5), ints(2, low=0, high=3, dtype="int32")
    for backward in (False, True):
        name = "backward" if backward else "forward"
        lstm = Recurrent("lstm", (sigmoid, tanh, tanh), backward)
        given = x(3, 2, 20), x(5, 20), h, h
        yield from rows(FLOATING, f"lstm-{name}", lstm, *given)

        def whole(*values: Value, op: Recurrent = lstm) -> Any:
            *rest, peephole, ends = values
            return op(*rest, None, peephole, ends)

        yield from rows(WIDE, f"lstm-lengths-{name}", whole, *given, x(3, 5), lengths)
    coupled = Recurrent("lstm", (sigmoid, tanh, tanh), clip=0.7, coupled=True)
    yield from rows(WIDE, "lstm-coupled", coupled, x(3, 2, 20), x(5, 20), h, h)
    for after in (False, True):
        gru = Recurrent("gru", (sigmoid, tanh), reset_after=after)

        def biased(gates: Value, w: Value, h: Value, bias: Value, op: Recurrent = gru) -> Any:
            return op(gates, w, h, None, bias if op.reset_after else None)

        yield from rows(FLOATING, f"gru-{after}", biased, x(3, 2, 15), x(5, 15), h, x(5))
    for name in ("relu", "tanh", "sigmoid", "softsign", "softplus", *DEFAULTS):
        op = Recurrent("rnn", ((name, *DEFAULTS.get(name, (0.0, 0.0))),))
        yield from rows(WIDE, f"rnn-{name}", op, x(3, 2, 5), x(5, 5), h, sums=32)
    # Weights that do not let the first step's rounding grow from step to step.
    calm = x(5, 5, low=-0.4, high=0.4)
    yield from rows(
        WIDE, "rnn-long", Recurrent("rnn", (tanh,)), x(9, 2, 5), calm, h, ulps=16, sums=64
    )
    state, beta = x(2, 2, 4, 3), x(2, 2, 3, 1)
    heads = x(2, 4, 3, 4), x(2, 2, 3, 4), x(2, 2, 3, 3)
    op = LinearAttention(0.5)
    yield from rows(FLOATING, "linear", op, *heads, state)
    yield from rows(WIDE, "linear-gated", op, *heads, state, x(2, 2, 3, 4, high=0.0))
    decay = x(2, 2, 3, 1, high=0.0)
    yield from rows(WIDE, "linear-delta", op, *heads, state, decay, beta, sums=64)


def transforms() -> Iterator[Case]:
    """Lengths that one product makes, that factors make, and a prime that neither does."""
    loose: dict[str, Any] = {"sums": 32.0, "named_sizes": False}
    for n in (1, 2, 5, 16, 60, 97, 128, 130, 360, 521):
        signal, real = x(2, n, 2), x(2, n, 1)
        for inverse in (False, True):
            op = Fourier(n, inverse)
            yield from rows(WIDE, f"fourier-{n}-{inverse}", op, signal, **loose)
        yield from rows(
            WIDE, f"fourier-real-{n}", Fourier(n, onesided=True), real, sums=32, named_sizes=False
        )
        half = x(2, n // 2 + 1, 2)
        yield from rows(
            WIDE, f"fourier-back-{n}", Fourier(n, True, True), half, sums=32, named_sizes=False
        )
    yield from rows(WIDE, "fourier-cut", Fourier(6), x(2, 9, 2), **loose)
    yield from rows(WIDE, "fourier-filled", Fourier(12), x(2, 9, 1), **loose)


def few_bits() -> Iterator[Case]:
    for bits in (2, 3, 4, 5, 8):
        inner, block = 40, 16
        blocks = -(-inner // block)
        codes = ints(6, blocks, block * bits // 8, low=0, high=255, dtype="uint8")
        op = BlockQuantizedMatMul(inner, bits, block)
        scales, zeros = x(6, blocks, low=0.1, high=1), x(6, blocks, low=0, high=2**bits)
        given = x(2, 3, inner), codes, scales
        for dtype in ("float32", "float16"):
            case = Case(f"few-bits-{bits}", op, given, sums=8, named_sizes=False)
            yield case.of_dtype(dtype)
            case = Case(f"few-bits-zeros-{bits}", op, (*given, zeros), sums=8, named_sizes=False)
            yield case.of_dtype(dtype)
