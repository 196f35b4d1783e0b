"""float32 work in 16 bits where it is asked for: what changes, what stays, how far results move."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.passes.graphs import given, graph, weight
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Value, Weight, constant
from whet.ops.attention import Attention, split_heads
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Add, Exp, Relu
from whet.ops.reduce import LayerNorm, Softmax
from whet.passes.precision import lowered

BOUND = {"float16": 4e-3, "bfloat16": 4e-2}


def dtypes(g: Graph, *classes: type) -> set[str]:
    """The dtypes in which each run computes operators of the classes."""
    return {v.dtype for v in g.values if isinstance(v.op, classes) and not v.is_static}


def convolutions() -> Value:
    x = given("x", 1, 9, 9, 8)
    y = Convolution((1, 1), (1, 1), (1, 1), (1, 1), 1)(x, weight("w", 16, 3, 3, 8))
    y = Relu()(y + weight("b", 16))
    return Convolution((2, 2), (1, 1), (0, 0), (0, 0), 1)(y, weight("v", 4, 1, 1, 16))


def transformer() -> Value:
    """With a mask whose numbers 16 bits do not have."""
    x = given("x", 2, 5, 8)
    mask = np.where(np.tri(5) > 0, 0, np.finfo(np.float32).min).astype(np.float32)
    q, k, v = (split_heads(MatMul()(x, weight(f"w{n}", 8, 8)), 2) for n in "qkv")
    y = Attention(0.5)(q, k, v, constant(mask))
    return LayerNorm(1)(y, weight("scale", 4), weight("bias", 4))


def scores() -> Value:
    return Softmax(-1)(Exp()(MatMul()(given("x", 3, 8), weight("w", 8, 6))))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [convolutions, transformer, scores])
def test_results_stay_near_and_ends_keep_their_dtypes(make, precision):
    before = graph(make())
    after = lowered(before, precision)
    assert dtypes(after, Convolution, MatMul, Attention) == {precision}
    assert dtypes(after, Exp, Softmax, LayerNorm) <= {"float32"}
    assert dtypes(after, Relu, Add) <= {precision}
    assert [o.type for o in after.outputs] == [o.type for o in before.outputs]
    assert after.inputs == before.inputs
    rng = np.random.default_rng(4)
    arrays = {v: rng.standard_normal(v.shape, np.float32) for v in before.inputs}
    shapes = {v.op.name: v.shape for v in before.values if isinstance(v.op, Weight)}
    weights = {n: rng.standard_normal(s, np.float32) / 3 for n, s in shapes.items()}
    (want,), (found,) = (evaluate(g, arrays, weights.__getitem__) for g in (before, after))
    assert np.isfinite(found).all()
    assert np.abs(found - want).max() <= BOUND[precision] * np.abs(want).max()


def test_sums_over_axes_and_unknown_precisions():
    with pytest.raises(whet.Error, match="precision='float8'; one of float16, bfloat16, or None"):
        lowered(graph(scores()), "float8")


def model() -> bytes:
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["y"], "mean"),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 4, 8, 8)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 6, 1, 1)),
    ]
    w = numpy_helper.from_array(rng.standard_normal((6, 4, 3, 3), np.float32), "w")
    graph = helper.make_graph(nodes, "g", *[[e] for e in ends], [w])
    imports = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def test_engines_are_built_saved_and_refitted_in_16_bits(tmp_path):
    x = np.random.default_rng(6).standard_normal((3, 4, 8, 8), np.float32)
    plain = whet.build(model())
    half = whet.build(model(), precision="float16")
    half.save(tmp_path / "half.whet")
    loaded = whet.load(tmp_path / "half.whet")
    assert loaded.inputs == plain.inputs and loaded.outputs == plain.outputs
    session = loaded.session("cpu", cache=False)
    want = plain.session("cpu", cache=False).run({"x": x})["y"]
    found = session.run({"x": x})["y"]
    assert not session.reference_ops
    assert 0 < np.abs(found - want).max() <= BOUND["float16"] * np.abs(want).max()
    loaded.refit({"w": np.zeros((6, 4, 3, 3), np.float32)})
    assert not session.run({"x": x})["y"].any()
