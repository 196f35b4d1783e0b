"""Sequences and optionals: known structure disappears while reading, the rest runs by reference."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.frontends.written import agree, assert_same, read, run
from whet.errors import IndexOutOfRange, InvalidModel, ShapeError, TypeMismatch
from whet.frontends.onnx import from_onnx
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, Value, constant, make
from whet.ir.types import OptionalType, SequenceType, TensorType, UnrankedType
from whet.ops import sequence as sq

SEED = secrets.randbits(32)
F32 = TensorType("float32", (2,))


@pytest.fixture
def rng() -> np.random.Generator:
    print("seed", SEED)
    return np.random.default_rng(SEED)


def x(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def operators(graph: Graph) -> set[str]:
    return {type(v.op).__name__ for v in graph}


KNOWN = """g (float[N] a, float[N,2] b, float c) => (float[2] y, int64 n, float z) {
  s = SequenceConstruct(a, b)
  first = Constant<value = int64 {0}>()
  t = SequenceInsert(s, c, first)
  u = SequenceErase(t, AT)
  n = SequenceLength(u)
  last = Constant<value = int64 {-1}>()
  m = SequenceAt(u, last)
  y = ReduceSum<keepdims=0>(m, zero)
  z = SequenceAt(u, first)
}"""


def test_known_structure_disappears(rng: np.random.Generator) -> None:
    text = KNOWN.replace("{\n  s", "<int64[1] zero = {0}, int64 AT = {1}> {\n  s", 1)
    given = {"a": x(rng, 3), "b": x(rng, 3, 2), "c": x(rng)}
    imported = agree(text, given, late=False)
    assert not operators(imported.graph) & {"MakeSequence", "SequenceAt", "SequenceErase"}


def test_positions_that_are_data(rng: np.random.Generator) -> None:
    """Which element is taken is data, so its rank is too: what reads it is late."""
    text = """g (float[N] a, float[N,2] b, int64 at) => (float[1] y) {
      s = SequenceConstruct(a, b)
      t = SequenceInsert(s, a, at)
      m = SequenceAt(t, at)
      flat = Constant<value = int64[1] {-1}>()
      r = Reshape(m, flat)
      y = ReduceMax(r)
    }"""
    given = {"a": x(rng, 3), "b": x(rng, 3, 2)}
    runs = [{"at": np.array(at), **given} for at in (0, 1, 2, -1)]
    agree(text, *runs, late=True)
    with pytest.raises(IndexOutOfRange, match="position 5"):
        run(read(text), {"at": np.array(5), **given})


def test_positions_that_are_data_among_like_elements(rng: np.random.Generator) -> None:
    text = """g (float[3] a, float[3] b, int64 at) => (float[3] y) {
      s = SequenceConstruct(a, b)
      m = SequenceAt(s, at)
      y = Neg(m)
    }"""
    given = {"a": x(rng, 3), "b": x(rng, 3)}
    agree(text, *({"at": np.array(at), **given} for at in (0, 1, -1)), late=False)


def test_sequences_as_inputs_and_outputs(rng: np.random.Generator) -> None:
    text = """g (seq(float[N,3]) s, float[2,3] a) => (seq(float[N,3]) t, float[M,3] y, int64 n) {
      t = SequenceInsert(s, a)
      y = ConcatFromSequence<axis=0>(t)
      n = SequenceLength(s)
    }"""
    agree(text, {"s": [x(rng, n, 3) for n in (1, 4)], "a": x(rng, 2, 3)}, late=False)


@pytest.mark.parametrize("new_axis, axis", [(0, 0), (0, -1), (1, 0), (1, 1), (1, -1)])
def test_join(rng: np.random.Generator, new_axis: int, axis: int) -> None:
    text = f"""g (seq(float[2,3]) s, float[2,3] a) => (float y, float z) {{
      y = ConcatFromSequence<axis={axis}, new_axis={new_axis}>(s)
      t = SequenceConstruct(a, a)
      z = ConcatFromSequence<axis={axis}, new_axis={new_axis}>(t)
    }}""".replace(
        "float y, float z",
        "float[A,B,C] y, float[A,B,C] z" if new_axis else "float[A,B] y, float[A,B] z",
    )
    agree(text, {"s": [x(rng, 2, 3) for _ in range(3)], "a": x(rng, 2, 3)}, late=False)


SPLIT = """g (float[6,N] x, {declared}) => (seq(float[A,B]) s, float[A,B] last, int64 n) {{
  s = SplitToSequence<axis={axis}>(x, parts)
  end = Constant<value = int64 {{-1}}>()
  last = SequenceAt(s, end)
  n = SequenceLength(s)
}}"""


@pytest.mark.parametrize("parts", [np.array(2), np.array(4), np.array([1, 2, 3]), np.array([6])])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split(rng: np.random.Generator, parts: np.ndarray, axis: int) -> None:
    """Parts as data, and as an initializer."""
    given = {"x": x(rng, 6, 6)}
    shape = "" if parts.ndim == 0 else f"[{len(parts)}]"
    agree(SPLIT.format(declared=f"int64{shape} parts", axis=axis), {"parts": parts, **given})
    stored = f"int64{shape} parts = {{{', '.join(map(str, parts.ravel()))}}}"
    text = SPLIT.format(declared="", axis=axis).replace(", ) =>", ") =>")
    agree(text.replace("{\n", f"<{stored}> {{\n", 1), given)


@pytest.mark.parametrize("keep", [0, 1])
def test_split_into_single_ones(rng: np.random.Generator, keep: int) -> None:
    text = f"""g (float[3,N] x) => (seq(float) s) {{
      s = SplitToSequence<axis=0, keepdims={keep}>(x) }}"""
    agree(text, {"x": x(rng, 3, 2)}, late=False)


def test_an_element_of_an_empty_sequence() -> None:
    text = """g (int64 at) => (float[N] y) {
      s = SequenceEmpty<dtype=1>()
      y = SequenceAt(s, at)
    }"""
    with pytest.raises(IndexOutOfRange):
        run(read(text), {"at": np.array(0)})
    with pytest.raises(InvalidModel, match="empty sequence"):
        read("g () => (float[N] y) { s = SequenceEmpty()\n y = ConcatFromSequence<axis=0>(s) }")


def optional_model(nodes: list[Any], value: onnx.ValueInfoProto, *outputs: Any) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [value], list(outputs))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_optionals_as_inputs(rng: np.random.Generator) -> None:
    """An If asks first: the branch without an element is never read as one that has it."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N"])
    value = helper.make_value_info("o", helper.make_optional_type_proto(tensor))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M"])
    there = helper.make_graph(
        [
            helper.make_node("OptionalGetElement", ["o"], ["e"]),
            helper.make_node("Neg", ["e"], ["p"]),
        ],
        "there",
        [],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N"])],
    )
    zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [1], [0.0])
    absent = helper.make_graph(
        [helper.make_node("Constant", [], ["q"], value=zeros)],
        "absent",
        [],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, [1])],
    )
    nodes = [
        helper.make_node("OptionalHasElement", ["o"], ["has"]),
        helper.make_node("If", ["has"], ["y"], then_branch=there, else_branch=absent),
    ]
    imported = from_onnx(optional_model(nodes, value, output))
    given = x(rng, 3)
    assert_same(run(imported, {"o": given}), [-given])
    assert_same(run(imported, {"o": None}), [np.zeros(1, np.float32)])


