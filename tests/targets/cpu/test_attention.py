"""Attention kernels against the operator's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.levels import LEVELS
from tests.targets.cpu.kernels import expected, plan, run, tensor
from whet.ir.graph import Value
from whet.ops.attention import Attention, merge_heads, split_heads
from whet.ops.elementwise import Tanh
from whet.ops.movement import slice_axis, transpose
from whet.plan.kernel import Template


def check(y: Value, feeds: dict[Value, Any], level: str, threads: int, kernels: int = 1) -> None:
    """Runs y in so many kernels and compares."""
    (got,), (want,) = run([y], feeds, level, threads), expected([y], feeds)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    steps = plan([y], tuple(feeds), level).steps
    assert len(steps) == kernels, [s.name for s in steps]
    assert isinstance(steps[-1].kernel, Template)


def draw(rng: np.random.Generator, *values: Value) -> dict[Value, Any]:
    return {v: rng.standard_normal(v.shape).astype(np.float32) for v in values}


def operands(b: int, h: int, g: int, s: int, t: int, d: int, e: int) -> tuple[Value, ...]:
    shapes = {"q": (b, h, s, d), "k": (b, g, t, d), "v": (b, g, t, e)}
    return tuple(tensor(name, "float32", *shape) for name, shape in shapes.items())


SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 21, 21, 16, 16),
    (1, 2, 2, 37, 53, 20, 24),
    (2, 4, 2, 19, 33, 8, 70),
    (1, 6, 1, 5, 40, 13, 9),
    (1, 2, 2, 1, 100, 64, 64),
    (2, 4, 2, 2, 65, 32, 48),
    (1, 1, 1, 40, 1100, 64, 40),
    (1, 2, 1, 1, 1700, 64, 64),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_sizes(level: str, sizes: tuple[int, ...], threads: int) -> None:
    q, k, v = operands(*sizes)
    feeds = draw(np.random.default_rng(sum(sizes)), q, k, v)
    check(Attention(scale=sizes[5] ** -0.5)(q, k, v), feeds, level, threads)


WINDOWS = [
    {"right": 0},
    {"right": 0, "offset": 7},
    {"right": 2, "left": 5},
    {"left": 3},
    {"right": 0, "left": 600, "offset": 700},
    {"right": -3},
    {"softcap": 2.0},
    {"right": 0, "softcap": 1.5},
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("sizes", [SIZES[1], SIZES[3], SIZES[6], SIZES[7]], ids=str)
def test_windows_and_caps(level: str, window: dict[str, Any], sizes: tuple[int, ...]) -> None:
    q, k, v = operands(*sizes)
    feeds = draw(np.random.default_rng(sum(sizes)), q, k, v)
    check(Attention(scale=0.3, **window)(q, k, v), feeds, level, 2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", ["bhst", "h1t", "b11t", "t", "s1", "bhs1", "1", "ts"], ids=str)
@pytest.mark.parametrize("sizes", [SIZES[3], SIZES[6], SIZES[7]], ids=str)
def test_masks(level: str, shape: str, sizes: tuple[int, ...]) -> None:
    names = dict(zip("bhgstde", sizes)) | {"1": 1}
    rng = np.random.default_rng(sum(sizes))
    q, k, v = operands(*sizes)
    mask = tensor("mask", "float32", *(names[n] for n in shape))
    feeds = draw(rng, q, k, v, mask)
    feeds[mask][rng.random(feeds[mask].shape) < 0.4] = -np.inf
    if shape == "bhst":
        feeds[mask][:, 0] = -np.inf  # queries that see nothing give 0
    seen = transpose(mask, 1, 0) if shape == "ts" else mask
    check(Attention(scale=0.3)(q, k, v, seen), feeds, level, 2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("length", [1, 29])
def test_heads_are_read_where_they_lie(level: str, length: int) -> None:
    batch, heads, size = 2, 3, 20
    rng = np.random.default_rng(length)
    qkv = tensor("qkv", "float32", batch, length, 3 * heads * size)
    parts = [
        split_heads(slice_axis(qkv, 2, n * heads * size, heads * size), heads) for n in range(3)
    ]
    check(Attention(scale=0.2)(*parts), draw(rng, qkv), level, 3)
    columns = [tensor(n, "float32", batch, heads, size, length) for n in "kv"]
    k, v = (transpose(c, 0, 1, 3, 2) for c in columns)
    check(Attention(scale=0.2)(parts[0], k, v), draw(rng, qkv, *columns), level, 2)
    turned = tensor("q", "float32", batch, heads, size, length)
    q = transpose(turned, 0, 1, 3, 2)
    check(Attention(scale=0.2)(q, *parts[1:]), draw(rng, qkv, turned), level, 2)


@pytest.mark.parametrize("level", LEVELS)
def test_epilogue(level: str) -> None:
    q, k, v = operands(2, 2, 2, 17, 30, 16, 21)
    y = Attention(scale=0.2)(q, k, v)
    other = tensor("other", "float32", *y.shape)
    gain = tensor("gain", "float32", 21)
    feeds = draw(np.random.default_rng(3), q, k, v, other, gain)
    check(Tanh()(y * gain) + other, feeds, level, 2)


@pytest.mark.parametrize("level", LEVELS)
def test_large_scores(level: str) -> None:
    q, k, v = operands(1, 1, 1, 30, 1100, 64, 16)
    feeds = draw(np.random.default_rng(5), q, k, v)
    feeds[q] *= 30
    check(Attention(scale=1.0)(q, k, v), feeds, level, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_single(dtype: str) -> None:
    q, k, v = (tensor(n, dtype, 1, 2, 20, 16) for n in "qkv")
    rng = np.random.default_rng(1)
    feeds = {x: rng.standard_normal((1, 2, 20, 16)).astype(x.tensor.numpy) for x in (q, k, v)}
    y = Attention(scale=0.25)(q, k, v)
    (got,), (want,) = run([y], feeds, "avx2", 2), expected([y], feeds)
    np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("level", LEVELS)
def test_heads_are_stored_where_they_are_wanted(level: str) -> None:
    q, k, v = operands(2, 3, 3, 17, 30, 16, 20)
    y = merge_heads(Attention(scale=0.2)(q, k, v))
    gain, other = tensor("gain", "float32", 60), tensor("other", "float32", 2, 17, 60)
    feeds = draw(np.random.default_rng(4), q, k, v, gain, other)
    check(y, {x: feeds[x] for x in (q, k, v)}, level, 2)
    check(Tanh()(y * gain) + other, feeds, level, 2)
    turned = transpose(Attention(scale=0.2)(q, k, v), 3, 1, 0, 2)
    check(Tanh()(turned), {x: feeds[x] for x in (q, k, v)}, level, 2)
