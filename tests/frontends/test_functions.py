"""Model-local functions: read in place of their calls, in the names, attributes and opsets that
are theirs."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from tests.frontends.written import assert_same, peer, run, through_json
from whet.errors import InvalidModel, UnsupportedModel
from whet.frontends.onnx import from_onnx

SEED = secrets.randbits(32)
HEAD = '<ir_version: 10, opset_import: ["" : 19, "local" : 1]>\n'
DOMAIN = '<domain: "local", opset_import: ["" : {opset}, "local" : 1]>\n'


@pytest.fixture
def rng() -> np.random.Generator:
    print("seed", SEED)
    return np.random.default_rng(SEED)


def parsed(graph: str, *functions: str, opset: int = 19) -> onnx.ModelProto:
    head = DOMAIN.format(opset=opset)
    return onnx.parser.parse_model(HEAD + graph + "".join(f"\n{head}{f}" for f in functions))


def agree(model: onnx.ModelProto, *runs: dict[str, Any]) -> None:
    imported = from_onnx(model)
    readings = [imported] if imported.graph.late is None else [imported, through_json(imported)]
    for given in runs:
        want = peer(model, given)
        for reading in readings:
            assert_same(run(reading, given), want)


def test_a_call_is_its_nodes(rng: np.random.Generator) -> None:
    model = parsed(
        "g (float[N] x, float[N] y) => (float[N] z) { t = local.f(x, y)\n z = local.f(t, x) }",
        "f (a, b) => (c) { t = Exp(a)\n c = Add(t, b) }",
    )
    x, y = rng.standard_normal((2, 3)).astype(np.float32)
    agree(model, {"x": x, "y": y})
    names = {name for origin in from_onnx(model).graph.origins.values() for name in origin}
    assert names == {"t/t", "t/c", "z/t", "z/c"}


def test_attributes_are_passed_on(rng: np.random.Generator) -> None:
    """Given, by default, through a second function, and absent, so that the operator's default
    holds."""
    model = parsed(
        """g (float[2,3] x) => (float[2,3] p, float[2,3] q, float[2,3] r) {
          p = local.outer <axis = 0, slope = 0.5> (x)
          q = local.outer(x)
          r = local.outer <slope = 3.0> (x) }""",
        """outer <slope, axis> (a) => (c) {
          b = local.inner <alpha : float = @slope, axis : int = @axis> (a)
          c = Identity(b) }""",
        """inner <alpha : float = 0.25, axis : int = 1> (a) => (c) {
          b = LeakyRelu <alpha : float = @alpha> (a)
          c = Softmax <axis : int = @axis> (b) }""",
    )
    x = rng.standard_normal((2, 3)).astype(np.float32)
    given = run(from_onnx(model), {"x": x})

    def expected(slope: float, axis: int) -> np.ndarray:
        wide = np.where(x < 0, np.float64(x) * slope, x)
        e = np.exp(wide)
        return (e / e.sum(axis, keepdims=True)).astype(np.float32)

    wanted = [expected(0.5, 0), expected(0.25, 1), expected(3.0, 1)]
    assert_same(given, wanted, 1e-4)


def test_each_function_has_its_opsets(rng: np.random.Generator) -> None:
    """Softmax of opset 11 flattens behind its axis, that of opset 13 does not."""
    model = parsed(
        """g (float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] z) {
          y = local.f(x)
          z = Softmax<axis = 1>(x) }""",
        "f (a) => (b) { b = Softmax<axis=1>(a) }",
        opset=11,
    )
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    y, z = run(from_onnx(model), {"x": x})
    np.testing.assert_allclose(y.sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(z.sum(1), 1, rtol=1e-5)


def test_bodies_see_the_functions_names(rng: np.random.Generator) -> None:
    """Inner graphs of a function capture its values; names of theirs may be those of the caller."""
    model = parsed(
        """g (bool c, float[N] s, float[N] t) => (float[N] y) {
          u = Neg(s)
          y = local.f(c, u, t) }""",
        """f (k, a, t) => (r) {
          s = Exp(a)
          r = If (k) <
            then_branch = p () => (float[N] o) { u = Mul(s, t)
              o = Add(u, a) },
            else_branch = q () => (float[N] w) { w = Sub(s, t) }> }""",
    )
    s, t = rng.standard_normal((2, 3)).astype(np.float32)
    agree(model, *({"c": np.array(c), "s": s, "t": t} for c in (True, False)))


def test_absent_inputs_and_unread_outputs(rng: np.random.Generator) -> None:
    model = parsed(
        """g (float[N] x) => (float[N] y, float[N] z) {
          high = Constant<value = float {0.5}>()
          y = local.clip(x, , high)
          z = local.two(x) }""",
        "clip (a, low, high) => (b) { b = Clip(a, low, high) }",
        "two (a) => (b, c) { b = Neg(a)\n c = Exp(a) }",
    )
    x = rng.standard_normal(9).astype(np.float32)
    assert_same(run(from_onnx(model), {"x": x}), [np.minimum(x, np.float32(0.5)), -x])


def test_a_function_may_pass_its_input_on(rng: np.random.Generator) -> None:
    model = parsed(
        "g (float[N] x) => (float[N] y, float[N] z) { y, z = local.f(x) }",
        "f (a) => (a, b) { b = Neg(a) }",
    )
    x = rng.standard_normal(3).astype(np.float32)
    assert_same(run(from_onnx(model), {"x": x}), [x, -x])


def test_functions_in_late_regions(rng: np.random.Generator) -> None:
    """A node of the function waits, not the whole call; one called from a body goes into the
    region."""
    model = parsed(
        """g (float[N,1] x, int64[1] axes, int64 n) => (float y) {
          c = Constant<value = bool {1}>()
          s = local.f(x, axes)
          r = Loop(n, c, s) <body = b (int64 i, bool c1, float[N] v) => (bool c2, float[N] t) {
            c2 = Identity(c1)
            t = local.g(v) }>
          y = ReduceSum<keepdims=0>(r) }""",
        "f (a, axes) => (b) { t = Exp(a)\n b = Squeeze(t, axes) }",
        "g (a) => (b) { b = local.h(a) }",
        "h (a) => (b) { half = Constant<value = float {0.5}>()\n b = Mul(a, half) }",
    )
    x = rng.standard_normal((3, 1)).astype(np.float32)
    agree(model, {"x": x, "axes": np.array([1]), "n": np.array(40)})
    late = from_onnx(model).graph.late
    assert late is not None and "s/t" in late.captured
    assert {name for _, name, _ in late.functions} == {"g", "h"}  # type: ignore[attr-defined]


def test_overloads() -> None:
    def function(overload: str, operator: str) -> onnx.FunctionProto:
        node = helper.make_node(operator, ["a"], ["b"])
        opsets = [helper.make_opsetid("", 19)]
        return helper.make_function("local", "f", ["a"], ["b"], [node], opsets, overload=overload)

    call = [helper.make_node("f", ["x"], [o], domain="local", overload=o) for o in ("one", "two")]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "one", "two")]
    model = helper.make_model(
        helper.make_graph(call, "g", values[:1], values[1:]),
        functions=[function("one", "Neg"), function("two", "Abs")],
        opset_imports=[helper.make_opsetid("", 19), helper.make_opsetid("local", 1)],
    )
    x = np.array([1, -2], np.float32)
    assert_same(run(from_onnx(model), {"x": x}), [-x, np.abs(x)])


RECURSIVE = [
    ("f (a) => (b) { b = local.f(a) }",),
    ("f (a) => (b) { b = local.h(a) }", "h (a) => (b) { b = local.f(a) }"),
    (
        """f (a) => (b) { k = Constant<value = bool {1}>()
          b = If (k) <
            then_branch = p () => (float[N] o) { o = local.f(a) },
            else_branch = q () => (float[N] w) { w = Neg(a) }> }""",
    ),
]


@pytest.mark.parametrize("functions", RECURSIVE)
def test_recursion_is_refused(functions: tuple[str, ...]) -> None:
    model = parsed("g (float[N] x) => (float[N] y) { y = local.f(x) }", *functions)
    with pytest.raises(InvalidModel, match="calls itself"):
        from_onnx(model)


def test_a_chain_of_functions_as_long_as_you_like() -> None:
    chain = [f"f{i} (a) => (b) {{ b = local.f{i + 1}(a) }}" for i in range(2000)]
    model = parsed(
        "g (float[N] x) => (float[N] y) { y = local.f0(x) }",
        *chain,
        "f2000 (a) => (b) { b = Neg(a) }",
    )
    assert_same(run(from_onnx(model), {"x": np.ones(1, np.float32)}), [-np.ones(1, np.float32)])


def test_calls_that_double_at_each_level_are_refused() -> None:
    doubling = [
        f"f{i} (a) => (c) {{ b = local.f{i + 1}(a)\n c = local.f{i + 1}(b) }}" for i in range(60)
    ]
    model = parsed(
        "g (float[N] x) => (float[N] y) { y = local.f0(x) }",
        *doubling,
        "f60 (a) => (b) { b = Neg(a) }",
    )
    with pytest.raises(InvalidModel, match="nodes once its functions"):
        from_onnx(model)


@pytest.mark.parametrize(
    "call, message",
    [
        ("y = local.f(x, x)", "takes 1 inputs"),
        ("y, z = local.f(x)", "has 1 outputs"),
        ("y = local.unknown(x)", "no reader"),
    ],
)
def test_calls_that_do_not_fit(call: str, message: str) -> None:
    model = parsed(f"g (float[N] x) => (float[N] y) {{ {call} }}", "f (a) => (b) { b = Neg(a) }")
    with pytest.raises((InvalidModel, UnsupportedModel), match=message):
        from_onnx(model)


def test_an_error_names_the_node_in_the_function() -> None:
    model = parsed(
        "g (float[2] x) => (float[N] y) { y = local.f(x) }",
        "f (a) => (b) { s = Constant<value = int64[1] {3}>()\n b = Reshape(a, s) }",
    )
    with pytest.raises(ValueError, match=r'^at node "y/b" \(Reshape\)'):
        from_onnx(model)
