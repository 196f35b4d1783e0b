"""Inputs and outputs of the host pass through the arena of a GPU that is not there: results are
right in any order of branches, and nothing but weights and the arena takes memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import whet
from benchmarks.gpu_time import graph_time
from tests.plan.test_guests import COLUMNS, drawn, given
from tests.targets.cuda.stub import Tensor, stubbed
from tests.targets.cuda.stub_driver import Driver
from whet.engine.weights import ImportedWeights
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, Op, Value, make, operator
from whet.ir.types import TensorType
from whet.ops.movement import Concat, Gather
from whet.ops.reduce import Cumulative, Softmax
from whet.runtime.engine import Engine
from whet.targets.cuda.driver import Stream
from whet.targets.cuda.memory import GRAIN, aligned
from whet.targets.cuda.order import predecessors


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as driver:
        yield driver


@operator
class Backwards(Op):
    """Rows from the last to the first, which no kernel knows."""

    def infer(self, x: TensorType) -> TensorType:
        return x

    def reference(self, x: np.ndarray) -> np.ndarray:
        return x[::-1]


def summed(x: Value, times: int = 1) -> Value:
    for _ in range(times):
        x = Cumulative("sum", 1)(x)
    return x


def opened(graph: Graph, **options: Any) -> whet.Session:
    engine = Engine(graph, ImportedWeights({}))
    return engine.session(device="cuda", cache=False, **options)


def feeds(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        v.op.name: rng.normal(0, 0.1, [int(n) for n in v.shape]).astype(np.float32)  # type: ignore[attr-defined]
        for v in graph.inputs
    }


def check(got: dict[str, Any], graph: Graph, inputs: dict[str, np.ndarray]) -> None:
    want = evaluate(graph, dict(zip(graph.inputs, inputs.values())))
    for name, array in zip(graph.output_names, want):
        np.testing.assert_allclose(np.asarray(got[name]), array, rtol=1e-4, atol=1e-5)


def branched(rows: int = 40) -> Graph:
    """Branches of several lengths that start with x, and meet."""
    x = given("x", rows)
    ends = [Softmax()(summed(x, 1 + branch)) for branch in range(4)]
    return Graph((x,), (summed(Concat(0)(*ends), 2),), ("y",))


@pytest.mark.parametrize("tune", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(gpu: Driver, seed: int, tune: float) -> None:
    graph = drawn(np.random.default_rng(seed))
    session = opened(graph, tune=tune)
    for turn in range(5):
        inputs = feeds(graph, turn)
        check(session.run(inputs), graph, inputs)
        tensors: dict[str, Any] = {name: Tensor(gpu, array) for name, array in inputs.items()}
        check(session.run(tensors), graph, inputs)
        first = next(iter(inputs))
        check(session.run({**tensors, first: inputs[first]}, stream=5), graph, inputs)


@pytest.mark.parametrize("tensors", [False, True])
def test_branches_are_timed_on_inputs_that_are_there(
    gpu: Driver, tensors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, upload = set[int](), Stream.upload
    monkeypatch.setattr(
        Stream, "upload", lambda s, to, *rest: (written.add(to), upload(s, to, *rest))
    )
    graph = branched()
    session = opened(graph, tune=1.0)
    assert graph.inputs[0].op in [v.op for v in session.plans[-1].guests]
    for seed in range(4):
        inputs = feeds(graph, seed)
        given = {"x": Tensor(gpu, inputs["x"])} if tensors else inputs
        check(session.run(given), graph, inputs)
        if tensors:
            assert given["x"].pointer not in written, "what is the caller's is only read"
    (stage,) = session._runner._compiled
    assert stage.program.executable._overlaps == {0: True}  # type: ignore[attr-defined]


def test_branches_behind_a_step_on_the_host_are_timed_on_what_it_gave(gpu: Driver) -> None:
    x = given("x", 40)
    between = Backwards()(summed(x, 2))
    ends = [Softmax()(summed(between, 1 + branch)) for branch in range(4)]
    graph = Graph((x,), (summed(Concat(0)(*ends), 2),), ("y",))
    session = opened(graph, tune=1.0)
    for seed in range(4):
        inputs = feeds(graph, seed)
        check(session.run(inputs), graph, inputs)
    (stage,) = session._runner._compiled
    assert True in stage.program.executable._overlaps.values()  # type: ignore[attr-defined]


def test_what_the_host_reads_later_and_writes(gpu: Driver) -> None:
    """Inputs that a step on the host reads when kernels are long done with them, outputs that it
    writes and kernels read, outputs in the middle, and an input that is an output."""
    x, z = given("x", 40), given("z", 40)
    far = summed(x + z, 5)
    late = Backwards()(x)
    middle = summed(far + late, 2)
    written = Backwards()(summed(z, 3))
    ends = (summed(middle + written, 3), written, x, middle)
    graph = Graph((x, z), ends, ("a", "b", "c", "d"))
    session = opened(graph, tune=1.0)
    for seed in range(4):
        inputs = feeds(graph, seed)
        check(session.run(inputs), graph, inputs)
        out = {n: np.full((40, COLUMNS), np.nan, np.float32) for n in "ad"}
        check(session.run(inputs, out=out), graph, inputs)
        check({**session.run(inputs), **out}, graph, inputs)
        check(session.run({"x": Tensor(gpu, inputs["x"]), "z": inputs["z"]}), graph, inputs)


def test_results_may_go_over_an_input(gpu: Driver) -> None:
    graph = branched()
    session = opened(graph)
    inputs = feeds(graph, 1)
    room = np.zeros((160, COLUMNS), np.float32)
    room[:40] = inputs["x"]
    session.run({"x": room[:40]}, out={"y": room})
    check({"y": room}, graph, inputs)


def test_memory_is_the_arena_alone(gpu: Driver) -> None:
    x = given("x", 20_000)
    graph = Graph((x,), (summed(x, 5),), ("y",))
    session = opened(graph)
    foreseen = session.inspect().footprint
    assert foreseen is not None and foreseen.staged == 0
    inputs = feeds(graph, 1)
    check(session.run(inputs), graph, inputs)
    gc.collect()
    assert gpu.used == foreseen.taken - foreseen.code == aligned(foreseen.arena, GRAIN)
    assert foreseen.arena < 2.1 * inputs["x"].nbytes, "which are four buffers of this size"


def test_what_does_not_fit_has_memory_of_its_own(gpu: Driver) -> None:
    """The input is needed to the end: it finds no room; a small output does."""
    x = given("x", 20_000)
    small = given("s", 1)
    y = summed(x, 4)
    graph = Graph((x, small), (y + x, summed(small)), ("y", "z"))
    session = opened(graph)
    foreseen = session.inspect().footprint
    inputs = feeds(graph, 1)
    check(session.run(inputs), graph, inputs)
    gc.collect()
    assert foreseen is not None and foreseen.staged >= inputs["x"].nbytes
    assert gpu.used == foreseen.taken - foreseen.code


def test_inputs_on_the_device_add_no_edge_and_no_memory(gpu: Driver) -> None:
    graph = branched()
    session = opened(graph, tune=1.0)
    inputs = feeds(graph, 1)
    for _ in range(2):
        check(session.run({"x": Tensor(gpu, inputs["x"])}), graph, inputs)
    (stage,) = session._runner._compiled
    (context,) = stage.program.executable._free  # type: ignore[attr-defined]
    assert not context.staging._kept
    assert context.room.sizes[0] == aligned(stage.program.plan.arena)
    (segment,) = context.launches.segments
    guests = stage.program.plan.guests
    assert guests
    steps = stage.program.plan.steps
    stage.program.plan.__dict__["guests"] = {}
    apart = opened_launches(session, context)
    stage.program.plan.__dict__["guests"] = guests
    assert predecessors(apart.segments[0].uses) == predecessors(segment.uses)
    assert len(predecessors(segment.uses)) == len(steps)


def opened_launches(session: whet.Session, context: Any) -> Any:
    """The launches of a context, made once more."""
    fresh = type(context)(context.plan, context.device, context.spans, None)
    with context.device.context:
        fresh.fix(context.device.heap.take, {})
    return fresh.launches


def test_addresses_that_kernels_cannot_read_from(gpu: Driver) -> None:
    graph = branched()
    session = opened(graph, tune=1.0)
    for seed in range(4):
        inputs = feeds(graph, seed)
        room = Tensor(gpu, np.concatenate([np.float32([0]), inputs["x"].reshape(-1)]))
        tensor = Tensor(gpu, inputs["x"])
        tensor.pointer = room.pointer + 4
        check(session.run({"x": tensor}, stream=7), graph, inputs)
        check(session.run(inputs), graph, inputs)


def test_many_threads(gpu: Driver) -> None:
    graph = branched()
    session = opened(graph)
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for seed in range(first, first + 8):
                inputs = feeds(graph, seed)
                check(session.run(inputs), graph, inputs)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_traces(gpu: Driver) -> None:
    graph = branched()
    session = opened(graph)
    inputs = feeds(graph, 3)
    seen = session.trace(inputs)
    assert len(seen.steps) == len(session.plans[-1].steps)
    check(session.run(inputs), graph, inputs)


def test_indices_are_there_when_a_session_is_timed(gpu: Driver) -> None:
    """Launched again without its inputs, a graph would find floats in the place of indices."""
    x = given("x", 40)
    i = make(Input("i", TensorType("int64", (40, COLUMNS // 4))), ())[0]
    first = summed(x, 2)
    picked = Gather(0)(first, i)
    graph = Graph((x, i), (summed(picked, 4),), ("y",))
    session = opened(graph)
    assert graph.inputs[1].op in [v.op for v in session.plans[-1].guests]
    inputs = feeds(graph, 1)
    inputs["i"] = np.random.default_rng(1).integers(0, 40, (40, COLUMNS // 4))
    for _ in range(2):
        check(session.run(inputs), graph, inputs)
        assert graph_time(session) > 0
        (stage,) = session._runner._compiled
        (context,) = stage.program.executable._free  # type: ignore[attr-defined]
        assert not any(context.error_words)
