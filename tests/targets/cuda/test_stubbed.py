"""Runs, memory and weights of a GPU that is not there: stub.py and stub_driver.py say what is."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from benchmarks.gpu_time import LAUNCHES, graph_time
from tests.targets.cuda.stub import Tensor, TorchTensor, stubbed
from tests.targets.cuda.stub_driver import Driver
from whet.errors import IndexOutOfRange, InvalidInput, OutOfMemory
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Value
from whet.plan.plan import Step
from whet.targets.cuda import segments
from whet.targets.cuda.driver import ALIGNMENT
from whet.targets.cuda.memory import GRAIN, Heap

ROWS, COLUMNS = 6, 40
RNG = np.random.default_rng(3)
W = RNG.normal(size=(ROWS, COLUMNS)).astype(np.float32)


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as driver:
        yield driver


def model(weight: np.ndarray = W) -> onnx.ModelProto:
    """relu(x + 2 w), and of that the rows that i names."""
    nodes = [
        helper.make_node("Mul", ["w", "two"], ["v"]),
        helper.make_node("Add", ["x", "v"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
        helper.make_node("Gather", ["y", "i"], ["z"], name="pick"),
    ]
    shape = list(weight.shape)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("i", TensorProto.INT64, [3]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, *shape[1:]]),
    ]
    weights = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.float32(2), "two"),
    ]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, weights))


def open_session() -> whet.Session:
    return whet.build(model()).session(device="cuda", cache=False)


def drawn(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return {"x": x, "i": rng.integers(-ROWS, ROWS, 3)}


def check(got: dict[str, Any], inputs: dict[str, np.ndarray], w: np.ndarray = W) -> None:
    y = np.maximum(inputs["x"] + 2 * w, 0)
    np.testing.assert_array_equal(np.asarray(got["y"]), y)
    np.testing.assert_array_equal(np.asarray(got["z"]), y[inputs["i"]])


def test_sizes_of_results_without_elements(gpu: Driver) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 0]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "g", ends[:1], ends[1:])
    session = whet.build(helper.make_model(graph)).session(device="cuda", cache=False)
    for batch in (2, 2, 2, 3):
        (y,) = session.run({"x": np.zeros((batch, 0), np.float32)}).values()
        assert y.shape == (batch, 0)


@pytest.mark.parametrize("specialize", ["none", "lazy"])
def test_sizes_of_what_nothing_reads_come_back(gpu: Driver, specialize: str) -> None:
    """The plan has no sizes then, and its launches are those of every run."""
    given = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, COLUMNS]),
        helper.make_tensor_value_info("unread", TensorProto.FLOAT, ["batch", 4]),
    ]
    found = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "g", given, found)
    engine = whet.build(helper.make_model(graph))
    session = engine.session(device="cuda", cache=False, specialize=specialize)
    for _ in range(3):
        (y,) = session.run({"x": W, "unread": np.zeros((2, 4), np.float32)}).values()
        np.testing.assert_array_equal(y, np.exp(W))


def on_device(
    gpu: Driver, inputs: dict[str, np.ndarray], kind: type[Tensor] = Tensor
) -> dict[str, Any]:
    return {name: kind(gpu, array) for name, array in inputs.items()}


def test_arrays_of_the_host(gpu: Driver) -> None:
    session = open_session()
    for seed in range(4):
        got = session.run(drawn(seed))
        assert isinstance(got["y"], np.ndarray)
        check(got, drawn(seed))
    out = np.full((3, COLUMNS), np.nan, np.float32)
    check(session.run(drawn(9), out={"z": out}), drawn(9))
    assert not np.isnan(out).any()


def test_results_arrive_where_tensors_are_read_out(gpu: Driver) -> None:
    session, seen = open_session(), list[np.ndarray]()
    out = np.full((ROWS, COLUMNS), np.nan, np.float32)
    got = session.run(drawn(1), out={"y": out}, debug={"s": lambda s: seen.append(s.copy())})
    assert got["y"] is out
    check(got, drawn(1))
    np.testing.assert_array_equal(seen[0], drawn(1)["x"] + 2 * W)


@pytest.mark.parametrize("kind", [Tensor, TorchTensor])
@pytest.mark.parametrize("stream", [None, 77])
def test_inputs_at_other_addresses_each_time(
    gpu: Driver, stream: int | None, kind: type[Tensor]
) -> None:
    session = open_session()
    made = [on_device(gpu, drawn(seed), kind) for seed in range(6)]
    kept = [session.run(inputs, stream=stream) for inputs in made]
    assert gpu.counts["cuGraphInstantiate"] == 2, "what prepares, and what runs"
    for seed, got in enumerate(kept):
        check(got, drawn(seed))
    same = session.run(made[0], stream=stream)
    del kept
    before = gpu.counts.copy()
    for _ in range(3):
        same = session.run(made[0], stream=stream)
    check(same, drawn(0))
    assert gpu.counts["cuMemAllocAsync"] == before["cuMemAllocAsync"], "results find room again"
    # Only what is new is told to a graph: results change places by turns, inputs and weights stay.
    told = gpu.counts["cuGraphExecKernelNodeSetParams"] - before["cuGraphExecKernelNodeSetParams"]
    assert told <= 3 * 2
    assert bool(gpu.counts["data_ptr"]) == (kind is TorchTensor and stream is not None)


def test_the_short_way_is_for_what_was_seen_before(gpu: Driver) -> None:
    session = open_session()
    inputs = on_device(gpu, drawn(1), TorchTensor)
    for _ in range(3):
        check(session.run(inputs, stream=5), drawn(1))
    small = on_device(gpu, {**drawn(1), "x": drawn(1)["x"][:2]}, TorchTensor)
    with pytest.raises(InvalidInput, match="shape"):
        session.run(small, stream=5)
    wide = on_device(gpu, {**drawn(1), "x": drawn(1)["x"].astype(np.float64)}, TorchTensor)
    with pytest.raises(InvalidInput, match="float64"):
        session.run(wide, stream=5)
    bad = on_device(gpu, {**drawn(1), "i": np.array([0, ROWS + 1, 1])}, TorchTensor)
    got = session.run(bad, stream=5)
    with pytest.raises(IndexOutOfRange, match="pick"):
        np.asarray(got["z"])
    seen = session.trace(inputs)
    assert len(seen.steps) == len(session.plans[-1].steps)
    out = np.zeros((ROWS, COLUMNS), np.float32)
    check(session.run(inputs, stream=5, out={"y": out}), drawn(1))
    check({"y": out, "z": session.run(inputs, stream=5)["z"]}, drawn(1))


def test_sizes_that_a_run_tells(gpu: Driver) -> None:
    made = model()
    for tensor in (*made.graph.input, *made.graph.output):
        if tensor.name in "xy":
            tensor.type.tensor_type.shape.dim[0].dim_param = "rows"
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(W[:1], "w"))
    session = whet.build(made).session(device="cuda", cache=False)
    for turn in range(3):
        for rows in (2, 5):
            inputs = {"x": drawn(turn)["x"][:rows], "i": np.array([0, -1, 1])}
            check(session.run(on_device(gpu, inputs, TorchTensor), stream=5), inputs, W[:1])
    assert len(session.plans) == 1


def test_only_a_run_without_a_stream_waits(gpu: Driver) -> None:
    session = open_session()
    inputs = on_device(gpu, drawn(1))
    session.run(inputs, stream=5)
    before = gpu.counts["cuStreamSynchronize"]
    for _ in range(3):
        session.run(inputs, stream=5)
    assert gpu.counts["cuStreamSynchronize"] == before
    session.run(inputs)
    assert gpu.counts["cuStreamSynchronize"] > before


def test_what_a_stream_still_has_to_copy_stays(gpu: Driver) -> None:
    slow, late = set[int](), list[Callable[[], object]]()

    def catch_up(stream: int = 0) -> int:
        while late:
            late.pop(0)()
        return 0

    def lagging(call: Callable[..., object]) -> Callable[..., object]:
        def asked(*arguments: int) -> object:
            if arguments[-1] in slow:
                return late.append(lambda: call(*arguments))
            catch_up()
            return call(*arguments)

        return asked

    for name in ("cuMemcpyHtoDAsync", "cuGraphLaunch"):
        setattr(gpu, f"direct_{name}", lagging(getattr(gpu, f"direct_{name}")))
    gpu.direct_cuStreamSynchronize = catch_up  # type: ignore[method-assign]
    session, there = open_session(), on_device(gpu, drawn(1))
    for _ in range(2):  # graphs are made
        session.run(there, stream=5)
    slow.add(5)
    got = session.run({**there, "x": drawn(1)["x"]}, stream=5)
    assert late
    check(session.run(drawn(9)), drawn(9))
    check(got, drawn(1))


def test_addresses_that_kernels_cannot_read_from(gpu: Driver) -> None:
    session = open_session()
    inputs = on_device(gpu, drawn(2))
    room = Tensor(gpu, np.concatenate([np.float32([0]), drawn(2)["x"].reshape(-1)]))
    inputs["x"].pointer = room.pointer + 4
    check(session.run(inputs), drawn(2))


def test_indices_outside(gpu: Driver) -> None:
    session = open_session()
    bad = {**drawn(1), "i": np.array([0, ROWS + 1, 1])}
    for _ in range(2):
        with pytest.raises(IndexOutOfRange, match="pick"):
            session.run(bad)
        check(session.run(drawn(1)), drawn(1))
    got = session.run(on_device(gpu, bad), stream=5)
    with pytest.raises(IndexOutOfRange, match="pick"):
        np.asarray(got["z"])
    check(session.run(on_device(gpu, drawn(3)), stream=5), drawn(3))


def test_how_near_kernels_are_to_the_limit(gpu: Driver) -> None:
    found = open_session().inspect(drawn(1), runs=2)
    assert found.limits is not None
    assert found.limits.bytes == 2 * 3_201e6 * 6144 / 8
    assert found.limits.operations["float16"] == 2 * 1.98e9 * 132 * 2048
    assert all(kernel.least and kernel.bound == "memory" for kernel in found.kernels)


def test_many_threads(gpu: Driver) -> None:
    session = open_session()
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for seed in range(first, first + 10):
                check(session.run(drawn(seed)), drawn(seed))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_refit(gpu: Driver) -> None:
    engine = whet.build(model())
    session = engine.session(device="cuda", cache=False)
    inputs = on_device(gpu, drawn(1))
    check(session.run(inputs), drawn(1))
    engine.refit({"w": -W})
    check(session.run(inputs), drawn(1), -W)


def test_preparing_leaves_only_what_it_made(gpu: Driver) -> None:
    gc.disable()  # what goes only with the collector stays for who knows how long
    try:
        session = open_session()
        assert session._runner.device.heap.taken == gpu.used == GRAIN
        loaded = gpu.counts["cuModuleLoadData"]
        assert loaded == gpu.counts["cuModuleUnload"] > 0
        session.run(drawn(1))
        assert gpu.used == GRAIN, "the arena, inputs and results lie beside the weights"
        steps = len(session.plans[-1].steps)
        assert gpu.counts["cuModuleLoadData"] - loaded == steps
    finally:
        gc.enable()
    del session
    gc.collect()
    assert gpu.used == 0


def test_streams_outlive_the_runs_that_the_collector_finds(gpu: Driver) -> None:
    for _ in range(3):
        sessions = [open_session() for _ in range(3)]
        for session in sessions:
            check(session.run(drawn(1)), drawn(1))
        del session, sessions
        gc.collect()
    assert not gpu.ended


@pytest.mark.parametrize("columns", [40, 70_000, 200_000])
def test_what_is_taken_is_foreseen(gpu: Driver, columns: int) -> None:
    w = RNG.normal(size=(ROWS, columns)).astype(np.float32)
    session = whet.build(model(w)).session(device="cuda", cache=False)
    foreseen = session.inspect().footprint
    x = RNG.normal(size=w.shape).astype(np.float32)
    check(session.run({"x": x, "i": drawn(1)["i"]}), {"x": x, "i": drawn(1)["i"]}, w)
    gc.collect()
    assert foreseen is not None
    assert gpu.used == foreseen.taken - foreseen.code
    assert foreseen.weights >= w.nbytes and foreseen.staged >= x.nbytes + w.nbytes


def test_a_weight_that_is_an_output_is_nothing_that_passes(gpu: Driver) -> None:
    shape = [64, 4096]
    nodes = [
        helper.make_node("Add", ["x", "w"], ["sum"]),
        *(helper.make_node("Softmax", [a], [b]) for a, b in pairwise(["sum", "p", "q", "y"])),
        helper.make_node("Identity", ["w"], ["same"]),
    ]
    x, y, same = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ["x", "y", "same"]
    )
    w = RNG.normal(size=shape).astype(np.float32)
    graph = helper.make_graph(nodes, "g", [x], [y, same], [numpy_helper.from_array(w, "w")])
    session = whet.build(helper.make_model(graph)).session(device="cuda", cache=False)
    got = session.run({"x": np.zeros(shape, np.float32)})
    np.testing.assert_array_equal(np.asarray(got["same"]), w)
    (plan,), footprint = session.plans, session.inspect().footprint
    assert footprint is not None and footprint.weights == w.nbytes
    weight = plan.graph.outputs[1]
    assert weight.is_static and weight not in plan.guests
    passing = {*plan.graph.inputs, plan.graph.outputs[0]} - plan.guests.keys()
    assert footprint.staged == len(passing) * w.nbytes
    gc.collect()
    assert gpu.used == footprint.taken - footprint.code


def branched() -> onnx.ModelProto:
    """Gathers of gathers of x, in branches that meet."""
    rng = np.random.default_rng(8)
    nodes, weights, ends = [], [], []
    for branch in range(4):
        name = "x"
        for number in range(branch + 1):
            index = numpy_helper.from_array(rng.permutation(ROWS), f"i{branch}{number}")
            weights.append(index)
            nodes.append(helper.make_node("Gather", [name, index.name], [f"g{branch}{number}"]))
            name = f"r{branch}{number}"
            nodes.append(helper.make_node("Relu", [f"g{branch}{number}"], [name + "0"]))
            nodes.append(helper.make_node("CumSum", [name + "0", "axis"], [name]))
        ends.append(name)
    weights.append(numpy_helper.from_array(np.int64(1), "axis"))
    nodes.append(helper.make_node("Concat", ends, ["y"], axis=0))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, COLUMNS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4 * ROWS, COLUMNS])
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights))


@pytest.mark.parametrize("tune", [0.0, 1.0])
def test_branches_overlap_where_that_is_faster(gpu: Driver, tune: float) -> None:
    engine = whet.build(branched())
    judge = engine.session(device="cpu", cache=False)
    session = engine.session(device="cuda", cache=False, tune=tune)
    launches = len(session.plans[-1].steps)
    for seed in range(8):
        x = {"x": drawn(seed)["x"]}
        np.testing.assert_allclose(session.run(x)["y"], judge.run(x)["y"], rtol=1e-5)
        if seed:  # the first run is launch after launch
            assert (gpu.depth < launches) == (tune > 0)


def test_branches_that_give_other_bits_go_in_order(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(segments, "predecessors", lambda uses: [()] * len(uses))
    engine = whet.build(branched())
    judge = engine.session(device="cpu", cache=False)
    session = engine.session(device="cuda", cache=False, tune=1.0)
    for seed in range(4):
        x = {"x": drawn(seed)["x"]}
        np.testing.assert_allclose(session.run(x)["y"], judge.run(x)["y"], rtol=1e-5)
    assert gpu.depth == len(session.plans[-1].steps) and "other bits" in caplog.text


def heap() -> tuple[Heap, dict[int, int]]:
    blocks: dict[int, int] = {}

    def allocate(size: int) -> int:
        at = 1 << 30 if not blocks else max(a + s for a, s in blocks.items())  # they touch
        blocks[at] = size
        return at

    return Heap(allocate, blocks.pop), blocks


def test_pieces_of_a_heap_never_overlap() -> None:
    rng = np.random.default_rng(5)
    made, blocks = heap()
    pieces: list[Any] = []
    for _ in range(2000):
        if pieces and rng.random() < 0.5:
            pieces.pop(int(rng.integers(len(pieces))))
        else:
            pieces.append(made.take(int(rng.integers(0, 3 << 20))))
        spans = sorted((p.pointer, p.pointer + p.size) for p in pieces)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        for start, end in spans:
            assert any(at <= start and end <= at + size for at, size in blocks.items())
    pieces.clear()
    kept = made.take(1)
    assert kept.size == ALIGNMENT and len(blocks) == 1 and made.taken == GRAIN


def test_pieces_that_come_back_are_waited_for() -> None:
    made, _ = heap()
    waits: list[int] = []
    made.settle = lambda: waits.append(1)
    kept, piece = made.take(100), made.take(100)
    assert not waits
    del piece
    piece = made.take(100)
    assert waits == [1] and kept.pointer != piece.pointer
    made.take(100)
    assert waits == [1]


def test_too_much_memory(gpu: Driver) -> None:
    session = open_session()
    with pytest.raises(OutOfMemory, match="allocating"):
        session._runner.device.heap.take(1 << 40)
    check(session.run(drawn(1)), drawn(1))


def test_the_time_of_a_sessions_graphs(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    session, launched, launch = open_session(), [], segments.Graph.launch
    session.run({"x": np.ones_like(W), "i": np.array([0, 1, 2])})
    monkeypatch.setattr(
        segments.Graph,
        "launch",
        lambda graph, stream: (launched.append(graph), launch(graph, stream)),
    )
    assert graph_time(session) > 0
    assert len(launched) == LAUNCHES * len(set(map(id, launched))) > 0


def test_the_last_free_context_may_be_taken_between_two_looks(gpu: Driver) -> None:
    """As threads that run at once see it."""

    class Taken(list[Any]):
        def __bool__(self) -> bool:
            return True

    session = open_session()
    (stage,) = session._runner._compiled
    executable: Any = stage.program.executable
    executable._free = Taken()
    inputs = drawn(1)
    check(session.run(inputs), inputs)
    assert len(executable._free) == 1


def test_each_step_is_seen_before_others_write_over_it(gpu: Driver) -> None:
    shape, names = [64, 64], [f"t{n}" for n in range(6)]
    nodes = [
        helper.make_node("Softmax", [before], [name], axis=number % 2)
        for number, (before, name) in enumerate(pairwise(["x", *names]))
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", names[-1])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    session = whet.build(helper.make_model(graph)).session(device="cuda", cache=False)
    x = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    seen: dict[Value, np.ndarray] = {}

    def look(step: Step, values: Mapping[Value, Any]) -> None:
        seen.update((value, np.array(values[value])) for value in step.writes)

    session.trace({"x": x}, look)
    (plan,) = session.plans
    assert len(seen) > len({plan.offsets[value] for value in seen if value in plan.offsets})
    for value, array in seen.items():
        graph = Graph(plan.graph.inputs, (value,))
        (want,) = evaluate(graph, dict(zip(plan.graph.inputs, [x])))
        np.testing.assert_allclose(array, want, rtol=1e-5)
