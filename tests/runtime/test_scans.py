"""A scan of few steps runs in kernels, one of many step by step; both give the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet


def running_sum(steps: int) -> bytes:
    """A model: the state is half of the last one plus the row, and every state is a result."""
    half = helper.make_node("Constant", [], ["half"], value_float=0.5)
    body = helper.make_graph(
        [
            half,
            helper.make_node("Mul", ["state", "half"], ["halved"]),
            helper.make_node("Add", ["halved", "row"], ["next"]),
            helper.make_node("Identity", ["next"], ["line"]),
        ],
        "body",
        [_tensor("state", 3), _tensor("row", 3)],
        [_tensor("next", 3), _tensor("line", 3)],
    )
    scan = helper.make_node("Scan", ["first", "rows"], ["last", "lines"], "scan", body=body)
    scan.attribute.append(helper.make_attribute("num_scan_inputs", 1))
    graph = helper.make_graph(
        [scan],
        "scan",
        [_tensor("first", 3), _tensor("rows", steps, 3)],
        [_tensor("last", 3), _tensor("lines", steps, 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


def _tensor(name: str, *shape: int) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.mark.parametrize("steps", [1, 7, 400])
def test_a_scan_gives_every_state(steps: int) -> None:
    rng = np.random.default_rng(steps)
    first, rows = (rng.normal(size=s).astype(np.float32) for s in ((3,), (steps, 3)))
    session = whet.build(running_sum(steps)).session(cache=False)
    got = session.run({"first": first, "rows": rows})
    lines, state = [], first
    for row in rows:
        state = state * np.float32(0.5) + row
        lines.append(state)
    np.testing.assert_allclose(got["last"], state, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["lines"], lines, rtol=1e-5, atol=1e-6)
    assert bool(session.reference_ops) == (steps > 100)
