"""com.microsoft operators through the reader and the reference, judged by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.frontends import contrib_oracles
from tests.frontends.contrib_cases import GROUPS, Draw, Node
from tests.frontends.runtime import agree, agree_with_runtime, run

SEED = 20
NODES = [(group, node) for group, make in GROUPS.items() for node in make(Draw(SEED))]


@pytest.mark.parametrize(("group", "node"), NODES, ids=lambda x: getattr(x, "name", x))
def test_like_onnxruntime(group: str, node: Node) -> None:
    print(f"seed {SEED}")
    agree_with_runtime(node)


ORACLES = list(contrib_oracles.pairs(Draw(SEED)))


@pytest.mark.parametrize(("node", "expected"), ORACLES, ids=lambda x: getattr(x, "name", ""))
def test_like_numpy(node: Node, expected: list[np.ndarray]) -> None:
    print(f"seed {SEED}")
    for actual, wanted in zip(run(node), expected, strict=True):
        agree(actual, wanted.astype(actual.dtype), node)
