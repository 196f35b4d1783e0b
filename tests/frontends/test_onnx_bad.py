"""Models that are damaged, contradict themselves or ask for the absurd: each gets a whet.Error,
soon."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.frontends.fuzz_onnx import SECONDS, bounded, read_all
from tests.frontends.fuzz_seeds import seeds
from tests.frontends.written import read, run, written
from whet.errors import InvalidModel, ShapeError, UnsupportedModel
from whet.frontends.onnx import from_onnx

FINDINGS = Path(__file__).parent / "findings"
RELU = "g (float[N] x) => (float[N] y) { y = Relu(x) }"


def model_of(*nodes: Any, inputs: Any = (), tensors: Any = (), **more: Any) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in inputs]
    output = onnx.ValueInfoProto(name="y")  # of whatever type the node gives it
    graph = helper.make_graph(list(nodes), "g", values, [output], list(tensors), **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


# Files and bytes.


def test_what_is_no_model(tmp_path: Path) -> None:
    archive = tmp_path / "model.onnx"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(1 << 20))
    for data in (b"", b"\x00", b"not a model", bytes(1000), b"\xff" * 1000, archive.read_bytes()):
        with pytest.raises(InvalidModel, match="not an ONNX model"):
            from_onnx(data)
    with pytest.raises(InvalidModel, match=r"model\.onnx.*is not an ONNX model"):
        from_onnx(archive)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.onnx", tmp_path, tmp_path / "x\0y", "/dev/zero"):
        with pytest.raises(InvalidModel, match="cannot be read"):
            from_onnx(path)


@pytest.mark.parametrize("seed", range(len(list(seeds()))))
def test_truncated(seed: int) -> None:
    """Every prefix of a model is read or refused; most are refused."""
    data = list(seeds())[seed]
    step = max(len(data) // 300, 1)
    for end in range(0, len(data), step):
        bounded(lambda end=end: read_all(data[:end]), SECONDS)  # type: ignore[misc]


def test_damaged_at_random(tmp_path: Path) -> None:
    """A small count here; `python -m tests.frontends.fuzz_onnx --count 1000000` for a long run."""
    command = [sys.executable, "-m", "tests.frontends.fuzz_onnx", "--count", "1500"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    print(done.stdout, done.stderr)
    reports = "\n".join(p.read_text() for p in tmp_path.glob("*.txt"))
    assert done.returncode == 0, reports


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*.onnx")), ids=lambda p: p.stem)
def test_findings(path: Path) -> None:
    """What fuzzing has found once."""
    bounded(lambda: read_all(path.read_bytes()), SECONDS)


def test_names_that_are_not_text() -> None:
    data = written(RELU).SerializeToString().replace(b"Relu", b"Re\xff\xfe")
    with pytest.raises(InvalidModel, match="not UTF-8"):
        from_onnx(data)


# Graphs that contradict themselves.


@pytest.mark.parametrize(
    "text, message",
    [
        ("g (float[N] x) => (float[N] y) { y = Relu(z) }", "gives the tensor 'z'"),
        ("g (float[N] x) => (float[N] y) { y = Relu(z)\n z = Relu(x) }", "'z' is used before"),
        ("g (float[N] x) => (float[N] y) { y = Add(x, z)\n z = Relu(y) }", "'z' is used before"),
        ("g (float[N] x) => (float[N] y) { y = Relu(y) }", "'y' is used before"),
        ("g (float[N] x) => (float[N] y) { y = Relu(x)\n y = Exp(x) }", "'y' has a value already"),
        ("g (float[N] x) => (float[N] y) { x = Relu(x)\n y = Exp(x) }", "'x' has a value already"),
        ("g (float[N] x) => (float[N] y) { z = Relu(x) }", "gives the tensor 'y'"),
        ("g (float[N] x, float[N] x) => (float[N] y) { y = Relu(x) }", "two inputs"),
        ("g (float[N] x) => (float[N] y) { y, z = Relu(x) }", "it has 1 outputs"),
        ("g (float[N] x) => (float[N] y) { y = Relu(x, x) }", "do not fit"),
        ("g (float[N] x) => (float[N] y) { y = Relu() }", "do not fit"),
        ("g (float[N] x) => (float[N] y) { y = Add(, x) }", r"input 0 \(a\) is absent"),
        ("g (float[3] x, float[4] z) => (float[N] y) { y = Add(x, z) }", r'"y" \(Add\).*broadcast'),
        ("g (float[3] x, int64[3] z) => (float[N] y) { y = Add(x, z) }", "one dtype"),
    ],
)
def test_contradictions(text: str, message: str) -> None:
    with pytest.raises(whet.Error, match=message):
        read(text)


def test_inner_graphs_see_only_what_is_there() -> None:
    """A branch that captures what a later node makes."""
    text = """g (bool c, float[N] x) => (float[N] y) {
      y = If (c) <
        then_branch = a () => (float[N] z) { z = Neg(later) },
        else_branch = b () => (float[N] w) { w = Neg(x) }>
      later = Exp(x)
    }"""
    with pytest.raises(InvalidModel, match="'later' is used before"):
        read(text)


def test_two_initializers_of_a_name() -> None:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    node = helper.make_node("Relu", ["w"], ["y"])
    with pytest.raises(InvalidModel, match="two initializers"):
        from_onnx(model_of(node, tensors=[tensor, tensor]))


def test_two_attributes_of_a_name() -> None:
    model = written("g (float[N] x) => (float[N] y) { y = Softmax<axis = 0>(x) }")
    model.graph.node[0].attribute.append(model.graph.node[0].attribute[0])
    with pytest.raises(InvalidModel, match="two attributes"):
        from_onnx(model)


def test_a_reference_outside_of_a_function() -> None:
    model = written("g (float[N] x) => (float[N] y) { y = Softmax<axis = 0>(x) }")
    model.graph.node[0].attribute[0].ref_attr_name = "axis"
    with pytest.raises(InvalidModel, match="function's outside of one"):
        from_onnx(model)


def test_all_that_cannot_be_read_in_one_message() -> None:
    text = """g (float[N] x, bool c) => (float[N] y, float[N] z, float[N] w) {
      y = Foo(x)
      z = Relu<colour = 3>(x)
      t = Bar(y)
      u = If (c) <
        then_branch = a () => (float[N] v) { v = Baz(t) },
        else_branch = b () => (float[N] v) { v = Exp(x) }>
      w = If (c) <
        then_branch = a () => (float[N] v) { v = Foo(x) },
        else_branch = b () => (float[N] v) { v = Bar(u) }>
    }"""
    with pytest.raises(UnsupportedModel) as caught:
        read(text)
    assert [(r.node, r.operator, r.opset) for r in caught.value.refusals] == [
        ("y", "Foo", 19),
        ("z", "Relu", 19),
        ("t", "Bar", 19),
        ("u/v", "Baz", 19),
        ("w/v", "Foo", 19),
        ("w/v", "Bar", 19),
    ]
    assert "colour" in str(caught.value) and "6 nodes" in str(caught.value)


def test_gradient_is_refused_with_its_reason() -> None:
    node = helper.make_node(
        "Gradient", ["x"], ["y"], domain="ai.onnx.preview.training", xs=["x"], y="y"
    )
    with pytest.raises(UnsupportedModel, match="inference only"):
        from_onnx(model_of(node, inputs=["x"]))


# The absurdly large and deep.

HUGE = 2**62
CONV = "g (float[1,1,8,8] x, float[1,1,3,3] w) => (float[N] y) {{ y = Conv<{}>(x, w) }}"


@pytest.mark.parametrize(
    "text",
    [
        f"g () => (float[N] y) <int64[1] s = {{{HUGE}}}> {{ y = ConstantOfShape(s) }}",
        f"g (float[1] x) => (float[N] y) <int64[2] s = {{{HUGE}, {HUGE}}}> {{ y = Expand(x, s) }}",
        f"g (float[1] x) => (float[N] y) <int64[1] s = {{{HUGE}}}> {{ y = Tile(x, s) }}",
        f"""g () => (int64[N] y) {{ a = Constant<value = int64 {{0}}>()
          b = Constant<value = int64 {{{HUGE}}}>()
          c = Constant<value = int64 {{1}}>()
          y = Range(a, b, c) }}""",
        """g () => (int64[N] y) { s = Constant<value = int64[1] {100000000000}>()
          z = ConstantOfShape<value = int64[1] {1}>(s)
          t = Concat<axis = 0>(z, z)
          a = Add(t, t)
          y = ConstantOfShape<value = int64[1] {1}>(a) }""",
        f"g (float[{HUGE}] x) => (float[N] y) {{ z = Concat<axis = 0>(x, x)\n y = Relu(z) }}",
        f"g (float[{HUGE},{HUGE}] x) => (float[N] y) {{ y = Relu(x) }}",
        f"g (float[N] x) => (float[N] y) <int64[2] p = {{{HUGE}, 0}}> {{ y = Pad(x, p) }}",
        f"g (float[N] x) => (float[N] y) {{ y = Softmax<axis = {HUGE}>(x) }}",
        CONV.format(f"strides = [{HUGE}, 1]"),
        "g (float[1,1,2000000000] x) => (float[A,B,C] y) {"
        " y = AveragePool<kernel_shape = [99], pads = [9, 9]>(x) }",
        f"g (float[N] x, int64[{HUGE}] s) => (float[M] y) {{ y = Reshape(x, s) }}",
        f"g (float[N] x, int64[{HUGE}] s) => (float[M] y) {{ y = Expand(x, s) }}",
        CONV.format(f"pads = [{HUGE}, 0, 0, 0]"),
        f"g (float[{HUGE}] x) => (seq(float) y) {{ y = SplitToSequence(x) }}",
        f"""g (float[N] x, bool c) => (float[N] y) {{ n = Constant<value = int64 {{{HUGE}}}>()
          y = Loop(n, c, x) <body = b (int64 i, bool c1, float[N] s) => (bool c2, float[N] t) {{
            c2 = Identity(c1)
            t = Relu(s) }}> }}""",
    ],
)
def test_absurd_sizes(text: str) -> None:
    """Reading holds no tensor of the sizes that a model asks for."""
    bounded(lambda: read_all(written(text).SerializeToString()), SECONDS)


def tensor_of(dims: list[int], dtype: int = TensorProto.FLOAT, **fields: Any) -> TensorProto:
    return TensorProto(name="w", dims=dims, data_type=dtype, **fields)


@pytest.mark.parametrize(
    "tensor, message",
    [
        (tensor_of([2], raw_data=bytes(7)), "needs 8 bytes, it has 7"),
        (tensor_of([2], raw_data=bytes(9)), "needs 8 bytes, it has 9"),
        (tensor_of([HUGE, 4], raw_data=bytes(8)), "bytes, it has 8"),
        (tensor_of([HUGE]), "holds 0 elements"),
        (tensor_of([3], float_data=[1.0, 2.0]), "holds 2 elements, not 3"),
        (tensor_of([3], TensorProto.INT4, raw_data=bytes(1)), "needs 2 bytes, it has 1"),
        (tensor_of([1], TensorProto.COMPLEX64, float_data=[1.0]), "cannot be read|holds"),
        (tensor_of([2], TensorProto.STRING, string_data=[b"a"]), "holds 1 elements, not 2"),
        (tensor_of([-1], raw_data=bytes(4)), r"has the shape \[-1\]"),
        (tensor_of([1], 99, raw_data=bytes(4)), "element type 99"),
        (tensor_of([1], 0, raw_data=bytes(4)), "element type 0"),
    ],
)
def test_stored_tensors_that_do_not_fit(tensor: TensorProto, message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        imported = from_onnx(model_of(helper.make_node("Relu", ["w"], ["y"]), tensors=[tensor]))
        imported.weights["w"].read()


@pytest.mark.parametrize(
    "places, dims, message",
    [
        (np.array([0, 9]), [2, 3], "out of bounds"),
        (np.array([0, -1]), [2, 3], "out of bounds"),
        (np.array([[0, 0], [0, -1]]), [2, 3], "negative"),
        (np.array([[0, 0], [5, 0]]), [2, 3], "out of bounds"),
        (np.array([[0], [1]]), [2, 3], "too few numbers"),
        (np.array([0, 1]), [2**40, 2**20], "too large"),
    ],
)
def test_sparse_tensors_that_do_not_fit(places: np.ndarray, dims: list[int], message: str) -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), dims)
    node = helper.make_node("Relu", ["w"], ["y"])
    imported = from_onnx(model_of(node, sparse_initializer=[sparse]))
    with pytest.raises(InvalidModel, match=message):
        imported.weights["w"].read()


def nested(depth: int, wrap: Callable[[onnx.GraphProto], onnx.NodeProto]) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "inner", [], [output])
    for _ in range(depth):
        graph = helper.make_graph([wrap(graph)], "inner", [], [output])
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"]))
    graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def test_graphs_within_graphs() -> None:
    def wrap(graph: onnx.GraphProto) -> onnx.NodeProto:
        other = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["z"])], "other", [], list(graph.output)
        )
        return helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=other)

    imported = from_onnx(nested(5, wrap))
    given = np.array([-1, 1], np.float32)
    assert run(imported, {"x": given, "c": np.array(True)})[0].tolist() == [0, 1]
    with pytest.raises(InvalidModel, match="nests graphs"):
        from_onnx(nested(32, wrap))  # one more, and protobuf does not take it either


def test_types_within_types() -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    for _ in range(40):
        kind = helper.make_sequence_type_proto(kind)
    model = written(RELU)
    model.graph.input[0].type.CopyFrom(kind)
    with pytest.raises(InvalidModel, match="nests types"):
        from_onnx(model)


def test_chains_as_long_as_you_like() -> None:
    """Neither reading nor learning a shape at the end of a chain recurses."""
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Add", [f"s{i}", "one"], [f"s{i + 1}"]) for i in range(5000)]
    nodes.append(helper.make_node("ConstantOfShape", ["s5000"], ["y"]))
    one = numpy_helper.from_array(np.array([1]), "one")
    imported = from_onnx(model_of(*nodes, inputs=["x"], tensors=[one]))
    assert str(imported.graph.outputs[0].shape[0]) == "N+5000"
    relus = [helper.make_node("Relu", [f"r{i}" if i else "x"], [f"r{i + 1}"]) for i in range(5000)]
    adds = [helper.make_node("Add", [f"r{5000}", "r1"], ["y"])]
    assert len(from_onnx(model_of(*relus, *adds, inputs=["x"])).graph.values) > 2


def test_sizes_that_would_fill_pages_wait_for_the_run() -> None:
    """Each layer divides the size before by two and triples it: its text doubles."""
    nodes = []
    for i in range(40):
        source = f"c{i - 1}" if i else "x"
        pool = {"kernel_shape": [1], "strides": [2], "ceil_mode": 1}
        nodes.append(helper.make_node("MaxPool", [source], [f"p{i}"], **pool))
        nodes.append(helper.make_node("Concat", [f"p{i}"] * 3, [f"c{i}"], axis=2))
    nodes.append(helper.make_node("ReduceMax", ["c39"], ["y"], keepdims=0))
    model = model_of(*nodes, inputs=["x"])
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, "N"])
    model.graph.input[0].CopyFrom(shape)
    imported = from_onnx(model)
    assert imported.graph.late is not None
    assert len(str(imported.graph)) < 10**6


# What is right, though odd.


def test_initializers_that_are_inputs() -> None:
    """Before IR version 4 every initializer was an input too."""
    tensor = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    model = model_of(
        helper.make_node("Add", ["x", "w"], ["y"]), inputs=["x", "w"], tensors=[tensor]
    )
    model.ir_version = 3
    imported = from_onnx(model)
    assert [v.op.name for v in imported.graph.inputs] == ["x"]  # type: ignore[attr-defined]
    assert run(imported, {"x": np.ones(2, np.float32)})[0].tolist() == [2, 3]


ARRAYS = [
    np.array([[1, -2], [3, 4]], dtype)
    for dtype in ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "complex64")
]
ARRAYS += [np.array([[1, 2], [3, 250]], f"uint{bits}") for bits in (8, 16, 32, 64)]
ARRAYS += [
    np.array([[1, -2], [0.5, 4]], getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float4_e2m1fn")
]
ARRAYS += [np.array([[1, -8, 7]], ml_dtypes.int4), np.array([[0, 15, 7]], ml_dtypes.uint4)]
ARRAYS += [np.array([[1, -2, 0, -1, 1]], ml_dtypes.int2), np.array([[3, 2, 0]], ml_dtypes.uint2)]
ARRAYS += [np.array([True, False]), np.array(7, np.int64), np.zeros((0, 3), np.float32)]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
@pytest.mark.parametrize("raw", [True, False])
def test_stored_tensors(array: np.ndarray, raw: bool) -> None:
    """Raw bytes and typed fields, against what onnx itself stores."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    if raw:
        tensor = numpy_helper.from_array(array, "w")
    else:
        tensor = helper.make_tensor("w", kind, array.shape, array.ravel().tolist())
    imported = from_onnx(model_of(helper.make_node("Identity", ["w"], ["y"]), tensors=[tensor]))
    got = imported.weights["w"].read()
    assert got.dtype == array.dtype and got.shape == array.shape
    assert got.tobytes() == array.tobytes()


