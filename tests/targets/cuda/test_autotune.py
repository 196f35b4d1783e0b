"""Ways to run kernels, measured while others are compiled: which are tried, and which stay."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.targets.cuda.contractions import problem
from tests.targets.cuda.stub import StubDevice, stubbed
from tests.targets.cuda.stub_driver import Driver
from tests.targets.cuda.test_libraries import template
from whet.engine.weights import ImportedWeights
from whet.knobs import knobs
from whet.ops.contract import MatMul
from whet.ops.elementwise import Max
from whet.plan.kernel import Kernel, Template
from whet.runtime.ahead import compile_ahead
from whet.runtime.cache import Cache
from whet.runtime.devices import compiler_for
from whet.runtime.program import Runner
from whet.targets.cuda import autotune, codegen, cublas, cudnn, driver, workers
from whet.targets.cuda import device as devices
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.autotune import FEWEST_SECONDS, MOST_OTHERS, Autotuner
from whet.targets.cuda.workers import Job, compile_all

SM90 = Architecture.parse("sm90")
THEIRS = b"whet library theirs"


class Bench:
    """Times that a test says."""

    times: dict[bytes, float]
    wrong: set[bytes]

    def __init__(self, context: Any) -> None:
        pass

    def seconds(self, kernel: Template, code: bytes) -> float:
        return self.times[code]

    def agrees(self, kernel: Template, ours: bytes, theirs: bytes) -> bool:
        assert ours
        return theirs not in self.wrong


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bench]]:
    monkeypatch.setattr(autotune, "Bench", Bench)
    monkeypatch.setattr(Job, "name", property(lambda job: "lt" if job.is_library else "ours"))
    for maker in (cublas, cudnn):
        monkeypatch.setattr(maker, "ways", lambda context, kernel: [])
        monkeypatch.setattr(maker, "version", lambda: 1)
    Bench.times, Bench.wrong = {}, set()
    yield Bench


def square(n: int) -> Template:
    return template(problem(f"p{n}", MatMul(), (n, n), (n, n)))


def tuner(
    kernels: list[Template],
    seconds: float = 60,
    counts: Counter[Kernel] | None = None,
    moving: Any = (),
) -> Autotuner:
    context: Any = nullcontext()
    until = time.monotonic() + seconds
    first: dict[Kernel, Job] = {kernel: Job(kernel) for kernel in kernels}
    return Autotuner(context, first, counts or Counter(kernels), SM90, until, moving)


def done(job: Job | None, code: bytes, seconds: float) -> Job:
    """A job whose code is there, and how long it takes."""
    assert job is not None
    job.code, Bench.times[code] = code, seconds
    return job


def test_the_next_way_is_of_the_kernel_that_may_gain_most(bench: type[Bench]) -> None:
    slow, often, quick, small = (square(n) for n in (1024, 512, 768, 64))
    made = tuner([slow, often, quick, small], counts=Counter({slow: 1, often: 5, quick: 9}))
    assert small not in made.ways, "it reaches too little"
    for number, (kernel, seconds) in enumerate(
        ((slow, 40e-6), (often, 10e-6), (quick, FEWEST_SECONDS / 2))
    ):
        done(made.ways[kernel][0], bytes([number]), seconds)
    while made.work():
        pass
    taken: list[Template] = []
    while (job := made.next()) is not None:
        (kernel,) = (k for k, jobs in made.ways.items() if job in jobs)
        taken.append(kernel)
    # 5 x 10 us, then 40 / 1, then 50 / 2, 40 / 2, and so on.
    assert taken[:4] == [often, slow, often, slow]
    assert Counter(taken) == {often: MOST_OTHERS, slow: MOST_OTHERS}
    tiles = codegen.tiles(slow, SM90)
    assert [job.tile for job in made.ways[slow]] == [None, *tiles[1 : 1 + MOST_OTHERS]]


def test_when_time_is_up_nothing_else_is_begun(
    bench: type[Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cublas, "ways", lambda context, kernel: pytest.fail("too late"))
    kernel = square(1024)
    made = tuner([kernel], seconds=-1)
    assert made.next() is None and not made.work()
    first = done(made.ways[kernel][0], b"first", 1.0)
    assert made.chosen() == {kernel: first}


def test_the_fastest_way_stays(bench: type[Bench]) -> None:
    kernel = square(1024)
    made = tuner([kernel])
    done(made.ways[kernel][0], b"first", 20e-6)
    ways = [made.next(), made.next(), made.next()]
    second = done(ways[0], b"second", 12e-6)
    done(ways[1], b"third", 14e-6)
    assert made.chosen() == {kernel: second}, "the last one was not compiled"
    assert set(made.seconds) == {*made.ways[kernel]} - {ways[2]}


@pytest.mark.parametrize(
    ("seconds", "wrong", "moving", "taken"),
    [
        (10e-6, False, False, True),
        (18e-6, False, False, False),  # 2 of 120 us
        (10e-6, True, False, False),
        (10e-6, False, True, False),
    ],
    ids=["faster", "hardly", "wrong", "moving"],
)
def test_a_library_has_to_gain_for_all(
    bench: type[Bench],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    wrong: bool,
    moving: bool,
    taken: bool,
) -> None:
    large, other = square(1024), square(512)
    asked: list[Template] = []

    def ways(context: Any, kernel: Template) -> list[bytes]:
        asked.append(kernel)
        return [THEIRS] if kernel is large else []

    monkeypatch.setattr(cublas, "ways", ways)
    made = tuner([other, large], moving={large} if moving else ())
    bench.times[THEIRS] = seconds
    bench.wrong = {THEIRS} if wrong else set()
    assert made.work() and not made.work(), "what is not measured may be too quick to ask about"
    done(made.ways[other][0], b"other", 100e-6)
    first = done(made.ways[large][0], b"first", 20e-6)
    chosen = made.chosen()[large]
    assert asked == ([other] if moving else [other, large]), "what takes longest comes first"
    assert (chosen.code == THEIRS) == taken and (chosen is first) == (not taken)


def test_others_are_compiled_by_workers_and_measured_meanwhile(
    bench: type[Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_processors", lambda: 2)
    kernel = template(problem("p", lambda a, b: Max()(MatMul()(a, b), 0.0), (256, 256), (256, 256)))
    made = tuner([kernel])
    monkeypatch.setattr(made, "_time", lambda kernel, unknown: 1.0)
    monkeypatch.setattr(bench, "seconds", lambda self, kernel, code: 1 / len(code))
    jobs, steps = [made.ways[kernel][0]], list[None]()
    compile_all(jobs, SM90, lambda: steps.append(None), made)
    assert len(steps) == 1 and all(job.code for job in made.ways[kernel])
    assert len(made.ways[kernel]) == 1 + MOST_OTHERS
    assert made.chosen()[kernel] is max(made.ways[kernel], key=lambda job: len(job.code))


def test_workers_give_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = template(problem("p", MatMul(), (96, 64), (64, 80)))
    tiles = codegen.tiles(kernel, SM90)[:4]
    jobs, here = ([Job(kernel, tile=tile) for tile in tiles] for _ in range(2))
    monkeypatch.setattr(workers, "_processors", lambda: 9)  # so many that all is sent away
    compile_all(jobs, SM90)
    for job in here:
        job.compile(SM90)
    assert [job.code for job in jobs] == [job.code for job in here]


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as driver:
        yield driver


def test_the_gpu_at_hand_measures_what_an_engine_keeps(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "is_installed", lambda: True)
    with knobs.override(tune=2.5):
        device: Any = compiler_for("current")
        assert device.architecture == SM90 and device.tune == 2.5
        other: Any = compiler_for("sm90")
        assert other.tune == 0, "what is built without a GPU is the same everywhere"


def test_what_measures_has_a_current_context(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    theirs = 1234

    def compile_all(jobs: Any, architecture: Any, step: Any, others: Any, idle: bool) -> None:
        others.work()
        gpu.stack[-1] = theirs  # by who is told of a step
        for job in jobs:
            job.code = b"code"

    monkeypatch.setattr(devices, "compile_all", compile_all)
    monkeypatch.setattr(Autotuner, "_work", lambda self: bool(seen.append(gpu.stack[-1])))
    kernel = square(1024)
    device = devices.Device(SM90, tune=1.0)
    assert device.objects([kernel]) == {kernel: b"code"}
    assert seen == [device.context.number] * 2
    assert gpu.stack[-1] == theirs


def test_a_session_with_more_time_tries_other_ways(
    bench: type[Bench], gpu: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once all are tried, none does."""
    codes, compiled = (b"%d" % n for n in range(99)), list[int]()
    bench.times = {b"%d" % n: 1 / (n + 1) for n in range(99)}

    def compile_all(jobs: Any, architecture: Any, step: Any, others: Any, idle: bool) -> None:
        asked = [*jobs, *iter(others.next, None)] if others else list(jobs)
        compiled.append(len(asked))
        for job in asked:
            job.code = next(codes)

    monkeypatch.setattr(devices, "compile_all", compile_all)
    kernel, found = square(1024), list[bytes]()
    for tune in (0, 1e-9, 1e-9, 60, 60):
        device = devices.Device(SM90, Cache(tmp_path), tune=tune)
        found += device.objects([kernel]).values()
    assert compiled == [1, 0, MOST_OTHERS]
    assert found == [b"0"] * 3 + [b"%d" % MOST_OTHERS] * 2


