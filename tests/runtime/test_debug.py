"""Debug tensors: any value of the ONNX file, read out of a run, however it was fused."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.runtime import models
from whet.errors import InvalidInput
from whet.frontends.onnx import from_onnx
from whet.ir.evaluate import evaluate

INNER = ["a", "b", "c", "d", "e", "f", "g"]


def reference(model, inputs, names):
    """The tensors by NumPy, operator by operator."""
    imported = from_onnx(model.SerializeToString())
    given = {v: inputs[v.op.name] for v in imported.graph.inputs}
    kept = dict(given)
    evaluate(imported.graph, given, lambda n: imported.weights[n].read(), watch=kept.__setitem__)
    return {name: kept[imported.tensors[name]] for name in names}


def draw(seed=0, batch=1):
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((batch, 3, 16, 16)).astype(np.float32)}


def check(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("names", [["d"], ["a", "e"], INNER, ["y", "a", "x", "w0"]])
def test_any_tensor_by_name(names):
    model = models.convolutions()
    session = whet.build(model).session("cpu", cache=False)
    inputs = draw(1)
    found = session.debug(inputs, names)
    expected = reference(model, inputs, [n for n in names if n != "w0"])
    if "w0" in names:
        expected["w0"] = from_onnx(model).weights["w0"].read()
    check(found, {name: expected[name] for name in names})


def test_a_run_calls_back_in_order():
    model = models.convolutions()
    session = whet.build(model).session("cpu", cache=False)
    inputs, seen = draw(2), {}
    outputs = session.run(
        inputs, debug={n: lambda x, n=n: seen.__setitem__(n, x) for n in ("y", "d", "a")}
    )
    assert list(outputs) == ["y"]
    check(seen, reference(model, inputs, ["y", "a", "d"]))
    again = session.run(inputs)
    np.testing.assert_allclose(again["y"], outputs["y"], rtol=1e-4, atol=1e-5)


def test_what_was_computed_before_a_failure_is_seen():
    nodes = [
        helper.make_node("Exp", ["x"], ["scaled"], name="scale"),
        helper.make_node("Cast", ["scaled"], ["ids"], name="ids", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["y"], name="look up"),
    ]
    table = np.zeros((4, 64), np.float32)
    model = models.model(
        nodes, [models.value("x", [3])], [models.value("y", [3, 64])], {"table": table}
    )
    session = whet.build(model).session("cpu", cache=False)
    seen = {}
    x = np.array([0, 1, 5], np.float32)
    with pytest.raises(IndexError, match="look up"):
        session.run({"x": x}, debug={"ids": lambda ids: seen.update(ids=ids)})
    assert seen["ids"].tolist() == np.exp(x).astype(np.int64).tolist()


def test_what_was_computed_in_an_earlier_plan_is_seen():
    nodes = [
        helper.make_node("Exp", ["x"], ["scaled"], name="scale"),
        helper.make_node("Cast", ["scaled"], ["ids"], name="ids", to=TensorProto.INT64),
        helper.make_node("NonZero", ["ids"], ["places"], name="places"),
        helper.make_node("Gather", ["table", "places"], ["y"], name="look up"),
    ]
    table = np.zeros((2, 64), np.float32)
    model = models.model(
        nodes, [models.value("x", [3])], [models.value("y", None)], {"table": table}
    )
    session = whet.build(model).session("cpu", cache=False)
    seen, x = {}, np.zeros(3, np.float32)
    for _ in range(2):
        with pytest.raises(IndexError, match="look up"):
            session.run(
                {"x": x}, debug={n: lambda a, n=n: seen.update({n: a}) for n in ("ids", "scaled")}
            )
        assert seen.pop("ids").tolist() == [1, 1, 1]
        np.testing.assert_array_equal(seen.pop("scaled"), np.exp(x))


def test_each_tensor_is_told_once():
    session = whet.build(models.convolutions()).session("cpu", cache=False)
    seen = []
    session.run(draw(7), debug={n: lambda _, n=n: seen.append(n) for n in ("x", "y", "c", "w0")})
    assert sorted(seen) == ["c", "w0", "x", "y"]


def saved(model, path, **options):
    whet.build(model, **options).save(path)
    return whet.load(path)


def test_an_engine_file_knows_the_tensors_of_its_model(tmp_path):
    model, inputs = models.convolutions(), draw(3)
    loaded = saved(model, tmp_path / "m.whet")
    assert loaded.tensors == whet.build(model).tensors and "d" in loaded.tensors
    session = loaded.session("cpu", cache=False)
    check(session.debug(inputs, ["b", "d"]), reference(model, inputs, ["b", "d"]))
    with pytest.raises(InvalidInput, match=r"'dd'.*there are 'd'"):
        session.debug(inputs, ["dd"])


def test_an_engine_file_of_an_engine_file_knows_them_too(tmp_path):
    model, inputs = models.convolutions(), draw(6)
    saved(model, tmp_path / "m.whet").save(tmp_path / "n.whet")
    assert (tmp_path / "m.whet").read_bytes() == (tmp_path / "n.whet").read_bytes()
    session = whet.load(tmp_path / "n.whet").session("cpu", cache=False)
    check(session.debug(inputs, ["d"]), reference(model, inputs, ["d"]))


def test_what_no_output_needs_may_need_weights_that_the_file_lacks(tmp_path):
    model, inputs = models.convolutions(), draw(6)
    unused = np.ones(3, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(unused, "unused"))
    model.graph.node.append(helper.make_node("Exp", ["unused"], ["idle"]))
    session = saved(model, tmp_path / "m.whet").session("cpu", cache=False)
    with pytest.raises(InvalidInput, match=r"'idle' need the weights unused.*the ONNX file"):
        session.debug(inputs, ["idle"])
    found = session.debug(inputs, ["idle"], model=model.SerializeToString())
    np.testing.assert_allclose(found["idle"], np.exp(unused), rtol=1e-6)


def test_marked_tensors_survive_in_the_file(tmp_path):
    model, inputs = models.convolutions(), draw(3)
    engine = whet.build(model, debug=["d", "b"])
    assert list(engine.outputs) == ["y"] and set(engine.debug) == {"b", "d"}
    loaded = saved(model, tmp_path / "m.whet", debug=["d", "b"], refittable=False)
    assert list(loaded.outputs) == ["y"] and set(loaded.tensors) == {"y", "b", "d"}
    session = loaded.session("cpu", cache=False)
    assert list(session.run(inputs)) == ["y"]
    assert len(session.plans) == 1, "what nobody asked for is not planned"
    check(session.debug(inputs, ["b", "d"]), reference(model, inputs, ["b", "d"]))


def test_unmarked_tensors_of_a_file_without_its_model(tmp_path):
    model, inputs = models.convolutions(), draw(4)
    session = saved(model, tmp_path / "m.whet", refittable=False).session("cpu", cache=False)
    with pytest.raises(InvalidInput, match=r"'d'.*model='model.onnx'.*debug=\['d'\]"):
        session.debug(inputs, ["d"])
    with pytest.raises(InvalidInput, match=r"'relu' was fused into a kernel"):
        session.debug(inputs, ["relu"])
    found = session.debug(inputs, ["d"], model=model.SerializeToString())
    check(found, reference(model, inputs, ["d"]))
    with pytest.raises(InvalidInput, match="another model"):
        session.debug(inputs, ["q"], model=models.attention().SerializeToString())


def test_one_name_may_stand_alone_and_what_is_none_is_refused():
    model, inputs = models.convolutions(), draw(5)
    engine = whet.build(model, debug="d")
    assert engine.debug == ("d",)
    session = engine.session("cpu", cache=False)
    check(session.debug(inputs, "a"), reference(model, inputs, ["a"]))
    for names in (3, None, ["a", 3]):
        with pytest.raises(InvalidInput, match="list of names"):
            session.debug(inputs, names)
        with pytest.raises(InvalidInput, match="list of names"):
            whet.build(model, debug=names)
    for debug in (3, ["a"], {"a": 3}, "a"):
        with pytest.raises(InvalidInput, match="callbacks by tensor name"):
            session.run(inputs, debug=debug)


def test_unknown_names_are_all_named():
    session = whet.build(models.convolutions()).session("cpu", cache=False)
    with pytest.raises(InvalidInput, match=r"'nothing', 'w00'.*there are.*'w0'"):
        session.debug(draw(), ["nothing", "w00", "a"])
    with pytest.raises(InvalidInput, match=r"'residual'.*there are 'e'"):
        session.debug(draw(), ["residual"])
    with pytest.raises(InvalidInput, match="'nothing'"):
        session.run(draw(), debug={"nothing": print})
    with pytest.raises(InvalidInput, match="'nothing'"):
        whet.build(models.convolutions(), debug=["nothing"])


def test_open_sizes():
    model = models.convolutions(batch="n")
    session = whet.build(model).session("cpu", cache=False)
    for batch in (1, 3):
        inputs = draw(batch, batch)
        check(session.debug(inputs, ["a", "e"]), reference(model, inputs, ["a", "e"]))


def test_refit_weights_are_the_ones_read():
    model, inputs = models.convolutions(), draw(5)
    engine = whet.build(model)
    session = engine.session("cpu", cache=False)
    before = session.debug(inputs, ["a"])["a"]
    weight = engine.weights.array("w0")
    engine.refit({"w0": 2 * weight, "b0": 2 * engine.weights.array("b0")}, partial=True)
    np.testing.assert_allclose(session.debug(inputs, ["a"])["a"], 2 * before, rtol=1e-5, atol=1e-5)


def test_attention_scores_that_no_kernel_stores():
    model = models.attention()
    session = whet.build(model).session("cpu", cache=False)
    rng = np.random.default_rng(6)
    inputs = {"x": rng.standard_normal((1, 12, 16)).astype(np.float32)}
    (softmax,) = (n.output[0] for n in model.graph.node if n.op_type == "Softmax")
    found = session.debug(inputs, [softmax])
    check(found, reference(model, inputs, [softmax]))
    np.testing.assert_allclose(found[softmax].sum(-1), 1, rtol=1e-5)


def test_behind_sizes_that_a_run_finds():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"], name="where"),
        helper.make_node("Transpose", ["places"], ["rows"], name="turn"),
        helper.make_node("Cast", ["rows"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Exp", ["floats"], ["y"], name="exp"),
    ]
    model = models.model(nodes, [models.value("x", [3, 4])], [models.value("y", ["n", 2])])
    session = whet.build(model).session("cpu", cache=False)
    x = np.eye(3, 4, dtype=np.float32)
    found = session.debug({"x": x}, ["places", "rows", "floats"])
    assert np.array_equal(found["places"], np.array(np.nonzero(x)))
    assert np.array_equal(found["floats"], found["rows"].astype(np.float32))
