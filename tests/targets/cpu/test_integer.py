"""Convolutions and products of 8-bit integers, and of 16-bit floats, with a constant weight.

Sums of integers must be exact: for every level, with and without VNNI, random geometries, padding
by a zero point, and weights of 8 and 16 bits.
"""

from __future__ import annotations

import secrets
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.fences import fenced
from tests.levels import architecture
from tests.targets.cpu.kernels import expected, tensor
from tests.targets.cpu.test_convolution import any_padding
from whet.engine.weights import ImportedWeights
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Value, constant
from whet.ir.sizes import symbol
from whet.ir.types import NUMPY_DTYPES
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Cast, Relu
from whet.ops.movement import Concat, Pad, slice_axis
from whet.ops.quantize import Dequantize, Quantize
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.runtime.program import Runner
from whet.targets.cpu.device import Device

LEVELS = ("avx512", "avx512+bf16", "avx2", "sse2")
"""The second has no VNNI."""
SEED = secrets.randbits(32)


@cache
def device(level: str) -> Device:
    return Device(architecture(level))


def kernels(y: Value, inputs: tuple[Value, ...], level: str) -> list[str]:
    """The names of the kernels that compute y."""
    to = device(level)
    return [s.name for s in make_plan(legal(Graph(inputs, (y,)), to), to.capabilities).steps]


def agrees(y: Value, feeds: dict[Value, Any], level: str) -> None:
    """Runs y, on memory that held other numbers before, and compares each bit of it."""
    runner = Runner(device(level), ImportedWeights({}), threads=2)
    graph = Graph(tuple(feeds), (y,))
    poison = [np.full_like(array, 0x5A) for array in feeds.values()]
    runner.execute(graph, poison)
    (got,) = runner.execute(graph, list(map(fenced, feeds.values())))
    (want,) = expected([y], feeds)
    assert np.array_equal(got, want)


