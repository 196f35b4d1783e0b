"""Matrix products of two run-time sides against the operators' references."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import pytest

from tests.levels import LEVELS
from tests.targets.cpu.kernels import device, expected, plan, run, tensor
from whet.engine.weights import ImportedWeights
from whet.ir.graph import Graph, Value, constant
from whet.ops.contract import MatMul
from whet.ops.elementwise import Cast, Gelu, Less, Max, Tanh
from whet.ops.movement import Slice, reshape, transpose
from whet.plan.kernel import Template
from whet.runtime.program import Runner

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def feeds_of(rng: np.random.Generator, *values: Value) -> dict[Value, Any]:
    return {v: rng.standard_normal(v.shape).astype(v.dtype) for v in values}


def check(
    y: Value, inputs: list[Value], level: str, threads: int, seed: int, kernels: int = 1
) -> None:
    """Runs y, all of it in so many kernels of which one is a product, and compares."""
    rng = np.random.default_rng(seed)
    feeds = feeds_of(rng, *inputs)
    (got,), (want,) = run([y], feeds, level, threads), expected([y], feeds)
    assert got.dtype == want.dtype
    if got.dtype.kind == "f":
        depth = 16 + max(max(array.shape) for array in feeds.values())
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-7 * depth)
    else:
        assert (got != want).mean() < 1e-3
    steps = plan([y], inputs, level).steps
    assert len(steps) == kernels, [s.name for s in steps]
    assert sum(isinstance(s.kernel, Template) for s in steps) == 1


SHAPES: list[Shapes] = [
    ((1, 1), (1, 1)),
    ((1, 7), (7, 1)),
    ((5, 1), (1, 33)),
    ((1, 64), (64, 197)),
    ((3, 64), (64, 300)),
    ((197, 64), (64, 1)),
    ((100, 30), (30, 3)),
    ((13, 17), (17, 19)),
    ((57, 33), (33, 47)),
    ((2, 3, 29, 31), (2, 3, 31, 37)),
    ((2, 1, 9, 16), (3, 16, 40)),
    ((4, 9, 16), (16, 40)),
    ((9, 16), (4, 16, 40)),
    ((4, 1, 16), (4, 16, 70)),
    ((70, 1500), (1500, 40)),
    ((2, 90, 2311), (2, 2311, 35)),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("which", ["plain", "left", "right", "both"])
def test_shapes_and_transposed_sides(level: str, shapes: Shapes, which: str) -> None:
    sides, inputs = [], []
    for name, shape in zip(("left", "right"), shapes):
        swapped = which in (name, "both")
        lies = (*shape[:-2], shape[-1], shape[-2]) if swapped else shape
        inputs.append(tensor(name, "float32", *lies))
        order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        sides.append(transpose(inputs[-1], *order) if swapped else inputs[-1])
    y = MatMul()(*sides)
    seed = crc32(repr((shapes, which)).encode())
    check(y, inputs, level, threads=1 + seed % 3, seed=seed)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 2, 3, 7, 40])
def test_heads_are_read_where_they_lie(level: str, threads: int) -> None:
    batch, length, heads, size = 2, 21, 3, 20
    qkv = tensor("qkv", "float32", batch, length, 3 * heads * size)
    parts = reshape(qkv, batch, length, 3, heads, size)

    def part(n: int) -> Value:
        cut = Slice((0, 0, n, 0, 0), (batch, length, 1, heads, size), (1,) * 5)(parts)
        return transpose(reshape(cut, batch, length, heads, size), 0, 2, 1, 3)

    scores = MatMul()(part(0), transpose(part(1), 0, 1, 3, 2))
    check(scores, [qkv], level, threads, seed=threads)
    values = tensor("p", "float32", batch, heads, length, length)
    check(MatMul()(values, part(2)), [values, qkv], level, threads, seed=threads)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "shapes",
    [((40, 30), (30, 50)), ((33, 9), (9, 2)), ((2, 20, 2100), (2, 2100, 18)), ((3, 1, 8), (8, 21))],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bias", "gelu", "residual", "half", "less"])
def test_epilogue(level: str, shapes: Shapes, kind: str) -> None:
    a, b = (tensor(n, "float32", *s) for n, s in zip("ab", shapes))
    product = MatMul()(a, b)
    bias = tensor("bias", "float32", shapes[1][-1])
    residual = tensor("residual", "float32", *product.shape)
    column = tensor("column", "float32", shapes[0][-2], 1)
    y, inputs = {
        "bias": lambda: (Max()(product + bias, 0.0), [a, b, bias]),
        "gelu": lambda: (Gelu()(product * 0.1 + column), [a, b, column]),
        "residual": lambda: (Tanh()(product * 0.1) * residual + bias, [a, b, residual, bias]),
        "half": lambda: (Cast("float16")(product + bias), [a, b, bias]),
        "less": lambda: (Less()(product, residual), [a, b, residual]),
    }[kind]()
    rng = np.random.default_rng(7)
    feeds = feeds_of(rng, *inputs)
    (got,), (want,) = run([y], feeds, level, 3), expected([y], feeds)
    assert got.dtype == want.dtype
    if got.dtype == bool:
        assert (got != want).mean() < 1e-2
    else:
        tight = got.dtype == np.float32
        np.testing.assert_allclose(
            got, want, rtol=1e-5 if tight else 1e-3, atol=1e-4 if tight else 2e-2
        )
    assert len(plan([y], inputs, level).steps) == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_products(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = (int(x) for x in np.exp(rng.uniform(0, np.log([150, 600, 150]))))
    lead = tuple(int(x) for x in rng.integers(1, 4, rng.integers(0, 3)))
    thin = [
        tuple(1 if rng.random() < 0.3 else s for s in lead)[rng.integers(0, len(lead) + 1) :]
        for _ in "ab"
    ]
    shapes = (*thin[0], m, k), (*thin[1], k, n)
    a, b = (tensor(name, "float32", *s) for name, s in zip("ab", shapes))
    check(MatMul()(a, b), [a, b], LEVELS[seed % 3], int(rng.integers(1, 6)), seed)


def test_no_elements() -> None:
    for m, k, n in ((0, 3, 4), (3, 4, 0), (3, 0, 4)):
        a, b = tensor("a", "float32", m, k), tensor("b", "float32", k, n)
        (got,) = run([MatMul()(a, b)], feeds_of(np.random.default_rng(0), a, b), LEVELS[-1], 2)
        assert got.shape == (m, n) and not got.any()


@pytest.mark.parametrize("level", LEVELS)
def test_products_are_stored_where_they_are_wanted(level: str) -> None:
    a, b = tensor("a", "float32", 2, 3, 18, 7), tensor("b", "float32", 2, 3, 7, 20)
    product = MatMul()(a, b)
    gain = tensor("gain", "float32", 60)
    check(reshape(transpose(product, 0, 2, 1, 3), 2, 18, 60) * gain, [a, b, gain], level, 3, seed=1)
    check(Tanh()(transpose(product, 3, 2, 1, 0)), [a, b], level, 2, seed=2)
    check(reshape(transpose(product, 0, 1, 3, 2), 2, 3, 5, 4, 18), [a, b], level, 2, seed=3)
    thin = MatMul()(tensor("c", "float32", 30, 7), tensor("d", "float32", 7, 1))
    check(reshape(thin, 1, 5, 6), list(thin.inputs), level, 2, seed=4)


@pytest.mark.parametrize("level", LEVELS)
def test_a_column_alone_in_the_last_vector(level: str) -> None:
    x, gain = tensor("x", "float32", 5, 8), tensor("gain", "float32", 3, 1)
    rng = np.random.default_rng(5)
    w = constant(rng.standard_normal((8, 33), np.float32))
    y = reshape(MatMul()(x, w), 5, 3, 11) * gain
    feeds = feeds_of(rng, x, gain)
    runner = Runner(device(level), ImportedWeights({}), threads=1)
    (got,) = runner.execute(Graph((x, gain), (y,)), list(feeds.values()))
    np.testing.assert_allclose(got, expected([y], feeds)[0], rtol=1e-5, atol=1e-5)


def test_movements_that_do_not_step_evenly_take_a_kernel_of_their_own() -> None:
    a, b = tensor("a", "float32", 6, 7), tensor("b", "float32", 7, 10)
    y = reshape(transpose(MatMul()(a, b), 1, 0), 4, 15)
    check(y, [a, b], LEVELS[-1], 2, seed=1, kernels=2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_summed_in_single(level: str, dtype: str) -> None:
    a, b = tensor("a", dtype, 2, 30, 200), tensor("b", dtype, 200, 40)
    rng = np.random.default_rng(8)
    feeds = {x: rng.standard_normal(x.shape).astype(x.tensor.numpy) for x in (a, b)}
    (got,), (want,) = run([MatMul()(a, b)], feeds, level, 2), expected([MatMul()(a, b)], feeds)
    assert got.dtype == want.dtype
    unit = 2.0**-10 if dtype == "float16" else 2.0**-7
    np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=unit, atol=unit)
