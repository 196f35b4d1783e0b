"""Debug tensors of control flow in the bodies of SequenceMap, beside ONNX's reference evaluator."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import whet
from tests.frontends.written import assert_same, written
from tests.runtime.test_debug_bodies import same
from whet.errors import InvalidInput

RNG = np.random.default_rng()


class SequenceMap(OpRun):
    """ONNX's own evaluates no empty sequence, and hands no names from outside to the body."""

    op_domain = ""

    def need_context(self) -> bool:
        return True

    def _run(self, *values: Any, context: dict[str, Any], body: Any, **_: Any) -> Any:
        results: list[list[Any]] = [[] for _ in body.output_names]
        for n in range(len(values[0])):
            items = [v[n] if isinstance(v, list) else v for v in values]
            given = body.run(None, {**context, **dict(zip(body.input_names, items))})
            for result, item in zip(results, given):
                result.append(item)
        return tuple(results)


class Recorder(ReferenceEvaluator):
    """Notes all that the nodes of any body give, each time that it runs."""

    seen: ClassVar[dict[str, list[Any]]] = {}

    def run(self, names: Any, given: Any, attributes: Any = None, **rest: Any) -> Any:
        results = super().run(names, given, attributes, intermediate=True, **rest)
        for name in results.keys() - given.keys():
            self.seen.setdefault(name, []).append(results[name])
        return [results[name] for name in names or self.output_names]


def evaluated(model: Any, inputs: dict[str, Any]) -> tuple[list[Any], dict[str, list[Any]]]:
    """The outputs, and what each tensor was in turn."""
    Recorder.seen.clear()
    outputs = Recorder(model, new_ops=[SequenceMap]).run(None, inputs)
    return outputs, dict(Recorder.seen)


def agree(text: str, names: str, *runs: dict[str, Any]) -> None:
    """Compares these tensors of bodies, and the outputs of runs with and without them."""
    model = written(text)
    opened = whet.build(model).session("cpu", cache=False)
    for inputs in runs:
        outputs, seen = evaluated(model, inputs)
        found = opened.debug(inputs, names.split())
        for name in names.split():
            same(found[name], seen.get(name, []))
        called: dict[str, Any] = {}
        watched = opened.run(inputs, debug={n: partial(called.__setitem__, n) for n in found})
        plain = opened.run(inputs)
        assert list(watched) == list(plain)
        for name, want in zip(plain, outputs):
            assert_same(watched[name], want)
            assert_same(plain[name], want)
        for name in found:
            same(called[name], found[name])


def rows(count: int, *widths: int) -> list[np.ndarray]:
    """Arrays with a number of rows that is drawn for each."""
    sizes = RNG.integers(0, 4, count)
    return [RNG.standard_normal((n, *widths), np.float32) for n in sizes]


LOOPS = """g (seq(float[2]) s, int64 n, bool c) => (seq(float[2]) y) {
  k = Constant<value = bool {1}>()
  y = SequenceMap <body = b (float[2] v) => (float[2] w) {
    h = Exp(v)
    w = Loop(n, k, h) <body = l (int64 i, bool c1, float[2] t) => (bool c2, float[2] u) {
      c2 = Identity(c1)
      q = If (c) <
        then_branch = p () => (float[2] o) { m = Mul(t, h) o = Neg(m) },
        else_branch = r () => (float[2] o2) { o2 = Add(t, v) }>
      u = Tanh(q) }> }>(s)
}"""


def drawn(count: int, n: int, c: bool) -> dict[str, Any]:
    s = [RNG.standard_normal(2, np.float32) for _ in range(count)]
    return {"s": s, "n": np.array(n), "c": np.array(c)}


@pytest.mark.parametrize("c", [True, False])
def test_loops_and_branches_in_a_map(c: bool) -> None:
    runs = [drawn(count, n, c) for count in (0, 1, 3) for n in (0, 1, 3)]
    agree(LOOPS, "h u q m o o2", *runs)


