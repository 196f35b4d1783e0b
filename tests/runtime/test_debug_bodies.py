"""Debug tensors in the bodies of If, Loop and Scan: a list, one array for each time they ran."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import whet
from tests.frontends.written import written
from whet.errors import InvalidInput

NESTED = """g (float[N] x, int64 n, bool c) => (float[N] y) {
  k = Constant<value = bool {1}>()
  h = Exp(x)
  y = Loop(n, k, x) <
    body = b (int64 i, bool c1, float[N] s) => (bool c2, float[N] t) <float[1] w = {3.0}> {
    c2 = Identity(c1)
    one = Constant<value = int64 {1}>()
    bit = BitwiseAnd(i, one)
    odd = Equal(bit, one)
    both = And(odd, c)
    q = If (both) <
      then_branch = p () => (float[N] o) { m = Mul(s, w)
        o = Sub(m, h) },
      else_branch = r () => (float[N] o2) { o2 = Add(h, s) }>
    t = Add(q, x) }>
}"""


def nested(x: np.ndarray, n: int, c: bool) -> dict[str, list[np.ndarray]]:
    """What each tensor of the bodies is each time, by hand."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in ("t", "m", "o2", "q", "i", "s")}
    h, s = np.exp(x), x
    for i in range(n):
        seen["i"].append(np.array(i))
        seen["s"].append(s)
        if i % 2 and c:
            seen["m"].append(s * np.float32(3))
            q = seen["m"][-1] - h
        else:
            seen["o2"].append(h + s)
            q = seen["o2"][-1]
        s = q + x
        seen["q"].append(q)
        seen["t"].append(s)
    return seen


def session(text: str, **options: Any) -> whet.Session:
    return whet.build(written(text)).session("cpu", cache=False, **options)


def same(got: Any, want: list[np.ndarray]) -> None:
    assert isinstance(got, list) and len(got) == len(want)
    for a, b in zip(got, want):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_bodies_in_bodies(n: int, c: bool) -> None:
    x = np.random.default_rng().standard_normal(4, np.float32) * 0.1
    inputs = {"x": x, "n": np.array(n), "c": np.array(c)}
    opened = session(NESTED)
    want = nested(x, n, c)
    names = ["t", "m", "o2", "q"]
    found = opened.debug(inputs, [*names, "h"])
    for name in names:
        same(found[name], want[name])
    np.testing.assert_allclose(found["h"], np.exp(x), rtol=1e-5)
    np.testing.assert_allclose(opened.run(inputs)["y"], want["t"][-1] if n else x, rtol=1e-5)


def test_a_run_calls_back_with_the_list() -> None:
    x, seen = np.ones(3, np.float32), {}
    inputs = {"x": x, "n": np.array(3), "c": np.array(True)}
    outputs = session(NESTED).run(inputs, debug={"m": lambda a: seen.update(m=a)})
    assert list(outputs) == ["y"]
    same(seen["m"], nested(x, 3, True)["m"])


def test_bodies_that_were_unrolled() -> None:
    text = NESTED.replace(", int64 n", "").replace("{\n  k =", "<int64 n = {3}> {\n  k =", 1)
    x = np.random.default_rng().standard_normal(2, np.float32)
    inputs = {"x": x, "c": np.array(True)}
    found = session(text).debug(inputs, ["m", "q"])
    want = nested(x, 3, True)
    same(found["m"], want["m"])
    same(found["q"], want["q"])


SCAN = """g (float[2] start, float[L,2] xs) => (float[2] last, float[L,2] ys) {
  last, ys = Scan <num_scan_inputs = 1,
    body = b (float[2] before, float[2] x) => (float[2] after, float[2] y) {
    p = Mul(before, x)
    after = Add(p, x)
    y = Exp(p) }> (start, xs)
}"""


def test_scans() -> None:
    rng = np.random.default_rng()
    start, xs = (rng.standard_normal(s, np.float32) for s in ((2,), (5, 2)))
    found = session(SCAN).debug({"start": start, "xs": xs}, ["p"])
    want, state = [], start
    for x in xs:
        want.append(state * x)
        state = want[-1] + x
    same(found["p"], want)


def test_marked_tensors_survive_in_the_file(tmp_path: Any) -> None:
    x = np.ones(3, np.float32)
    inputs = {"x": x, "n": np.array(4), "c": np.array(True)}
    engine = whet.build(written(NESTED), debug=["m"])
    assert list(engine.outputs) == ["y"] and engine.debug == ("m",)
    engine.save(tmp_path / "m.whet")
    loaded = whet.load(tmp_path / "m.whet").session("cpu", cache=False)
    assert list(loaded.run(inputs)) == ["y"]
    same(loaded.debug(inputs, ["m"])["m"], nested(x, 4, True)["m"])


def test_other_names_are_refused_with_those_that_may_be_meant() -> None:
    opened = session(NESTED)
    inputs = {"x": np.ones(3, np.float32), "n": np.array(1), "c": np.array(True)}
    with pytest.raises(InvalidInput, match=r"'bothh'.*there are 'both'"):
        opened.debug(inputs, ["bothh"])
    assert {"m", "o2", "t", "h"} <= set(whet.build(written(NESTED)).tensors)


def test_the_model_itself_stays_as_it_is() -> None:
    model = written(NESTED)
    before = model.SerializeToString()
    whet.build(model, debug=["m"])
    assert model.SerializeToString() == before
    onnx.checker.check_model(model)
