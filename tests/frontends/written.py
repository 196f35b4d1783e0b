"""Models written as text, run through the reader and the reference, and by ONNX Runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser

from whet.frontends.onnx import from_onnx
from whet.frontends.onnx.importer import Imported
from whet.frontends.onnx.region import Region
from whet.ir.evaluate import evaluate


def written(text: str, opset: int = 19) -> onnx.ModelProto:
    """The model of a graph in onnx.parser's syntax."""
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


def read(text: str, opset: int = 19) -> Imported:
    return from_onnx(written(text, opset))


def run(imported: Imported, given: dict[str, Any]) -> list[Any]:
    """The model's outputs by the operators' references."""
    feed = {v: given[v.op.name] for v in imported.graph.inputs}  # type: ignore[attr-defined]
    return evaluate(imported.graph, feed, lambda name: imported.weights[name].read())


def through_json(imported: Imported) -> Imported:
    """The same model with its late region written out and read back, as an engine does it."""
    late = imported.graph.late
    assert isinstance(late, Region)
    plain = json.loads(json.dumps(late.to_plain()))
    again = Region.from_plain(plain, lambda name: imported.weights[name].read())
    return replace(imported, graph=replace(imported.graph, late=again))


def peer(model: onnx.ModelProto, given: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime makes of the same inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, given)


def assert_same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """The same structure, dtypes, shapes and, within the tolerance, elements."""
    if isinstance(want, list):
        assert isinstance(got, list) and len(got) == len(want)
        for a, b in zip(got, want):
            assert_same(a, b, tolerance)
        return
    if want is None:
        assert got is None
        return
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    if want.dtype.kind in "OSU":
        assert got.tolist() == want.tolist()
        return
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def agree(text: str, *runs: dict[str, Any], opset: int = 19, late: bool | None = None) -> Imported:
    """Reads the model once and compares each run with ONNX Runtime; `late`: whether a region
    must be."""
    model = written(text, opset)
    imported = from_onnx(model)
    if late is not None:
        assert (imported.graph.late is not None) == late
    readings = [imported]
    if imported.graph.late is not None:
        readings.append(through_json(imported))
    for given in runs:
        want = peer(model, given)
        for reading in readings:
            assert_same(run(reading, given), want)
    return imported