def test_branches_that_differ_between_the_elements() -> None:
    text = """g (seq(float[N,2]) s) => (seq(float[M,2]) y) {
      zero = Constant<value = float {0.0}>()
      axes = Constant<value = int64[2] {0, 1}>()
      y = SequenceMap <body = b (float[N,2] v) => (float[M,2] w) {
        total = ReduceSum<keepdims=0>(v, axes)
        c = Less(zero, total)
        w = If (c) <
          then_branch = p () => (float[K,2] o) { k = Cast<to = 6>(v) o = Cast<to = 1>(k) },
          else_branch = r () => (float[L,2] o2) { d = Concat<axis = 0>(v, v) o2 = Neg(d) }>
        }>(s)
    }"""
    agree(text, "total k o d o2", *({"s": rows(count, 2)} for count in (0, 1, 6)))


def test_scans_in_a_map() -> None:
    text = """g (seq(float[N,2]) s, float[2] start) => (seq(float[2]) y) {
      y, unused = SequenceMap <body = b (float[N,2] v, float[2] a) => (float[2] w, float[N,2] x) {
        w, x = Scan <num_scan_inputs = 1,
          body = p (float[2] before, float[2] row) => (float[2] after, float[2] out) {
          m = Mul(before, row)
          after = Add(m, row)
          out = Exp(m) }> (a, v) }>(s, start)
    }"""
    start = np.ones(2, np.float32)
    items = [a for a in rows(9, 2) if len(a)]  # ONNX's evaluator scans no axis of size 0
    agree(text, "m after out x", *({"s": items[:n], "start": start} for n in (0, 1, len(items))))


MAPS = """g (seq(float[N,2]) s, seq(float[2]) t, float[2] bias) => (seq(float[N,2]) y) {
  zero = Constant<value = int64 {0}>()
  y = SequenceMap <body = b (float[N,2] v, float[2] a, float[2] w) => (float[N,2] u) {
    r = Add(v, w)
    inner = SequenceMap <body = p (float[2] x) => (float[N,2] z, float[N] e) {
      q = Mul(x, r)
      z = Add(q, a)
      axis = Constant<value = int64[1] {1}>()
      e = ReduceSum<keepdims=0>(z, axis) }>(t)
    u = Neg(r) }>(s, t, bias)
}"""


@pytest.mark.parametrize("count", [0, 1, 3])
def test_maps_in_maps(count: int) -> None:
    t = [RNG.standard_normal(2, np.float32) for _ in range(count)]
    agree(MAPS, "r q z e", {"s": rows(count, 2), "t": t, "bias": np.ones(2, np.float32)})


DEEP = """g (seq(float[N]) s, int64 n) => (float[1] y) <float[1] zero = {0.0}> {
  k = Constant<value = bool {1}>()
  one = Constant<value = int64 {1}>()
  axis = Constant<value = int64[1] {0}>()
  y = Loop(n, k, zero) <body = b (int64 i, bool c, float[1] t) => (bool c2, float[1] u) {
    c2 = Identity(c)
    bit = BitwiseAnd(i, one)
    odd = Equal(bit, one)
    maps = SequenceMap <body = p (float[N] v) => (float[1] w) {
      w = If (odd) <
        then_branch = x () => (float[1] o) {
          inner = SequenceMap <body = d (float[M] f) => (float[1] h) {
            a = Add(f, t)
            b2 = ReduceSum<keepdims=1>(a, axis)
            h = Loop(i, k, b2) <body = e (int64 j, bool g1, float[1] l) => (bool g2, float[1] z) {
              g2 = Identity(g1)
              z = Tanh(l) }> }>(s)
          all = ConcatFromSequence<axis = 0>(inner)
          o = ReduceSum<keepdims=1>(all, axis) },
        else_branch = r () => (float[1] o2) {
          sums = ReduceSum<keepdims=1>(v, axis)
          o2 = Add(sums, t) }>
      }>(s)
    joined = ConcatFromSequence<axis = 0>(maps)
    u = ReduceSum<keepdims=1>(joined, axis) }>
}"""


@pytest.mark.parametrize("n", [0, 1, 4])
def test_maps_in_all_else(n: int) -> None:
    agree(DEEP, "a b2 z sums o o2 odd", {"s": rows(2), "n": np.array(n)})


