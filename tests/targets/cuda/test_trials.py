"""Ways to run kernels that are measured beside runs, on a GPU that is not there."""

from __future__ import annotations

import gc
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.test_ranges import transformer, words
from tests.targets.cuda.needs import needs_triton
from tests.targets.cuda.stub import StubDevice, stubbed
from tests.targets.cuda.stub_driver import TOTAL, Driver
from tests.targets.cuda.test_gate import is_free
from tests.targets.cuda.test_ranged import check, executable, wait_for
from whet.errors import CompileError
from whet.plan.kernel import Template
from whet.targets.background import PAUSE
from whet.targets.cuda import gate, trials
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.autotune import MOST_OTHERS
from whet.targets.cuda.compile import Function, unpack
from whet.targets.cuda.tactics import LEAST_FREE, TURNS, region
from whet.targets.cuda.trials import SHARE, SLICE, Slices
from whet.targets.cuda.ways import Way
from whet.targets.cuda.workers import Job

SEED = secrets.randbits(32)
FASTEST = 2


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


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of any size are measured, and those of one rank are the fastest."""

    def compare(_: Slices, kernel: Template, codes: list[bytes]) -> list[float]:
        names = [unpack(code)[0].name for code in codes]
        return [1.0 if name.startswith(f"way{FASTEST}") else 2.0 for name in names]

    monkeypatch.setattr(trials, "FEWEST_BYTES", 0)
    monkeypatch.setattr(Slices, "compare", compare)


def test_short_kernels_stay(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    timed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trials, "FEWEST_SECONDS", 2.1)
    session, inputs = attention.session(device="cuda", cache=False), words(rng, 2, 9)
    measured(session, attention, inputs)
    assert device_of(session).ways, "others were measured"
    assert kinds(gpu, lambda: check(session, attention, inputs)) == {"special"}


@pytest.mark.parametrize("greedy", ["special", "way"])
def test_code_for_the_very_sizes_has_the_room_that_it_needs(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    timed: None,
    monkeypatch: pytest.MonkeyPatch,
    greedy: str,
) -> None:
    plain, needs = StubDevice._function, {"counters": 3000, "scratch": 40 << 20}

    def function(*arguments: Any, **named: Any) -> Function:
        """Of sums that no other code cuts into parts."""
        made = plain(*arguments, **named)
        return replace(made, **needs) if made.name.startswith(greedy) else made  # type: ignore[arg-type]

    monkeypatch.setattr(StubDevice, "_function", function)
    session, inputs = attention.session(device="cuda", cache=False), words(rng, 2, 9)
    measured(session, attention, inputs)
    deadline = time.monotonic() + 60
    while not any(
        kind.startswith(greedy) for kind in kinds(gpu, lambda: check(session, attention, inputs))
    ):
        assert time.monotonic() < deadline, "launches were not made for the larger room"
    (context,) = executable(session)._contexts
    assert context.room is not None
    assert context.room.holds((0, 4 * needs["counters"], needs["scratch"]))


def kinds(gpu: Driver, run: Any) -> set[str]:
    """What kinds of kernels a run launches."""
    gpu.launched.clear()
    run()
    return {name.split()[0] for name in gpu.launched}


def device_of(session: whet.Session) -> StubDevice:
    return session._runner.device  # type: ignore[return-value]


def measured(session: whet.Session, engine: whet.Engine, inputs: dict[str, Any]) -> None:
    """Runs until the session has done all that it does behind runs."""
    for _ in range(2):
        check(session, engine, inputs)
    batch, length, _ = inputs["x"].shape
    wait_for(session, batch=batch, length=length)
    deadline = time.monotonic() + 60
    while device_of(session).measuring.is_busy or device_of(session).background.is_busy:
        assert time.monotonic() < deadline, "measuring takes too long"
        time.sleep(0.01)


def test_the_fastest_way_takes_over_and_is_remembered(
    gpu: Driver, rng: np.random.Generator, timed: None, tmp_path: Path
) -> None:
    cache = whet.Cache(tmp_path / "cache")
    inputs = words(rng, 2, 9)
    for is_new in (True, False):
        attention = whet.build(transformer(np.random.default_rng(4)))
        session = attention.session(device="cuda", cache=cache)
        measured(session, attention, inputs)
        asked = getattr(device_of(session), "ways", [])
        assert bool(asked) is is_new
        assert {way.rank for way in asked} == (set(range(1, 1 + MOST_OTHERS)) if is_new else set())
        found = kinds(gpu, lambda s=session, e=attention: check(s, e, inputs))
        templates = [isinstance(k, Template) for k in executable(session).kernels]
        assert any(templates)
        want = {f"way{FASTEST}"} | ({"special"} if not all(templates) else set())
        assert found == want


@pytest.mark.parametrize("options", [{"tune": 0}, {"deterministic": True}])
def test_what_is_not_measured(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    timed: None,
    options: dict[str, Any],
) -> None:
    session = attention.session(device="cuda", cache=False, **options)
    inputs = words(rng, 2, 9)
    measured(session, attention, inputs)
    assert not hasattr(device_of(session), "ways")
    assert kinds(gpu, lambda: check(session, attention, inputs)) <= {"special", "few", "many", "k"}


def test_ways_that_there_are_not(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    timed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few tiles fit small sizes, and what cannot be compiled is left out: others are measured."""
    compile_ways = StubDevice.compile_ways

    def few(device: StubDevice, ways: Sequence[Way]) -> dict[Way, bytes]:
        return {w: code for w, code in compile_ways(device, ways).items() if w.rank == FASTEST}

    monkeypatch.setattr(StubDevice, "compile_ways", few)
    session, inputs = attention.session(device="cuda", cache=False), words(rng, 2, 9)
    measured(session, attention, inputs)
    found = kinds(gpu, lambda: check(session, attention, inputs))
    assert f"way{FASTEST}" in found and "way1" not in found


