"""Products with weights of a few bits: any sizes, bits, blocks and zero points, at every level."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from tests.levels import LEVELS
from tests.targets.cpu.kernels import expected, tensor
from tests.targets.cpu.test_integer import device, kernels
from whet.engine.weights import ImportedWeights
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, constant
from whet.ir.sizes import symbol
from whet.ops.block_quantized import BlockQuantizedMatMul
from whet.ops.elementwise import Gelu
from whet.ops.movement import slice_axis
from whet.runtime.program import Runner

SEED = secrets.randbits(32)


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("level", LEVELS)
def test_any_product(level: str, number: int) -> None:
    print(f"seed {SEED} + {number}")
    rng = np.random.default_rng(SEED + number)
    bits, block = int(rng.choice([2, 4, 4, 8])), int(rng.choice([16, 32, 64, 128]))
    inner, columns = int(rng.integers(1, 500)), int(rng.integers(16, 150))
    lead = [(1,), (7,), (2, 3), (40,), (130,)][int(rng.integers(0, 5))]
    dtype = str(rng.choice(["float32", "float32", "float16"]))
    x = tensor("x", dtype, *lead, inner)
    blocks = -(-inner // block)
    codes = rng.integers(0, 256, (columns, blocks, block * bits // 8), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, (columns, blocks)).astype(np.float32)
    zeros = rng.integers(0, 2**bits, (columns, blocks)).astype(np.float32)
    given = [constant(codes), constant(scales), *([constant(zeros)] if rng.random() < 0.5 else [])]
    y = Gelu()(BlockQuantizedMatMul(inner, bits, block)(x, *given))
    feed = rng.standard_normal((*lead, inner)).astype(dtype)
    names = kernels(y, (x,), level)
    assert names[-1] == "blockquantizedproduct", names
    runner = Runner(device(level), ImportedWeights({}), threads=2)
    graph = Graph((x,), (y,))
    runner.execute(graph, [np.full_like(feed, np.nan)])
    (got,), (want,) = runner.execute(graph, [feed]), expected([y], {x: feed})
    step = 2.0**-10 if dtype == "float16" else 1e-5
    assert np.abs(got.astype(float) - want).max() <= step * np.abs(want.astype(float)).max()


@pytest.mark.parametrize("level", LEVELS)
def test_rows_that_runs_tell(level: str) -> None:
    """One kernel serves any number of rows, with what follows in its epilogue."""
    rng = np.random.default_rng(SEED)
    x = tensor("x", "float32", symbol("batch"), symbol("steps"), 70)  # type: ignore[arg-type]
    codes = constant(rng.integers(0, 256, (45, 3, 16), dtype=np.uint8))
    y = BlockQuantizedMatMul(70, 4, 32)(x, codes, constant(rng.random((45, 3), np.float32)))
    along_steps = slice_axis(x, 2, 0, 1)
    y = Gelu()(y + constant(rng.random(45, np.float32))) * along_steps
    graph = Graph((x,), (y,))
    runner = Runner(device(level), ImportedWeights({}), 2, "none")
    for sizes in ((1, 1), (1, 6), (2, 10), (3, 5)):
        feed = rng.standard_normal((*sizes, 70), np.float32)
        (got,), (want,) = runner.execute(graph, [feed]), evaluate(graph, {x: feed})
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    assert [len(plan.steps) for plan in runner.plans] == [1]
