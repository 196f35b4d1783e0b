"""Loop kernels whose shapes decide how they are walked: transposes, reductions, rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.levels import LEVELS
from tests.targets.cpu.kernels import expected, plan, run, tensor
from whet.ir.graph import Value
from whet.ops.elementwise import Cast, Gelu, Tanh
from whet.ops.movement import Concat, Slice, reshape, transpose
from whet.ops.reduce import LayerNorm, LogSoftmax, Reduce, RMSNorm, Softmax


def draw(rng: np.random.Generator, value: Value) -> Any:
    if value.dtype == "bool":
        return rng.random(value.shape) < 0.5
    return (rng.standard_normal(value.shape) * 50).astype(value.tensor.numpy)


def check(
    y: Value, inputs: list[Value], level: str, threads: int, seed: int = 0, scale: float = 0
) -> None:
    rng = np.random.default_rng(seed)
    feeds = {i: draw(rng, i) for i in inputs}
    (got,), (want,) = run([y], feeds, level, threads), expected([y], feeds)
    assert got.dtype == want.dtype and got.shape == want.shape
    if got.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want)
    else:
        size = max(scale, np.abs(want.astype(np.float64)).max())
        np.testing.assert_allclose(
            got.astype(float), want.astype(float), rtol=2e-5, atol=1e-6 * size
        )


ORDERS = [
    ((16, 16), (1, 0)),
    ((100, 77), (1, 0)),
    ((8, 300), (1, 0)),
    ((3, 224, 5), (2, 1, 0)),
    ((2, 56, 9, 33), (0, 3, 1, 2)),
    ((2, 33, 9, 17), (0, 2, 3, 1)),
    ((37, 53, 29), (2, 1, 0)),
    ((5, 21, 3, 40), (3, 0, 2, 1)),
    ((1, 1000), (1, 0)),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape, order", ORDERS, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_transposes(
    level: str, shape: tuple[int, ...], order: tuple[int, ...], threads: int
) -> None:
    x = tensor("x", "float32", *shape)
    check(transpose(x, *order), [x], level, threads)


DTYPES = ["bool", "int8", "uint16", "int64", "float16", "bfloat16", "float64"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_transposes_of_every_width(level: str, dtype: str) -> None:
    x = tensor("x", dtype, 3, 35, 50)
    check(transpose(x, 0, 2, 1), [x], level, 2)


@pytest.mark.parametrize("level", LEVELS)
def test_work_rides_along_with_transposes(level: str) -> None:
    x, y = tensor("x", "float32", 45, 70), tensor("y", "float32", 70, 45)
    bias = tensor("bias", "float32", 45)
    turned = transpose(x, 1, 0)
    check(turned * y + bias, [x, y, bias], level, 2)
    check(Gelu()(turned) + Tanh()(y) * Tanh()(turned + bias), [x, y, bias], level, 3)
    check(transpose(y, 1, 0) + transpose(reshape(x, 70, 45), 1, 0), [x, y], level, 2)
    part = Slice((2, 3), (40, 30), (1, 2))(x)
    check(Cast("int32")(transpose(part, 1, 0)), [x], level, 2)


ROWS = [(1, 1), (3, 40), (300, 7), (70, 197), (2, 9, 130), (65, 16), (64, 1000), (1, 20000)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_rows(level: str, shape: tuple[int, ...], threads: int) -> None:
    x, gain = tensor("x", "float32", *shape), tensor("gain", "float32", shape[-1])
    check(Softmax(-1)(x) * gain, [x, gain], level, threads)
    check(LogSoftmax(-1)(x), [x], level, threads)
    check(LayerNorm(1, 1e-5)(x, gain, gain), [x, gain], level, threads)
    check(RMSNorm(1, 1e-5)(x, gain), [x, gain], level, threads)
    e = Tanh()(x * 0.1)
    check(e * gain - Reduce("max", (len(shape) - 1,))(e), [x, gain], level, threads)


@pytest.mark.parametrize("level", LEVELS)
def test_reductions_of_reshaped_rows(level: str) -> None:
    x = tensor("x", "float32", 6, 10, 8)
    windows = transpose(reshape(x, 3, 2, 5, 2, 8), 0, 2, 1, 3, 4)
    check(LayerNorm(1, 1e-5)(reshape(windows, 15, 32), *gains(32)), [x, *gains(32)], level, 2)
    check(Softmax(-1)(reshape(windows, 15, 32)), [x], level, 2)


def gains(size: int) -> tuple[Value, Value]:
    return tensor("gain", "float32", size), tensor("bias", "float32", size)


@pytest.mark.parametrize("kind", ["sum", "max", "min"])
@pytest.mark.parametrize(
    "shape, axes",
    [
        ((300, 200), (0, 1)),
        ((40000,), (0,)),
        ((3, 20000), (1,)),
        ((2, 8, 70, 90), (1, 2, 3)),
        ((3, 3, 90, 90), (0, 1, 2, 3)),
        ((32771,), (0,)),
        ((70000, 2), (0,)),
    ],
    ids=str,
)
def test_large_reductions_leave_work_to_every_thread(
    kind: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    for dtype in ("float32", "int64", "float16"):
        x = tensor("x", dtype, *shape)
        # A sum's error is to be seen beside the sum of sizes, not beside what did not cancel out.
        check(Reduce(kind, axes)(x), [x], "avx2", 3, scale=40.0 * np.prod(shape))
    (axis, *_) = axes
    steps = plan([Reduce(kind, axes)(tensor("x", "float32", *shape))], (), "avx2").steps
    assert len(steps) == (1 if shape[axis] == 32771 else 2)


DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int64", "bool")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 50), (7, 64), (9, 5, 17)], ids=str)
def test_neighbours_from_few_places(level: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Stacks of 2 to 5 tensors, plain and with work behind, and few planes made pixels."""
    parts = [tensor(f"x{k}", dtype, *shape) for k in range(5)]
    for count in (2, 3, 4, 5):
        stacked = Concat(len(shape))(*(reshape(p, *shape, 1) for p in parts[:count]))
        check(stacked, parts[:count], level, 2)
        joined = reshape(stacked, *shape[:-1], shape[-1] * count)
        check(joined if dtype == "bool" else joined + joined, parts[:count], level, 3)
        planes = tensor("planes", dtype, 2, count, *shape)
        axes = range(2, planes.rank)
        check(transpose(planes, 0, *axes, 1), [planes], level, 2)
