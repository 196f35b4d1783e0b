"""Sizes that runs tell: one plan for all of them, kernels of their own for those that come back."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from threading import Thread
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet
from tests.levels import LEVELS, architecture
from tests.runtime.models import convolutions, model, value
from whet.errors import ShapeError
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph
from whet.ir.guards import Guard
from whet.ir.sizes import symbol
from whet.plan import plan as planning
from whet.runtime.program import Runner
from whet.runtime.ranges import Guards, Ranges
from whet.targets.cpu.bound import Bound
from whet.targets.cpu.device import Device

SEED = secrets.randbits(32)


def transformer(rng: np.random.Generator) -> Any:
    """One head of attention and a linear layer, of any batch and length."""
    weights = {
        name: rng.standard_normal((32, 32), np.float32) * 0.2 for name in ("wq", "wk", "wv", "wo")
    }
    nodes = [
        helper.make_node("MatMul", ["x", f"w{name}"], [name], name=name) for name in ("q", "k", "v")
    ]
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "wo"], ["projected"]),
        helper.make_node("Add", ["projected", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale"], ["y"]),
    ]
    weights["scale"] = rng.standard_normal(32, np.float32)
    return model(nodes, [value("x", ["batch", "length", 32])], [value("y", None)], weights)


def pixels(rng: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((batch, 3, 16, 16), np.float32)}


def words(rng: np.random.Generator, batch: int, length: int) -> dict[str, np.ndarray]:
    return {"x": rng.standard_normal((batch, length, 32), np.float32)}


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    print(f"the seed is {SEED}")
    return np.random.default_rng(SEED)


@pytest.fixture(scope="module")
def attention(rng: np.random.Generator) -> whet.Engine:
    return whet.build(transformer(rng))


def judged(engine: whet.Engine, inputs: dict[str, np.ndarray]) -> np.ndarray:
    given = {v: inputs[v.op.name] for v in engine.graph.inputs}  # type: ignore[attr-defined]
    return evaluate(engine.graph, given, engine.weights.array)[0]


def bound(session: whet.Session, **sizes: int) -> Bound:
    """What a session keeps of the sizes of a run."""
    (stage,) = session._runner._wide.values()
    assert stage is not None
    return stage.program.executable.bound(sizes)  # type: ignore[attr-defined, no-any-return]


def wait_for(session: whet.Session, **sizes: int) -> None:
    """Until the kernels for the very sizes are there."""
    deadline = time.monotonic() + 120
    while not bound(session, **sizes).is_special:
        assert time.monotonic() < deadline, "no kernels were made in the background"
        time.sleep(0.02)


def test_one_plan_serves_all_batches(rng: np.random.Generator) -> None:
    engine = whet.build(convolutions(batch="batch"))
    session = engine.session(cache=False, specialize="none")
    for batch in (1, 2, 5, 17):
        inputs = pixels(rng, batch)
        np.testing.assert_allclose(session.run(inputs)["y"], judged(engine, inputs), atol=1e-5)
    assert len(session.plans) == 1


def test_one_plan_serves_all_lengths(rng: np.random.Generator, attention: whet.Engine) -> None:
    session = attention.session(cache=False, specialize="none")
    for batch, length in ((1, 1), (1, 7), (3, 16), (2, 33), (1, 70), (5, 3)):
        inputs = words(rng, batch, length)
        want = judged(attention, inputs)
        np.testing.assert_allclose(session.run(inputs)["y"], want, atol=1e-4, rtol=1e-4)
    assert len(session.plans) == 1


def test_no_elements_are_no_error(rng: np.random.Generator, attention: whet.Engine) -> None:
    session = attention.session(cache=False)
    assert session.run(words(rng, 0, 4))["y"].shape == (0, 4, 32)


def test_a_new_size_only_evaluates_expressions(
    rng: np.random.Generator, attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = attention.session(cache=False)
    session.run(words(rng, 1, 4))
    compiled = session._runner.device.compiled

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a new size was planned anew")

    monkeypatch.setattr(planning, "make_plan", refuse)
    monkeypatch.setattr("whet.runtime.planned.make_plan", refuse)
    for length in range(5, 12):
        session.run(words(rng, 1, length))
    assert session._runner.device.compiled == compiled
    # Expressions, not kernels, are what is evaluated: many buffers have the same size.
    assert bound(session, batch=1, length=9).evaluated < 40


def test_sizes_that_come_back_get_kernels(rng: np.random.Generator, attention: whet.Engine) -> None:
    session = attention.session(cache=False)
    inputs = words(rng, 2, 9)
    first = session.run(inputs)["y"]
    assert not bound(session, batch=2, length=9).is_special
    session.run(inputs)
    wait_for(session, batch=2, length=9)
    special = bound(session, batch=2, length=9)
    assert (special.code != bound(session, batch=2, length=10).code).any()
    np.testing.assert_allclose(session.run(inputs)["y"], first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_deterministic_bits(rng: np.random.Generator, attention: whet.Engine, batch: int) -> None:
    nets = (
        (whet.build(convolutions(batch="batch")), pixels(rng, batch), {}),
        (attention, words(rng, batch, 21), {"length": 21}),
    )
    for engine, inputs, sizes in nets:
        session = engine.session(cache=False, deterministic=True)
        first = session.run(inputs)["y"]
        session.run(inputs)
        wait_for(session, batch=batch, **sizes)
        np.testing.assert_array_equal(session.run(inputs)["y"], first)


def test_numbers_of_things_found_share_kernels(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["z"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["z", "z"], ["y"]),
    ]
    engine = whet.build(model(nodes, [value("x", ["n"])], [value("y", None)]))
    session = engine.session(cache=False, specialize="none")
    session.run({"x": np.ones(4, np.float32)})
    compiled = session._runner.device.compiled
    for n in (5, 9, 30):
        x = (rng.random(n) < 0.5).astype(np.float32)
        want = np.stack(np.nonzero(x)).astype(np.float32) ** 2
        np.testing.assert_array_equal(session.run({"x": x})["y"], want)
    assert session._runner.device.compiled == compiled


def test_kernels_for_numbers_of_things_are_there_before_a_run(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["z"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["z", "z"], ["y"]),
    ]
    engine = whet.build(model(nodes, [value("x", [9])], [value("y", None)]))
    session = engine.session(cache=False, specialize="none")
    compiled = session._runner.device.compiled
    for share in (0.5, 0.2, 0.0):
        x = (rng.random(9) < share).astype(np.float32)
        want = np.stack(np.nonzero(x)).astype(np.float32) ** 2
        np.testing.assert_array_equal(session.run({"x": x})["y"], want)
    assert session._runner.device.compiled == compiled


def test_threads_that_meet_sizes_together_ask_for_kernels_once(
    attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Counter[Any]):
        def __getitem__(self, key: Any) -> int:
            found: int = super().__getitem__(key)
            time.sleep(0.01)  # others count meanwhile
            return found

    session = attention.session(cache=False)
    stage = session._runner.wide(session.graph)
    assert stage is not None
    stage._met = Slow()
    asked: list[Any] = []
    executable = stage.program.executable
    monkeypatch.setattr(executable, "specialise", lambda *given: asked.append(given))
    sizes = {"batch": 2, "length": 5}
    threads = [Thread(target=stage._meet, args=(sizes, sizes)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert dict(stage._met).popitem()[1] == 8


def test_sizes_outside_of_the_bounds_are_not_served() -> None:
    ranges = Ranges({"n": symbol("n", 2, 8)})
    assert [ranges.serve({"n": n}) for n in (1, 2, 8, 9)] == [False, True, True, False]


def test_guards_are_asked_as_far_as_sizes_are_known() -> None:
    n, m, later = symbol("n"), symbol("m"), symbol("later")
    guards = (Guard(n, m, "a"), Guard(12 // m, n, "b", broadcast=True), Guard(later, 3, "c"))
    known = Guards(Graph((), (), guards=guards[:2]))
    known.check({"n": 1, "m": 1})
    for at, node in (({"n": 2, "m": 3}, "a"), ({"n": 5, "m": 5}, "b"), ({"n": 1, "m": 0}, "a")):
        with pytest.raises(ShapeError, match=f'node "{node}"'):
            known.check(at)
    some = Guards(Graph((), (), guards=guards))
    some.check({"n": 3, "m": 3, "later": 3} | {"n": 1, "m": 1})
    some.check({"n": 1, "m": 1})
    with pytest.raises(ShapeError, match='node "a"'):
        some.check({"n": 1, "m": 2})
    with pytest.raises(ShapeError, match='node "c"'):
        some.check({"n": 1, "m": 1, "later": 4})


def test_what_no_template_is_told_is_planned_for_its_sizes(rng: np.random.Generator) -> None:
    node = helper.make_node("MatMul", ["x", "z"], ["y"])
    given = [value("x", ["m", "k"]), value("z", ["k", "n"])]
    engine = whet.build(model([node], given, [value("y", None)], {}))
    session = engine.session(cache=False)
    for m, k, n in ((9, 12, 7), (5, 7, 16)):
        shapes = {"x": (m, k), "z": (k, n)}
        x = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        np.testing.assert_allclose(session.run(x)["y"], judged(engine, x), atol=1e-4)
    session.run(x)
    deadline = time.monotonic() + 120
    while len(session.plans) == 1:
        assert time.monotonic() < deadline, "no plan was made in the background"
        time.sleep(0.02)
    np.testing.assert_allclose(session.run(x)["y"], judged(engine, x), atol=1e-4)


def test_boxes_of_any_number_share_kernels(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["y"], to=TensorProto.FLOAT),
    ]
    given = [value("boxes", [1, "n", 4]), value("scores", [1, 2, "n"])]
    limits = {"most": np.array([8]), "overlap": np.array([0.4], np.float32)}
    engine = whet.build(model(nodes, given, [value("y", None)], limits))
    session = engine.session(cache=False, specialize="none")
    assert session.reference_ops == ()
    compiled = None
    for n in (3, 40, 17):
        corners = rng.random((1, n, 2), np.float32)
        boxes = np.concatenate([corners, corners + 0.3], 2)
        inputs = {"boxes": boxes, "scores": rng.random((1, 2, n), np.float32)}
        np.testing.assert_array_equal(session.run(inputs)["y"], judged(engine, inputs))
        assert compiled in (None, session._runner.device.compiled)
        compiled = session._runner.device.compiled


def test_lines_of_any_length_are_sorted(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["values", "places"]),
        helper.make_node("Cast", ["places"], ["y"], to=TensorProto.FLOAT),
    ]
    made = model(nodes, [value("x", ["m", "n"])], [value("y", None)], {"k": np.array([1])})
    engine = whet.build(made)
    session = engine.session(cache=False, specialize="none")
    assert session.reference_ops == ()
    for shape in ((3, 1), (1, 2), (4, 33), (2, 64)):
        inputs = {"x": rng.standard_normal(shape, np.float32)}
        np.testing.assert_array_equal(session.run(inputs)["y"], judged(engine, inputs))


@pytest.mark.parametrize("number", range(8))
def test_convolutions_of_any_batch(number: int) -> None:
    rng = np.random.default_rng([SEED, number])
    print(f"the seed is {SEED}, {number}")
    kernel, stride = int(rng.choice([1, 3, 5])), int(rng.choice([1, 2]))
    groups = int(rng.choice([1, 1, 2, 16]))
    channels, filters = 16 * int(rng.integers(1, 5)), 16 * int(rng.integers(1, 6))
    height, width = (int(n) for n in rng.integers(5, 20, 2))
    weights = {
        "w": rng.standard_normal((filters, channels // groups, kernel, kernel), np.float32) * 0.1,
        "b": rng.standard_normal(filters, np.float32),
    }
    pads = [kernel // 2] * 4
    nodes = [
        helper.make_node(
            "Conv", ["x", "w", "b"], ["a"], pads=pads, strides=[stride] * 2, group=groups
        ),
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("Add", ["c", "z"], ["y"]),
    ]
    spatial = [(n - 1) // stride + 1 for n in (height, width)]
    inputs = [value("x", ["n", channels, height, width]), value("z", ["n", filters, *spatial])]
    engine = whet.build(model(nodes, inputs, [value("y", None)], weights))
    session = engine.session(cache=False, specialize="none", threads=2)
    for batch in (1, 2, int(rng.integers(3, 9))):
        shapes = (batch, channels, height, width), (batch, filters, *spatial)
        given = {k: rng.standard_normal(s, np.float32) for k, s in zip("xz", shapes)}
        np.testing.assert_allclose(session.run(given)["y"], judged(engine, given), atol=1e-3)
    assert len(session.plans) == 1 and session.reference_ops == ()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("number", range(8))
def test_convolutions_of_any_image(number: int, level: str) -> None:
    rng = np.random.default_rng([SEED, number])
    print(f"the seed is {SEED}, {number}")
    kernel = [int(n) for n in rng.choice([1, 2, 3, 5], 2)]
    strides, dilations = ([int(n) for n in rng.integers(1, 5, 2)] for _ in range(2))
    groups = int(rng.choice([1, 1, 2, 16]))
    channels, filters = 16 * int(rng.integers(1, 5)), 16 * int(rng.integers(1, 6))
    pads = [int(n) for n in rng.integers(0, 8, 4)]
    weights = {"w": rng.standard_normal((filters, channels // groups, *kernel), np.float32) * 0.1}
    attributes = {"pads": pads, "strides": strides, "dilations": dilations, "group": groups}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], **attributes),
        helper.make_node("Mul", ["a", "gate"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    seen = zip(dilations, kernel, pads, pads[2:])
    least = [max(d * (k - 1) + 1 - before - after, 1) for d, k, before, after in seen]
    shape: list[Any] = ["n", channels, "h", "w"]
    if number % 4 > 1:
        shape[number % 4] = least[number % 4 - 2] + int(rng.integers(20))
    inputs = [value("x", shape), value("gate", ["n", filters, 1, 1])]
    engine = whet.build(model(nodes, inputs, [value("y", None)], weights))
    runner = Runner(Device(architecture(level)), engine.weights, 2, "none")
    for further in (0, 1, 8, 30):
        sizes = [m + further * int(rng.integers(1, 3)) for m in least]
        seen = [s if isinstance(s, int) else n for s, n in zip(shape[2:], sizes)]
        batch = int(rng.integers(1, 3))
        given = {
            "x": rng.standard_normal((batch, channels, *seen), np.float32),
            "gate": rng.standard_normal((batch, filters, 1, 1), np.float32),
        }
        (y,) = runner.execute(engine.graph, [given[v.op.name] for v in engine.graph.inputs])  # type: ignore[attr-defined]
        np.testing.assert_allclose(y, judged(engine, given), atol=1e-3)
    (plan,) = runner.plans
    assert any("PackedConvolution" in str(step.kernel) for step in plan.steps)


@pytest.mark.parametrize("groups", [1, 32])
def test_deterministic_bits_of_any_image(groups: int) -> None:
    rng = np.random.default_rng([SEED, groups])
    print(f"the seed is {SEED}, {groups}")
    weights = {"w": rng.standard_normal((32, 32 // groups, 3, 3), np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, group=groups)
    engine = whet.build(model([node], [value("x", [1, 32, "h", "w"])], [value("y", None)], weights))
    session = engine.session(cache=False, deterministic=True)
    x = {"x": rng.standard_normal((1, 32, 21, 19), np.float32)}
    first = session.run(x)["y"]
    session.run(x)
    wait_for(session, h=21, w=19)
    np.testing.assert_array_equal(session.run(x)["y"], first)


def long_product(rng: np.random.Generator, depth: int, columns: int) -> Any:
    """A sum so long that it is made in parts: x[m, n, depth] @ w + b."""
    weights = {
        "w": rng.standard_normal((depth, columns), np.float32) * 0.02,
        "b": rng.standard_normal(columns, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return model(nodes, [value("x", ["m", "n", depth])], [value("y", None)], weights)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("depth, columns", [(3072, 48), (4100, 90)])
def test_sums_in_parts_of_any_number_of_rows(
    rng: np.random.Generator, depth: int, columns: int, threads: int
) -> None:
    engine = whet.build(long_product(rng, depth, columns))
    session = engine.session(cache=False, threads=threads, deterministic=True)
    kernels = [s.kernel for p in session.plans for s in p.steps]
    assert any(getattr(getattr(k, "op", None), "schedule", [0])[-1] for k in kernels), "of parts"
    for m, n in ((1, 1), (1, 5), (3, 43), (1, 131), (2, 300)):
        given = {"x": rng.standard_normal((m, n, depth), np.float32)}
        first = session.run(given)["y"]
        np.testing.assert_allclose(first, judged(engine, given), atol=1e-4, rtol=1e-4)
        session.run(given)
        wait_for(session, m=m, n=n)
        np.testing.assert_array_equal(session.run(given)["y"], first)


@pytest.mark.parametrize("depth, columns", [(7, 5), (64, 96), (300, 40)])
def test_products_of_any_number_of_rows(depth: int, columns: int) -> None:
    rng = np.random.default_rng([SEED, depth])
    print(f"the seed is {SEED}, {depth}")
    weights = {
        "w": rng.standard_normal((depth, columns), np.float32) * 0.1,
        "b": rng.standard_normal((columns,), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["c", "gate"], ["y"]),
    ]
    inputs = [value("x", ["m", "n", depth]), value("gate", ["m", 1, columns])]
    engine = whet.build(model(nodes, inputs, [value("y", None)], weights))
    session = engine.session(cache=False, specialize="none", threads=2)
    for m, n in ((1, 1), (1, 13), (3, 14), (2, 15), (1, 29), (5, 40)):
        given = {
            "x": rng.standard_normal((m, n, depth), np.float32),
            "gate": rng.standard_normal((m, 1, columns), np.float32),
        }
        np.testing.assert_allclose(session.run(given)["y"], judged(engine, given), atol=1e-3)
    assert len(session.plans) == 1 and session.reference_ops == ()


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_an_index_from_the_end_of_rows_that_repeat(rows: int) -> None:
    """The last row but one of m rows written twice is (-2) % m."""
    stored = {
        "twice": np.array([2, 1]),
        **{name: np.array([i]) for name, i in (("start", -2), ("end", -1), ("axis", 0))},
    }
    nodes = [
        helper.make_node("Tile", ["x", "twice"], ["tiled"]),
        helper.make_node("Slice", ["tiled", "start", "end", "axis"], ["y"]),
    ]
    proto = model(nodes, [value("x", ["m", 4])], [value("y", None)], stored)
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    got = whet.build(proto).session("cpu", specialize="none").run({"x": x})["y"]
    np.testing.assert_array_equal(got, np.tile(x, (2, 1))[-2:-1])


def test_products_of_no_rows_come_back(rng: np.random.Generator) -> None:
    """All rows but the first, of one, within a run that has results."""
    stored = {
        "w": rng.standard_normal((32, 16), np.float32),
        **{name: np.array([i]) for name, i in (("start", 1), ("end", 1 << 40), ("axis", 0))},
    }
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axis"], ["y"]),
    ]
    proto = model(nodes, [value("x", ["n", 32])], [value("y", None)], stored)
    session = whet.build(proto).session("cpu", cache=False)
    x = np.ones((1, 32), np.float32)
    for _ in range(2):
        assert not session.run({"x": x})["y"].any()
    wait_for(session, n=1)
    assert not session.run({"x": x})["y"].any()
