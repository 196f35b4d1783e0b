"""Debug tensors behind ranks that only a run can tell, and in the bodies of SequenceMap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.frontends.written import written
from tests.runtime.test_debug_bodies import same
from whet.errors import InvalidInput

RNG = np.random.default_rng()

SQUEEZE = """
g (float[N,K] x, int64[A] axes, int64 n) => (float[N,K] early, float y) <float w = {2.0}> {
  h = Relu(x)
  early = Exp(h)
  s = Squeeze(h, axes)
  m = Mul(s, w)
  k = Constant<value = bool {1}>()
  z = Loop(n, k, m) <
    body = b (int64 i, bool c, float t) => (bool c2, float u) {
    c2 = Identity(c)
    d = Cast<to = 11>(t)
    e = Exp(d)
    f = Cast<to = 1>(e)
    u = Tanh(f) }>
  unused = Neg(s)
  y = Neg(z)
}"""


def reference(x: np.ndarray, n: int) -> dict[str, Any]:
    """All tensors behind the cut, by hand; `x` is squeezed along its last axis."""
    s = np.maximum(x, 0)[:, 0]
    found: dict[str, Any] = {"s": s, "m": s * 2, "unused": -s, "d": [], "e": [], "f": []}
    z = s * 2
    for _ in range(n):
        found["d"].append(z.astype(np.float64))
        found["e"].append(np.exp(found["d"][-1]))
        found["f"].append(found["e"][-1].astype(np.float32))
        z = np.tanh(found["f"][-1])
    return {**found, "z": z, "y": -z, "early": np.exp(np.maximum(x, 0))}


def drawn(n: int = 3, rows: int = 3) -> dict[str, np.ndarray]:
    x = RNG.standard_normal((rows, 1), np.float32)
    return {"x": x, "axes": np.array([1]), "n": np.array(n)}


def compare(found: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    want = reference(inputs["x"], int(inputs["n"]))
    for name, array in found.items():
        if isinstance(want[name], list):
            same(array, want[name])
        else:
            assert array.dtype == want[name].dtype
            np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def session(text: str) -> whet.Session:
    return whet.build(written(text)).session("cpu", cache=False)


@pytest.mark.parametrize("names", [["m"], ["s", "unused"], ["e"], ["early", "m", "f", "h", "d"]])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_tensors_behind_the_cut(names: list[str], n: int) -> None:
    opened = session(SQUEEZE)
    for rows in (3, 5):
        inputs = drawn(n, rows)
        found = opened.debug(inputs, names)
        assert list(found) == names
        found.pop("h", None)
        compare(found, inputs)
        outputs = opened.run(inputs)
        assert list(outputs) == ["early", "y"]
        compare(outputs, inputs)


def test_a_run_calls_back() -> None:
    inputs, seen = drawn(), {}
    names = ("y", "d", "m", "early")
    outputs = session(SQUEEZE).run(
        inputs, debug={n: lambda a, n=n: seen.__setitem__(n, a) for n in names}
    )
    assert list(outputs) == ["early", "y"]
    assert next(iter(seen)) == "early" and set(seen) == set(names)
    compare(seen, inputs)


def test_marked_tensors_survive_in_the_file(tmp_path: Path) -> None:
    engine = whet.build(written(SQUEEZE), debug=["m", "h", "unused"], refittable=False)
    assert set(engine.debug) == {"m", "h", "unused"}
    engine.save(tmp_path / "m.whet")
    loaded = whet.load(tmp_path / "m.whet")
    assert set(loaded.tensors) == {"early", "y", "m", "h", "unused"}
    opened, inputs = loaded.session("cpu", cache=False), drawn()
    assert list(opened.run(inputs)) == ["early", "y"]
    for names in (["m"], ["unused", "m"], ["y"]):
        found = opened.debug(inputs, names)
        assert list(found) == names
        compare(found, inputs)
    assert list(opened.run(inputs)) == ["early", "y"]
    with pytest.raises(InvalidInput, match="does not know the tensors 's'"):
        opened.debug(inputs, ["s"])
    compare(opened.debug(inputs, ["s", "e"], model=written(SQUEEZE)), inputs)


def test_an_engine_file_knows_the_tensors_of_its_model(tmp_path: Path) -> None:
    whet.build(written(SQUEEZE)).save(tmp_path / "m.whet")
    loaded = whet.load(tmp_path / "m.whet")
    assert {"h", "s", "m", "unused", "z", "y"} <= set(loaded.tensors)
    opened, inputs = loaded.session("cpu", cache=False), drawn()
    compare(opened.debug(inputs, ["s", "e", "m"]), inputs)


def test_what_no_output_needs() -> None:
    text = SQUEEZE.replace(", float y)", ")").replace("  y = Neg(z)\n", "")
    opened, inputs = session(text), drawn()
    compare(opened.debug(inputs, ["m"]), inputs)
    assert list(opened.run(inputs)) == ["early"]
    engine = whet.build(written(text), debug=["m"])
    assert list(engine.session("cpu", cache=False).run(inputs)) == ["early"]


def test_names_are_listed() -> None:
    engine = whet.build(written(SQUEEZE))
    assert {"h", "s", "m", "unused", "z", "y"} <= set(engine.tensors)
    with pytest.raises(InvalidInput, match=r"'unusedd'.*there are 'unused'"):
        engine.session("cpu", cache=False).debug(drawn(), ["unusedd"])


def test_another_model_is_another_graph() -> None:
    inputs, other = drawn(), written(SQUEEZE.replace("2.0", "3.0").replace("Tanh", "Neg"))
    opened = session(SQUEEZE)
    compare(opened.debug(inputs, ["m", "y"], model=written(SQUEEZE)), inputs)
    x = reference(inputs["x"], 0)["m"]
    for _ in range(3):
        x = -np.exp(x)
    found = opened.debug(inputs, ["m", "y"], model=other)
    # Its weights are those of the engine.
    np.testing.assert_allclose(found["y"], -x, rtol=1e-4)


def test_bodies_whose_first_iteration_is_read_before() -> None:
    """Loops of known length: what their bodies give is behind the cut by other names."""
    text = """g (float[2] x, int64[A] axes, bool c) => (float[2] y) <int64 two = {2}> {
      k = Constant<value = bool {1}>()
      one = Constant<value = int64[1] {1}>()
      y = Loop(two, k, x) <body = b (int64 i, bool c1, float[2] t) => (bool c2, float[2] u) {
        c2 = Identity(c1)
        wide = Unsqueeze(t, one)
        v = Squeeze(wide, axes)
        u = If (c) <
          then_branch = p () => (float[2] o) { m = Exp(v) o = Neg(m) },
          else_branch = r () => (float[2] o2) { o2 = Sin(v) }> }>
    }"""
    x, opened = RNG.standard_normal(2, np.float32), session(text)
    for c in (True, False):
        inputs = {"x": x, "axes": np.array([1]), "c": np.array(c)}
        first = -np.exp(x) if c else np.sin(x)
        second = -np.exp(first) if c else np.sin(first)
        taken = "o" if c else "o2"
        found = opened.debug(inputs, ["v", "u", taken, "wide"])
        same(found["v"], [x, first])
        same(found["u"], [first, second])
        same(found[taken], [first, second])
        same(found["wide"], [x[:, None], first[:, None]])


MAP = """g (seq(float[N,2]) s, float[2] bias) => (seq(float[2]) sums) {
  sums = SequenceMap <body = b (float[N,2] v, float[2] w) => (float[2] u) {
    axis = Constant<value = int64[1] {0}>()
    r = ReduceSum<keepdims=0>(v, axis)
    k = Cast<to = 7>(r)
    u = Add(r, w) }>(s, bias)
}"""


@pytest.mark.parametrize("count", [0, 1, 3])
def test_bodies_of_maps(count: int) -> None:
    items = [RNG.standard_normal((n + 1, 2), np.float32) for n in range(count)]
    inputs: dict[str, Any] = {"s": items, "bias": np.ones(2, np.float32)}
    opened = session(MAP)
    found = opened.debug(inputs, ["r", "k", "u"])
    sums = [item.sum(0) for item in items]
    same(found["r"], sums)
    same(found["k"], [s.astype(np.int64) for s in sums])
    same(found["u"], [s + 1 for s in sums])
    assert list(opened.run(inputs)) == ["sums"]


def test_maps_of_known_elements() -> None:
    text = """g (float[N] a, float[M,M] b) => (float[N] p) {
      s = SequenceConstruct(a, b)
      t = SequenceMap <body = b (float[K] v) => (float[K] u) { q = Neg(v) u = Exp(q) }>(s)
      zero = Constant<value = int64 {0}>()
      p = SequenceAt(t, zero)
    }"""
    a, b = RNG.standard_normal(3, np.float32), RNG.standard_normal((2, 2), np.float32)
    same(session(text).debug({"a": a, "b": b}, ["q"])["q"], [-a, -b])


def test_maps_in_loops() -> None:
    text = """g (seq(float[2]) s, int64 n) => (float[2] y) <float[2] zero = {0.0, 0.0}> {
      k = Constant<value = bool {1}>()
      y = Loop(n, k, zero) <
        body = b (int64 i, bool c, float[2] t) => (bool c2, float[2] u) {
        c2 = Identity(c)
        maps = SequenceMap <body = p (float[2] v) => (float[2] w) { q = Add(v, t) w = Neg(q) }>(s)
        joined = ConcatFromSequence<axis = 0, new_axis = 1>(maps)
        axis = Constant<value = int64[1] {0}>()
        u = ReduceSum<keepdims=0>(joined, axis) }>
    }"""
    items = [RNG.standard_normal(2, np.float32) for _ in range(2)]
    state, want = np.zeros(2, np.float32), []
    for _ in range(3):
        want += [item + state for item in items]
        state = -(want[-2] + want[-1])
    inputs: dict[str, Any] = {"s": items, "n": np.array(3)}
    found = session(text).debug(inputs, ["q", "y"])
    same(found["q"], want)
    np.testing.assert_allclose(found["y"], state, rtol=1e-5)
