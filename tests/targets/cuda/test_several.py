"""Two GPUs that are not there, in one process and on one thread: what concerns the current context
concerns the right one, and the caller's is left as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import whet
from tests.targets.cuda.stub import Tensor, TorchTensor, stubbed
from tests.targets.cuda.stub_driver import Driver
from tests.targets.cuda.test_staged import Backwards, feeds, summed
from tests.targets.cuda.test_stubbed import W, check, drawn, model
from whet.engine.weights import ImportedWeights
from whet.errors import DeviceError, InvalidSetting
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, make
from whet.ir.sizes import symbol
from whet.ir.types import TensorType
from whet.runtime.engine import Engine
from whet.targets.cuda.driver import Context

CALLERS = 12345
"""A context that is none of ours."""


@pytest.fixture
def gpus() -> Iterator[Driver]:
    with stubbed(devices=2) as found:
        yield found


def on(number: int, engine: whet.Engine, **options: Any) -> whet.Session:
    return engine.session(device=f"cuda:{number}", cache=False, **options)


def stream_on(gpus: Driver, number: int) -> int:
    """A stream of a caller's on a device."""
    made = gpus.new()
    gpus.owner[made] = Context.of(number).number
    return made


def tensors(
    gpus: Driver, number: int, inputs: dict[str, np.ndarray], kind: type[Tensor] = Tensor
) -> dict[str, Any]:
    return {name: kind(gpus, array, number) for name, array in inputs.items()}


@pytest.mark.parametrize("budget", [None, "50%"])
def test_the_callers_context_stays(gpus: Driver, budget: str | None) -> None:
    gpus.stack[-1] = CALLERS

    def stays() -> None:
        assert gpus.stack == [CALLERS]

    engine = whet.build(model())
    sessions = [on(n, engine, tune=1.0, weight_budget=budget) for n in (0, 1)]
    stays()
    kept: list[Any] = []
    for turn in range(3):
        for n, session in enumerate(sessions):
            check(session.run(drawn(turn)), drawn(turn))
            stays()
            for kind in (Tensor, TorchTensor):
                given = tensors(gpus, n, drawn(turn), kind)
                for stream in (None, 0, 1):
                    got = session.run(given, stream=stream)
                    stays()
                    kept.append(got["y"].copy())
                    kept.append(session.run({**given, "x": got["y"]}, stream=2))
                    stays()
                    kept.append(got["y"].__dlpack__(stream=1 - n))
                    check(got, drawn(turn))
                    stays()
    assert len(sessions[1].trace(drawn(1)).steps) == len(sessions[1].plans[-1].steps)
    stays()
    engine.refit({"w": -W})
    stays()
    check(sessions[1].run(drawn(1)), drawn(1), -W)
    sessions[0]._runner.device.trim()
    kept.clear()
    del got, given, session, sessions
    gc.collect()
    stays()


def test_no_context_is_left_where_there_was_none(gpus: Driver) -> None:
    session = on(1, whet.build(model()))
    check(session.run(drawn(1)), drawn(1))
    assert gpus.stack == [0]


def test_sizes_that_a_run_tells(gpus: Driver) -> None:
    x = make(Input("x", TensorType("float32", (symbol("n", 1), 8))), ())[0]
    engine = Engine(Graph((x,), (summed(x + 1.0, 2),), ("y",)), ImportedWeights({}))
    sessions = [on(n, engine) for n in (0, 1)]
    gpus.stack[-1] = CALLERS
    for rows in (3, 5, 3, 5, 3):
        inputs = {"x": np.full((rows, 8), rows, np.float32)}
        want = np.cumsum(np.cumsum(inputs["x"] + 1, 1), 1)
        for n, session in enumerate(sessions):
            np.testing.assert_allclose(session.run(inputs)["y"], want)
            given = tensors(gpus, n, inputs, TorchTensor)
            np.testing.assert_allclose(np.asarray(session.run(given, stream=0)["y"]), want)
            assert gpus.stack == [CALLERS]