def any_of(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Any integers of the dtype."""
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def weight_of(rng: np.random.Generator, dtype: str, *shape: int) -> Value:
    """Any weights; those of 16 bits are some of 8 less a zero point."""
    if dtype != "int16":
        return constant(any_of(rng, dtype, *shape))
    codes = constant(any_of(rng, "uint8", *shape))
    return Cast("int16")(codes) - Cast("int16")(constant(rng.integers(0, 256), "uint8"))


def random_convolution(rng: np.random.Generator) -> tuple[Value, Value]:
    """x and a convolution of it into int32."""
    rank = int(rng.integers(1, 4))
    pick = lambda *some: tuple(int(n) for n in rng.choice(some, rank))  # noqa: E731
    kernel, strides, dilations = pick(1, 1, 2, 3, 5, 7), pick(1, 1, 2, 3, 5), pick(1, 1, 2, 4)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    before, after = (any_padding(rng, reach) for _ in range(2))
    most = {1: 40, 2: 16, 3: 7}[rank]
    least = [max(1, r - b - a) for r, b, a in zip(reach, before, after)]
    size = [max(n, int(rng.integers(1, most))) for n in least]
    groups = int(rng.choice([1, 1, 1, 2, 3, 8]))
    channels = groups * int(rng.choice([1, 2, 3, 4, 5, 7, 8, 16, 17, 33]))
    filters = groups * int(rng.choice([1, 2, 3, 8, 15, 16, 17, 31, 40]))
    if rng.random() < 0.3:
        groups = channels = int(rng.choice([3, 8, 16, 37]))
        filters = groups * int(rng.choice([1, 1, 2]))
    dtype = str(rng.choice(["int8", "uint8"]))
    x = tensor("x", dtype, int(rng.choice([1, 2])), *size, channels)
    w = weight_of(
        rng, str(rng.choice(["int8", "uint8", "int16"])), filters, *kernel, channels // groups
    )
    given = x
    if rng.random() < 0.5:
        zero = constant(any_of(rng, dtype)[()], dtype)
        given = Pad((0, *before, 0), (0, *after, 0))(x, zero)
        before = after = (0,) * rank
    return x, Convolution(strides, dilations, before, after, groups, "int32")(given, w)


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("level", LEVELS)
def test_any_convolution(level: str, number: int) -> None:
    print(f"seed {SEED} + {number}")
    rng = np.random.default_rng(SEED + number)
    x, y = random_convolution(rng)
    shape = [int(n) for n in x.shape]  # type: ignore[call-overload]
    agrees(y, {x: any_of(rng, x.dtype, *shape)}, level)
    names = kernels(y, (x,), level)
    assert names[-1] in ("integerconvolution", "integerdepthwise"), names


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("level", LEVELS)
def test_any_product(level: str, number: int) -> None:
    print(f"seed {SEED} + {number}")
    rng = np.random.default_rng(SEED + number)
    depth, columns = int(rng.choice([1, 3, 4, 30, 130, 700])), int(rng.choice([1, 5, 16, 33, 100]))
    dtype = str(rng.choice(["int8", "uint8"]))
    x = tensor("x", dtype, 2, int(rng.choice([1, 3, 20])), depth)
    w = weight_of(rng, str(rng.choice(["int8", "uint8", "int16"])), depth, columns)
    y = MatMul("int32")(x, w)
    agrees(y, {x: any_of(rng, dtype, *x.shape)}, level)  # type: ignore[arg-type]
    assert kernels(y, (x,), level)[-1] == "integerproduct"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["product", "convolution", "depthwise"])
def test_sizes_that_runs_tell(kind: str, level: str) -> None:
    """A batch and rows with names: kernels that serve every size, and those for one."""
    rng = np.random.default_rng(SEED)
    n, rows = symbol("n"), symbol("rows")
    shape = (n, rows, 70) if kind == "product" else (n, 9, 7, 24)
    x = tensor("x", "uint8", *shape)  # type: ignore[arg-type]
    if kind == "product":
        y = MatMul("int32")(x, weight_of(rng, "int8", 70, 40))
    else:
        groups = 24 if kind == "depthwise" else 1
        w = weight_of(rng, "int8", 24, 3, 3, 24 // groups)
        y = Convolution((2, 1), (1, 1), (1, 1), (1, 1), groups, "int32")(x, w)
    y = Quantize("uint8")(Cast("float32")(y) * 1e-3, constant(0.7, "float32"))
    graph = Graph((x,), (y,))
    for specialize in ("none", "eager"):
        runner = Runner(device(level), ImportedWeights({}), 2, specialize)
        for sizes in ((1, 1), (2, 3), (3, 50)):
            given = any_of(rng, "uint8", *sizes, 70) if kind == "product" else None
            given = any_of(rng, "uint8", sizes[0], 9, 7, 24) if given is None else given
            (got,) = runner.execute(graph, [given])
            (want,) = evaluate(graph, {x: given})
            assert np.array_equal(got, want)
        assert not runner.reference_ops


@pytest.mark.parametrize("level", LEVELS)
def test_other_schedules_give_the_same(level: str) -> None:
    """What is tried in place of a kernel reads the same weights, and sums integers, too."""
    rng = np.random.default_rng(SEED)
    x = tensor("x", "uint8", 1, 14, 14, 512)
    y = Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1, "int32")(
        x, weight_of(rng, "int8", 70, 3, 3, 512)
    )
    to = device(level)
    plan = make_plan(legal(Graph((x,), (y,)), to), to.capabilities)
    kernel = plan.steps[-1].kernel
    assert kernel is not None
    others = to.alike(kernel)
    assert others
    for other in others:
        to.prefer(kernel, other)
        agrees(y, {x: any_of(rng, "uint8", 1, 14, 14, 512)}, level)
    to.prefer(kernel, kernel)


@pytest.mark.parametrize("level", LEVELS)
def test_a_chain_of_signed_activations_stays_without_sign(level: str) -> None:
    """int8 between kernels is kept as uint8: no kernel only turns the sign."""
    rng = np.random.default_rng(SEED)
    x = tensor("x", "float32", 1, 9, 9, 12)
    scale, zero = constant(0.11, "float32"), constant(-3, "int8")
    q = Quantize("int8")(x, scale, zero)
    for channels in (20, 12):
        w = weight_of(rng, "int8", channels, 3, 3, int(q.shape[-1]))  # type: ignore[call-overload]
        padded = Pad((0, 1, 1, 0), (0, 1, 1, 0))(q, zero)
        total = Convolution((1, 1), (1, 1), (0, 0), (0, 0), 1, "int32")(padded, w)
        q = Quantize("int8")(Relu()(Cast("float32")(total) * 1e-3), scale, zero)
    y = Dequantize("float32")(Concat(3)(q, slice_axis(q, 3, 0, 4)), scale, zero)
    names = kernels(y, (x,), level)
    assert names == ["loops", "integerconvolution", "integerconvolution", "loops"]
    agrees(y, {x: rng.standard_normal((1, 9, 9, 12), np.float32)}, level)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("level", LEVELS)
def test_small_floats_are_multiplied_in_float32(level: str, groups: int, dtype: str) -> None:
    rng = np.random.default_rng(SEED)
    x = tensor("x", dtype, 2, 9, 7, 6)
    kind = NUMPY_DTYPES[dtype]
    w = constant(rng.standard_normal((12, 3, 3, 6 // groups)).astype(kind))
    y = Relu()(Convolution((2, 1), (1, 1), (1, 1), (1, 1), groups)(x, w))
    feeds = {x: rng.standard_normal((2, 9, 7, 6)).astype(kind)}
    assert kernels(y, (x,), level) == ["loops", "packedconvolution"]
    runner = Runner(device(level), ImportedWeights({}), threads=2)
    (got,) = runner.execute(Graph((x,), (y,)), list(feeds.values()))
    (want,) = expected([y], feeds)
    step = 2.0**-10 if dtype == "float16" else 2.0**-7
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    assert error.max() <= step * np.abs(want.astype(np.float64)).max()
