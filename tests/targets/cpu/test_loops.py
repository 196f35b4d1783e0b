"""Loop kernels whose shapes decide how they are walked: transposes, reductions, rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.targets.cpu.kernels import LEVELS, expected, run, tensor
from whet.ir.graph import Value
from whet.ops.elementwise import Cast, Gelu, Tanh
from whet.ops.movement import Slice, reshape, transpose


def draw(rng: np.random.Generator, value: Value) -> Any:
    if value.dtype == "bool":
        return rng.random(value.shape) < 0.5  # type: ignore[arg-type]
    return (rng.standard_normal(value.shape) * 50).astype(value.tensor.numpy)  # type: ignore[arg-type]


def check(y: Value, inputs: list[Value], level: str, threads: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    feeds = {i: draw(rng, i) for i in inputs}
    (got,), (want,) = run([y], feeds, level, threads), expected([y], feeds)
    assert got.dtype == want.dtype and got.shape == want.shape
    if got.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want)
    else:
        size = np.abs(want.astype(np.float64)).max()
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
