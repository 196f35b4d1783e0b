"""Sizes that runs tell, on a GPU that is not there: stub.py and stub_driver.py say what is."""

from __future__ import annotations

import gc
import secrets
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import whet
from tests.runtime.models import convolutions, model, value
from tests.runtime.test_ranges import judged, pixels, transformer, words
from tests.targets.cuda import sizes
from tests.targets.cuda.needs import needs_triton
from tests.targets.cuda.stub import FEW, Tensor, TorchTensor, stubbed
from tests.targets.cuda.stub_driver import Driver
from whet.errors import DeviceError, InvalidInput, OutOfMemory, ShapeError
from whet.targets.cuda import bound as bounds
from whet.targets.cuda import context as contexts
from whet.targets.cuda import executable as executables
from whet.targets.cuda.context import EASY_ROOM, Context
from whet.targets.cuda.driver import Context as GpuContext
from whet.targets.special import Special

ROOT = Path(__file__).resolve().parents[3]
SEED = secrets.randbits(32)


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as driver:
        yield driver


@pytest.fixture
def rng() -> np.random.Generator:
    print(f"the seed is {SEED}")
    return np.random.default_rng(SEED)


@pytest.fixture(scope="module")
def attention() -> whet.Engine:
    return whet.build(transformer(np.random.default_rng(4)))


