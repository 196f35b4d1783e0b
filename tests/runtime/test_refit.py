"""Refit: other weights under their ONNX names, also where they were folded, packed or merged."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.runtime.models import attention, convolutions, model, value
from tests.soak.refit import check, small_models
from whet.errors import (
    InvalidEngine,
    InvalidInput,
    InvalidSetting,
    MissingWeights,
    OutOfMemory,
    RefitError,
)
from whet.ops.elementwise import Neg
from whet.runtime.cache import Cache
from whet.targets.cpu.device import Device

MODELS = {"convolutions": convolutions, "attention": attention}


def normalised(seed: int = 0) -> onnx.ModelProto:
    """Convolutions with a batch normalisation each: all folded into the weights."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    weights |= {n: rng.uniform(0.5, 2, 8).astype(np.float32) for n in ("s", "b", "m", "v")}
    weights["v2"] = rng.standard_normal((8, 8, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"], name="norm"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("Conv", ["d", "v2"], ["y"], name="second"),
    ]
    ends = [value("x", [1, 3, 9, 9])], [value("y", [1, 8, 7, 7])]
    return model(nodes, *ends, weights)


MODELS["normalised"] = normalised


def arrays_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def inputs_of(engine: whet.Engine, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal([int(s) for s in kind.shape]).astype(kind.dtype)  # type: ignore[union-attr]
        for name, kind in engine.inputs.items()
    }


def run(engine: whet.Engine, feeds: dict[str, Any]) -> list[np.ndarray]:
    return list(engine.session(device="cpu", cache=False).run(feeds).values())


def assert_same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", MODELS)
def test_refit_then_run_is_build_then_run(name: str) -> None:
    old, new = MODELS[name](seed=1), MODELS[name](seed=2)
    engine, other = whet.build(old), whet.build(new)
    feeds = inputs_of(engine)
    session = engine.session(device="cpu", cache=False)
    before = list(session.run(feeds).values())
    engine.refit(new)
    after = list(session.run(feeds).values())
    assert_same(after, run(other, feeds))
    assert not all(np.array_equal(a, b) for a, b in zip(before, after))
    engine.refit(old)
    assert_same(list(session.run(feeds).values()), before)


def test_all_that_is_wrong_is_said_at_once() -> None:
    engine = whet.build(attention())
    feeds = inputs_of(engine)
    session = engine.session(device="cpu", cache=False)
    before = list(session.run(feeds).values())
    wrong = {
        "q": np.zeros((16, 8), np.float32),
        "k": np.zeros((16, 16)),
        "v": np.zeros((16, 16), np.float32),
        "heads": np.array([1, -1, 4]),
        "half": np.float64(0.25),
        "joined": np.array([1, -1, 16]),
        "nobody": np.zeros(3),
    }
    with pytest.raises(RefitError) as caught:
        engine.refit(wrong)
    error = caught.value
    assert {text.partition(" ")[0] for text in error.mismatched} == {"q", "k", "heads", "half"}
    assert error.unknown == ("nobody",)
    assert error.missing == ()
    assert "q (float32[16,16] is needed, not float32[16,8])" in str(error)
    assert_same(list(session.run(feeds).values()), before)


def test_a_model_must_have_all_weights_and_arrays_need_not() -> None:
    proto = convolutions(seed=5)
    engine = whet.build(convolutions())
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    (bias,) = (n for n in part.graph.node if n.name == "first")
    bias.input.remove("b0")
    (tensor,) = (t for t in part.graph.initializer if t.name == "b0")
    part.graph.initializer.remove(tensor)
    with pytest.raises(RefitError) as caught:
        engine.refit(part)
    assert caught.value.missing == ("b0",)
    engine.refit(part, partial=True)
    engine.refit({"b0": arrays_of(proto)["b0"]})
    feeds = inputs_of(engine)
    assert_same(run(engine, feeds), run(whet.build(proto), feeds))


def test_the_given_arrays_may_change_afterwards() -> None:
    engine = whet.build(convolutions())
    feeds, array = inputs_of(engine), np.ones((10, 8), np.float32)
    engine.refit({"w2": array})
    want = run(engine, feeds)
    array[:] = np.nan
    assert_same(run(engine, feeds), want)


def test_an_engine_file_after_a_refit(tmp_path: Path) -> None:
    new = convolutions(seed=6)
    whet.build(convolutions()).save(tmp_path / "a.whet")
    engine = whet.load(tmp_path / "a.whet")
    engine.refit(new)
    engine.save(tmp_path / "b.whet")
    whet.build(new).save(tmp_path / "c.whet")
    assert (tmp_path / "b.whet").read_bytes() == (tmp_path / "c.whet").read_bytes()
    other = whet.load(tmp_path / "a.whet")
    other.refit(tmp_path / "b.whet")
    feeds = inputs_of(engine)
    assert_same(run(other, feeds), run(engine, feeds))


def test_an_engine_without_weights(tmp_path: Path) -> None:
    proto = attention(seed=7)
    whole = whet.build(proto)
    whole.save(tmp_path / "all.whet")
    whole.save(tmp_path / "none.whet", strip=True)
    assert (tmp_path / "none.whet").stat().st_size < (tmp_path / "all.whet").stat().st_size / 2
    feeds = inputs_of(whole)
    engine = whet.load(tmp_path / "none.whet")
    session = engine.session(device="cpu", cache=False)
    assert set(engine.missing_weights) == set(engine.names.free)
    with pytest.raises(MissingWeights) as caught:
        session.run(feeds)
    assert set(caught.value.names) == set(engine.missing_weights)
    arrays = arrays_of(proto)
    with pytest.raises(RefitError) as refused:
        engine.refit({"q": arrays["q"]})
    assert set(refused.value.missing) == set(engine.missing_weights) - {"q"}
    engine.refit({"q": arrays["q"]}, partial=True)
    with pytest.raises(MissingWeights) as caught:
        session.run(feeds)
    assert "q" not in caught.value.names
    engine.refit(proto)
    assert engine.missing_weights == ()
    assert_same(list(session.run(feeds).values()), run(whole, feeds))
    engine.save(tmp_path / "again.whet")
    assert (tmp_path / "again.whet").read_bytes() == (tmp_path / "all.whet").read_bytes()


def test_only_what_a_model_has_too_is_left_out(tmp_path: Path) -> None:
    proto = convolutions(seed=8)
    engine = whet.build(proto)
    engine.refit({"w1": np.ones((8, 8, 3, 3), np.float32)})
    engine.save(tmp_path / "part.whet", strip=proto)
    part = whet.load(tmp_path / "part.whet")
    assert set(part.missing_weights) == {"w0", "b0", "w2", "b2"}
    part.refit({n: a for n, a in arrays_of(proto).items() if n != "w1"})
    feeds = inputs_of(engine)
    assert_same(run(part, feeds), run(engine, feeds))


def test_weights_that_come_later(tmp_path: Path) -> None:
    path = tmp_path / "m.whet"
    engine = whet.build(convolutions(seed=9))
    engine.save(path)
    later = whet.load(path, weights=False)
    session = later.session(device="cpu", cache=False)
    feeds = inputs_of(engine)
    with pytest.raises(MissingWeights, match="w0"):
        session.run(feeds)
    later.refit(path)
    assert_same(list(session.run(feeds).values()), run(engine, feeds))


def test_not_refittable(tmp_path: Path) -> None:
    engine = whet.build(convolutions(), refittable=False)
    with pytest.raises(InvalidSetting, match="refittable=False"):
        engine.refit(convolutions(seed=1))
    with pytest.raises(InvalidSetting, match="stripped"):
        engine.save(tmp_path / "m.whet", strip=True)


def test_a_refit_that_fails_half_way_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = whet.build(convolutions())
    feeds, new = inputs_of(engine), convolutions(seed=13)
    sessions = [engine.session(device=d, cache=False) for d in ("cpu", "cpu:sse2")]
    before = [list(s.run(feeds).values()) for s in sessions]
    calls, arrays = iter(range(99)), Device.arrays

    def fails_the_second_time(self: Device, kinds: Any) -> Any:
        if next(calls):
            raise OutOfMemory("no memory is left")
        return arrays(self, kinds)

    monkeypatch.setattr(Device, "arrays", fails_the_second_time)
    with pytest.raises(OutOfMemory):
        engine.refit(new)
    monkeypatch.undo()
    for session, want in zip(sessions, before):
        assert_same(list(session.run(feeds).values()), want)
    engine.refit(new)
    assert_same(list(sessions[0].run(feeds).values()), run(whet.build(new), feeds))


def test_a_file_written_during_a_refit(tmp_path: Path) -> None:
    old, new = convolutions(), convolutions(seed=15)
    engine = whet.build(old)
    engine.save(tmp_path / "old.whet")
    engine.refit(old)
    source = engine._current.store.given["b0"]

    class Meanwhile:
        type = source.type

        def read(self) -> np.ndarray:
            engine.refit(new)
            return source.read()  # type: ignore[no-any-return]

    engine._current.store.given["b0"] = Meanwhile()  # type: ignore[assignment]
    engine.save(tmp_path / "during.whet")
    assert (tmp_path / "during.whet").read_bytes() == (tmp_path / "old.whet").read_bytes()
    engine.save(tmp_path / "new.whet")
    assert (tmp_path / "new.whet").read_bytes() != (tmp_path / "old.whet").read_bytes()


@pytest.mark.parametrize("prepared", [False, True])
def test_new_weights_that_are_damaged(prepared: bool, tmp_path: Path) -> None:
    engine, other = whet.build(convolutions()), whet.build(convolutions(seed=14))
    feeds = inputs_of(engine)
    want = run(engine, feeds)
    session = engine.session(device="cpu", cache=False) if prepared else None
    other.save(tmp_path / "m.whet")
    data = bytearray((tmp_path / "m.whet").read_bytes())
    place = data.index(other.weights.array("w1").tobytes())
    data[place + 100] ^= 4
    (tmp_path / "m.whet").write_bytes(data)
    with pytest.raises(InvalidEngine, match="'w1' is damaged"):
        engine.refit(tmp_path / "m.whet")
    assert_same(run(engine, feeds), want)
    del session


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bare", "other"])
def test_archives_that_are_damaged(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez_compressed(path, w1=np.arange(4096.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    np.save(tmp_path / "bare.npy", np.ones(3))
    contents = {
        "cut": data[:100],
        "empty": b"",
        "text": b"no archive",
        "bare": (tmp_path / "bare.npy").read_bytes(),
        "other": data,
    }
    path.write_bytes(contents[damage])
    with pytest.raises(InvalidInput, match=r"w\.npz"):
        whet.build(convolutions()).refit(path)


@pytest.mark.parametrize(
    "source",
    [
        *(5, None, [np.ones(3)], {"w1": object()}, {"w1": [[1, "a"]]}),
        *({"w1": [[1, 2], [3]]}, {5: np.ones(3)}),
    ],
)
def test_what_is_no_source_of_weights(source: Any) -> None:
    with pytest.raises((InvalidInput, RefitError)):
        whet.build(convolutions()).refit(source)


def test_an_engine_of_which_hardly_anything_is_left(tmp_path: Path) -> None:
    (tmp_path / "cut.whet").write_bytes(b"\x93whe")
    with pytest.raises(InvalidEngine, match="only a part of one"):
        whet.build(convolutions()).refit(tmp_path / "cut.whet")


def test_on_a_thread_of_its_own() -> None:
    engine = whet.build(convolutions())
    feeds, new = inputs_of(engine), convolutions(seed=10)
    engine.refit_async(new).result(timeout=60)
    assert_same(run(engine, feeds), run(whet.build(new), feeds))
    with pytest.raises(RefitError, match="unknown: z"):
        engine.refit_async({"z": np.zeros(1)}).result(timeout=60)


def test_runs_see_old_or_new_weights_and_never_a_mix() -> None:
    """A branch whose condition depends on data runs in another stage: it has the same weights."""
    weights = {n: np.full((64, 64), 1.0, np.float32) for n in ("a", "b")}
    scalar = value("", None)
    branches = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["h", "b"], [which])], which, [], [value(which, [1, 64])]
        )
        for which in ("then", "else")
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], **branches),
    ]
    del scalar
    ends = [value("x", [1, 64])], [value("y", [1, 64]), value("h", [1, 64])]
    engine = whet.build(model(nodes, *ends, weights))
    session = engine.session(device="cpu", cache=False)
    x = {"x": np.ones((1, 64), np.float32)}
    stop, seen, wrong = threading.Event(), set(), []

    def work() -> None:
        while not stop.is_set():
            found = session.run(x)
            h, y = float(found["h"][0, 0]), float(found["y"][0, 0])
            scale = h / 64
            seen.add(scale)
            if y != scale * scale * 64 * 64 or np.ptp(found["y"]) != 0:
                wrong.append((h, y))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for scale in [2.0, 1.0] * 20:
        engine.refit({n: np.full((64, 64), scale, np.float32) for n in ("a", "b")})
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and seen <= {1.0, 2.0}


