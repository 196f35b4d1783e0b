"""Sessions: what a run takes and gives, wrong inputs, many callers, forks, one core."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet
from tests.frontends.written import written
from tests.levels import LEVELS, architecture
from tests.runtime.models import convolutions, model, value
from whet.errors import (
    IndexOutOfRange,
    InvalidInput,
    InvalidSetting,
    OutOfMemory,
    ShapeError,
)
from whet.ir.evaluate import evaluate
from whet.targets.cpu.executable import Executable


def reference(engine: whet.Engine, x: np.ndarray) -> np.ndarray:
    return evaluate(engine.graph, {engine.graph.inputs[0]: x}, engine.weights.array)[0]


@pytest.fixture(scope="module")
def engine() -> whet.Engine:
    return whet.build(convolutions())


@pytest.fixture(scope="module")
def session(engine: whet.Engine) -> whet.Session:
    return engine.session(cache=False)


def draw(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)


def test_runs_like_the_reference(engine: whet.Engine, session: whet.Session) -> None:
    x = draw(1)
    np.testing.assert_allclose(session.run({"x": x})["y"], reference(engine, x), atol=1e-5)
    assert session.reference_ops == ()


def test_outputs_are_fresh_unless_given(session: whet.Session) -> None:
    first = session.run({"x": draw(1)})["y"]
    kept = first.copy()
    second = session.run({"x": draw(2)})["y"]
    np.testing.assert_array_equal(first, kept)
    out = np.full((1, 10), np.nan, np.float32)
    assert session.run({"x": draw(2)}, out={"y": out})["y"] is out
    np.testing.assert_array_equal(out, second)


def test_results_over_the_inputs() -> None:
    """An input may be what an output is written to; two outputs may not."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["y", "x"], ["z"]),
    ]
    n, rng = 48, np.random.default_rng()
    w = rng.standard_normal((n, n), np.float32)
    ends = [value("x", [n, n])], [value("y", [n, n]), value("z", [n, n])]
    session = whet.build(model(nodes, *ends, {"w": w})).session("cpu", cache=False)
    for _ in range(6):  # the first ones go another way
        x = rng.standard_normal((n, n), np.float32)
        want = x @ w, x @ w @ x
        results = session.run({"x": x}, out={"y": x})
        assert results["y"] is x
        np.testing.assert_allclose(results["y"], want[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(results["z"], want[1], rtol=1e-3, atol=1e-2)
    with pytest.raises(InvalidInput, match="'y' and 'z' overlap"):
        session.run({"x": x}, out={"y": x, "z": x})


def test_the_short_way_gives_the_same(engine: whet.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = engine.session(cache=False, specialize="none", threads=2)
    first = {seed: session.run({"x": draw(seed)})["y"] for seed in range(4)}

    def long_way(*args: Any) -> Any:
        raise AssertionError("a run took the long way")

    with monkeypatch.context() as patch:
        patch.setattr(Executable, "run", long_way)
        results = [session.run({"x": draw(seed)})["y"] for seed in first]
    for seed, y in zip(first, results):
        np.testing.assert_array_equal(y, first[seed])
    apart = np.asfortranarray(draw(1))
    np.testing.assert_array_equal(session.run({"x": apart})["y"], first[1])
    out = np.empty_like(first[2])
    session.run({"x": draw(2)}, out={"y": out})
    np.testing.assert_array_equal(out, first[2])
    with pytest.raises(InvalidInput):
        session.run({"x": draw(1).astype(np.float64)})


def test_takes_any_strides_and_dlpack(session: whet.Session) -> None:
    x = draw(3)
    want = session.run({"x": x})["y"]
    strided = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(session.run({"x": strided})["y"], want)

    class Foreign:
        def __dlpack__(self, **options: Any) -> Any:
            return x.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return x.__dlpack_device__()

    np.testing.assert_array_equal(session.run({"x": Foreign()})["y"], want)


def test_inputs_are_not_written(session: whet.Session) -> None:
    x = draw(4)
    x.setflags(write=False)
    kept = x.copy()
    session.run({"x": x})
    np.testing.assert_array_equal(x, kept)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "missing: x"),
    ({"x": draw(0), "z": draw(0)}, "unknown: z"),
    ({"x": draw(0).astype(np.float64)}, "must be float32, got float64"),
    ({"x": draw(0)[0]}, r"got an array of the shape \[3, 16, 16\]"),
    ({"x": draw(0, batch=2)}, r"got an array of the shape \[2, 3, 16, 16\]"),
]


@pytest.mark.parametrize(("inputs", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_inputs_are_refused(session: whet.Session, inputs: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        session.run(inputs)


def test_wrong_outputs_are_refused(session: whet.Session) -> None:
    for out, says in (
        ({"q": np.zeros((1, 10), np.float32)}, "no output 'q'"),
        ({"y": np.zeros((10, 1), np.float32).T[:, ::2]}, "C-contiguous"),
        ({"y": np.zeros((1, 9), np.float32)}, r"float32\[1,10\]"),
        ({"y": np.zeros((1, 10))}, r"float32\[1,10\]"),
        ("y", "arrays by output name, not a str"),
    ):
        with pytest.raises(InvalidInput, match=says):
            session.run({"x": draw(0)}, out=out)  # type: ignore[arg-type]


LATE = """g (float[n,3] x, int64[r] shape) => (early, late, end) {
  early = Relu(x)
  late = Reshape(x, shape)
  end = Neg(late)
}"""


def test_outputs_go_where_they_should_in_every_stage() -> None:
    session = whet.build(written(LATE)).session(cache=False)
    inputs = {"x": draw(0)[0, 0, :, :3], "shape": np.array([6, 8])}
    want = session.run(inputs)
    for name, array in want.items():
        out = np.full_like(array, np.nan)
        got = session.run(inputs, out={name: out})
        assert got[name] is out
        for other, expected in want.items():
            np.testing.assert_array_equal(got[other], expected)


def test_late_regions_with_weights_and_a_cache(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["early"]),
        helper.make_node("Reshape", ["early", "shape"], ["late"]),
        helper.make_node("Add", ["late", "w"], ["y"]),
    ]
    inputs = [value("x", [4, 3]), value("shape", ["r"], TensorProto.INT64)]
    weight = np.arange(6, dtype=np.float32)
    made = model(nodes, inputs, [value("y", None)], {"w": weight})
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    for _ in range(2):  # the second time from the cache
        session = whet.build(made).session(cache=tmp_path / "cache", specialize="eager")
        y = session.run({"x": x, "shape": np.array([2, 6])})["y"]
        np.testing.assert_array_equal(y, np.maximum(x, 0).reshape(2, 6) + weight)


def test_named_sizes_take_any_value() -> None:
    engine = whet.build(convolutions(batch="batch"))
    session = engine.session(cache=False)
    for batch in (1, 3, 2, 3):
        x = draw(batch, batch)
        np.testing.assert_allclose(session.run({"x": x})["y"], reference(engine, x), atol=1e-5)
    assert session.run({"x": draw(0, 0)})["y"].shape == (0, 10)


def test_profiles_bound_the_sizes() -> None:
    shapes = [{"x": (n, 3, 16, 16)} for n in (1, 2, 4)]
    engine = whet.build(convolutions(batch="batch"), profiles=whet.Profile(*shapes))
    session = engine.session(cache=False)
    session.run({"x": draw(0, 4)})
    with pytest.raises(ShapeError, match=r"none of the engine's profiles: .*; they are \w+ \["):
        session.run({"x": draw(0, 5)})
    with pytest.raises(ShapeError, match=r"min <= opt|must hold"):
        whet.Profile(shapes[1], shapes[0], shapes[2])


def test_bounds_beyond_all_memory() -> None:
    shapes = [{"x": (n, 3, 16, 16)} for n in (1, 2, 2**80)]
    engine = whet.build(convolutions(batch="batch"), profiles=whet.Profile(*shapes))
    session = engine.session(cache=False)
    assert session.run({"x": draw(0, 4)})["y"].shape == (4, 10)


def test_sizes_that_contradict_name_the_node() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"], name="the sum")]
    inputs = [value("a", ["n"]), value("b", ["m"])]
    session = whet.build(model(nodes, inputs, [value("y", None)])).session(cache=False)
    ones = [np.ones(n, np.float32) for n in (1, 3, 4)]
    assert session.run({"a": ones[0], "b": ones[1]})["y"].shape == (3,)
    with pytest.raises(ShapeError, match='at node "the sum"'):
        session.run({"a": ones[1], "b": ones[2]})


def test_an_index_outside_names_the_node() -> None:
    nodes = [helper.make_node("Gather", ["table", "i"], ["y"], name="lookup")]
    inputs = [value("i", [4], TensorProto.INT64)]
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    built = whet.build(model(nodes, inputs, [value("y", [4, 2])], {"table": table}))
    session = built.session(cache=False)
    good = np.array([0, 5, -1, -6])
    np.testing.assert_array_equal(session.run({"i": good})["y"], table[good])
    for bad in (6, -7, 2**62):
        with pytest.raises(IndexOutOfRange, match="lookup"):
            session.run({"i": np.array([0, bad, 1, 2])})
    np.testing.assert_array_equal(session.run({"i": good})["y"], table[good])


def test_options_that_do_not_exist_are_refused(engine: whet.Engine) -> None:
    with pytest.raises(InvalidSetting, match="lazy, eager, none"):
        engine.session(specialize="perhaps")
    with pytest.raises(whet.Error, match="no device 'tpu'"):
        engine.session(device="tpu")
    with pytest.raises(whet.Error, match="processor level"):
        engine.session(device="cpu:mmx")
    wrong: dict[str, tuple[str, list[Any]]] = {
        "threads": ("from 1 on", [-1, 0, 1.5, "two", True]),
        "tune": ("from 0 on", [-1, "fast", float("nan")]),
        "weight_budget": ("50% or auto", [-1, 0.5, [], "half"]),
        "allocator": ("whet.Arena", [3, np.empty(64)]),
        "device": ("no device", [3, ""]),
        "cache": ("folder", [None, 0, 5, "", b"x"]),
    }
    for option, (says, values) in wrong.items():
        for given in values:
            with pytest.raises(whet.Error, match=says):
                engine.session(**{"device": "cpu", option: given})
    for given in (-1, True):
        with pytest.raises(InvalidSetting, match="from 0 on"):
            whet.Arena(given)
    for given in (2**60, 2**80):
        with pytest.raises(OutOfMemory, match="no memory for an arena of"):
            whet.Arena(given)


def test_times_of_no_runs_are_none(session: whet.Session) -> None:
    for runs in (0, -1, 1.5, "two"):
        for look_inside in (session.inspect, session.trace):
            with pytest.raises(InvalidSetting, match="from 1 on"):
                look_inside({"x": draw(0, 2)}, runs=runs)


def test_an_input_that_no_memory_holds() -> None:
    session = whet.build(convolutions(batch="batch")).session(cache=False)
    huge = np.broadcast_to(np.float32(0), (2**40, 3, 16, 16))
    with pytest.raises(OutOfMemory, match="more memory than there is"):
        session.run({"x": huge})


@pytest.mark.parametrize("level", LEVELS)
def test_levels_agree(engine: whet.Engine, level: str) -> None:
    x = draw(5)
    y = engine.session(device=f"cpu:{architecture(level).level}", cache=False).run({"x": x})["y"]
    np.testing.assert_allclose(y, reference(engine, x), atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_bits(engine: whet.Engine, threads: int) -> None:
    x = draw(6)
    want = engine.session(threads=1, cache=False).run({"x": x})["y"]
    np.testing.assert_array_equal(
        engine.session(threads=threads, cache=False).run({"x": x})["y"], want
    )


def test_many_callers_of_one_session(engine: whet.Engine) -> None:
    session = engine.session(threads=2, cache=False)
    inputs = [draw(seed) for seed in range(6)]
    want = [session.run({"x": x})["y"] for x in inputs]

    def hammer(caller: int) -> None:
        for turn in range(60):
            which = (caller + turn) % len(inputs)
            np.testing.assert_array_equal(session.run({"x": inputs[which]})["y"], want[which])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))


def test_another_caller_is_sooner(engine: whet.Engine) -> None:
    class Taken(list[Any]):
        """Whoever looks finds something, which is gone when it wants to take it."""

        def __len__(self) -> int:
            return 1

    session = engine.session(device="cpu", cache=False)
    executable: Any = session._runner.stage(session.graph, {}).program.executable
    executable._free = Taken()
    x = draw(3)
    np.testing.assert_allclose(session.run({"x": x})["y"], reference(engine, x), atol=1e-5)


def test_saved_engines_run_the_same(engine: whet.Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "m.whet")
    loaded = whet.load(tmp_path / "m.whet")
    assert (loaded.inputs, loaded.outputs) == (engine.inputs, engine.outputs)
    x = draw(7)
    np.testing.assert_array_equal(
        loaded.session(cache=False).run({"x": x})["y"],
        engine.session(cache=False).run({"x": x})["y"],
    )


def run_python(code: str, *args: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def saved(engine: whet.Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("engines") / "m.whet"
    engine.save(path)
    return str(path)


def test_a_warm_start_needs_neither_onnx_nor_llvm(saved: str, tmp_path: Path) -> None:
    code = """
        import sys, numpy as np, whet
        session = whet.load(sys.argv[1]).session()
        session.run({"x": np.zeros((1, 3, 16, 16), np.float32)})
        print(*(name for name in ("onnx", "llvmlite") if name in sys.modules))
    """
    run_python(code, saved, WHET_CACHE_DIR=str(tmp_path))
    assert run_python(code, saved, WHET_CACHE_DIR=str(tmp_path)) == ""


def test_a_forked_child_runs_on(saved: str) -> None:
    code = """
        import os, sys, numpy as np, whet
        session = whet.load(sys.argv[1]).session(threads=2, cache=False)
        x = np.ones((1, 3, 16, 16), np.float32)
        want = session.run({"x": x})["y"]
        child = os.fork()
        good = all((session.run({"x": x})["y"] == want).all() for _ in range(20))
        if child == 0:
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and good
    """
    run_python(code, saved)


def test_exit_during_a_run(saved: str) -> None:
    code = """
        import sys, threading, time, numpy as np, whet
        session = whet.load(sys.argv[1]).session(threads=2, cache=False)
        x = np.ones((1, 3, 16, 16), np.float32)
        def forever():
            while True:
                session.run({"x": x})
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.2)
    """
    run_python(code, saved)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_one_core(saved: str) -> None:
    code = """
        import os, sys, numpy as np
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import whet
        session = whet.load(sys.argv[1]).session(cache=False)
        print(session.run({"x": np.ones((1, 3, 16, 16), np.float32)})["y"].shape)
    """
    assert run_python(code, saved) == "(1, 10)"
