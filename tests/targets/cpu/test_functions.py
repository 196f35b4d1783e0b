"""Elementary functions, powers and conversions against float64, over the whole range of float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.levels import LEVELS
from tests.targets.cpu.kernels import run, tensor
from whet.ir.graph import constant
from whet.ops.elementwise import (
    Cast,
    Cos,
    Erf,
    Exp,
    Gelu,
    Log,
    Pow,
    Sigmoid,
    Silu,
    Sin,
    Tanh,
)

Array = NDArray[Any]
EDGES = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-45, -1e-45, 1e-38, -1e-38, 3.4e38]
EDGES += [88.7, 88.8, -87.3, -88.0, -103.0, -104.0, -105.0, 0.625, 3.88, 1e6, -1e6, 2.0**-14]


def numbers(seed: int) -> Array:
    """Edges, random bit patterns, and numbers of the sizes that matter."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**32, 60000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = rng.uniform(-110, 110, 30000).astype(np.float32)
    wide = rng.uniform(-1.5e6, 1.5e6, 10000).astype(np.float32)
    turns = (np.arange(1, 20000) * (np.pi / 2)).astype(np.float32)
    small = rng.uniform(-4, 4, 30007).astype(np.float32)
    return np.concatenate([np.array(EDGES, np.float32), patterns, near, wide, turns, small])


def distance(got: Array, want: Array) -> Array:
    """How many units in the last place the results are off; infinite where NaN or sign is wrong."""
    with np.errstate(all="ignore"):
        rounded = want.astype(np.float32)
        unit = np.spacing(np.minimum(np.abs(rounded), np.float32(3e38))).astype(np.float64)
        off = np.abs(got.astype(np.float64) - want) / unit
    off[(got == rounded) | (np.isnan(got) & np.isnan(want))] = 0
    off[np.isnan(got) != np.isnan(want)] = np.inf
    off[(np.signbit(got) != np.signbit(rounded)) & ~np.isnan(got)] = np.inf
    return off


def logistic(x: Array) -> Array:
    """1 / (1 + e**-x), as precise for small results as for others."""
    return np.where(x < 0, np.exp(x), 1.0) / (1 + np.exp(-np.abs(x)))


def gelu(x: Array) -> Array:
    return x * (0.5 + 0.5 * np.vectorize(math.erf)(x * math.sqrt(0.5)))


def gelu_by_tanh(x: Array) -> Array:
    return x * logistic(2 * 0.7978845608028654 * (x + 0.044715 * x**3))


FUNCTIONS: dict[str, tuple[Any, Callable[..., Any], float]] = {
    "exp": (Exp(), np.exp, 2),
    "log": (Log(), np.log, 2),
    "tanh": (Tanh(), np.tanh, 2.5),
    "sin": (Sin(), np.sin, 2),
    "cos": (Cos(), np.cos, 2),
    "erf": (Erf(), np.vectorize(math.erf), 4),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(level: str, name: str) -> None:
    op, reference, bound = FUNCTIONS[name]
    values = numbers(1)
    x = tensor("x", "float32", len(values))
    (got,) = run([op(x)], {x: values}, level)
    with np.errstate(all="ignore"):
        want = np.asarray(reference(values.astype(np.float64)))
    off = distance(got, want)
    worst = int(np.argmax(off))
    assert off[worst] <= bound, (values[worst], got[worst], want[worst])
    if name == "erf":
        assert np.nanmax(np.abs(got - want)) < 1.8e-7


# Bounds in units in the last place near 0, and on the error over max(1, |x|) elsewhere.
ACTIVATIONS: dict[str, tuple[Any, Callable[..., Any], float, float]] = {
    "sigmoid": (Sigmoid(), logistic, 3.5, 1.2e-7),
    "silu": (Silu(), lambda x: x * logistic(x), 4.5, 1.6e-7),
    "quick": (Silu(1.702), lambda x: x * logistic(1.702 * x), 90, 1.6e-7),
    "gelu": (Gelu(), gelu, math.inf, 1.6e-7),
    "gelu_by_tanh": (Gelu(approximate=True), gelu_by_tanh, 200, 1.6e-7),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(level: str, name: str) -> None:
    op, reference, units, bound = ACTIVATIONS[name]
    values = np.concatenate([numbers(7), -numbers(8)])
    x = tensor("x", "float32", len(values))
    (got,) = run([op(x)], {x: values}, level)
    with np.errstate(all="ignore"):
        want = reference(values.astype(np.float64))
        error = np.abs(got - want) / np.maximum(1, np.abs(values))
    off = distance(got, want)
    # A product with what is denormal has few digits, or none.
    off[error < 1e-36] = 0
    assert np.isnan(error).sum() == (np.isnan(want) | np.isinf(want)).sum()
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.nanmax(error) < bound, values[np.nanargmax(error)]
    if units < math.inf:
        worst = int(np.argmax(off))
        assert off[worst] <= units, (values[worst], got[worst], want[worst])


@pytest.mark.parametrize("level", LEVELS)
def test_power(level: str) -> None:
    rng = np.random.default_rng(2)
    edges = np.array([*EDGES, 2, -2, 3, -3, 0.5, -0.5, 2.5, 16777216, -16777215, 1e9], np.float32)
    a, b = (e.ravel() for e in np.meshgrid(edges, edges))
    patterns = numbers(3)
    bases = a, patterns, rng.uniform(0, 10, 20000), rng.uniform(-50, 50, 20000)
    exponents = (
        b,
        rng.permutation(patterns),
        rng.uniform(-30, 30, 20000),
        rng.integers(-8, 9, 20000),
    )
    with np.errstate(all="ignore"):
        sides = [np.concatenate([p.astype(np.float32) for p in x]) for x in (bases, exponents)]
        want = np.power(*(v.astype(np.float64) for v in sides))
    feeds = {tensor(n, "float32", len(v)): v for n, v in zip("ab", sides)}
    (got,) = run([Pow()(*feeds)], feeds, level)
    off = distance(got, want)
    worst = int(np.argmax(off))
    assert off[worst] <= 1, (*(s[worst] for s in sides), got[worst], want[worst])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, -1.0, 0.5, -0.5])
def test_simple_powers(level: str, exponent: float) -> None:
    values = numbers(4)
    x = tensor("x", "float32", len(values))
    (got,) = run([Pow()(x, constant(exponent, "float32"))], {x: values}, level)
    with np.errstate(all="ignore"):
        want = np.power(values.astype(np.float64), np.full(len(values), exponent))
    exact = exponent in (0.0, 1.0, 2.0, 0.5, -1.0)
    off = distance(got, want)
    assert off.max() <= (0.5 if exact else 2), values[int(np.argmax(off))]


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision(level: str) -> None:
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16)
    h = tensor("h", "float16", len(patterns))
    (wide,) = run([Cast("float32")(h)], {h: patterns}, level)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(wide, patterns.astype(np.float32))
        rng = np.random.default_rng(5)
        ties = (patterns.astype(np.float64)[:-1] + patterns.astype(np.float64)[1:]) / 2
        values = np.concatenate([numbers(6), ties, rng.uniform(-7e4, 7e4, 20000)])
        values = values.astype(np.float32)
        x = tensor("x", "float32", len(values))
        (narrow,) = run([Cast("float16")(x)], {x: values}, level)
        np.testing.assert_array_equal(narrow, values.astype(np.float16))
