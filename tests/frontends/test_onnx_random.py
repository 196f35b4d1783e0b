"""Random nodes of ONNX's own operators, sizes fixed and sizes named, judged by ONNX Runtime."""

from __future__ import annotations

import secrets

import pytest

from tests.frontends.contrib_cases import Node
from tests.frontends.random_nodes import nodes
from tests.frontends.runtime import agree_with_runtime

SEED = secrets.randbits(32)
NODES = list(nodes(SEED))


@pytest.mark.parametrize("named", [False, True], ids=["fixed", "named"])
@pytest.mark.parametrize("node", [n for _, n in NODES], ids=[name for name, _ in NODES])
def test_like_onnxruntime(node: Node, named: bool) -> None:
    print(f"nodes({SEED}): {node}")  # pytest shows it where the case fails
    agree_with_runtime(node, named)