def determinants() -> Any:
    """Kernels before and after an operator that none computes."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Det", ["square"], ["det"]),
        helper.make_node("Exp", ["det"], ["y"]),
    ]
    return model(nodes, [value("x", ["batch", 7, 7])], [value("y", None)], {})


def open_session(engine: whet.Engine, **options: Any) -> whet.Session:
    return engine.session(device="cuda", cache=False, **options)


def check(session: whet.Session, engine: whet.Engine, inputs: dict[str, np.ndarray]) -> None:
    want = judged(engine, inputs)
    np.testing.assert_allclose(session.run(inputs)["y"], want, atol=1e-4, rtol=1e-4)


def executable(session: whet.Session) -> executables.Executable:
    (stage,) = session._runner._wide.values()
    assert stage is not None
    return stage.program.executable  # type: ignore[return-value]


def wait_for(session: whet.Session, **sizes: int) -> None:
    """Until there are launches for the very sizes."""
    deadline = time.monotonic() + 60
    while not executable(session).bound(sizes).is_special:
        assert time.monotonic() < deadline, "no launches were made in the background"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [None, Tensor, TorchTensor])
def test_one_plan_serves_all_sizes(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, kind: Any
) -> None:
    session = open_session(attention, specialize="none")
    loaded = gpu.counts["cuModuleLoadData"]
    for length in rng.permutation(39)[:12]:
        inputs = words(rng, int(rng.integers(1, 9)), 1 + int(length))
        want = judged(attention, inputs)
        given = {"x": kind(gpu, inputs["x"])} if kind else inputs
        got = np.asarray(session.run(given, stream=5 if kind else None)["y"])
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
    assert len(session.plans) == 1
    assert gpu.counts["cuModuleLoadData"] == loaded, "code is there before a run needs it"
    assert gpu.counts["cuGraphInstantiate"] == 0
    assert {name.split()[0] for name in gpu.launched} <= {"few", "many", "k"}


def test_the_way_to_run_a_kernel_is_chosen_by_size(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session = open_session(attention, specialize="none")
    for batch, way in ((FEW, "few"), (FEW + 1, "many")):
        gpu.launched.clear()
        check(session, attention, words(rng, batch, 3))
        assert {name.split()[0] for name in gpu.launched} == {way}


def test_sizes_that_come_back_get_graphs_of_kernels_of_their_own(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session = open_session(attention)
    inputs = words(rng, 2, 9)
    for _ in range(2):
        check(session, attention, inputs)
    wait_for(session, batch=2, length=9)
    gpu.launched.clear()
    made, alone = gpu.counts["cuGraphInstantiate"], gpu.counts["cuLaunchKernelEx"]
    for _ in range(3):
        inputs = words(rng, 2, 9)
        check(session, attention, inputs)
    assert {name.split()[0] for name in gpu.launched} == {"special"}
    assert gpu.counts["cuGraphInstantiate"] == made > 0
    assert gpu.counts["cuLaunchKernelEx"] == alone
    check(session, attention, words(rng, 2, 10))
    check(session, attention, inputs)
    assert len(session.plans) == 1


def test_the_short_way_is_taken_for_sizes_that_come_back(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = open_session(attention)
    inputs = {"x": TorchTensor(gpu, words(rng, 2, 9)["x"])}
    for _ in range(2):
        session.run(inputs, stream=5)
    wait_for(session, batch=2, length=9)
    session.run(inputs, stream=5)

    def refuse(*_: Any) -> None:
        raise AssertionError("the long way was taken")

    with monkeypatch.context() as patch:
        patch.setattr(Context, "run", refuse)
        for _ in range(3):
            arrays = words(rng, 2, 9)
            got = session.run({"x": TorchTensor(gpu, arrays["x"])}, stream=5)["y"]
            want = judged(attention, arrays)
            np.testing.assert_allclose(np.asarray(got), want, atol=1e-4, rtol=1e-4)
    check(session, attention, words(rng, 2, 10))


def test_a_tensor_of_a_new_size_is_taken_as_those_before(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(attention, specialize="none")
    session.run({"x": TorchTensor(gpu, words(rng, 2, 9)["x"])}, stream=5)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("DLPack was asked")

    with monkeypatch.context() as patch:
        patch.setattr(TorchTensor, "__dlpack__", refuse)
        for length in range(10, 14):
            inputs = words(rng, 2, length)
            got = session.run({"x": TorchTensor(gpu, inputs["x"])}, stream=5)["y"]
            want = judged(attention, inputs)
            np.testing.assert_allclose(np.asarray(got), want, atol=1e-4, rtol=1e-4)
    for bad in ((2, 9, 31), (2, 32)):
        with pytest.raises(InvalidInput, match="input 'x' is"):
            session.run({"x": TorchTensor(gpu, np.zeros(bad, np.float32))}, stream=5)


def test_launches_between_host_steps_are_told_apart(gpu: Driver, rng: np.random.Generator) -> None:
    engine = whet.build(determinants())
    session = open_session(engine, specialize="none")
    assert len(executable(session).segments) == 3
    for batch in (2, 5, 3, 7):
        check(session, engine, {"x": rng.random((batch, 7, 7), np.float32)})


def test_larger_sizes_move_the_arena(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "EASY_ROOM", 1 << 20)
    session = open_session(attention)
    small = words(rng, 1, 5)
    for _ in range(2):
        check(session, attention, small)
    wait_for(session, batch=1, length=5)
    room = weakref.ref(executable(session)._free[0].room)
    failed, prepare = list[None](), contexts.Context.prepare

    def once(*given: Any) -> None:
        if not failed:
            failed.append(None)
            raise DeviceError("no memory for launches")
        prepare(*given)

    monkeypatch.setattr(contexts.Context, "prepare", once)
    check(session, attention, words(rng, 9, 700))
    assert room() is None, "launches that wait to come back hold no memory"
    deadline = time.monotonic() + 60
    while True:
        gpu.launched.clear()
        check(session, attention, small)
        if {name.split()[0] for name in gpu.launched} == {"special"}:
            assert failed, "and it is tried again"
            return
        assert time.monotonic() < deadline, "launches were not made anew for the new arena"


def test_small_sizes_share_an_arena(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session, rooms = open_session(attention, specialize="none"), set[int]()
    for batch, length in ((1, 5), (8, 900), (2, 90)):
        check(session, attention, words(rng, batch, length))
        rooms.add(id(executable(session)._free[0].room))
    assert len(rooms) == 1
    asked: list[int] = []

    def allocate(size: int) -> int:
        asked.append(size)
        with GpuContext.of(0):
            return gpu.cuMemAlloc(size)[1]

    own = open_session(attention, specialize="none", allocator=allocate)
    check(own, attention, words(rng, 1, 5))
    assert max(asked) < EASY_ROOM, "a caller's memory is taken as it is needed"


def test_profiles_say_how_large_the_arena_gets(gpu: Driver, rng: np.random.Generator) -> None:
    sizes = whet.Profile({"x": (1, 1, 32)}, {"x": (2, 16, 32)}, {"x": (8, 64, 32)})
    engine = whet.build(transformer(rng), profiles=sizes)
    session = open_session(engine)
    check(session, engine, words(rng, 1, 5))
    room = executable(session)._free[0].room
    check(session, engine, words(rng, 8, 64))
    assert executable(session)._free[0].room is room


def test_tensors_on_the_device_keep_to_profiles(gpu: Driver, rng: np.random.Generator) -> None:
    sizes = whet.Profile({"x": (1, 1, 32)}, {"x": (2, 16, 32)}, {"x": (4, 64, 32)})
    engine = whet.build(transformer(rng), profiles=sizes)
    session = open_session(engine)
    for kind in (Tensor, TorchTensor):
        within, beyond = (kind(gpu, words(rng, batch, 5)["x"]) for batch in (4, 5))
        session.run({"x": within}, stream=5)
        with pytest.raises(ShapeError, match=r"none of the engine's profiles.*x \[5, 5, 32\]"):
            session.run({"x": beyond}, stream=5)


def test_eager_kernels_are_made_at_once(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session = open_session(attention, specialize="eager")
    for _ in range(4):
        for length in (3, 8):
            check(session, attention, words(rng, 2, length))
    assert len(session.plans) == 2
    assert not session._runner.device.background.is_busy  # type: ignore[attr-defined]


def test_without_kernels_of_their_own_sizes_get_graphs(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session = open_session(attention, specialize="none")
    loaded = gpu.counts["cuModuleLoadData"]
    for length in (3, 8):
        for _ in range(2):
            check(session, attention, words(rng, 2, length))
        wait_for(session, batch=2, length=length)
    graphs = gpu.counts["cuGraphInstantiate"]
    assert graphs > 0 and gpu.counts["cuModuleLoadData"] == loaded
    gpu.launched.clear()
    for length in (8, 3, 8):
        check(session, attention, words(rng, 2, length))
    assert gpu.counts["cuGraphInstantiate"] == graphs
    assert {name.split()[0] for name in gpu.launched} <= {"few", "many", "k"}


def test_a_graph_is_made_with_the_weights_of_the_runs_before(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session, inputs = open_session(attention, tune=0), words(rng, 2, 9)
    for _ in range(2):
        check(session, attention, inputs)
    wait_for(session, batch=2, length=9)
    (plan,), found = session.plans, executable(session).bound({"batch": 2, "length": 9})
    (launches,) = found.special.values()
    (segment,) = launches.segments
    assert segment.graph is not None and not segment.changed, "a run would tell it of each"
    ends = {*plan.graph.inputs, *plan.graph.outputs}
    assert all(place.pointer for value, place in launches.places.items() if value not in ends)
    check(session, attention, inputs)


def test_launches_that_come_while_a_run_is_bound_are_taken(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, inputs = open_session(attention, tune=0), words(rng, 2, 9)
    check(session, attention, inputs)
    plan, sizes = executable(session), {"batch": 2, "length": 9}
    (context,) = plan._free
    bound, asked = plan.bound(sizes), list[str]()
    special = type("Special", (dict,), {"get": lambda self, number: asked.append("now")})()
    bound.special, context.bound = special, None
    check(session, attention, inputs)
    assert asked and context.bound is bound
    check(session, attention, inputs)
    assert len(asked) == 1, "nothing has to be looked up for a run like the one before"
    bound.special, bound.code = {}, plan._code
    with session._runner.device.context:  # type: ignore[attr-defined]
        context.prepare(bound, lambda: None)
    check(session, attention, inputs)
    assert context.is_graph


def test_a_run_that_finds_no_memory_leaves_the_sizes_before(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    refuses = False

    def allocate(size: int) -> int:
        if refuses:
            raise OutOfMemory("no more")
        with GpuContext.of(0):
            return gpu.cuMemAlloc(size)[1]

    session = open_session(attention, specialize="none", allocator=allocate)
    check(session, attention, words(rng, 1, 5))
    refuses = True
    with pytest.raises(OutOfMemory, match="no more"):
        session.run(words(rng, 64, 900))
    for _ in range(2):
        check(session, attention, words(rng, 1, 5))


def test_deterministic_sums_stay_as_they_are(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session = open_session(attention, deterministic=True)
    inputs = words(rng, 2, 7)
    first = session.run(inputs)["y"]
    session.run(inputs)
    wait_for(session, batch=2, length=7)
    gpu.launched.clear()
    np.testing.assert_array_equal(session.run(inputs)["y"], first)
    assert gpu.launched and "special" not in {name.split()[0] for name in gpu.launched}
    assert gpu.counts["cuGraphInstantiate"] > 0


def test_what_32_bits_do_not_count_is_planned_when_met(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "SAFE", 20)
    session = open_session(attention, specialize="none")
    for length in (4, 30):
        check(session, attention, words(rng, 2, length))
    assert len(session.plans) == 2


def test_only_so_many_sets_of_sizes_are_remembered(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executables, "MOST_BOUND", 4)
    session = open_session(attention)
    for _ in range(2):
        check(session, attention, words(rng, 1, 3))
    wait_for(session, batch=1, length=3)
    code: Any = session._runner.device._objects  # type: ignore[attr-defined]
    assert any(isinstance(kernel, Special) for kernel in code)
    for length in range(4, 12):
        check(session, attention, words(rng, 1, length))
    assert len(executable(session)._bound) == 4
    assert not any(isinstance(kernel, Special) for kernel in code)
    assert not executable(session).bound({"batch": 1, "length": 3}).is_special
    check(session, attention, words(rng, 1, 3))


def test_images_of_many_batches(gpu: Driver, rng: np.random.Generator) -> None:
    engine = whet.build(convolutions(batch="batch"))
    session = open_session(engine)
    for batch in (1, 5, 2, 5, 1, 0):
        check(session, engine, pixels(rng, batch))
    assert not any(isinstance(step.kernel, type(None)) for step in session.plans[0].steps)


def test_many_threads(gpu: Driver, attention: whet.Engine) -> None:
    session = open_session(attention)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng([SEED, seed])
        try:
            for _ in range(8):
                check(session, attention, words(rng, 2, int(rng.integers(1, 6))))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_refit(gpu: Driver, rng: np.random.Generator) -> None:
    engine = whet.build(transformer(np.random.default_rng(4)))
    session = open_session(engine)
    inputs = words(rng, 2, 6)
    for _ in range(2):
        check(session, engine, inputs)
    wait_for(session, batch=2, length=6)
    engine.refit({"wq": rng.standard_normal((32, 32), np.float32) * 0.2}, partial=True)
    check(session, engine, inputs)
    check(session, engine, words(rng, 3, 4))


def test_launches_that_do_not_run_again_hold_no_replaced_weights(
    gpu: Driver, rng: np.random.Generator
) -> None:
    engine = whet.build(transformer(np.random.default_rng(4)))
    session = open_session(engine)
    for _ in range(2):
        check(session, engine, words(rng, 2, 6))
    wait_for(session, batch=2, length=6)
    check(session, engine, words(rng, 2, 6))
    (launches,) = executable(session).bound({"batch": 2, "length": 6}).special.values()
    assert launches.given() is not None
    engine.refit({"wq": rng.standard_normal((32, 32), np.float32) * 0.2}, partial=True)
    gc.collect()
    assert launches.given() is None
    check(session, engine, words(rng, 2, 6))


def test_debug_tensors_and_traces(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine
) -> None:
    session = open_session(attention)
    inputs = words(rng, 2, 6)
    trace = session.trace(inputs)
    assert len(trace.steps) == len(session.plans[0].steps)
    assert session.memory.arenas[0] > 0


def test_a_context_ends_with_its_session(gpu: Driver, attention: whet.Engine) -> None:
    session = open_session(attention)
    rng = np.random.default_rng(1)
    for _ in range(2):
        check(session, attention, words(rng, 2, 9))
    wait_for(session, batch=2, length=9)
    kept = [weakref.ref(context) for context in executable(session)._contexts]
    assert kept
    del session
    deadline = time.monotonic() + 30  # what runs in the background may hold one for a moment
    while any(reference() for reference in kept) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not any(reference() for reference in kept)


def test_the_check_for_machines_that_have_a_gpu(
    gpu: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizes.main(["attention"])[1] == 0
    assert " 0 failed" in capsys.readouterr().out


@needs_triton
@pytest.mark.parametrize(
    "words",
    [
        *("product", "mixed", "scores", "attention", "conv-sides", "conv-one-stride", "conv-int8"),
        *("depthwise-sides", "order", "softmax", "mean", "scan", "moved"),
    ],
)
def test_kernels_that_are_told_sizes(words: str) -> None:
    command = [sys.executable, "-m", "tests.targets.cuda.run_ranges", words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " 0 failed" in done.stdout and "\n0 passed" not in f"\n{done.stdout}"