def test_as_many_workers_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    class Crew:
        def __init__(self, *given: Any) -> None: ...

        def compile(self, jobs: Any, helpers: int, step: Any, waits: bool, work: Any) -> None:
            asked.append((helpers, waits))

    monkeypatch.setattr(workers, "Crew", Crew)
    jobs = [Job(square(64))] * 9
    for processors in (1, 2, 6, 16):
        monkeypatch.setattr(workers, "_processors", lambda n=processors: n)
        compile_all(jobs, SM90)
        compile_all(jobs, SM90, idle=True)
    # In turns: for a run that waits, and idle.
    assert asked[::2] == [(0, False), (1, False), (5, False), (8, True)]
    assert asked[1::2] == [(1, True), (1, True), (4, True), (4, True)]
    with knobs.override(compile_workers=4):
        compile_all(jobs, SM90)
    assert asked[-1] == (4, True)


def twice(x: Any) -> Any:
    return MatMul()(x, x)


def test_kernels_whose_buffers_move_are_told(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Noting(StubDevice):
        def compile(self, kernels: Any, idle: bool = False, moving: Any = ()) -> None:
            told.append(set(moving))
            super().compile(kernels, idle, moving)

    made = problem(
        "three",
        lambda a, b: MatMul()(twice(MatMul()(a, b)), b),
        *((32, 32), (32, 32)),
    )
    runner = Runner(Noting(SM90), ImportedWeights({}), 1)
    runner.execute(made.graph, made.arrays)
    (plan,) = runner.plans
    within = [
        step.kernel
        for step in plan.steps
        if not {*plan.graph.inputs, *plan.graph.outputs} & {*step.reads, *step.writes}
    ]
    assert within and told[0] == set(plan.kernels) - set(within)


def test_what_an_engine_keeps_is_measured_as_a_session_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which buffers move, and how often each kernel runs."""
    told: list[Any] = []

    def compile_here(self: Any, kernels: Any, idle: bool = False, moving: Any = ()) -> None:
        told.append((Counter(kernels), set(moving)))
        self._objects.update(dict.fromkeys(kernels, b"code"))

    monkeypatch.setattr(devices.Device, "compile", compile_here)
    made = problem(
        "chain",
        lambda x, w: MatMul()(MatMul()(MatMul()(MatMul()(x, w), w), w), w),
        *((32, 32), (32, 32)),
    )
    device = devices.Device(SM90)
    kept = compile_ahead(made.graph, device)
    ((counts, moving),) = told
    (kernel,) = counts
    assert kept == {device.key(kernel): b"code"}
    assert counts == {kernel: 4} and moving == {kernel}
