"""Single nodes through the reader and the reference, and by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.frontends.contrib_cases import Node
from whet.frontends.onnx import from_onnx
from whet.ir.evaluate import evaluate


def run(node: Node, named: bool = False) -> list[np.ndarray]:
    """The outputs that the model names."""
    imported = from_onnx(node.model(named))
    feeds = node.feeds()
    given = {value: feeds[value.op.name] for value in imported.graph.inputs}  # type: ignore[attr-defined]
    return evaluate(imported.graph, given, lambda name: imported.weights[name].read())


def agree(actual: np.ndarray, expected: np.ndarray, node: Node) -> None:
    """Raises AssertionError where an output differs by more than the node allows."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.dtype.kind in "iub":
        distance = np.abs(actual.astype(np.int64) - expected.astype(np.int64))
        assert distance.max(initial=0) <= node.steps
        return
    largest = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=node.tolerance * largest)


def agree_with_runtime(node: Node, named: bool = False) -> None:
    """Raises AssertionError where ONNX Runtime gives something else."""
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime, the judge, is not installed")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    model = node.model().SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    expected = session.run(None, node.feeds())
    for actual, wanted in zip(run(node, named), expected, strict=True):
        agree(actual, wanted, node)
