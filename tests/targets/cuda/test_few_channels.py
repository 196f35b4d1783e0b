"""A first convolution with whole lines of taps is the same convolution."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, make
from whet.ir.types import TensorType
from whet.ops.contract import Convolution
from whet.targets.cuda.templates import few_channels


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_same_sums(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(few_channels, "FEWEST_PLACES", 1)
    found = 0
    for taps in range(few_channels.FEWEST_TAPS, 10):
        channels, width = int(rng.integers(1, 5)), int(rng.integers(10, 40))
        before, after = rng.integers(0, taps, 2).tolist()
        shapes = (1, 9 + taps, width, channels), (8, taps, taps, channels)
        values = [
            make(Input(f"x{n}", TensorType("float16", shape)), ())[0]
            for n, shape in enumerate(shapes)
        ]
        op = Convolution((stride, stride), (1, 1), (before, before), (after, after))
        y = op(*values)
        other = few_channels.in_wide_lines(op, *values, y)
        if other is None:
            continue
        found += 1
        arrays = [rng.integers(-3, 4, shape).astype(np.float16) for shape in shapes]
        results = evaluate(Graph(tuple(values), (y, other)), dict(zip(values, arrays)))
        np.testing.assert_array_equal(*results)
    assert found
