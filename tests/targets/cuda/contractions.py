"""Products and convolutions of many shapes as kernels, with arrays and what they must give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, Value, constant, make
from whet.ir.types import NUMPY_DTYPES, TensorType
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Max
from whet.ops.movement import Pad, Slice, reshape, transpose


@dataclass
class Problem:
    """A graph, and random arrays for it."""

    name: str
    graph: Graph
    arrays: list[np.ndarray]

    def wanted(self) -> list[np.ndarray]:
        """What `reference` gives."""
        return evaluate(self.graph, dict(zip(self.graph.inputs, self.arrays)))


def problem(name: str, build: Any, *shapes: tuple[int, ...], dtype: str = "float16") -> Problem:
    """A problem with inputs of these shapes."""
    rng = np.random.default_rng([hash(name) & 0xFFFF, 7])
    values: list[Value] = [
        make(Input(f"x{n}", TensorType(dtype, shape)), ())[0] for n, shape in enumerate(shapes)
    ]
    arrays = [rng.normal(size=shape).astype(NUMPY_DTYPES[dtype]) for shape in shapes]
    return Problem(name, Graph(tuple(values), (build(*values),)), arrays)


def convolution(
    name: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: int = 1,
    dilation: int = 1,
    pad: int = 0,
    groups: int = 1,
    dtype: str = "float16",
) -> Problem:
    """Bias, residual-free and with an activation behind it."""
    rank = len(x) - 2
    op = Convolution((stride,) * rank, (dilation,) * rank, (pad,) * rank, (pad,) * rank, groups)
    return problem(name, lambda a, b, c: Max()(op(a, b) + c, 0.0), x, w, (w[0],), dtype=dtype)


def small(dtypes: tuple[str, ...] = ("float16", "float32")) -> Iterator[Problem]:
    """Shapes at which every branch of the templates is taken.

    The interpreter multiplies no bfloat16 matrices."""
    for dtype in dtypes:
        yield problem(f"plain-{dtype}", MatMul(), (70, 50), (50, 40), dtype=dtype)
        yield problem(f"deep-{dtype}", MatMul(), (5, 600), (600, 33), dtype=dtype)
    yield problem("batched", MatMul(), (2, 3, 20, 16), (2, 3, 16, 24))
    yield problem("shared", MatMul(), (2, 3, 20, 16), (16, 24))
    yield problem("spread", MatMul(), (3, 1, 20, 16), (1, 4, 16, 24))
    yield problem("vector", MatMul(), (1, 64), (64, 100))
    yield problem("transposed", lambda a, b: MatMul()(a, transpose(b, 1, 0)), (40, 64), (48, 64))
    yield problem(
        "heads",
        lambda a, b: MatMul()(
            transpose(reshape(a, 2, 20, 4, 16), 0, 2, 1, 3),
            transpose(reshape(b, 2, 24, 4, 16), 0, 2, 3, 1),
        ),
        (2, 20, 64),
        (2, 24, 64),
    )
    yield problem(
        "moved-output",
        lambda a, b: reshape(transpose(MatMul()(a, b), 0, 2, 1, 3), 2, 20, 96) + 1.0,
        (2, 4, 20, 16),
        (2, 4, 16, 24),
    )
    yield problem(
        "epilogue", lambda a, b, c: Max()(MatMul()(a, b) + c, 0.0), (33, 40), (40, 50), (50,)
    )
    yield problem(
        "residual",
        lambda a, b, c, r: r + (MatMul()(a, b) + c),
        *((33, 40), (40, 50), (50,), (33, 50)),
    )
    yield convolution("conv3x3", (2, 9, 11, 32), (40, 3, 3, 32), pad=1)
    yield convolution("conv3x3-stride", (2, 9, 11, 32), (40, 3, 3, 32), stride=2, pad=1)
    yield convolution("conv-first", (1, 20, 20, 3), (32, 7, 7, 3), stride=2, pad=3)
    yield convolution("conv-lines", (1, 9, 22, 4), (32, 3, 8, 4), stride=2)
    yield convolution("conv-dilated", (1, 12, 12, 16), (24, 3, 3, 16), dilation=2, pad=2)
    yield convolution("conv-grouped", (1, 9, 9, 64), (48, 3, 3, 32), pad=1, groups=2)
    yield convolution("conv-grouped-small", (1, 9, 9, 12), (18, 3, 3, 4), pad=1, groups=3)
    yield convolution("conv-depthwise", (2, 9, 9, 40), (40, 3, 3, 1), pad=1, groups=40)
    yield convolution("conv-depthwise-one", (1, 5, 5, 40), (40, 5, 5, 1), groups=40)
    yield convolution(
        "conv-depthwise-stride", (2, 9, 15, 70), (70, 3, 5, 1), stride=2, pad=2, groups=70
    )
    yield convolution("conv1x1", (2, 9, 9, 40), (48, 1, 1, 40))
    yield convolution("conv1x1-stride", (2, 9, 9, 40), (48, 1, 1, 40), stride=2)
    yield convolution("conv1d", (2, 30, 16), (24, 5, 16), pad=2)
    yield convolution("conv1d-one", (1, 2, 64), (64, 3, 64), stride=2, pad=1, dtype="float32")
    yield convolution("conv3d", (1, 5, 6, 7, 16), (24, 3, 3, 3, 16), pad=1)
    for dtype in dtypes[1:]:
        yield convolution(f"conv-{dtype}", (1, 9, 9, 16), (24, 3, 3, 16), pad=1, dtype=dtype)
    yield problem(
        "conv-channels-first",
        lambda a, b: Convolution((2, 2), (1, 1), (1, 1), (1, 1))(transpose(a, 0, 2, 3, 1), b),
        (2, 3, 16, 16),
        (32, 3, 3, 3),
    )
    yield problem(
        "sliced", lambda a, b: MatMul()(Slice((0, 3), (20, 16), (2, 1))(a), b), (40, 20), (16, 30)
    )
    yield from attentions()
    yield from integers()


def integer(name: str, build: Any, x: Any, w: Any, dtypes: tuple[str, str]) -> Problem:
    """A problem of an input and a constant weight of 8-bit integers; sums are exact."""
    rng = np.random.default_rng([hash(name) & 0xFFFF, 8])
    a, b = (
        rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        for dtype, shape in zip(dtypes, (x, w))
    )
    value = make(Input("x0", TensorType(dtypes[0], x)), ())[0]
    return Problem(name, Graph((value,), (build(value, constant(b)),)), [a])


def integers() -> Iterator[Problem]:
    """Products and convolutions of every pair of 8-bit dtypes that has a kernel."""

    def windows(stride: int = 1, pad: int = 0, groups: int = 1, rank: int = 2) -> Convolution:
        ones, both = (1,) * rank, (pad,) * rank
        return Convolution((stride,) * rank, ones, both, both, groups, "int32")

    def around(zero: int) -> Any:
        return lambda x, w: windows()(
            Pad((0, 1, 2, 0), (0, 2, 1, 0))(x, constant(zero, x.dtype)), w
        )

    times = MatMul("int32")
    for pair in itertools.product(("int8", "uint8"), repeat=2):
        name = "-".join(pair)
        yield integer(f"product-{name}", times, (70, 50), (50, 40), pair)
        yield integer(f"product-deep-{name}", times, (5, 600), (600, 33), pair)
        yield integer(f"product-batched-{name}", times, (2, 3, 20, 16), (3, 16, 24), pair)
    for dtype in ("int8", "uint8"):
        pair = dtype, "int8"
        small, wide = (2, 9, 11, 32), (40, 3, 3, 32)
        yield integer(f"conv-{dtype}", windows(), small, wide, pair)
        yield integer(f"conv-pad-{dtype}", windows(2, 1), small, wide, pair)
        yield integer(f"conv-zero-{dtype}", around(7), small, wide, pair)
        yield integer(f"conv-first-{dtype}", windows(2, 3), (1, 20, 20, 3), (32, 7, 7, 3), pair)
        yield integer(f"conv-one-{dtype}", windows(2), small, (48, 1, 1, 32), pair)
        yield integer(f"conv-line-{dtype}", windows(1, 2, 1, 1), (2, 30, 16), (24, 5, 16), pair)
        grouped = windows(1, 1, 2)
        yield integer(f"conv-grouped-{dtype}", grouped, (1, 9, 9, 64), (48, 3, 3, 32), pair)


def described(dtype: str = "float16") -> Iterator[Problem]:
    """Products whose sides descriptors can say where they lie, no size a multiple of a tile's."""
    rows, depth, columns = 520, 328, 680

    def layer(a: Value, b: Value, bias: Value, residual: Value) -> Value:
        return residual + Max()(MatMul()(a, b) + bias, 0.0)

    ends = (columns,), (rows, columns)
    for left, right in itertools.product(("straight", "turned"), repeat=2):

        def build(a: Value, b: Value, *rest: Value, left: str = left, right: str = right) -> Value:
            a = a if left == "straight" else transpose(a, 1, 0)
            return layer(a, b if right == "straight" else transpose(b, 1, 0), *rest)

        shapes = [(rows, depth), (depth, columns)]
        shapes = [s if f == "straight" else s[::-1] for s, f in zip(shapes, (left, right))]
        yield problem(f"{dtype}-{left}-{right}", build, *shapes, *ends, dtype=dtype)
    cut = Slice((0, 16), (rows, depth), (1, 1))
    wider = (rows, depth + 24), (depth, columns)
    yield problem(f"{dtype}-cut", lambda a, b: MatMul()(cut(a), b), *wider, dtype=dtype)
    yield problem(
        f"{dtype}-rows-apart",
        lambda a, b: transpose(MatMul()(a, b), 1, 0, 2) + 1.0,
        *((8, rows // 8, depth), (depth, columns)),
        dtype=dtype,
    )


def attentions() -> Iterator[Problem]:
    """Attention with everything that it may have."""
    q, k, v = (2, 4, 40, 32), (2, 4, 70, 32), (2, 4, 70, 32)
    yield problem("attention", Attention(0.2), q, k, v)
    yield problem("attention-float32", Attention(0.2), q, k, v, dtype="float32")
    yield problem("attention-causal", Attention(0.2, right=0, offset=30), q, k, v)
    yield problem("attention-window", Attention(0.2, left=5, right=0, offset=30), q, k, v)
    yield problem("attention-hidden", Attention(0.2, right=0, offset=-10), q, k, v)
    yield problem("attention-cap", Attention(0.2, softcap=3.0), q, k, v)
    yield problem("attention-mask", Attention(0.2), q, k, v, (2, 1, 1, 70))
    yield problem("attention-mask-full", Attention(0.2), q, k, v, (40, 70))
    made = problem("attention-padded", Attention(0.2), q, k, v, (2, 1, 1, 70), dtype="float32")
    # Of the second row nothing but padding is there.
    padding = np.arange(70) < np.array([[50], [70]])
    made.arrays[3][:, 0, 0] = np.where(padding, np.finfo(np.float32).min, 0)
    yield made
    yield problem(
        "attention-groups", Attention(0.2), (1, 6, 20, 24), (1, 2, 33, 24), (1, 2, 33, 40)
    )
    yield problem("attention-one", Attention(0.2, right=0, offset=69), (2, 4, 1, 32), k, v)


def error_of(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference by the largest element."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    if not (np.isfinite(a) == np.isfinite(b)).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


BOUNDS = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6, "int32": 0.0, "int64": 0.0}


def large() -> Iterator[Problem]:
    """Shapes of networks, at which sums are cut into parts and tiles are large."""
    yield problem("product-2048", MatMul(), (2048, 768), (768, 3072))
    yield problem("product-odd", MatMul(), (197, 768), (768, 1000))
    yield problem("product-deep", MatMul(), (128, 3072), (3072, 768))
    yield problem("product-large", MatMul(), (1024, 1024), (1024, 1024), dtype="bfloat16")
    yield convolution("layer-56", (1, 56, 56, 64), (64, 3, 3, 64), pad=1)
    yield convolution("layer-7", (1, 7, 7, 512), (512, 3, 3, 512), pad=1)
    yield convolution("layer-14", (4, 14, 14, 256), (256, 3, 3, 256), pad=1)
    yield convolution("layer-first", (2, 224, 224, 3), (64, 7, 7, 3), stride=2, pad=3)
    yield convolution("layer-1x1", (1, 14, 14, 1024), (256, 1, 1, 1024))
    yield convolution("layer-depthwise", (1, 56, 56, 144), (144, 5, 5, 1), pad=2, groups=144)
    yield problem("attention-1024", Attention(0.125), *[(1, 4, 1024, 64)] * 3)
    yield problem("attention-causal-512", Attention(0.125, right=0), *[(2, 4, 512, 64)] * 3)
    yield problem("attention-80", Attention(0.125), *[(1, 2, 300, 80)] * 3)
    yield from warp_group_attentions()

    def twice(q: Value, k: Value, v: Value) -> Value:
        """Two launches that keep their descriptors in one place."""
        attention = Attention(0.1)
        return attention(attention(q, k, v), v, k)

    yield problem("attention-warps-twice", twice, *[(2, 12, 400, 128)] * 3)


def warp_group_attentions() -> Iterator[Problem]:
    """Attention that groups of warps run, where the architecture has them."""
    q, k = (2, 12, 200, 128), (2, 12, 400, 128)
    yield problem("attention-warps", Attention(0.1), q, k, k)
    yield problem("attention-warps-bfloat16", Attention(0.1), q, k, k, dtype="bfloat16")
    yield problem("attention-warps-hidden", Attention(0.1, right=0, offset=-100), q, k, k)
    yield problem("attention-warps-window", Attention(0.1, left=40, right=10), k, k, k)
    yield problem("attention-warps-left", Attention(0.1, left=40), k, k, k)
    q, k = (2, 12, 190, 256), (2, 12, 250, 256)
    yield problem("attention-warps-256", Attention(0.1), q, k, k)
    shapes = (2, 12, 200, 80), (2, 4, 433, 80), (2, 4, 433, 96)
    yield problem("attention-warps-groups", Attention(0.1, right=0, offset=233), *shapes)
    one = (1, 8, 433, 128)
    yield problem("attention-warps-shared", Attention(0.1), (3, 8, 150, 128), one, one)

    def turned(q: Value, k: Value, v: Value) -> Value:
        """Heads lie beside each other, as a projection gives them."""
        sides = (transpose(reshape(x, 2, 400, 6, 64), 0, 2, 1, 3) for x in (q, k, v))
        return transpose(Attention(0.125, right=0)(*sides), 0, 2, 1, 3)

    yield problem("attention-warps-turned", turned, *[(2, 400, 384)] * 3)
    many = [(1, 40, 512, 64)] * 3  # more tiles than multiprocessors
    yield problem("attention-warps-many", Attention(0.125), *many)
