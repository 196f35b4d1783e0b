"""Refit of what the graph itself is made of: shapes, numbers that rules look at, zero points."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.runtime.models import attention, model, value
from tests.runtime.test_refit import arrays_of, assert_same, inputs_of, run
from tests.targets.cuda.stub import stubbed
from whet.errors import OutOfMemory, RefitError, ShapeError
from whet.runtime.program import Runner

HEADS = np.array([1, -1, 4, 4])


def with_weights(proto: onnx.ModelProto, **arrays: np.ndarray) -> onnx.ModelProto:
    """The model with other weights."""
    new = onnx.ModelProto()
    new.CopyFrom(proto)
    for tensor in new.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return new


OLD = attention(seed=1)
NEW = with_weights(attention(seed=2), heads=HEADS)


def loaded(proto: onnx.ModelProto, path: Path, **options: Any) -> whet.Engine:
    whet.build(proto, **options).save(path)
    return whet.load(path)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_another_shape_from_a_model(is_loaded: bool, tmp_path: Path) -> None:
    engine = loaded(OLD, tmp_path / "m.whet") if is_loaded else whet.build(OLD)
    assert {"heads", "joined", "half"} <= engine.refittable_weights.keys()
    feeds = inputs_of(engine)
    sessions = [
        engine.session(device="cpu", cache=False),
        engine.session(device="cpu:sse2", cache=False),
        engine.session(device="cpu", cache=False, specialize="eager"),
    ]
    before = [list(s.run(feeds).values()) for s in sessions]
    engine.refit(NEW)
    want = run(whet.build(NEW), feeds)
    assert not np.allclose(want[0], before[0][0], atol=1e-3)
    for session in (sessions[0], sessions[2], engine.session(device="cpu", cache=False)):
        assert_same(list(session.run(feeds).values()), want)
    np.testing.assert_allclose(sessions[1].run(feeds)["y"], want[0], 1e-4, 1e-5)
    engine.refit(OLD)
    for session, first in zip(sessions, before):
        assert_same(list(session.run(feeds).values()), first)


def test_one_shape_alone_then_other_weights(tmp_path: Path) -> None:
    engine = loaded(OLD, tmp_path / "m.whet")
    feeds, session = inputs_of(engine), engine.session(device="cpu", cache=False)
    engine.refit({"heads": HEADS})
    assert_same(
        list(session.run(feeds).values()), run(whet.build(with_weights(OLD, heads=HEADS)), feeds)
    )
    engine.refit({n: a for n, a in arrays_of(NEW).items() if n in "qkvo"})
    mixed = with_weights(OLD, heads=HEADS, **{n: arrays_of(NEW)[n] for n in "qkvo"})
    assert_same(list(session.run(feeds).values()), run(whet.build(mixed), feeds))


def test_the_file_is_that_of_the_other_model(tmp_path: Path) -> None:
    engine = loaded(OLD, tmp_path / "a.whet")
    engine.refit(NEW)
    engine.save(tmp_path / "b.whet")
    whet.build(NEW).save(tmp_path / "c.whet")
    assert (tmp_path / "b.whet").read_bytes() == (tmp_path / "c.whet").read_bytes()
    other = whet.load(tmp_path / "a.whet")
    other.refit(tmp_path / "b.whet")
    assert_same(run(other, inputs_of(other)), run(engine, inputs_of(other)))


def test_a_shape_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    engine = loaded(OLD, tmp_path / "a.whet")
    feeds, session = inputs_of(engine), engine.session(device="cpu", cache=False)
    before, graph = list(session.run(feeds).values()), engine.graph
    with pytest.raises(ShapeError, match=r"at node .* Reshape"):
        engine.refit({"heads": np.array([1, -1, 3, 5])})
    assert engine.graph is graph
    assert_same(list(session.run(feeds).values()), before)
    engine.save(tmp_path / "b.whet")
    assert (tmp_path / "a.whet").read_bytes() == (tmp_path / "b.whet").read_bytes()


def test_what_fails_while_it_is_compiled_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = whet.build(OLD)
    feeds = inputs_of(engine)
    sessions = [engine.session(device=d, cache=False) for d in ("cpu", "cpu:sse2")]
    before = [list(s.run(feeds).values()) for s in sessions]
    calls, stage = iter(range(9)), Runner.stage

    def fails_the_second_time(self: Runner, *arguments: Any) -> Any:
        if next(calls):
            raise OutOfMemory("no memory is left")
        return stage(self, *arguments)

    monkeypatch.setattr(Runner, "stage", fails_the_second_time)
    with pytest.raises(OutOfMemory):
        engine.refit(NEW)
    monkeypatch.undo()
    for session, want in zip(sessions, before):
        assert_same(list(session.run(feeds).values()), want)
    engine.refit(NEW)
    assert_same(list(sessions[0].run(feeds).values()), run(whet.build(NEW), feeds))


def test_a_number_that_a_rule_knew_and_knows_again() -> None:
    """Half of x * (1 + erf(x / sqrt(2))) is GELU; another part of it is none."""
    engine = whet.build(OLD)
    feeds, session = inputs_of(engine), engine.session(device="cpu", cache=False)
    before, text = list(session.run(feeds).values()), str(engine.graph)
    assert "Gelu" in text
    engine.refit({"half": np.float32(0.4)})
    assert "Gelu" not in str(engine.graph) and "half" in engine.seen
    other = with_weights(OLD, half=np.float32(0.4))
    assert_same(list(session.run(feeds).values()), run(whet.build(other), feeds))
    engine.refit({"half": np.float32(0.5)})
    assert str(engine.graph) == text
    assert_same(list(session.run(feeds).values()), before)


def test_open_sizes_and_a_profile(tmp_path: Path) -> None:
    old, new = (
        with_weights(attention(seed=s, length="n"), **w)
        for s, w in ((1, {}), (2, {"heads": HEADS}))
    )
    profile = whet.Profile(*({"x": (1, n, 16)} for n in (1, 12, 20)))
    engine = loaded(old, tmp_path / "m.whet", profiles=profile)
    session, other = engine.session("cpu", cache=False), whet.build(new).session("cpu", cache=False)
    rng = np.random.default_rng(0)
    for n in (7, 12):
        feeds = {"x": rng.standard_normal((1, n, 16)).astype(np.float32)}
        session.run(feeds)
    engine.refit(new)
    for n in (7, 12, 20):
        feeds = {"x": rng.standard_normal((1, n, 16)).astype(np.float32)}
        np.testing.assert_allclose(session.run(feeds)["y"], other.run(feeds)["y"], 1e-4, 1e-5)
    with pytest.raises(ShapeError, match="profiles"):
        session.run({"x": np.zeros((1, 21, 16), np.float32)})


def test_runs_meanwhile_see_one_model_or_the_other() -> None:
    engine = whet.build(OLD)
    feeds, sessions = inputs_of(engine), [engine.session("cpu", 1, cache=False) for _ in range(2)]
    allowed = [run(whet.build(proto), feeds)[0].tobytes() for proto in (OLD, NEW)]
    seen: list[bytes] = []
    stop = threading.Event()

    def runs(session: whet.Session) -> None:
        while not stop.is_set():
            seen.append(session.run(feeds)["y"].tobytes())

    threads = [threading.Thread(target=runs, args=(s,)) for s in sessions]
    for thread in threads:
        thread.start()
    for proto in (NEW, OLD, NEW):
        engine.refit_async(proto).result()
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) <= set(allowed) and allowed[0] in seen


def test_debug_tensors_are_those_of_the_model_as_it_is_now(tmp_path: Path) -> None:
    engine = loaded(OLD, tmp_path / "m.whet")
    feeds, session = inputs_of(engine), engine.session("cpu", cache=False)
    assert session.debug(feeds, ["q1"])["q1"].shape == (1, 12, 2, 8)
    engine.refit(NEW)
    assert session.debug(feeds, ["q1"])["q1"].shape == (1, 12, 4, 4)
    assert session.run(feeds, debug={"q1": lambda a: None})["y"].shape == (1, 12, 16)


def test_weights_that_come_later_with_another_shape(tmp_path: Path) -> None:
    whet.build(OLD).save(tmp_path / "m.whet", strip=True)
    engine = whet.load(tmp_path / "m.whet")
    feeds, session = inputs_of(engine), engine.session("cpu", cache=False)
    engine.refit(NEW)
    assert_same(list(session.run(feeds).values()), run(whet.build(NEW), feeds))


def test_a_budget_for_weights_is_kept() -> None:
    engine = whet.build(OLD)
    feeds = inputs_of(engine)
    session = engine.session("cpu", cache=False, weight_budget="50%")
    session.run(feeds)
    engine.refit(NEW)
    assert session.weight_budget is not None
    assert_same(list(session.run(feeds).values()), run(whet.build(NEW), feeds))


@pytest.fixture
def gpu() -> Iterator[None]:
    with stubbed():
        yield


def test_on_a_gpu(gpu: None) -> None:
    engine = whet.build(OLD)
    feeds, session = inputs_of(engine), engine.session("cuda", cache=False)
    session.run(feeds)
    engine.refit(NEW)
    np.testing.assert_allclose(session.run(feeds)["y"], run(whet.build(NEW), feeds)[0], 1e-4, 1e-5)


def test_prebuilt_kernels_for_another_processor(tmp_path: Path) -> None:
    """A session that begins with them goes over to its own kernels, and to another model."""
    engine = loaded(OLD, tmp_path / "m.whet", architectures="sse2")
    engine = whet.load(tmp_path / "m.whet", allow_code=True)
    feeds, session = inputs_of(engine), engine.session("cpu")
    want = run(whet.build(NEW), feeds)
    session.run(feeds)
    engine.refit(NEW)
    assert session.better is None and not engine.kernels and not engine.architectures
    for _ in range(5):
        np.testing.assert_allclose(session.run(feeds)["y"], want[0], 1e-4, 1e-5)


def quantised(zero: int, weight_zero: int) -> onnx.ModelProto:
    """An 8-bit convolution with padding, whose zero points choose its kernels."""
    rng = np.random.default_rng(3)
    weights = {
        "s": np.float32(0.02), "z": np.uint8(zero), "ws": np.float32(0.01),
        "wz": np.int8(weight_zero), "w": rng.integers(-90, 90, (8, 4, 3, 3)).astype(np.int8),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["dw"]),
        node("Conv", ["d", "dw"], ["y"], pads=[1, 1, 1, 1]),
    ]
    return model(nodes, [value("x", [1, 4, 9, 9])], [value("y", [1, 8, 9, 9])], weights)


@pytest.mark.parametrize("old, new", [((0, 0), (120, 0)), ((120, 3), (0, 0)), ((120, 0), (130, 0))])
def test_zero_points(old: tuple[int, int], new: tuple[int, int], tmp_path: Path) -> None:
    engine = loaded(quantised(*old), tmp_path / "m.whet")
    feeds, session = inputs_of(engine), engine.session("cpu", cache=False)
    before = list(session.run(feeds).values())
    engine.refit({"z": np.uint8(new[0]), "wz": np.int8(new[1])})
    after = list(session.run(feeds).values())
    assert_same(after, run(whet.build(quantised(*new)), feeds))
    assert not np.array_equal(after[0], before[0])
    engine.refit(quantised(*old))
    assert_same(list(session.run(feeds).values()), before)


def test_an_engine_that_does_not_keep_its_model_says_so() -> None:
    engine = whet.build(OLD)
    bare = whet.Engine(engine.graph, engine.weights, frozen=engine.frozen)
    assert "heads" not in bare.refittable_weights
    with pytest.raises(RefitError) as caught:
        bare.refit({"heads": HEADS})
    assert caught.value.frozen == ("heads",)


def test_weights_of_text_are_kept(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["words"], value_strings=["a", "bc"]),
        helper.make_node("Gather", ["words", "i"], ["t"]),
        helper.make_node("Reshape", ["t", "shape"], ["y"]),
    ]
    proto = model(
        nodes,
        [value("i", [2, 3], TensorProto.INT64)],
        [value("y", [3, 2], TensorProto.STRING)],
        {"shape": np.array([3, 2])},
    )
    proto.graph.initializer.append(
        helper.make_tensor("unread", TensorProto.STRING, [2], [b"x", b"y"])
    )
    engine = loaded(proto, tmp_path / "m.whet")
    feeds = {"i": np.array([[0, 1, 0], [1, 1, 0]])}
    session = engine.session("cpu", cache=False)
    assert session.run(feeds)["y"].tolist() == [["a", "bc"], ["a", "bc"], ["bc", "a"]]
    engine.refit({"shape": np.array([6, 1])})
    assert session.run(feeds)["y"].shape == (6, 1)