def test_strings() -> None:
    tensor = helper.make_tensor("w", TensorProto.STRING, [2], ["é".encode(), b"\xff\x01"])
    imported = from_onnx(model_of(helper.make_node("Identity", ["w"], ["y"]), tensors=[tensor]))
    (texts,) = run(imported, {})
    assert texts[0] == "é" and texts[1].encode("utf-8", "surrogateescape") == b"\xff\x01"


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_tensors(flat: bool) -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = np.array([1, 5]) if flat else np.array([[0, 1], [1, 2]])
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), [2, 3])
    node = helper.make_node("Identity", ["w"], ["y"])
    imported = from_onnx(model_of(node, sparse_initializer=[sparse]))
    assert imported.weights["w"].read().tolist() == [[0, 1, 0], [0, 0, 2]]


# External data.


def external(tmp_path: Path, **entries: Any) -> Path:
    """A model whose weight lies in weights.bin, as the entries say."""
    tensor = TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(bytes(8) + np.arange(3, dtype="<f4").tobytes())
    (tmp_path / "secret").write_bytes(bytes(100))
    model = model_of(helper.make_node("Identity", ["w"], ["y"]), tensors=[tensor])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_external_data(tmp_path: Path) -> None:
    for entries in ({"offset": 8, "length": 12}, {"offset": 8}):
        imported = from_onnx(external(tmp_path, location="weights.bin", **entries))
        assert imported.weights["w"].read().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"location": "missing.bin"}, "no file in the model's folder"),
        ({"location": "../secret"}, "no file in the model's folder"),
        ({"location": "/etc/hostname"}, "no file in the model's folder"),
        ({"location": "."}, "no file in the model's folder"),
        ({}, "no file in the model's folder"),
        ({"location": "weights.bin", "offset": 12}, "needs 12 bytes at 12"),
        ({"location": "weights.bin", "offset": -4}, "needs 12 bytes at -4"),
        ({"location": "weights.bin", "offset": 2**70}, "needs 12 bytes"),
        ({"location": "weights.bin", "length": 8}, "needs 12 bytes"),
        ({"location": "weights.bin", "offset": "eight"}, "offset that is no number"),
    ],
)
def test_external_data_that_is_not_there(
    tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    imported = from_onnx(external(tmp_path, **entries))
    with pytest.raises(InvalidModel, match=message):
        imported.weights["w"].read()


def test_external_data_through_a_link(tmp_path: Path) -> None:
    path = external(tmp_path, location="link.bin")
    (path.parent / "link.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModel, match="no file in the model's folder"):
        from_onnx(path).weights["w"].read()


def test_external_data_needs_a_folder(tmp_path: Path) -> None:
    data = external(tmp_path, location="weights.bin", offset=8).read_bytes()
    with pytest.raises(InvalidModel, match="from the model's path"):
        from_onnx(data).weights["w"].read()


def test_run_time_sizes_are_checked() -> None:
    text = "g (float[N] x, int64[1] k) => (float[M] y) { y = Tile(x, k) }"
    with pytest.raises(ShapeError, match="negative: -3"):
        run(read(text), {"x": np.ones(2, np.float32), "k": np.array([-3])})