def test_only_as_many_ways_as_there_is_time_for(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, timed: None
) -> None:
    session = attention.session(device="cuda", cache=False, tune=5.5 * trials.SECONDS_EACH)
    measured(session, attention, words(rng, 2, 9))
    kernels = {k for k in executable(session).kernels if isinstance(k, Template)}
    assert len(kernels) > 2
    assert [way.rank for way in device_of(session).ways] == [1, 1]


def test_a_session_with_more_time_goes_on(
    gpu: Driver, rng: np.random.Generator, timed: None, tmp_path: Path
) -> None:
    cache, inputs = whet.Cache(tmp_path / "cache"), words(rng, 2, 9)
    asked: list[list[tuple[Any, int]]] = []
    for tune in (5.5 * trials.SECONDS_EACH, 60, 60):
        attention = whet.build(transformer(np.random.default_rng(4)))
        session = attention.session(device="cuda", cache=cache, tune=tune)
        measured(session, attention, inputs)
        ways = getattr(device_of(session), "ways", [])
        asked.append([(way.kernel, way.rank) for way in ways])
    few, others, none = asked
    assert [rank for _, rank in few] == [1, 1] and not none
    assert not {*few} & {*others}
    every = {kernel for kernel, _ in others}
    assert {*few, *others} == {(k, rank) for k in every for rank in range(1, 1 + MOST_OTHERS)}


def test_runs_while_ways_are_measured(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "FEWEST_BYTES", 0)
    session = attention.session(device="cuda", cache=False)
    inputs, seen = words(rng, 2, 9), set[bool]()
    for _ in range(2):
        check(session, attention, inputs)
    device, deadline = device_of(session), time.monotonic() + 60
    while device.measuring.is_busy or device.background.is_busy:
        check(session, attention, inputs)
        seen.add(device.gate.is_up)
        assert time.monotonic() < deadline, "measuring takes too long"
    assert seen == {True, False}
    check(session, attention, inputs)