def test_replaced_weights_are_let_go_of() -> None:
    """Also by what ran with them, and may never run again."""
    engine = whet.build(convolutions(batch="n"))
    session = engine.session(device="cpu", cache=False, specialize="eager")
    for n in (1, 2):
        for _ in range(6):  # the first ones go another way
            session.run({"x": np.zeros((n, 3, 16, 16), np.float32)})
    prepared = session._runner.prepared
    before = [weakref.ref(array) for array in prepared.generation.arrays.values()]
    assert len(before) > 3
    engine.refit(convolutions(seed=12, batch="n"))
    gc.collect()
    assert not any(array() is not None for array in before)


def test_dynamic_sizes_after_a_refit() -> None:
    old, new = convolutions(batch="n"), convolutions(seed=11, batch="n")
    engine, other = whet.build(old), whet.build(new)
    session, fresh = (e.session(device="cpu", cache=False) for e in (engine, other))
    rng = np.random.default_rng(0)
    x = {n: rng.standard_normal((n, 3, 16, 16)).astype(np.float32) for n in (1, 2, 3)}
    for n in (1, 2):
        session.run({"x": x[n]})
    engine.refit(new)
    for n in (3, 1, 2):
        got, want = session.run({"x": x[n]})["y"], fresh.run({"x": x[n]})["y"]
        np.testing.assert_allclose(got, want, 1e-5, 1e-6)