def test_maps_of_known_elements() -> None:
    text = """g (float[N] a, float[M,M] b, bool c, int64 n) => (float[N] p) {
      k = Constant<value = bool {1}>()
      zero = Constant<value = int64 {0}>()
      s = SequenceConstruct(a, b)
      t = SequenceMap <body = f (float v) => (float u) {
        h = If (c) <
          then_branch = p1 () => (float o) { m = Exp(v) o = Neg(m) },
          else_branch = r () => (float o2) { o2 = Tanh(v) }>
        u = Loop(n, k, h) <body = l (int64 i, bool c1, float x) => (bool c2, float y) {
          c2 = Identity(c1)
          y = Sin(x) }> }>(s)
      p = SequenceAt(t, zero)
    }"""
    arrays = [RNG.standard_normal(3, np.float32), RNG.standard_normal((2, 2), np.float32)]
    given = dict(zip("ab", arrays))
    runs = [{**given, "c": np.array(c), "n": np.array(n)} for c in (True, False) for n in (0, 2)]
    agree(text, "m o o2 y h", *runs)


def test_bodies_that_took_the_place_of_their_nodes() -> None:
    text = """g (float[2] x, bool c, int64 n) => (float[2] y) {
      k = Constant<value = bool {1}>()
      two = Constant<value = int64 {2}>()
      axis = Constant<value = int64[1] {0}>()
      y = Loop(two, k, x) <body = b (int64 i, bool c1, float[2] t) => (bool c2, float[2] u) {
        c2 = Identity(c1)
        s = SequenceConstruct(t, x)
        maps = SequenceMap <body = p (float[2] v) => (float[2] w) {
          h = Exp(v)
          q = If (c) <
            then_branch = a () => (float[2] o) { o = Neg(h) },
            else_branch = r () => (float[2] o2) { o2 = Sin(h) }>
          w = Loop(two, k, q) <body = l (int64 j, bool g, float[2] e) => (bool g2, float[2] z) {
            g2 = Identity(g)
            z = Tanh(e) }> }>(s)
        joined = ConcatFromSequence<axis = 0, new_axis = 1>(maps)
        u = ReduceSum<keepdims=0>(joined, axis) }>
    }"""
    x = RNG.standard_normal(2, np.float32)
    runs = [{"x": x, "c": np.array(c), "n": np.array(2)} for c in (True, False)]
    agree(text, "u h w q o o2 z joined", *runs)


LATE = """g (seq(float) s, int64[A] axes, float[N,1] x, bool c) => (seq(float) y) {
  z = Squeeze(x, axes)
  y = SequenceMap <body = b (float v) => (float u) {
    w = If (c) <
      then_branch = p () => (float o) { m = Add(v, z) o = Neg(m) },
      else_branch = r () => (float o2) { o2 = Exp(v) }>
    u = Tanh(w) }>(s)
}"""


def late(count: int, c: bool) -> dict[str, Any]:
    """Elements of any number of axes, and a tensor behind a rank that only a run can tell."""
    s = [RNG.standard_normal((2,) * n + (3,), np.float32) for n in range(count)]
    x = RNG.standard_normal((3, 1), np.float32)
    return {"s": s, "axes": np.array([1]), "x": x, "c": np.array(c)}


def test_bodies_behind_ranks_that_only_a_run_can_tell() -> None:
    agree(LATE, "m o o2 w", *(late(n, c) for n in (3, 1, 2) for c in (True, False)))


def test_marked_tensors_survive_in_the_file(tmp_path: Path) -> None:
    engine = whet.build(written(LOOPS), debug=["m", "o2"])
    assert list(engine.outputs) == ["y"] and engine.debug == ("m", "o2")
    engine.save(tmp_path / "m.whet")
    opened = whet.load(tmp_path / "m.whet").session("cpu", cache=False)
    for inputs in (drawn(2, 3, True), drawn(2, 2, False), drawn(0, 2, True)):
        _, seen = evaluated(written(LOOPS), inputs)
        for name in ("m", "o2"):
            same(opened.debug(inputs, [name])[name], seen.get(name, []))
        assert list(opened.run(inputs)) == ["y"]


def test_names_are_listed_and_others_refused() -> None:
    engine = whet.build(written(MAPS))
    assert {"r", "q", "z", "e", "u", "y"} <= set(engine.tensors)
    inputs = {"s": rows(1, 2), "t": [], "bias": np.ones(2, np.float32)}
    with pytest.raises(InvalidInput, match=r"'qq'.*there are 'q'"):
        engine.session("cpu", cache=False).debug(inputs, ["q", "qq"])
