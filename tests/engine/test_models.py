"""ONNX models through an engine file: sizes that depend on data, inner graphs, late regions."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.engine.test_graph_data import mutate
from whet.engine.decode import decode
from whet.engine.encode import encode
from whet.engine.file import EngineFile, engine_bytes, weight_names
from whet.engine.weights import ImportedWeights
from whet.errors import Error, InvalidEngine
from whet.frontends.onnx.importer import Imported, from_onnx, import_model
from whet.frontends.onnx.plain import model_from_plain, model_to_plain
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, make
from whet.ir.sizes import symbol
from whet.ir.types import TensorType
from whet.ops.elementwise import Exp
from whet.ops.movement import Broadcast


def model(nodes, inputs, outputs, tensors=()) -> onnx.ModelProto:
    """An ONNX model; inputs and outputs are (name, type, shape)."""
    ends = [[helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ends, [*tensors])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def tensor(name: str, array: np.ndarray) -> TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def through_a_file(imported: Imported) -> EngineFile:
    data = engine_bytes(imported.graph, ImportedWeights(imported.weights))
    engine = EngineFile.open(data)
    engine.verify()
    assert engine_bytes(engine.graph, engine.weights) == data
    return engine


def check(proto: onnx.ModelProto, **arrays: np.ndarray) -> EngineFile:
    """The engine gives what the imported graph gives."""
    imported = from_onnx(proto)
    engine = through_a_file(imported)
    results = []
    for graph, weights in (
        (imported.graph, ImportedWeights(imported.weights)),
        (engine.graph, engine.weights),
    ):
        inputs = {v: arrays[v.op.name] for v in graph.inputs}
        results.append(evaluate(graph, inputs, weights.array))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    return engine


def test_sizes_that_depend_on_data():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["rows"]),
        helper.make_node("Shape", ["rows"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
    ]
    outputs = [("rows", TensorProto.INT64, None), ("zeros", TensorProto.FLOAT, None)]
    proto = model(nodes, [("x", TensorProto.FLOAT, ["n", 3])], outputs)
    rng = np.random.default_rng(0)
    engine = check(proto, x=rng.integers(0, 2, (5, 3)).astype("float32"))
    assert engine.graph.definers


def test_a_size_that_is_used_before_it_is_defined_is_refused():
    x = make(Input("x", TensorType("float32", (1,))), ())[0]
    stretched = Broadcast((symbol("s"),))(x)
    plain, constants = encode(Graph((x,), (Exp()(stretched),), ("y",)))
    assert decode(plain, constants).values[-1].op == Exp()
    plain["graphs"][0]["definers"] = [["s", 2]]
    with pytest.raises(InvalidEngine, match="uses a size that is defined after it"):
        decode(plain, constants)


def test_branches_and_loops():
    def branch(name: str, weight: str) -> onnx.GraphProto:
        node = helper.make_node("Mul", ["x", weight], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, [2, 3])])

    nodes = [
        helper.make_node(
            "If", ["c"], ["y"], then_branch=branch("a", "w"), else_branch=branch("b", "v")
        )
    ]
    rng = np.random.default_rng(1)
    tensors = [tensor(n, rng.standard_normal((2, 3)).astype("float32")) for n in "wv"]
    inputs = [("x", TensorProto.FLOAT, [2, 3]), ("c", TensorProto.BOOL, [])]
    proto = model(nodes, inputs, [("y", TensorProto.FLOAT, [2, 3])], tensors)
    for condition in (True, False):
        x = rng.standard_normal((2, 3)).astype("float32")
        engine = check(proto, x=x, c=np.array(condition))
        assert set(weight_names(engine.graph)) == {"w", "v"} == set(engine.weights.types)


def test_late_regions():
    """Axes that only a run tells: the rank of what follows is not known before."""
    nodes = [
        helper.make_node("Squeeze", ["x", "axes"], ["s"]),
        helper.make_node("Mul", ["s", "w"], ["m"]),
        helper.make_node("Shape", ["m"], ["y"]),
    ]
    inputs = [("x", TensorProto.FLOAT, [1, 3, 1]), ("axes", TensorProto.INT64, ["k"])]
    outputs = [("m", TensorProto.FLOAT, None), ("y", TensorProto.INT64, None)]
    rng = np.random.default_rng(2)
    proto = model(nodes, inputs, outputs, [tensor("w", rng.standard_normal(3).astype("float32"))])
    x = rng.standard_normal((1, 3, 1)).astype("float32")
    for axes in ([0], [0, 2], [2]):
        engine = check(proto, x=x, axes=np.array(axes))
        assert engine.graph.late is not None and "w" in engine.weights.types


def test_damaged_late_regions_are_refused():
    node = helper.make_node("Squeeze", ["x", "axes"], ["s"])
    inputs = [("x", TensorProto.FLOAT, [1, 3, 1]), ("axes", TensorProto.INT64, ["k"])]
    graph = from_onnx(model([node], inputs, [("s", TensorProto.FLOAT, None)])).graph
    plain, constants = encode(graph)
    for nonsense in ({"onnx": 3}, {"torch": {}}, [], {"onnx": {"body": {}}}):
        changed = json.loads(json.dumps(plain))
        changed["graphs"][-1]["late"] = nonsense
        with pytest.raises(InvalidEngine):
            decode(changed, constants)
    changed = json.loads(json.dumps(plain))
    changed["graphs"][-1]["late"]["onnx"]["outputs"] = ["q"]
    with pytest.raises(InvalidEngine, match=r"no stage gives the output .*q"):
        decode(changed, constants)
    plain["graphs"][-1]["late"] = None
    with pytest.raises(InvalidEngine, match="without a name"):
        decode(plain, constants)


def test_guards_are_found_again():
    nodes = [helper.make_node("Add", ["a", "b"], ["y"], name="the sum")]
    inputs = [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["m"])]
    imported = from_onnx(model(nodes, inputs, [("y", TensorProto.FLOAT, None)]))
    plain, constants = encode(imported.graph)
    assert decode(plain, constants).guards == imported.graph.guards
    plain["graphs"][-1]["guards"] = []
    (guard,) = decode(plain, constants).guards
    assert guard.node == "the sum" and {str(guard.left), str(guard.right)} == {"n", "m"}


def test_a_model_that_is_read_twice_keeps_its_guards():
    """The second graph's Values are those of the first, which are inferred only once."""
    nodes = [helper.make_node("Add", ["a", "b"], ["y"], name="the sum")]
    inputs = [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["m"])]
    proto = model(nodes, inputs, [("y", TensorProto.FLOAT, None)])
    first, second = from_onnx(proto).graph, from_onnx(proto).graph
    assert first.outputs == second.outputs and len(first.guards) == 1
    assert first.guards == second.guards


@settings(deadline=None, max_examples=200)
@given(st.randoms(use_true_random=False))
def test_damaged_records_of_a_model_are_refused_or_harmless(rng):
    """Whatever is changed in what a file says of its model, there is an error that says so."""
    engine = EngineFile.open(Path(__file__).parents[1] / "fixtures" / "model_v2.bin")
    plain = json.loads(json.dumps(model_to_plain(engine.model)))
    for _ in range(rng.randrange(1, 4)):
        mutate(plain, rng)
    try:
        import_model(model_from_plain(plain, engine.weights.array))
    except Error as error:
        assert str(error)
