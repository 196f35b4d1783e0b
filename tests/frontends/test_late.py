"""Late regions: only what depends on a value waits, a stage serves every run like it, no onnx is
needed."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.frontends.written import agree, assert_same, read, run, through_json, written
from whet.errors import InvalidEngine, InvalidInput, UnsupportedModel
from whet.frontends.onnx import from_onnx
from whet.frontends.onnx.importer import Imported
from whet.frontends.onnx.late import MOST_STAGES, import_late
from whet.frontends.onnx.region import Region
from whet.ir.graph import Graph
from whet.ir.sizes import Expr

SEED = secrets.randbits(32)


@pytest.fixture
def rng() -> np.random.Generator:
    print("seed", SEED)
    return np.random.default_rng(SEED)


def x(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def region(imported: Imported) -> Region:
    assert isinstance(imported.graph.late, Region)
    return imported.graph.late


SQUEEZE = """g (float[N,K] x, int64[A] axes) => (float[N,K] early, float y) <float w = {2.0}> {
  h = Relu(x)
  early = Exp(h)
  s = Squeeze(h, axes)
  m = Mul(s, w)
  y = Neg(m)
}"""


def test_only_what_depends_waits(rng: np.random.Generator) -> None:
    a, b = x(rng, 3, 1), x(rng, 1, 3)
    imported = agree(
        SQUEEZE,
        {"x": a, "axes": np.array([1])},
        {"x": b, "axes": np.array([0])},
        {"x": b, "axes": np.array([-2])},
        late=True,
    )
    late = region(imported)
    assert [n.operator for n in late.body.nodes] == ["Squeeze", "Mul", "Neg"]
    assert set(late.captured) == {"h", "axes"}
    assert late.outputs == ("early", "y") and imported.graph.output_names == ("early",)
    assert set(late.tensors) == {"w"} <= set(imported.weights)
    assert len(imported.graph.outputs) == 3


def test_a_stage_serves_runs_like_its_own(rng: np.random.Generator) -> None:
    imported = read(SQUEEZE)
    a = {"x": x(rng, 3, 1), "axes": np.array([1])}
    run(imported, a)
    run(imported, {**a, "x": x(rng, 3, 1)})
    stages = region(imported).stages
    assert sum(map(len, stages.made.values())) == 1
    run(imported, {**a, "axes": np.array([-1])})
    assert sum(map(len, stages.made.values())) == 2
    run(imported, {"x": x(rng, 5, 1), "axes": np.array([1])})
    assert sum(map(len, stages.made.values())) == 3
    (stage,) = stages.made[stages.key({"h": a["x"], "axes": a["axes"]})][:1]
    assert stage.needed == {"axes": "contents"}
    assert all(isinstance(size, int) for v in stage.graph for size in v.shape)


def test_old_stages_are_forgotten(rng: np.random.Generator) -> None:
    imported = read(SQUEEZE)
    for n in range(1, MOST_STAGES + 9):
        run(imported, {"x": np.ones((n, 1), np.float32), "axes": np.array([1])})
    stages = region(imported).stages
    assert sum(map(len, stages.made.values())) == len(stages.values) == MOST_STAGES


def test_threads_share_stages(rng: np.random.Generator) -> None:
    imported = read(SQUEEZE)
    wrong: list[Any] = []

    def work(n: int) -> None:
        for i in range(20):
            given = np.full((n + i % 3, 1), n, np.float32)
            y = run(imported, {"x": given, "axes": np.array([1])})[1]
            if not np.array_equal(y, -2 * given[:, 0]):
                wrong.append((n, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_weights_come_from_the_caller(rng: np.random.Generator) -> None:
    """As after a refit: the region reads what it is given, by name."""
    late = region(read(SQUEEZE))
    captured = {"h": np.ones((3, 1), np.float32), "axes": np.array([1])}
    stage = import_late(late, captured, lambda name: np.array(7, np.float32))
    assert stage.weights["w"].read() == 7
    assert import_late(late, captured).weights["w"].read() == 2


def test_a_region_within_a_region(rng: np.random.Generator) -> None:
    text = """g (float[1,N] x, int64[1] axes) => (float y, float z) {
      s = Squeeze(x, axes)
      nz = NonZero(s)
      ax = ReduceMin<keepdims=0>(nz)
      flat = Constant<value = int64[1] {-1}>()
      one = Reshape(ax, flat)
      z = Unsqueeze(s, one)
      y = ReduceMax<keepdims=0>(z)
    }"""
    given = np.array([[1, 0, 2]], np.float32)
    imported = read(text)
    for reading in (imported, through_json(imported)):
        y, z = run(reading, {"x": given, "axes": np.array([0])})
        assert y == 2 and z.shape == (1, 3)
        y, z = run(reading, {"x": np.array([[0, 3]], np.float32), "axes": np.array([0])})
        assert y == 3 and z.shape == (2, 1)


def test_inputs_of_any_rank(rng: np.random.Generator) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N"])
    nodes = [
        helper.make_node("Exp", ["b"], ["early"]),
        helper.make_node("Flatten", ["x"], ["f"], axis=1),
        helper.make_node("ReduceSum", ["f"], ["y"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "early")]
    graph = helper.make_graph(nodes, "g", [value, other], outputs)
    imported = from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    for shape in ((2, 3), (4,), (2, 1, 3)):
        given = x(rng, *shape)
        y, early = run(imported, {"x": given, "b": np.zeros(2, np.float32)})
        np.testing.assert_allclose(y, given.sum(), rtol=1e-5, atol=1e-5)
        assert early.tolist() == [1, 1]


def test_captured_values_are_checked() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    late = region(from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])))
    with pytest.raises(InvalidInput, match=r"'x' must be float32\[...\], got int8\[3\]"):
        import_late(late, {"x": np.zeros(3, np.int8)})


def test_what_a_run_cannot_tell_either_is_refused() -> None:
    """More axes than a shape can have: no stage could ever be made."""
    text = "g (float[N] x, int64[A] axes) => (float y) { y = Unsqueeze(x, axes) }"
    imported = read(text)
    with pytest.raises(UnsupportedModel, match="more data than can be looked at"):
        run(imported, {"x": np.ones(2, np.float32), "axes": np.zeros(5000, np.int64)})


@pytest.mark.parametrize("trips", [2, 3])
def test_loops_whose_later_iterations_are_read_in_a_stage(
    trips: int, rng: np.random.Generator
) -> None:
    """The names of the first one are in use there, also of those inside of it."""
    text = f"""g (float[2] x, int64[A] axes) => (float[2] y) <int64 trips = {{{trips}}}> {{
      k = Constant<value = bool {{1}}>()
      one = Constant<value = int64[1] {{1}}>()
      y = Loop(trips, k, x) <body = b (int64 i, bool c, float[2] t) => (bool c2, float[2] u) {{
        c2 = Identity(c)
        u = Loop(trips, k, t) <body = a (int64 j, bool d, float[2] s) => (bool d2, float[2] w) {{
          d2 = Identity(d)
          wide = Unsqueeze(s, one)
          v = Squeeze(wide, axes)
          w = Sin(v) }}> }}>
    }}"""
    agree(text, {"x": x(rng, 2), "axes": np.array([1])}, late=True)


def test_constants_are_read_again_in_the_region(rng: np.random.Generator) -> None:
    """A shape that nodes compute from constants is known in the region too."""
    text = """g (float[2,3] x, int64[1] axis) => (float[6] y) {
      three = Constant<value = int64[1] {3}>()
      six = Add(three, three)
      u = Unsqueeze(x, axis)
      y = Reshape(u, six)
    }"""
    imported = agree(text, {"x": x(rng, 2, 3), "axis": np.array([2])}, late=True)
    assert "six" not in region(imported).captured


def test_sequences_are_captured_whole(rng: np.random.Generator) -> None:
    text = """g (seq(float) s, int64 at) => (float y, int64 n) {
      e = SequenceAt(s, at)
      y = ReduceSum<keepdims=0>(e)
      n = SequenceLength(s)
    }"""
    items = [x(rng, 3), x(rng, 2, 2)]
    agree(text, *({"s": items, "at": np.array(at)} for at in (0, 1, -1)), late=True)


BODY = """g (float[N,1] x, int64[1] axes, int64 n) => (float y) {
  c = Constant<value = bool {1}>()
  s = Squeeze(x, axes)
  r = Loop(n, c, s) <body = b (int64 i, bool c1, float[K] v) => (bool c2, float[K] t)
  <float[1] w = {3.0}> {
    c2 = Identity(c1)
    k = Constant<value = float {0.5}>()
    m = Mul(v, w)
    t = Add(m, k) }>
  y = ReduceSum<keepdims=0>(r)
}"""


def test_tensors_of_late_bodies_are_weights(rng: np.random.Generator) -> None:
    given = {"x": x(rng, 3, 1), "axes": np.array([1]), "n": np.array(40)}
    imported = agree(BODY, given, late=True)
    late = region(imported)
    assert len(late.tensors) == 3, "the body's own, and those in attributes"
    assert set(late.tensors) <= set(imported.weights)


LATER = """
import json, sys
import numpy as np
from whet.frontends.onnx.region import Region
plain, arrays = json.load(open(sys.argv[1]))
weights = {k: np.array(v, d).reshape(s) for k, (v, d, s) in arrays.items()}
region = Region.from_plain(plain, weights.__getitem__)
captured = {"h": np.ones((3, 1), np.float32), "axes": np.array([1])}
graph = region.stage(captured, weights.__getitem__)
assert graph.output_names == ("y",)
assert "onnx" not in sys.modules and "google.protobuf" not in sys.modules
"""


def test_no_onnx_is_loaded(tmp_path: Path) -> None:
    imported = read(SQUEEZE)
    late = region(imported)
    arrays = {}
    for name, tensor in late.tensors.items():
        array = tensor.read()
        arrays[name] = (array.ravel().tolist(), array.dtype.name, array.shape)
    (tmp_path / "region.json").write_text(json.dumps([late.to_plain(), arrays]))
    subprocess.run([sys.executable, "-c", LATER, str(tmp_path / "region.json")], check=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.pop("body"),
        lambda p: p["body"].pop("nodes"),
        lambda p: p["body"]["nodes"][0].update(inputs=[1]),
        lambda p: p["body"]["nodes"][0].update(attributes={"a": {"odd": 1}}),
        lambda p: p["body"]["inputs"][0].__setitem__(1, ["tensor", "float33", []]),
        lambda p: p["body"]["inputs"][0].__setitem__(1, ["tensor", "float32", [-1]]),
        lambda p: p["body"]["inputs"][0].__setitem__(
            1, ["tensor", "float32", ["__import__('os')"]]
        ),
        lambda p: p.update(functions=[1]),
        lambda p: p.update(outputs="ab"),
        lambda p: p["body"].update(nodes=3),
    ],
)
def test_damaged_plain_data(damage: Any) -> None:
    plain = json.loads(json.dumps(region(read(BODY)).to_plain()))
    damage(plain)
    with pytest.raises(InvalidEngine, match="late region"):
        Region.from_plain(plain, lambda name: np.zeros(1))


def test_sizes_found_in_data_order_the_graph(rng: np.random.Generator) -> None:
    """Nothing but its size ties a tensor of ones to the NonZero that counts it."""
    text = """g (float[N] x) => (float[M] y, float[M,2] z) {
      nz = NonZero(x)
      sh = Shape(nz)
      at = Constant<value = int64[1] {1}>()
      m = Gather(sh, at)
      y = ConstantOfShape<value = float[1] {2.5}>(m)
      two = Constant<value = int64[1] {2}>()
      both = Concat<axis=0>(m, two)
      one = Constant<value = float {1.0}>()
      z = Expand(one, both)
    }"""
    sparse = np.array([1, 0, 0, 2], np.float32)
    imported = agree(text, {"x": x(rng, 3)}, {"x": sparse}, late=False)
    (name,) = imported.graph.definers
    order = [type(v.op).__name__ for v in imported.graph]
    assert order.index("NonZero") < order.index("Broadcast")
    bound: dict[str, int] = {}
    from whet.ir.evaluate import evaluate

    evaluate(imported.graph, {imported.graph.inputs[0]: sparse}, sizes=bound)
    assert bound[name] == 2


@pytest.mark.parametrize(
    "node, given",
    [
        ("y = ConstantOfShape(k)", [3]),
        ("y = ConstantOfShape(k)", [0]),
        ("y = Expand(x, k)", [5]),
        ("y = Tile(x, k)", [4]),
        ("y = Reshape(x, k)", [-1]),
        ("y = Reshape(x, k)", [1]),
        ("y = Reshape(x, k)", [0]),
        ("z = Constant<value = int64[1] {0}>()\ny = Slice(x, z, k)", [1]),
        ("z = Constant<value = int64[1] {0}>()\ny = Slice(x, z, k)", [-1]),
        ("z = Constant<value = int64[1] {99}>()\ny = Slice(x, k, z)", [-9]),
        ("z = Constant<value = int64[1] {99}>()\ny = Slice(x, k, z)", [9]),
        ("y = Pad(x, twice)", [2]),
    ],
)
def test_sizes_from_data(rng: np.random.Generator, node: str, given: list[int]) -> None:
    text = f"g (float[N] x, int64[1] k) => (float[M] y) {{ twice = Concat<axis=0>(k, k)\n{node} }}"
    agree(text, {"x": x(rng, 1), "k": np.array(given)}, late="Pad" in node)


@pytest.mark.parametrize(
    "start, limit, delta",
    [
        (0, 5, 1),
        (1, 10, 2),
        (10, 1, -2),
        (10, 1, -3),
        (1, -1, 1),
        (-1, 1, -1),
        (3, 3, 1),
        (0, 9, 3),
    ],
)
@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
def test_ranges_from_data(start: int, limit: int, delta: int, dtype: str) -> None:
    name = {"float32": "float"}.get(dtype, dtype)
    text = f"g ({name} a, {name} b, {name} d) => ({name}[M] y) {{ y = Range(a, b, d) }}"
    given = {k: np.array(v, dtype) for k, v in zip("abd", (start, limit, delta))}
    agree(text, given, late=False)


def test_slices_from_data_in_steps(rng: np.random.Generator) -> None:
    text = """g (float[N,K] x, int64[2] starts, int64[2] ends) => (float[A,B] y) {
      axes = Constant<value = int64[2] {1, 0}>()
      steps = Constant<value = int64[2] {2, 3}>()
      y = Slice(x, starts, ends, axes, steps)
    }"""
    given = {"x": x(rng, 9, 7)}
    ends = [((0, 0), (7, 9)), ((1, 2), (-1, -1)), ((-5, 3), (100, 4)), ((4, 4), (2, 2))]
    runs = [{"starts": np.array(a), "ends": np.array(b), **given} for a, b in ends]
    agree(text, *runs, late=False)


def test_fresh_sizes_have_names_of_their_own() -> None:
    """Two nodes of one name, and an input's size called as the fresh one would be."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="nz"),
        helper.make_node("NonZero", ["y"], ["b"], name="nz"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["nz.count"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [3]),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.INT64, None) for n in "ab"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)]
    )
    imported = from_onnx(model)
    given = {"x": np.array([0, 1], np.float32), "y": np.array([1, 2, 0], np.float32)}
    assert_same(run(imported, given), [np.array([[1]]), np.array([[0, 1]])])
    names = {
        s.name for v in imported.graph for e in v.shape if isinstance(e, Expr) for s in e.symbols
    }
    assert len(names) == 3


def test_records_stay_small() -> None:
    """Plain data of a region holds no tensor's elements."""
    text = SQUEEZE.replace("float w = {2.0}", f"float[1000] w = {{{', '.join(['1.5'] * 1000)}}}")
    plain = json.dumps(region(read(text)).to_plain())
    assert len(plain) < 2000


def test_graph_without_late_region() -> None:
    graph = read("g (float x) => (float y) { y = Exp(x) }").graph
    assert isinstance(graph, Graph) and graph.late is None and graph.output_names == ("y",)
    assert isinstance(written("g (float x) => (float y) { y = Exp(x) }"), onnx.ModelProto)