def test_a_device_that_refuses_changes_nothing(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("no memory for noise")

    monkeypatch.setattr(trials, "FEWEST_BYTES", 0)
    monkeypatch.setattr(Slices, "compare", refuse)
    session = attention.session(device="cuda", cache=False)
    inputs = words(rng, 2, 9)
    measured(session, attention, inputs)
    assert not device_of(session).gate.is_up
    assert kinds(gpu, lambda: check(session, attention, inputs)) == {"special"}


def test_a_slice_is_short_and_pauses_are_long(
    gpu: Driver, rng: np.random.Generator, attention: whet.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = attention.session(device="cuda", cache=False, tune=0)
    inputs = words(rng, 2, 9)
    measured(session, attention, inputs)
    device, kernels = device_of(session), executable(session).kernels
    kernel = next(k for k in kernels if isinstance(k, Template))
    special: Any = device.specialised(kernel, {"batch": 2, "length": 9}, False)
    device.compile([special], idle=True)
    pauses, closed = list[float](), list[bool]()
    monkeypatch.setattr(gate, "PATIENCE", 60)
    with device.context:
        bench = Slices(device, pause=pauses.append)

    def elapsed(first: int, last: int) -> tuple[int, float]:
        closed.append(not is_free(device.gate))
        return 0, 1e3 * SLICE / 4.5 * (len(gpu.launched) - launched)

    monkeypatch.setattr(gpu, "cuEventElapsedTime", elapsed, raising=False)
    launched = len(gpu.launched)
    with device.context:
        graph, turns = bench._graph(special.known, device.object_of(special)) or (None, 0)
    assert turns == 4 <= TURNS
    assert graph is not None and len(graph.calls) == turns
    launched = len(gpu.launched)
    with device.context:
        seconds = bench._slice(graph)
    assert all(closed), "runs may not be on the device meanwhile"
    assert is_free(device.gate)
    assert seconds == pytest.approx(SLICE * turns / 4.5)
    assert all(pause >= PAUSE for pause in pauses)
    launched -= 4 * turns * 1000  # a slice that takes long
    with device.context:
        assert bench._slice(graph) * (1 / SHARE) == pytest.approx(pauses[-1])


def test_memory_stays_while_ways_are_compared(
    gpu: Driver, attention: whet.Engine, rng: np.random.Generator
) -> None:
    """A way that needs more scratch takes other memory; those before keep theirs."""
    session = attention.session(device="cuda", cache=False, tune=0)
    measured(session, attention, words(rng, 2, 9))
    device = device_of(session)
    kernel = next(k for k in executable(session).kernels if isinstance(k, Template))
    special: Any = device.specialised(kernel, {"batch": 2, "length": 9}, False)
    device.compile([special], idle=True)
    with device.context:
        bench = Slices(device, pause=lambda _: None)
    with device.context:
        graph, _ = bench._graph(special.known, device.object_of(special)) or (None, 0)
        before = bench.scratch.pointer
        bench._zeros(0, 1 << 24)
    assert bench.scratch.pointer != before
    assert graph is not None and before in {held[-1].pointer for held in bench._held}


@needs_triton
def test_ways_have_other_tiles(rng: np.random.Generator) -> None:
    architecture = Architecture.parse("sm90")
    from whet.targets.cuda.device import Device

    engine = whet.build(transformer(rng))
    from whet.ir.graph import Graph
    from whet.plan.legalize import legal
    from whet.plan.plan import make_plan
    from whet.runtime.ranges import ranges_of

    device = Device(architecture)
    graph: Graph = engine.graph.bind(ranges_of(engine.graph, ()).sizes)
    plan = make_plan(legal(graph, device), device.capabilities)
    kernel = next(s.kernel for s in plan.steps if isinstance(s.kernel, Template))
    sizes = tuple((name, 8) for name in kernel.sizes)
    texts = [Job(Way(kernel, sizes, rank)).text(architecture).text for rank in range(3)]
    assert len(set(texts)) == 3
    job = Job(Way(kernel, sizes, 1000))
    job.compile(architecture)
    assert isinstance(job.error, CompileError) and not job.code


def test_what_could_not_be_measured_is_not_remembered(
    gpu: Driver, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Code that runs take is not refused but for want of memory: a later start tries again."""
    never = float("inf")
    monkeypatch.setattr(trials, "FEWEST_BYTES", 0)
    monkeypatch.setattr(Slices, "compare", lambda *_: [never] * (1 + MOST_OTHERS))
    cache, inputs = whet.Cache(tmp_path / "cache"), words(rng, 2, 9)
    for _ in range(2):
        attention = whet.build(transformer(np.random.default_rng(4)))
        session = attention.session(device="cuda", cache=cache)
        measured(session, attention, inputs)
        assert device_of(session).ways, "measured now"
        assert kinds(gpu, lambda s=session, e=attention: check(s, e, inputs)) == {"special"}


def test_a_session_that_ends_meanwhile_gives_its_memory_back(
    gpu: Driver, rng: np.random.Generator, timed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = transformer(np.random.default_rng(4)), words(rng, 2, 9)
    is_asked, goes_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> dict[Way, bytes]:
        is_asked.set()
        assert goes_on.wait(60)
        return {}

    monkeypatch.setattr(StubDevice, "compile_ways", wait)
    session = whet.build(model).session(device="cuda", cache=False)
    before = gpu.used
    for _ in range(2):
        session.run(inputs)
    assert is_asked.wait(60)
    assert gpu.used > before
    del session
    gc.collect()
    taken = gpu.used
    goes_on.set()
    assert taken < before, "what is measured holds no memory of runs"


def test_nothing_is_measured_where_memory_is_short(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    timed: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "whet.cuda")
    for free in (-1, 0):
        session = attention.session(device="cuda", cache=False)
        least = LEAST_FREE * 2 * region(device_of(session).context)
        monkeypatch.setattr(gpu, "cuMemGetInfo", lambda n=free + least: (0, n, TOTAL))
        measured(session, attention, words(rng, 2, 9))
        assert hasattr(device_of(session), "ways") == (free == 0)
    (record,) = (r for r in caplog.records if "measured" in r.message)
    assert record.message.endswith("takes 16 MB, and 67 MB of the device are free")


@pytest.mark.parametrize("fails", [False, True])
def test_what_measuring_takes_comes_back(
    gpu: Driver,
    rng: np.random.Generator,
    attention: whet.Engine,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    taken, measure = list[int](), Slices._slice

    def measured_once(self: Slices, graph: Any) -> float:
        taken.append(gpu.used)
        if fails:
            raise MemoryError("no memory")
        return measure(self, graph)

    monkeypatch.setattr(trials, "FEWEST_BYTES", 0)
    monkeypatch.setattr(Slices, "_slice", measured_once)
    session, inputs = attention.session(device="cuda", cache=False), words(rng, 2, 9)
    check(session, attention, inputs)
    before = gpu.used
    measured(session, attention, inputs)
    assert min(taken) >= before + 2 * region(device_of(session).context)
    assert gpu.used == before
