"""Sizes at the edges of what operators take, most of them told by a run."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fences import fenced
from tests.levels import LEVELS, architecture
from tests.targets.cpu.kernels import expected, tensor
from whet.engine.weights import ImportedWeights
from whet.ir.graph import Graph
from whet.ir.sizes import symbol
from whet.ops.attention import Attention
from whet.runtime.program import Runner
from whet.targets.cpu.device import Device

RNG = np.random.default_rng(1)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


@pytest.mark.parametrize("level", LEVELS)
def test_keys_of_one_element(level: str) -> None:
    """Those of the last head end where memory does."""
    n = symbol("keys")
    q, k, v = (tensor(x, "float32", 1, 2, rows, 1) for x, rows in (("q", 3), ("k", n), ("v", n)))
    graph = Graph((q, k, v), (Attention(0.5)(q, k, v),))
    runner = Runner(Device(architecture(level)), ImportedWeights({}), 1, "none")
    for keys in (1, 5, 20):
        feeds = {q: floats(1, 2, 3, 1), k: floats(1, 2, keys, 1), v: floats(1, 2, keys, 1)}
        (got,) = runner.execute(graph, [fenced(array) for array in feeds.values()])
        np.testing.assert_allclose(got, expected(graph.outputs, feeds)[0], atol=1e-6)
    assert len(runner.plans) == 1