def test_objects_of_another_device_that_end_within_a_run(gpus: Driver) -> None:
    """The collector may find a session at any moment."""
    engine = whet.build(model())
    first, second = on(0, engine), on(1, engine)
    check(first.run(drawn(1)), drawn(1))
    check(second.run(drawn(1)), drawn(1))
    others = {"session": first, "results": first.run(tensors(gpus, 0, drawn(1)), stream=0)}
    del first
    taken = gpus.used

    def look(*seen: Any) -> None:
        others.clear()
        gc.collect()

    second.trace(drawn(2), look)
    assert not others and gpus.used < taken
    check(second.run(drawn(2)), drawn(2))


def test_who_looks_at_a_run_may_choose_another_device(gpus: Driver) -> None:
    x = make(Input("x", TensorType("float32", (6, 8))), ())[0]
    graph = Graph((x,), (summed(Backwards()(summed(x, 2)), 2),), ("y",))
    session = on(1, Engine(graph, ImportedWeights({})))
    Context.of(0)
    inputs = feeds(graph, 1)
    seen = []

    def look(step: Any, *rest: Any) -> None:
        seen.append(step)
        gpus.stack[-1] = gpus.contexts[0] if gpus.contexts[0] != gpus.stack[-1] else CALLERS

    for _ in range(2):
        session.trace(inputs, look)
    (want,) = evaluate(graph, dict(zip(graph.inputs, inputs.values())))
    np.testing.assert_allclose(session.run(inputs)["y"], want, rtol=1e-5)
    assert len(seen) == 2 * len(session.plans[-1].steps) and gpus.stack == [0]


def test_pieces_that_come_back_wait_for_their_own_device(gpus: Driver) -> None:
    session = on(1, whet.build(model()))
    heap = session._runner.device.heap  # type: ignore[attr-defined]
    gpus.stack[-1] = Context.of(0).number
    kept, piece = heap.take(100), heap.take(100)
    del piece
    piece = heap.take(100)
    assert {*gpus.waited} == {Context.of(1).number} and kept.pointer != piece.pointer


def test_a_stream_of_another_device_is_refused(gpus: Driver) -> None:
    session = on(1, whet.build(model()))
    streams = [stream_on(gpus, n) for n in (0, 1)]
    given = tensors(gpus, 1, drawn(1))
    check(session.run(given, stream=streams[1]), drawn(1))
    with pytest.raises(InvalidSetting, match=r"is not one of cuda:1, .*device=1"):
        session.run(given, stream=streams[0])
    check(session.run(given, stream=0), drawn(1))


def test_a_result_may_be_taken_over_by_a_stream_of_another_device(gpus: Driver) -> None:
    """Waiting is allowed across devices."""
    session = on(1, whet.build(model()))
    given = tensors(gpus, 1, drawn(1))
    y = session.run(given, stream=stream_on(gpus, 1))["y"]
    before = gpus.counts["cuStreamWaitEvent"]
    y.__dlpack__(stream=stream_on(gpus, 0))
    assert gpus.counts["cuStreamWaitEvent"] == before + 1


def test_one_device_is_lost(gpus: Driver) -> None:
    """The other one goes on, and what ends on the lost one does so without a word."""
    engine = whet.build(model())
    sessions = [on(n, engine) for n in (0, 1)]
    results = [
        s.run(tensors(gpus, n, drawn(1)), stream=0)["y"].copy() for n, s in enumerate(sessions)
    ]
    gpus.lost.add(gpus.contexts[0])
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
        sessions[0].run(drawn(1))
    check(sessions[1].run(drawn(1)), drawn(1))
    del results[0], sessions[0]
    gc.collect()
    check(sessions[0].run(drawn(2)), drawn(2))
    check(on(1, engine).run(drawn(3)), drawn(3))
    gpus.lost.clear()


def test_weights_of_each_device_are_its_own(gpus: Driver) -> None:
    engine = whet.build(model())
    sessions = [on(n, engine) for n in (0, 1)]
    for session in sessions:
        check(session.run(drawn(1)), drawn(1))
    taken = [{at for at in gpus.memory if gpus.owner[at] == context} for context in gpus.contexts]
    assert all(taken)
    del sessions, session
    gc.collect()
    assert not gpus.used