def test_weights_of_a_late_region() -> None:
    """What is read as a shape only when the model runs can be exchanged, too."""

    def made(shape: list[int]) -> onnx.ModelProto:
        weights = {"shape": np.array(shape), "scale": np.array(2.0 * shape[0], np.float32)}
        nodes = [
            helper.make_node("NonZero", ["x"], ["places"]),
            helper.make_node("Squeeze", ["places"], ["flat"]),
            helper.make_node("Cast", ["flat"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["f", "shape"], ["r"]),
            helper.make_node("Mul", ["r", "scale"], ["y"]),
        ]
        return model(nodes, [value("x", [6])], [value("y", None)], weights)

    x = {"x": np.array([0, 1, 1, 1, 1, 0], np.float32)}
    engine = whet.build(made([2, 2]))
    session = engine.session(device="cpu", cache=False)
    assert session.run(x)["y"].shape == (2, 2)
    engine.refit(made([4, 1]))
    np.testing.assert_array_equal(session.run(x)["y"], [[8.0], [16.0], [24.0], [32.0]])
    prepared = session._runner.prepared
    before = prepared.generation
    for changed, kept in (({"elsewhere"}, 1), ({"elsewhere", "shape"}, 0)):
        assert len(prepared.renewed(before.weights, changed)._regions) == kept


def test_what_nobody_reads_any_more_is_not_made_anew() -> None:
    class Reader:
        pass

    session = whet.build(convolutions()).session(device="cpu", cache=False)
    prepared, reader = session._runner.prepared, Reader()
    given = session._runner._compiled[0].program.given
    weight = next(v for v in given if v.op.symbols == frozenset() and v.dtype == "float32")
    extra = Neg()(weight)
    prepared.note_reader(reader, [extra])
    prepared.of([extra])
    weights, every = prepared.weights, {"elsewhere"}
    assert {extra, *given} == prepared.renewed(weights, every).arrays.keys()
    del reader
    gc.collect()
    assert {*given} == prepared.renewed(weights, every).arrays.keys()


def test_sessions_share_what_is_prepared() -> None:
    engine = whet.build(convolutions())
    sessions = [engine.session(device="cpu", cache=False) for _ in range(3)]
    assert len({id(s._runner.prepared) for s in sessions}) == 1
    assert len({id(s._runner.device) for s in sessions}) == 1, "code, too"
    lower = engine.session(device="cpu:sse2", cache=False)
    assert lower._runner.prepared is not sessions[0]._runner.prepared
    feeds, new = inputs_of(engine), convolutions(seed=12)
    engine.refit(new)
    want = run(whet.build(new), feeds)
    for session in sessions:
        assert_same(list(session.run(feeds).values()), want)
    np.testing.assert_allclose(lower.run(feeds)["y"], want[0], 1e-4, 1e-5)
    assert len(engine.shared._prepared) == 2
    del session, sessions, lower
    gc.collect()
    assert not engine.shared._prepared and not engine.shared._devices


@pytest.mark.parametrize(
    "name, proto", list(small_models()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_weights_one_at_a_time(name: str, proto: Any, tmp_path: Path) -> None:
    """Twenty of each here, all in scripts/soak."""
    tmp_path.chmod(0o700)
    result = check(proto, Cache(tmp_path), weights=20)
    assert result.tried and not result.wrong
    assert result.effective > result.tried / 2


PLACES = [Path(__file__).parents[2] / place for place in (".models", "../shared/models")]
"""Where trained models may lie: folders with a model.onnx, an io.json, and its inputs."""


def trained() -> list[Any]:
    places = [Path(os.environ["WHET_MODELS"])] if "WHET_MODELS" in os.environ else PLACES
    found = [path for place in places for path in sorted(place.glob("*/model.onnx"))]
    unique = {path.parent.name: path for path in found}
    missing = pytest.mark.skip(reason="no trained models here: WHET_MODELS names a folder of them")
    return [pytest.param(path, id=name) for name, path in unique.items()] or [
        pytest.param(None, id="none", marks=missing)
    ]


@pytest.mark.parametrize("path", trained())
def test_weights_of_trained_models(path: Path, tmp_path: Path) -> None:
    """Twenty of each here, and a few of those that the graph is made of; all in scripts/soak."""
    tmp_path.chmod(0o700)
    result = check(path, Cache(tmp_path), weights=20, frozen=3)
    assert result.tried and not result.wrong