def test_known_optionals_disappear(rng: np.random.Generator) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    nodes = [
        helper.make_node("Optional", ["x"], ["o"]),
        helper.make_node("OptionalHasElement", ["o"], ["has"]),
        helper.make_node("OptionalGetElement", ["o"], ["y"]),
    ]
    outputs = [
        helper.make_tensor_value_info("has", TensorProto.BOOL, []),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"]),
    ]
    imported = from_onnx(optional_model(nodes, value, *outputs))
    assert operators(imported.graph) == {"Constant", "Input"}
    given = x(rng, 3)
    assert_same(run(imported, {"x": given}), [np.array(True), given])


def test_optionals_as_outputs(rng: np.random.Generator) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N"]))
    nodes = [
        helper.make_node("Optional", ["x"], ["o"]),
        helper.make_node("Optional", [], ["none"], type=kind.optional_type.elem_type),
    ]
    outputs = [helper.make_value_info("o", kind), helper.make_value_info("none", kind)]
    imported = from_onnx(optional_model(nodes, value, *outputs))
    given = x(rng, 3)
    assert_same(run(imported, {"x": given}), [given, None])


# The operators themselves.


def sequence(element: Any = F32) -> Value:
    return make(Input("s", SequenceType(element)), ())[0]


def test_join_of_types() -> None:
    any_two = TensorType("float32", (sq.ANY, 2))
    assert sq.join(F32, F32) == F32
    assert sq.join(TensorType("float32", (1, 2)), TensorType("float32", (3, 2))) == any_two
    assert sq.join(F32, any_two) == UnrankedType("float32")
    assert sq.join(sq.nothing("float32"), F32) == F32
    assert sq.join(F32, sq.nothing("float32")) == F32
    optional = OptionalType(F32)
    assert sq.join(optional, OptionalType(any_two)) == OptionalType(UnrankedType("float32"))
    for other in (TensorType("int8", (2,)), SequenceType(F32), optional):
        with pytest.raises(TypeMismatch, match="no type in common"):
            sq.join(F32, other)


def test_operators_on_what_is_no_sequence() -> None:
    tensor = make(Input("x", F32), ())[0]
    for op in (sq.SequenceLength(), sq.SequenceErase(), sq.JoinSequence(0, False, F32)):
        with pytest.raises(TypeMismatch, match="a sequence is needed"):
            op(tensor)
    with pytest.raises(TypeMismatch, match="an optional is needed"):
        sq.GetElement(F32)(tensor)


def evaluated(value: Value, items: list[np.ndarray]) -> Any:
    return evaluate(Graph((sequence(),), (value,)), {sequence(): items})[0]


def test_references(rng: np.random.Generator) -> None:
    items = [x(rng, 2) for _ in range(4)]
    new = constant(np.zeros(2, np.float32))
    at = constant(1, "int64")
    assert_same(
        evaluated(sq.SequenceInsert()(sequence(), new, at), items),
        [items[0], np.zeros(2, np.float32), *items[1:]],
    )
    assert_same(evaluated(sq.SequenceErase()(sequence()), items), items[:-1])
    assert_same(evaluated(sq.SequenceErase()(sequence(), at), items), [items[0], *items[2:]])
    assert evaluated(sq.SequenceLength()(sequence()), items) == 4
    with pytest.raises(ShapeError, match="empty sequence"):
        evaluated(sq.JoinSequence(0, False, F32)(sequence()), [])
    x4 = constant(np.zeros((4, 2), np.float32))
    with pytest.raises(ShapeError, match="do not make up"):
        op = sq.SplitSequence(0, True, TensorType("float32", (sq.ANY, 2)))
        evaluate(Graph((), (op(x4, constant([1, 2], "int64")),)), {})
