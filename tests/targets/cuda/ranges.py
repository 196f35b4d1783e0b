"""Kernels that are told sizes: what they compute, at random sets of sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from whet.ir.graph import Graph, Input, Value, make
from whet.ir.sizes import substitute, symbol
from whet.ir.types import FLOATS, NUMPY_DTYPES, TensorType
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Add, Cast, Erf, Max, Mul
from whet.ops.movement import Concat, reshape, transpose
from whet.ops.reduce import Cumulative, LayerNorm, Reduce, Softmax
from whet.ops.select import Order

N, S = symbol("batch", 1), symbol("length", 1)
TURNS = 3


def heads(x: Value) -> Value:
    """x[N, S, 64] as 4 heads of 16."""
    return transpose(reshape(x, N, S, 4, 16), 0, 2, 1, 3)


def image(stride: int = 1, pad: int = 1, groups: int = 1) -> Any:
    """A convolution with bias and activation."""
    op = Convolution((stride,) * 2, (1, 1), (pad,) * 2, (pad,) * 2, groups)
    return lambda x, w, b: Max()(op(x, w) + b, 0.0)


CASES: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "product": (lambda x, w: MatMul()(x, w) + 1.0, ((N, S, 40), (40, 50)), "float16"),
    "product-float32": (MatMul(), ((N, S, 40), (40, 50)), "float32"),
    "product-deep": (MatMul(), ((N, 600), (600, 33)), "float16"),
    "product-int8": (MatMul("int32"), ((N, S, 40), (40, 50)), "int8"),
    "conv-int8": (
        Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, "int32"),
        ((N, 9, S, 32), (40, 3, 3, 32)),
        "int8",
    ),
    "scores": (
        lambda q, k: MatMul()(heads(q), transpose(heads(k), 0, 1, 3, 2)),
        ((N, S, 64), (N, S, 64)),
        "float16",
    ),
    "mixed": (lambda p, v: MatMul()(p, heads(v)), ((N, 4, S, S), (N, S, 64)), "float16"),
    "residual": (lambda x, w: MatMul()(x, w) + x, ((N, S, 48), (48, 48)), "float16"),
    "attention": (
        lambda q, k, v: Attention(0.25)(heads(q), heads(k), heads(v)),
        ((N, S, 64),) * 3,
        "float16",
    ),
    "attention-mask": (
        lambda q, k, v, m: Attention(0.25)(heads(q), heads(k), heads(v), m),
        (*((N, S, 64),) * 3, (N, 1, 1, S)),
        "float16",
    ),
    "attention-causal": (
        lambda q, k, v: Attention(0.25, right=0)(heads(q), heads(k), heads(v)),
        ((N, S, 64),) * 3,
        "float16",
    ),
    "conv": (image(), ((N, 9, 11, 32), (40, 3, 3, 32), (40,)), "float16"),
    "conv-stride": (image(2), ((N, 9, 11, 32), (40, 3, 3, 32), (40,)), "float16"),
    "conv-sides": (image(), ((2, N, S, 16), (24, 3, 3, 16), (24,)), "float16"),
    "conv-one": (image(pad=0), ((N, 9, 9, 40), (48, 1, 1, 40), (48,)), "float16"),
    "conv-one-stride": (image(2, 0), ((N, 9, 9, 40), (48, 1, 1, 40), (48,)), "float16"),
    "conv-first": (image(2, 3), ((N, 40, 40, 3), (32, 7, 7, 3), (32,)), "float16"),
    "conv-grouped": (image(groups=2), ((N, 9, 9, 64), (48, 3, 3, 32), (48,)), "float16"),
    "depthwise-sides": (image(groups=40), ((2, N, S, 40), (40, 3, 3, 1), (40,)), "float16"),
    "depthwise": (image(groups=40), ((N, 9, 9, 40), (40, 3, 3, 1), (40,)), "float16"),
    "softmax": (Softmax(), ((N, S),), "float32"),
    "norm": (lambda x, w: LayerNorm()(x, w), ((N, S, 48), (48,)), "float32"),
    "mean": (Reduce("sum", (1,)), ((N, S, 24),), "float32"),
    "mean-sides": (Reduce("sum", (1, 2)), ((N, S, 7, 24),), "float32"),
    "maximum": (Reduce("max", (0, 1)), ((N, S, 5),), "float32"),
    "moved": (lambda x: transpose(x, 0, 2, 1) + 1.0, ((N, S, 33),), "float32"),
    "joined": (lambda a, b: Concat(1)(a, b) * 2.0, ((N, S, 8), (N, S, 8)), "float32"),
    "gelu": (lambda x: Mul()(x, Add()(Erf()(x), 1.0)), ((N, S, 40),), "float16"),
    "scan": (Cumulative("sum", 1), ((N, S),), "float32"),
    "order": (
        lambda x: Order()(Cast("int32")(reshape(x * 9.0, N, S * 40))),
        ((N, S, 40),),
        "float32",
    ),
    "order-short": (lambda x: Order()(Cast("int64")(x * 9.0)), ((N, S),), "float32"),
    "flat": (lambda x: reshape(x + 1.0, N * S * 6), ((N, S, 6),), "float32"),
}
"""What is computed, of which shapes, and in which dtype."""


def graph_of(build: Any, shapes: tuple[Any, ...], dtype: str) -> Graph:
    values = [make(Input(f"x{n}", TensorType(dtype, s)), ())[0] for n, s in enumerate(shapes)]
    return Graph(tuple(values), (build(*values),), ("y",))


def problems(rng: np.random.Generator) -> Iterator[tuple[str, Graph, list[np.ndarray], dict]]:
    """Each case at several sets of sizes, one and some others."""
    for name, (build, shapes, dtype) in CASES.items():
        graph = graph_of(build, shapes, dtype)
        for turn in range(TURNS):
            low = 1 if turn == 0 else 2
            sizes = {"batch": int(rng.integers(low, 5)), "length": int(rng.integers(low, 70))}
            known = [tuple(int(substitute(n, sizes)) for n in shape) for shape in shapes]
            wide = 1 if dtype in FLOATS else 40
            arrays = [(rng.normal(size=s) * wide).astype(NUMPY_DTYPES[dtype]) for s in known]
            yield name, graph, arrays, sizes
