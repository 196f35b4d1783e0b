"""Random numbers have the distribution asked for; only seeded ones repeat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.frontends.written import read, run
from whet.frontends.onnx.importer import Imported

COUNT = 40_000
CHANCE = 5.0  # standard deviations: one false alarm in about two million


def draws(text: str, opset: int = 22, **given: Any) -> list[np.ndarray]:
    return run(read(text, opset), given)


def assert_mean(x: np.ndarray, mean: float, deviation: float) -> None:
    error = abs(float(np.mean(x, dtype=np.float64)) - mean)
    assert error < CHANCE * deviation / math.sqrt(x.size)


@pytest.mark.parametrize(
    "dtype, name", [(1, "float"), (10, "float16"), (11, "double"), (16, "bfloat16")]
)
@pytest.mark.parametrize("seed", ["", ", seed = 3.0"])
def test_uniform(dtype: int, name: str, seed: str) -> None:
    attributes = f"shape = [{COUNT}], low = -1.0, high = 3.0, dtype = {dtype}{seed}"
    (x,) = draws(f"g () => ({name} y) {{ y = RandomUniform <{attributes}> () }}")
    wide = x.astype(np.float64)
    assert wide.min() >= -1 and wide.max() <= 3
    assert_mean(wide, 1.0, 4 / math.sqrt(12))
    assert_mean((wide - 1) ** 2, 16 / 12, 4**2 / math.sqrt(180))


@pytest.mark.parametrize("seed", ["", ", seed = 3.0"])
def test_normal(seed: str) -> None:
    attributes = f"mean = 2.0, scale = 3.0{seed}"
    (x,) = draws(
        f"g (float[{COUNT}] x) => (float y) {{ y = RandomNormalLike <{attributes}> (x) }}",
        x=np.zeros(COUNT, np.float32),
    )
    assert_mean(x, 2.0, 3.0)
    assert_mean((x - 2) ** 2, 9.0, 9 * math.sqrt(2))
    assert_mean(np.abs(x - 2) < 3, 0.6827, 0.4654)


def test_bernoulli() -> None:
    p = np.tile(np.float32([0, 0.2, 0.9, 1]), COUNT)
    (x,) = draws(f"g (float[{p.size}] p) => (bool y) {{ y = Bernoulli <dtype = 9> (p) }}", p=p)
    assert x.dtype == bool
    for i, chance in enumerate((0, 0.2, 0.9, 1)):
        assert_mean(x[i::4], chance, math.sqrt(chance * (1 - chance)) + 1e-9)


def test_multinomial() -> None:
    chances = np.array([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]])
    with np.errstate(divide="ignore"):
        logits = (np.log(chances) + 7).astype(np.float32)
    (x,) = draws(
        f"g (float[2, 4] x) => (int32 y) {{ y = Multinomial <sample_size = {COUNT}> (x) }}",
        x=logits,
    )
    assert x.dtype == np.int32 and x.shape == (2, COUNT)
    for row, expected in zip(x, chances):
        for choice, chance in enumerate(expected):
            assert_mean(row == choice, chance, math.sqrt(chance * (1 - chance)) + 1e-9)


@pytest.mark.parametrize("seed", ["", "<seed = 3>"])
def test_dropout_in_training(seed: str) -> None:
    body = f"y, m = Dropout {seed} (x, r, t)"
    x = np.arange(1, COUNT + 1, dtype=np.float32)
    y, mask = draws(
        f"g (float[{COUNT}] x, float r, bool t) => (float y, bool m) {{ {body} }}",
        x=x,
        r=np.float32(0.25),
        t=np.bool_(True),
    )
    assert_mean(mask, 0.75, math.sqrt(0.75 * 0.25))
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)


def twice(seed: str) -> Imported:
    node = f"RandomNormal <shape = [9]{seed}> ()"
    return read(f"g () => (float a, float b) {{ a = {node} b = {node} }}", 22)


def test_unseeded_draws_differ() -> None:
    model = twice("")
    a, b = run(model, {})
    c, _ = run(model, {})
    assert not (a == b).any() and not (a == c).any()


def test_seeded_draws_repeat() -> None:
    model = twice(", seed = 5.0")
    a, b = run(model, {})
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, run(model, {})[0])
