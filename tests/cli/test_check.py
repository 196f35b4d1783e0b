"""Comparing: what is right passes, what is wrong is found and named."""

from importlib.util import find_spec

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet as library
from tests.cli.conftest import save
from tests.frontends.written import written
from whet.cli.judge import compare_one
from whet.cli.layers import Layers
from whet.ops import contract
from whet.passes import pipeline
from whet.runtime.session import Session


@pytest.mark.parametrize("against", ["auto", "reference"])
def test_right(whet, digits, against):
    done = whet("check", digits, "--size", "batch=3", "--against", against, "--per-layer")
    assert done.status == 0
    assert "all outputs are right" in done.out and "DIFFERS" not in done.out
    judge = "ONNX Runtime" if against == "auto" and find_spec("onnxruntime") else "NumPy"
    assert judge in done.out


def test_engines(whet, engine):
    assert "NumPy reference" in (done := whet("check", engine, "--per-layer")).out
    assert done.status == 0
    done = whet("check", engine, "--file")
    assert done.status == 0 and "every checksum" in done.out


def test_lower_levels(whet, digits):
    assert whet("check", digits, "--device", "cpu:sse2", "--runs", 1).status == 0


def test_room_that_a_kernel_works_in_is_not_compared(whet, tmp_path):
    path = save(
        tmp_path / "sorted.onnx",
        [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="sorted")],
        [("x", TensorProto.FLOAT, [8, 24])],
        [("y", TensorProto.FLOAT, [8, 3])],
        [("k", np.array([3]))],
    )
    done = whet("check", path, "--per-layer", "--runs", 1)
    assert done.status == 0, done.out


def test_wrong_outputs(whet, digits, monkeypatch):
    run = Session.run

    def wrong(self, inputs, out=None):
        return {name: x + 1e-2 * np.abs(x).max() for name, x in run(self, inputs, out).items()}

    monkeypatch.setattr(Session, "run", wrong)
    done = whet("check", digits, "--runs", 1)
    assert done.status == 1
    assert "DIFFERS" in done.out and "--per-layer" in done.err
    assert whet("check", digits, "--runs", 1, "--tolerance", "0.1").status == 0


def test_the_first_kernel_that_differs_is_named(whet, digits, monkeypatch):
    """The judge is made wrong for convolutions: the first of them must be named."""
    from whet.ir import evaluate

    compute = evaluate.compute

    def wrong(value, arrays, sizes):
        results = compute(value, arrays, sizes)
        if isinstance(value.op, contract.Convolution):
            return tuple(1.5 * result for result in results)
        return results

    monkeypatch.setattr(evaluate, "compute", wrong)
    done = whet("check", digits, "--per-layer", "--runs", 1)
    assert done.status == 1
    named = done.out.partition("first tensor that differs: ")[2].splitlines()[0]
    assert "training__0" in named or "conv2d " in named, "of the first convolution, not another"


@pytest.mark.parametrize("which", [2, 4])
def test_a_wrong_kernel_is_told_from_those_that_inherit(digits, which):
    """One kernel's result is spoilt in place: all later ones differ, and only it is to blame."""
    session = library.session(digits, device="cpu", cache=False)
    x = np.random.default_rng(which).uniform(0, 16, (2, 1, 8, 8)).astype(np.float32)
    session.run({"image": x})
    layers, count = Layers(session, None), 0

    def look(step, values):
        nonlocal count
        if count == which:
            values[step.writes[0]][...] *= 1.5
        count += 1
        layers.look(step, values)

    session.trace({"image": x}, look)
    assert layers.not_compared == 0 and len(layers.found) == count
    first, *rest = layers.wrong
    assert layers.found.index(first) == which and first.is_its_own
    assert rest and not any(layer.is_its_own for layer in rest)


LOOP = """g (float[8] x, int64 n, bool c) => (float[8] y) {
  k = Constant<value = bool {1}>()
  y = Loop(n, k, x) <
    body = b (int64 i, bool c1, float[8] s) => (bool c2, float[8] t) {
    c2 = Identity(c1)
    f = Cast<to = 1>(i)
    q = If (c) <
      then_branch = p () => (float[8] o) { e = Exp(s)
        o = Softmax(e) },
      else_branch = r () => (float[8] o2) { o2 = Neg(s) }>
    t = Mul(q, f) }>
}"""


@pytest.mark.parametrize("number", [0, 4])
def test_bodies_of_control_flow_are_compared_each_time(number):
    """A kernel's result is spoilt in one iteration: that is the one that is named."""
    session = library.build(written(LOOP)).session(device="cpu", cache=False)
    inputs = {"x": np.ones(8, np.float32), "n": np.array(6), "c": np.array(True)}
    layers, count = Layers(session, None), 0
    session.trace(inputs, layers.look)
    assert len(layers.found) >= 12 and not layers.wrong and not layers.not_compared
    layers = Layers(session, None)

    def look(step, values):
        nonlocal count
        if "y/q/o" in step.nodes:
            if count == number:
                values[step.writes[0]][...] += 1
            count += 1
        layers.look(step, values)

    session.trace(inputs, look)
    first = layers.wrong[0]
    assert first.is_its_own
    assert first.finding.name.endswith(f", time {number + 1}" if number else "o")


def test_half_precision_is_compared_within_kernels_too(whet, tmp_path):
    """Products in float16 run in float32 inside: those results have no name in the model."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="second"),
    ]
    weights = [(n, (rng.standard_normal((32, 32)) / 6).astype(np.float16)) for n in "wv"]
    kinds = [(n, TensorProto.FLOAT16, [4, 32]) for n in "xy"]
    model = save(tmp_path / "half.onnx", nodes, kinds[:1], kinds[1:], weights)
    done = whet("check", model, "--per-layer")
    assert done.status == 0 and "not compared" not in done.out
    right, _, of = done.out.splitlines()[-1].partition(" kernel")[0].partition(" of ")
    assert right == of and int(right) >= 2


def test_the_first_pass_that_changes_the_outputs_is_named(whet, digits, monkeypatch):
    def simplify_wrongly(graph):
        from dataclasses import replace

        return replace(graph, outputs=tuple(o * 2.0 for o in graph.outputs))

    passes = (*pipeline.PASSES[:3], simplify_wrongly, *pipeline.PASSES[3:])
    monkeypatch.setattr(pipeline, "PASSES", passes)
    monkeypatch.setattr(pipeline.optimise, "__defaults__", (None, None, passes))
    done = whet("check", digits, "--per-layer", "--runs", 1)
    assert done.status == 1
    assert "first pass that changes the outputs: simplify_wrongly" in done.out


def test_how_outputs_are_judged():
    x = np.linspace(-1, 1, 11, dtype=np.float32)
    assert compare_one("y", x, x + 1e-5, None).is_right
    assert not compare_one("y", x, x + 1e-2, None).is_right
    assert not compare_one("y", x[:5], x, None).is_right
    assert compare_one("y", np.array([np.nan, 1]), np.array([np.nan, 1]), None).is_right
    assert not compare_one("y", np.array([np.nan, 1]), np.array([1.0, 1]), None).is_right
    assert not compare_one("y", np.arange(3), np.arange(3) + 1, None).is_right
    assert compare_one("y", [x, x], [x, x], None).is_right
    assert not compare_one("y", [x], [x, x], None).is_right
    assert not compare_one("y", None, [x], None).is_right
    words = np.array(["a", "b"], object)
    assert compare_one("y", words, words, None).is_right
