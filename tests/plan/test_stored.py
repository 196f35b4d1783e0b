"""Plans that are kept as bytes come back as they were."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.frontends.written import written
from tests.runtime.models import convolutions
from whet.ir.graph import Graph, Input, Token, Value, make, operator
from whet.ir.types import TensorType
from whet.ops import elementwise as ew
from whet.plan import sources
from whet.plan.plan import Plan, make_plan
from whet.plan.stored import Unstorable, pack, unpack
from whet.runtime import planned
from whet.runtime.cache import Cache
from whet.targets.cpu import codegen, host
from whet.targets.cpu.device import Device

RNG = np.random.default_rng()


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("planned anew")


@pytest.fixture
def engine() -> whet.Engine:
    return whet.build(convolutions())


def inputs_of(engine: whet.Engine) -> dict[str, np.ndarray]:
    return {
        name: RNG.standard_normal([n if isinstance(n, int) else 2 for n in kind.shape]).astype("f4")  # type: ignore[union-attr]
        for name, kind in engine.inputs.items()
    }


def test_a_plan_comes_back(engine: whet.Engine) -> None:
    (plan,) = engine.session(cache=False).plans
    again = unpack(pack(plan))
    assert str(again) == str(plan)
    # Values are interned: the same steps read and write the very same objects.
    assert [(s.reads, s.writes, s.value) for s in again.steps] == [
        (s.reads, s.writes, s.value) for s in plan.steps
    ]
    assert again.offsets == plan.offsets and again.prepared == plan.prepared


def test_the_next_start_plans_nothing(
    engine: whet.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(engine)
    want = engine.session(cache=tmp_path / "cache", deterministic=True).run(inputs)
    engine.save(tmp_path / "m.whet")
    monkeypatch.setattr(planned, "make_plan", refuse)
    monkeypatch.setattr(planned, "legal", refuse)
    got = whet.load(tmp_path / "m.whet").session(cache=tmp_path / "cache").run(inputs)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_another_number_of_threads_is_another_plan(
    engine: whet.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.session(cache=tmp_path / "cache", threads=2)
    monkeypatch.setattr(planned, "make_plan", refuse)
    with pytest.raises(AssertionError, match="planned anew"):
        whet.build(convolutions()).session(cache=tmp_path / "cache", threads=5)


def test_what_cannot_be_read_is_planned_anew(
    engine: whet.Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, inputs = Cache(tmp_path / "cache"), inputs_of(engine)
    want = engine.session(cache=cache).run(inputs)
    device = Device(cache=cache)
    meant = Device(cache=cache, threads=host.default_threads())
    key, _ = planned._key(engine.graph, meant, False)
    assert cache.get(key) is not None, "the plan is not kept under the key that is tested here"
    cache.put(key, b"no plan at all", device.about)
    with caplog.at_level(logging.WARNING):
        got = whet.build(convolutions()).session(cache=cache).run(inputs)
    assert "made anew" in caplog.text
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("folder", ["ir", "ops", "plan", "targets/cpu"])
def test_other_sources_make_other_plans_and_kernels(
    engine: whet.Engine, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan,) = engine.session(cache=False).plans
    kernel = next(step.kernel for step in plan.steps if step.kernel is not None)

    def keys() -> tuple[str, str]:
        device = Device()
        return planned._key(engine.graph, device, False)[0], device.key(kernel)

    before = keys()
    copy = tmp_path / "whet"
    shutil.copytree(sources.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "PACKAGE", copy)
    monkeypatch.setattr(sources, "digest", sources.digest.__wrapped__)
    monkeypatch.setattr(codegen, "digest", sources.digest)
    monkeypatch.setattr(planned, "digest", sources.digest, raising=False)
    assert keys() == before
    with open(next((copy / folder).glob("*.py")), "a") as file:
        file.write("# changed")
    assert not set(keys()) & set(before)


@operator
class Effect(ew.Exp):
    """Tells apart two equal applications."""

    token: Token
    has_effect = True


def test_effects_that_the_graph_does_not_have_are_not_kept() -> None:
    x: Value = make(Input("x", TensorType("float32", (3,))), ())[0]
    graph = Graph((x,), (make(Effect(Token()), (x,))[0],), ("y",))
    plan: Plan = make_plan(graph, Device().capabilities)
    with pytest.raises(Unstorable):
        pack(plan, [Token()])


LOOP = """g (float[N] x, int64 n, bool c) => (float[N] y, float[N] noise) {
  k = Constant<value = bool {1}>()
  y = Loop(n, k, x) <
    body = b (int64 i, bool c1, float[M] s) => (bool c2, float[M] t) <float[1] w = {3.0}> {
    c2 = Identity(c1)
    one = Constant<value = int64 {1}>()
    odd = Equal(i, one)
    both = And(odd, c)
    q = If (both) <
      then_branch = p () => (float[M] o) { m = Mul(s, w)
        o = Sub(m, x) },
      else_branch = r () => (float[M] o2) { o2 = Add(x, s) }>
    t = Tanh(q) }>
  noise = RandomNormalLike<seed = 1.5>(x)
}"""


@pytest.mark.parametrize("specialize", ["lazy", "eager"])
def test_plans_with_inner_graphs_and_effects_are_kept(
    specialize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"x": RNG.standard_normal(3, np.float32), "n": np.array(4), "c": np.array(True)}

    def results() -> dict[str, np.ndarray]:
        # Read anew: the tokens of its inner graphs are others.
        engine = whet.build(written(LOOP))
        return engine.session(cache=tmp_path / "cache", specialize=specialize).run(inputs)

    want = results()
    monkeypatch.setattr(planned, "make_plan", refuse)
    got = results()
    np.testing.assert_array_equal(got["y"], want["y"])
    assert got["noise"].shape == (3,)
