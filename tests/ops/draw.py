"""What a case is: an operator, random inputs for it, and how exact its results must be."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from whet.ir.graph import Graph, Input, Value, make
from whet.ir.sizes import symbol
from whet.ir.types import FLOATS, NUMPY_DTYPES, UNSIGNED, TensorType, dtype_name
from whet.ops.cast import PACKED_BITS

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Spec:
    """A random input."""

    shape: tuple[int, ...]
    dtype: str
    draw: Draw
    is_typed: bool = True  # its dtype follows the case's

    def array(self, rng: np.random.Generator) -> np.ndarray:
        drawn = np.asarray(self.draw(rng, self.shape))
        drawn = np.abs(drawn) if self.is_typed and self.dtype in UNSIGNED else drawn
        with np.errstate(all="ignore"):
            return drawn.astype(NUMPY_DTYPES[self.dtype])

    def value(self, name: str, named: bool) -> Value:
        """The graph input; equal sizes get equal names where sizes are named."""
        shape = tuple(symbol(f"n{s}") if named and s > 1 else s for s in self.shape)
        return make(Input(name, TensorType(self.dtype, shape)), ())[0]


def x(*shape: int, low: float = -3.0, high: float = 3.0) -> Spec:
    """Numbers of the case's dtype, uniform from low to high."""
    return Spec(shape, "float32", lambda rng, shape: rng.uniform(low, high, shape))


def special(*shape: int) -> Spec:
    """Numbers of the case's dtype, among them NaN, infinities, both zeros, huge and tiny ones."""
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1e-30, 1.0, -1.0, 0.5, 60000.0]
    return Spec(
        shape,
        "float32",
        lambda rng, shape: np.where(
            rng.random(shape) < 0.5, rng.choice(odd, shape), rng.normal(size=shape)
        ),
    )


def ints(*shape: int, low: int = -9, high: int = 9, dtype: str = "int64") -> Spec:
    """Integers from low to high, both included."""
    return Spec(shape, dtype, lambda rng, shape: rng.integers(low, high + 1, shape), False)


def bits(*shape: int, dtype: str) -> Spec:
    """Any integers of the dtype."""
    info = ml_dtypes.iinfo(NUMPY_DTYPES[dtype])
    low, high = int(info.min), int(info.max)
    wide = np.int64 if low < 0 else np.uint64

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(low, high, shape, dtype=wide, endpoint=True)

    return Spec(shape, dtype, draw, False)


def powers(*shape: int, low: int, high: int) -> Spec:
    """Numbers of the case's dtype, as many in each binade from 2**low to 2**high."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.ldexp(rng.uniform(-1, 1, shape), rng.integers(low, high + 1, shape))

    return Spec(shape, "float32", draw)


def ties(*shape: int) -> Spec:
    """Numbers of few bits: many lie half-way between two of a narrow float."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.ldexp(rng.integers(-64, 65, shape) / 64, rng.integers(-18, 17, shape))

    return Spec(shape, "float32", draw)


def codes(dtype: str) -> Spec:
    """Every element of a dtype of 8 bits or fewer."""
    count = 1 << PACKED_BITS.get(dtype, 8)
    every = np.arange(count, dtype=np.uint8).view(NUMPY_DTYPES[dtype])
    return Spec((count,), dtype, lambda rng, shape: every, False)


def flags(*shape: int) -> Spec:
    """Truth values."""
    return Spec(shape, "bool", lambda rng, shape: rng.random(shape) < 0.5, False)


def strings(*shape: int, words: str = "a b Ab the The sun xyz") -> Spec:
    """Words."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.choice(np.array(words.split(" "), object), shape)

    return Spec(shape, "string", draw, False)


def distinct(*shape: int, below: int) -> Spec:
    """Different integers along the last axis, some of them counted from the end."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        rows = np.stack(
            [rng.permutation(below)[: shape[-1]] for _ in range(int(np.prod(shape[:-1])))]
        )
        return np.where(rng.random(rows.shape) < 0.3, rows - below, rows).reshape(shape)

    return Spec(shape, "int64", draw, False)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `build` makes the outputs from the inputs' Values: an operator, or a function that applies some.
    Floats must agree within `ulps` roundings of each result plus `sums` roundings of the largest,
    or of `terms` where the terms of a sum are larger than what they leave of each other.
    """

    name: str
    build: Callable[..., Any]
    inputs: tuple[Spec, ...]
    ulps: float = 4.0
    sums: float = 0.0
    terms: float = 0.0
    named_sizes: bool = True  # whether the case also holds with a name for every size above 1

    def of_dtype(self, dtype: str) -> Case:
        """The same case for another dtype."""
        typed = (replace(s, dtype=dtype) if s.is_typed else s for s in self.inputs)
        return replace(self, name=f"{self.name}-{dtype}", inputs=tuple(typed))

    def graph(self, named: bool = False) -> Graph:
        """The case as a Graph, with named sizes in place of numbers where asked for."""
        inputs = tuple(s.value(f"x{i}", named) for i, s in enumerate(self.inputs))
        outputs = self.build(*inputs)
        return Graph(inputs, outputs if isinstance(outputs, tuple) else (outputs,))

    def arrays(self, seed: int) -> list[np.ndarray]:
        """Random inputs, different for each case and seed."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        return [spec.array(rng) for spec in self.inputs]


def assert_close(got: np.ndarray, want: np.ndarray, case: Case) -> None:
    """The same dtype, shape, NaNs, infinities and integers; floats within the case's bounds."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if want.dtype == object or dtype_name(want.dtype) not in FLOATS:
        np.testing.assert_array_equal(got, want)
        return
    info = ml_dtypes.finfo(want.dtype)
    with np.errstate(invalid="ignore"):  # bits may be those of a signalling NaN
        a, b = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[np.isinf(b)], b[np.isinf(b)])
    largest = np.abs(b[finite]).max(initial=case.terms)
    eps, tiny = float(info.eps), float(info.smallest_normal)
    np.testing.assert_allclose(
        a[finite], b[finite], rtol=case.ulps * eps, atol=case.sums * eps * largest + tiny
    )
