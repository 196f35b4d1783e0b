"""Every pass keeps what real models mean: on their own inputs, against the graph that was read.

WHET_TEST_MODELS names the folder: one folder for each model with model.onnx, io.json (tensor names
to files) and the arrays, expected outputs among them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.frontends.onnx import from_onnx
from whet.ir.evaluate import evaluate
from whet.passes.check import same_meaning
from whet.passes.pipeline import optimise
from whet.passes.recognise import Numbers

FOLDER = os.environ.get("WHET_TEST_MODELS", "")
MODELS = sorted(Path(FOLDER).glob("*/model.onnx")) if FOLDER else []


def test_models_are_there():
    if not MODELS:
        pytest.skip("WHET_TEST_MODELS names no folder of models")


def load(path: Path) -> Any:
    array = np.load(path)
    return array["array"] if path.suffix == ".npz" else array


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_same_meaning(path):
    imported = from_onnx(path)
    arrays: dict[str, np.ndarray] = {}

    def read(name: str) -> np.ndarray:
        return arrays.setdefault(name, imported.weights[name].read())

    after = {}
    final = optimise(
        imported.graph,
        lambda name, graph: after.update({f"{len(after)} {name}": graph}),
        Numbers(read),
    )
    io = json.loads((path.parent / "io.json").read_text())
    feed = {v: load(path.parent / io["inputs"][v.op.name]) for v in imported.graph.inputs}
    if imported.graph.late is None:
        assert same_meaning(imported.graph, after, read, [feed]) == 1
    for name, array in zip(final.output_names, evaluate(final, feed, read)):
        if name in io["outputs"]:
            _expect(array, load(path.parent / io["outputs"][name]), name)


def _expect(array: np.ndarray, expected: np.ndarray, name: str) -> None:
    error = np.abs(np.asarray(array, np.float64) - expected).max(initial=0)
    assert error <= 1e-3 * np.abs(expected).max(initial=1e-3), name
