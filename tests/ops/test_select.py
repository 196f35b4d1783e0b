"""What is picked by value, in kernels: as `reference` has it, whatever the count may be."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.levels import LEVELS, architecture
from whet.engine.weights import ImportedWeights
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, make
from whet.ir.sizes import symbol
from whet.ir.types import NUMPY_DTYPES, TensorType, dtype_name
from whet.ops import select
from whet.runtime.program import Runner
from whet.targets.cpu.device import Device

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "uint64")
COUNT = symbol("count", 0)


def check(level: str, build: Callable[..., Any], *arrays: np.ndarray, named: bool = True) -> None:
    """The outputs on the CPU, with no reference kernel, are those of `reference`."""
    types = (TensorType(dtype_name(a.dtype), a.shape) for a in arrays)
    inputs = tuple(make(Input(f"x{i}", t), ())[0] for i, t in enumerate(types))
    built = build(*inputs)
    outputs = built if isinstance(built, tuple) else (built,)
    definers = {"count": outputs[0]} if named else {}
    graph = Graph(inputs, outputs, definers=definers)
    runner = Runner(Device(architecture(level)), ImportedWeights({}), threads=2)
    got = runner.execute(graph, arrays)
    assert not runner.reference_ops
    for a, b in zip(got, evaluate(graph, dict(zip(inputs, arrays))), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        wide = a.dtype if a.dtype.kind in "biu" else np.float64
        np.testing.assert_array_equal(a.astype(wide), b.astype(wide))


def numbers(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Few different numbers, among floats also NaN, infinities and zeros of both signs."""
    values = rng.integers(0 if dtype[0] == "u" else -4, 5, shape).astype(NUMPY_DTYPES[dtype])
    if "float" in dtype:
        odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], NUMPY_DTYPES[dtype])
        values = np.where(rng.random(shape) < 0.3, rng.choice(odd, shape), values)
    return values


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [True, False])
def test_top_k(rng: np.random.Generator, level: str, dtype: str, largest: bool) -> None:
    for shape, axis, k in [((37,), 0, 37), ((3, 20), 1, 4), ((5, 9, 2), 1, 1), ((2, 64), 0, 2)]:
        x = numbers(rng, dtype, *shape)
        check(level, select.TopK(k, axis, largest), x, named=False)


@pytest.mark.parametrize("level", LEVELS)
def test_nonzero(rng: np.random.Generator, level: str) -> None:
    for shape in [(40,), (3, 7), (2, 3, 5), (), (1,)]:
        for dtype in ("float32", "bool", "int8", "float16"):
            x = rng.integers(0, 2, shape).astype(dtype)
            check(level, select.NonZero(COUNT), x)
    check(level, select.NonZero(COUNT), np.zeros(9, np.float32))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ascending", [True, False])
def test_unique(rng: np.random.Generator, level: str, dtype: str, ascending: bool) -> None:
    for shape, axis in [
        ((50,), None),
        ((3, 8), None),
        ((1, 9), 1),
        ((1,), 0),
        ((30, 2), 0),
        ((2, 30, 1), 1),
    ]:
        x = numbers(rng, dtype, *shape)
        check(level, select.Unique(COUNT, axis, ascending), x)


def test_sorting_many_keeps_equal_elements_in_order(rng: np.random.Generator) -> None:
    for size in (1, 2, 3, 1000, 4097):
        x = rng.integers(-3, 3, (3, size)).astype(np.int32)
        check("avx2", select.Order(), x, named=False)
        check("avx2", select.Order(True), x.astype(np.float32), named=False)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("limits", range(4))
def test_suppression(rng: np.random.Generator, level: str, center: bool, limits: int) -> None:
    for batch, classes, count in [(1, 1, 1), (2, 3, 40), (1, 2, 300)]:
        boxes = rng.uniform(0, 10, (batch, count, 4)).astype(np.float32)
        boxes[:, ::7] = boxes[:, :1]  # some boxes are the same
        scores = rng.integers(-20, 20, (batch, classes, count)).astype(np.float32) / 16
        scores[:, :, ::11] = np.nan
        given = [np.array([15]), np.array([0.3], np.float32), np.array([0.2], np.float32)]
        check(level, select.NonMaxSuppression(COUNT, center), boxes, scores, *given[:limits])
