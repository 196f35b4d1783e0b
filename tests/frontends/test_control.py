"""If, Loop, Scan and SequenceMap: what is known is expanded, what has types is an operator, the
rest is late."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest

from tests.frontends.written import agree, assert_same, read, run, written
from whet.errors import InvalidModel, ShapeError, UnsupportedModel
from whet.frontends.onnx import from_onnx
from whet.ir.graph import Graph, Value, map_inner
from whet.ir.types import UnrankedType
from whet.ops import control

SEED = secrets.randbits(32)
YES, NO = np.array(True), np.array(False)


@pytest.fixture
def rng() -> np.random.Generator:
    print("seed", SEED)
    return np.random.default_rng(SEED)


def x(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def operators(graph: Graph) -> set[str]:
    return {type(v.op).__name__ for v in graph}


def only(graph: Graph, kind: type) -> Value:
    (value,) = {v.siblings[0] for v in graph if isinstance(v.op, kind)}
    return value


BRANCHES = """g (bool c, float[N] x) => (float[M] y) {
  y = If (c) <
    then_branch = a () => (float[M] z) { z = Neg(x) },
    else_branch = b () => (float[M] w) { w = Concat<axis=0>(x, x) }>
}"""


def test_if_with_differing_sizes(rng: np.random.Generator) -> None:
    given = {"x": x(rng, 3)}
    imported = agree(BRANCHES, {"c": YES, **given}, {"c": NO, **given}, late=False)
    branch = only(imported.graph, control.If)
    assert branch.shape == imported.graph.outputs[0].shape
    assert [i.type for i in branch.inputs[1:]] == [imported.graph.inputs[1].type]  # captures x


def test_if_with_known_condition_is_the_branch() -> None:
    text = BRANCHES.replace("bool c, ", "").replace("{\n  y", "<bool c = {0}> {\n  y")
    imported = agree(text, {"x": np.ones(2, np.float32)}, late=False)
    assert "If" not in operators(imported.graph)


def test_if_with_differing_ranks_leaves_only_its_readers_late(rng: np.random.Generator) -> None:
    text = """g (bool c, float[N] x) => (float y, float[N] z) {
      z = Exp(x)
      r = If (c) <
        then_branch = a () => (float[M] p) { p = Neg(x) },
        else_branch = b () => (float q) { q = ReduceSum<keepdims=0>(x) }>
      y = ReduceMax<keepdims=0>(r)
    }"""
    given = {"x": x(rng, 3)}
    imported = agree(text, {"c": YES, **given}, {"c": NO, **given}, late=True)
    assert isinstance(only(imported.graph, control.If).type, UnrankedType)
    assert imported.graph.output_names == ("z",)


def test_branch_that_never_fits_is_not_an_error_unless_taken(rng: np.random.Generator) -> None:
    text = """g (bool c, float[3] x) => (float[K] y) {
      s = Constant<value = int64[2] {2, 2}>()
      y = If (c) <
        then_branch = a () => (float[M] p) { p = Reshape(x, s) },
        else_branch = b () => (float[M] q) { q = Neg(x) }>
    }"""
    imported = read(text)
    assert_same(run(imported, {"c": NO, "x": np.ones(3, np.float32)}), [-np.ones(3, np.float32)])
    with pytest.raises(ShapeError, match="Reshape"):
        run(imported, {"c": YES, "x": np.ones(3, np.float32)})


def test_nested_bodies_capture_and_store(rng: np.random.Generator) -> None:
    text = """g (float[N] x, int64 n, bool c) => (float[N] y) {
      k = Constant<value = bool {1}>()
      h = Exp(x)
      y = Loop(n, k, x) <
        body = b (int64 i, bool c1, float[N] s) => (bool c2, float[N] t)
      <float[1] w = {3.0}> {
        c2 = Identity(c1)
        q = If (c) <
          then_branch = p () => (float[N] o) <float[1] v = {5.0}> { m = Mul(s, w)
            a = Add(m, v)
            o = Sub(a, h) },
          else_branch = r () => (float[N] o2) <float[1] v = {7.0}> { o2 = Mul(h, v) }>
        t = Add(q, x) }>
    }"""
    given = {"x": x(rng, 3) * 0.1, "n": np.array(4)}
    imported = agree(text, {"c": YES, **given}, {"c": NO, **given}, late=False)
    assert len(imported.weights) == 3, "initializers of the same name stay apart"
    loop = only(imported.graph, control.Loop).op
    assert "If" in operators(loop.body)  # type: ignore[attr-defined]


COUNTED = """g (float[N] x, int64 n) => (float[N] y, float[M,N] z) {
  c = Constant<value = bool {1}>()
  y, z = Loop(n, c, x) <
    body = b (int64 i, bool c1, float[N] s) => (bool c2, float[N] t, float[N] u) {
    c2 = Identity(c1)
    two = Constant<value = float {2.0}>()
    t = Mul(s, two)
    f = Cast<to=1>(i)
    u = Add(s, f) }>
}"""


def test_loop_keeps_types(rng: np.random.Generator) -> None:
    runs = [{"x": x(rng, 2), "n": np.array(n)} for n in (1, 4, 7)]
    imported = agree(COUNTED, *runs, late=False)
    loop = only(imported.graph, control.Loop)
    assert loop.siblings[0].type == imported.graph.inputs[0].type


def test_loop_without_iterations_knows_the_shape_of_what_it_scans() -> None:
    given = {"x": np.ones(2, np.float32), "n": np.array(0)}
    y, z = run(read(COUNTED), given)
    assert y.tolist() == [1, 1] and z.shape == (0, 2)


def test_short_loop_is_unrolled(rng: np.random.Generator) -> None:
    text = COUNTED.replace(", int64 n", "").replace("{\n  c =", "<int64 n = {3}> {\n  c =", 1)
    imported = agree(text, {"x": x(rng, 2)}, late=False)
    assert "Loop" not in operators(imported.graph)


def test_long_loop_knows_its_trip_count() -> None:
    text = COUNTED.replace(", int64 n", "").replace("{\n  c =", "<int64 n = {500}> {\n  c =", 1)
    imported = read(text)
    assert imported.graph.outputs[1].shape[0] == 500


def test_loop_with_growing_sizes(rng: np.random.Generator) -> None:
    text = """g (float[N] x, int64 n) => (float[M] y, float[P,N] z) {
      c = Constant<value = bool {1}>()
      y, z = Loop(n, c, x) <
        body = b (int64 i, bool c1, float[K] s) => (bool c2, float[L] t, float[N] u) {
        most = Constant<value = float {9.0}>()
        sum = ReduceSum<keepdims=0>(s)
        c2 = Less(sum, most)
        t = Concat<axis=0>(s, x)
        u = Relu(x) }>
    }"""
    agree(
        text,
        {"x": x(rng, 3), "n": np.array(4)},
        {"x": np.array([4, 2], np.float32), "n": np.array(9)},
        late=False,
    )


def test_loop_with_growing_rank_is_read_an_iteration_at_a_time(rng: np.random.Generator) -> None:
    text = """g (float[N] x, int64 n) => (float[M] y, float[M] z) {
      c = Constant<value = bool {1}>()
      r, s = Loop(n, c, x) <
        body = b (int64 i, bool c1, float[K] s) => (bool c2, float[L] t, float[N] u) {
        c2 = Identity(c1)
        axis = Constant<value = int64[1] {0}>()
        f = Cast<to=1>(i)
        u = Add(x, f)
        t = Unsqueeze(s, axis) }>
      flat = Constant<value = int64[1] {-1}>()
      y = Reshape(r, flat)
      z = Reshape(s, flat)
    }"""
    runs = [{"x": x(rng, 3), "n": np.array(n)} for n in (1, 4)]
    agree(text, *runs, late=True)


def test_loop_with_only_a_condition(rng: np.random.Generator) -> None:
    text = """g (float x) => (float y) {
      c = Constant<value = bool {1}>()
      y = Loop("", c, x) <
        body = b (int64 i, bool c1, float s) => (bool c2, float t) {
        two = Constant<value = float {2.0}>()
        most = Constant<value = float {100.0}>()
        t = Mul(s, two)
        c2 = Less(t, most) }>
    }"""
    agree(text.replace('""', ""), {"x": np.array(3, np.float32)}, late=False)


def test_loop_over_a_sequence(rng: np.random.Generator) -> None:
    text = """g (float[N,2] x) => (float[P,2] y, int64 l) {
      k = Constant<value = bool {1}>()
      e = SequenceEmpty<dtype=1>()
      sh = Shape(x)
      zero = Constant<value = int64 {0}>()
      n = Gather(sh, zero)
      s = Loop(n, k, e) <
        body = b (int64 i, bool c1, seq(float[A,2]) s) => (bool c2, seq(float[A,2]) t) {
        c2 = Identity(c1)
        ax = Constant<value = int64[1] {0}>()
        r = Gather(x, i)
        u = Unsqueeze(r, ax)
        t = SequenceInsert(s, u) }>
      y = ConcatFromSequence<axis=0>(s)
      l = SequenceLength(s)
    }"""
    agree(text, {"x": x(rng, 3, 2)}, {"x": x(rng, 1, 2)}, late=False)


def test_body_with_an_axis_on_its_number(rng: np.random.Generator) -> None:
    text = """g (float[1] x, int64 n) => (float[1] y) {
      k = Constant<value = bool[1] {1}>()
      y = Loop(n, k, x) <
        body = b (int64[1] i, bool[1] c1, float[1] s) => (bool[1] c2, float[1] t) {
        c2 = Identity(c1)
        f = Cast<to=1>(i)
        t = Add(s, f) }>
    }"""
    agree(text, {"x": x(rng, 1), "n": np.array(4)}, late=False)


SCAN = """g (float[K] state, float[{shape}] x) => (float[K] y, float[{out}] z) {{
  y, z = Scan <num_scan_inputs = 1, {attributes}
    body = b (float[K] s, float[K] v) => (float[K] t, float[K] u) {{
      t = Add(s, v)
      u = Mul(s, v) }}>(state, x)
}}"""


@pytest.mark.parametrize(
    "attributes, shape",
    [
        ("", (5, 3)),
        ("scan_input_axes = [1],", (3, 5)),
        ("scan_input_axes = [-1], scan_output_axes = [-1],", (3, 5)),
        ("scan_input_directions = [1],", (5, 3)),
        ("scan_output_directions = [1], scan_output_axes = [1],", (5, 3)),
    ],
)
def test_scan(rng: np.random.Generator, attributes: str, shape: tuple[int, int]) -> None:
    text = SCAN.format(shape="A,B", out="C,D", attributes=attributes)
    agree(text, {"state": x(rng, 3), "x": x(rng, *shape)}, late=False)


SCAN8 = """
g (int64[B] lengths, float[B,2] state, float[B,T,2] x) => (float[B,2] y, float[B,T,2] z) {
  y, z = Scan <num_scan_inputs = 1, directions = [DIRECTION],
    body = b (float[2] s, float[2] v) => (float[2] t, float[2] u) {
      t = Add(s, v)
      u = Identity(t) }>(LENGTHS, state, x)
}"""


@pytest.mark.parametrize("direction", [0, 1])
def test_scan_of_a_batch(rng: np.random.Generator, direction: int) -> None:
    """Opset 8, with and without lengths; what lies behind a batch's length is 0."""
    text = SCAN8.replace("DIRECTION", str(direction))
    given = {"state": x(rng, 2, 2), "x": x(rng, 2, 4, 2)}
    lengths = np.array([2, 4])
    y, z = run(read(text.replace("LENGTHS", "lengths"), 8), {"lengths": lengths, **given})
    for b, length in enumerate(lengths):
        steps = given["x"][b][::-1] if direction else given["x"][b]
        sums = given["state"][b] + np.cumsum(steps[:length], 0)
        np.testing.assert_allclose(y[b], sums[-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(z[b, :length], sums, rtol=1e-5, atol=1e-6)
        assert not z[b, length:].any()
    whole = run(read(text.replace("LENGTHS,", ","), 8), {"lengths": lengths, **given})
    assert whole[1].shape == (2, 4, 2) and whole[1].all()


def test_scan_whose_body_needs_a_value(rng: np.random.Generator) -> None:
    """Axes that differ from step to step: the region reads the body once for each."""
    text = """g (int64[T,1] axes, float[2,2] x) => (float[T,2] z) {
      z = Scan <num_scan_inputs = 1,
        body = b (int64[1] axis) => (float[2] u) { u = ReduceSum<keepdims=0>(x, axis) }>(axes)
    }"""
    agree(text, {"axes": np.array([[0], [1], [-1]]), "x": x(rng, 2, 2)}, late=True)


def test_scans_need_one_length(rng: np.random.Generator) -> None:
    text = """g (float[3] a, float[4] b) => (float[N] z) {
      z = Scan <num_scan_inputs = 2,
        body = b (float p, float q) => (float u) { u = Add(p, q) }>(a, b)
    }"""
    with pytest.raises(ShapeError, match=r'"z".*lengths'):
        read(text)


def test_map_over_a_sequence_of_unknown_length(rng: np.random.Generator) -> None:
    text = """g (seq(float[N,2]) s, float[2] bias) => (seq(float[2]) sums) {
      sums = SequenceMap <body = b (float[N,2] v, float[2] w) => (float[2] u) {
        axis = Constant<value = int64[1] {0}>()
        r = ReduceSum<keepdims=0>(v, axis)
        u = Add(r, w) }>(s, bias)
    }"""
    items = [x(rng, n, 2) for n in (3, 1, 4)]
    agree(text, {"s": items, "bias": x(rng, 2)}, late=False)


def test_map_over_known_elements(rng: np.random.Generator) -> None:
    text = """g (float[N] a, float[M,M] b) => (float[N] p, float[M,M] q) {
      s = SequenceConstruct(a, b)
      t = SequenceMap <body = b (float[K] v) => (float[K] u) { u = Exp(v) }>(s)
      zero = Constant<value = int64 {0}>()
      last = Constant<value = int64 {-1}>()
      p = SequenceAt(t, zero)
      q = SequenceAt(t, last)
    }"""
    imported = agree(text, {"a": x(rng, 3), "b": x(rng, 2, 2)}, late=False)
    assert operators(imported.graph) == {"Input", "Exp"}


def test_effects_of_passes_reach_inner_graphs() -> None:
    """map_inner rebuilds branches, and the branches' own inner graphs when asked to go deeper."""
    graph = read(BRANCHES).graph
    seen: list[Graph] = []

    def visit(inner: Graph) -> Graph:
        seen.append(inner)
        return map_inner(inner, visit)

    assert map_inner(graph, visit) is graph
    assert len(seen) == 2

    def negated(inner: Graph) -> Graph:
        from dataclasses import replace

        from whet.ops.elementwise import Neg

        return replace(inner, outputs=tuple(Neg()(o) for o in inner.outputs))

    changed = map_inner(graph, negated)
    feed = dict(zip(graph.inputs, [YES, np.ones(2, np.float32)]))
    from whet.ir.evaluate import evaluate

    assert evaluate(changed, feed)[0].tolist() == [1, 1]
    assert evaluate(graph, feed)[0].tolist() == [-1, -1]


@pytest.mark.parametrize(
    "body, message",
    [
        ("b (int64 i, bool c1) => (bool c2) { c2 = Identity(c1) }", r"does not fit 1 carried"),
        ("b (int64 i, bool c1, float s) => (bool c2, float t) { t = Exp(s) }", "'c2'"),
    ],
)
def test_misfit_bodies_are_refused(body: str, message: str) -> None:
    text = f"g (float x, int64 n, bool c) => (float y) {{ y = Loop(n, c, x) <body = {body}> }}"
    with pytest.raises(InvalidModel, match=message):
        read(text)


def test_refused_nodes_in_bodies_are_listed_once() -> None:
    text = """g (float[N] x, int64 n, bool c) => (float[N] y) {
      y = Loop(n, c, x) <
        body = b (int64 i, bool c1, float[N] s) => (bool c2, float[N] t) {
        c2 = Identity(c1)
        q = Nonsense(s)
        t = If (c1) <
          then_branch = p () => (float[N] o) { o = Rubbish(q) },
          else_branch = r () => (float[N] p) { p = Trash(s) }> }>
    }"""
    with pytest.raises(UnsupportedModel) as caught:
        from_onnx(written(text))
    assert [r.operator for r in caught.value.refusals] == ["Nonsense", "Rubbish", "Trash"]


def test_condition_with_several_elements() -> None:
    imported = read(BRANCHES.replace("bool c", "bool[K] c"))
    given: dict[str, Any] = {"x": np.ones(2, np.float32)}
    assert run(imported, {"c": np.array([True]), **given})[0].tolist() == [-1, -1]
    with pytest.raises(ShapeError):
        run(imported, {"c": np.array([True, False]), **given})
