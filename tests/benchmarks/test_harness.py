"""The benchmarks' own machinery: a judge that is wrong makes every figure wrong."""

import os
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import conformance, float64
from benchmarks.inputs import SIZES, draw, read_inputs, weight_bytes
from benchmarks.isolation import run_isolated
from benchmarks.judge import relative_error
from benchmarks.speed import Row


def run_task(task):
    if task == "crash":
        os._exit(7)
    if task == "hang":
        time.sleep(60)
    return task.upper()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_or_hang_costs_one_task(workers):
    tasks = ["a", "crash", "b", "hang", "c"]
    results = dict(run_isolated(tasks, lambda: run_task, workers=workers, seconds=0.5))
    assert results == {0: "A", 1: "crashed with status 7", 2: "B", 3: "hung", 4: "C"}


@pytest.mark.parametrize(
    "actual, expected, error",
    [
        ([1.0, 2.0], [1.0, 2.5], 0.2),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1e-9, 0.0], [0.0, 0.0], 1e-5),
        ([], [], 0.0),
    ],
)
def test_relative_error(actual, expected, error):
    assert relative_error(np.array(actual), np.array(expected)) == error


@pytest.mark.parametrize(
    "actual, verdict",
    [
        (np.ones(2, np.float32), None),
        (np.ones(2, np.float64), "dtype float64 for float32"),
        (np.ones((2, 1), np.float32), "shape (2, 1) for (2,)"),
        (np.array([1, np.nan], np.float32), "other values"),
    ],
)
def test_a_case_is_right_only_if_type_shape_and_values_are(actual, verdict):
    assert conformance.difference(actual, np.ones(2, np.float32), 1e-3, 1e-7) == verdict


def test_a_row_far_from_float64_is_void():
    row = Row("x", errors={"onnxruntime": 1e-7, "whet": 3e-7, "openvino": 2e-7})
    assert row.void("whet") and not row.void("openvino") and row.void("base")


def test_slow_rounds_are_dropped_in_pairs():
    row = Row("x")
    row.peaks, row.roof = [450.0, 300.0, 440.0], 460.0
    assert not row.sure

    row.peaks.append(450.0)
    row.rounds = {"whet": [1.0, 9.0, 2.0, 3.0], "onnxruntime": [2.0, 1.0, 2.0, 2.0]}
    assert row.sure and row.ratios("whet", "onnxruntime") == [0.5, 1.0, 1.5]


def table_lookup(path):
    """A model with an embedding table of ten rows, a mask and a symbolic length."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "seq"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    table = numpy_helper.from_array(np.arange(30, dtype=np.float32).reshape(10, 3), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "axis"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["y"]),
    ]
    axis = numpy_helper.from_array(np.array([-1]), "axis")
    graph = helper.make_graph(nodes, "g", [ids, mask], [out], [table, axis])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def test_inputs_follow_the_graph_and_float64_runs_it(tmp_path):
    path = tmp_path / "lookup.onnx"
    table_lookup(path)
    feeds = draw(read_inputs(path, SIZES), np.random.default_rng())
    ids, mask = feeds["ids"], feeds["attention_mask"]
    assert ids.shape == mask.shape == (1, 128) and ids.max() < 10 and set(mask.flat) <= {0, 1}
    assert weight_bytes(path) == 30 * 4 + 8

    (y,) = float64.reference(path, feeds)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, np.arange(30).reshape(10, 3)[ids] * mask[..., None])


WINDOWS = r"^test_(basic_)?(conv|maxpool|averagepool|gelu|gather_elements)_"


def test_float64_operators_agree_with_onnx():
    new_ops = float64.OPERATORS
    names = {operator.__name__ for operator in new_ops}
    checked = 0
    for case in conformance.collect(WINDOWS):
        graph = case.model.graph
        if graph.node[0].op_type not in names or len(graph.node) > 1 or len(graph.output) > 1:
            continue
        ((inputs, expected),) = case.data_sets
        if inputs[0].dtype != np.float32:
            continue
        evaluator = float64.ReferenceEvaluator(case.model, new_ops=new_ops)
        (y,) = evaluator.run(None, dict(zip([v.name for v in graph.input], inputs)))
        np.testing.assert_allclose(y, expected[0], rtol=1e-3, atol=1e-6, err_msg=case.name)
        checked += 1
    assert checked >= 30
