"""Kernels take turns in the runs that are asked for, and the fastest stay."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import whet
from whet.plan.kernel import Axis, Kernel, Literal, Loops, Nest, Store
from whet.targets.cpu import device
from whet.targets.cpu.executable import Executable
from whet.targets.cpu.trials import ROUNDS, Trials, tables
from whet.targets.cpu.workers import compile_all


def kernel(number: int) -> Kernel:
    """Any kernel, unlike those of other numbers."""
    store = Store(0, 0, Literal(float(number), "float32"))
    return Loops(("float32",), 1, (Nest((Axis("i0", 1),), (store,)),))


def finished(trials: Trials, seconds: list[list[float]]) -> int:
    """Takes all turns with the times of each table; how many runs they were."""
    runs = 0
    while (turn := trials.turn()) is not None:
        assert trials.turn() is None, "one run is timed at a time"
        turn.done(np.array(seconds[turn.number]) * (1 + runs % 2))
        runs += 1
    return runs


def test_clearly_faster_kernels_win_wherever_they_stand() -> None:
    a, b, c, d = map(kernel, range(4))
    rows = tables([a, None, b, a], {a: [c, d]})
    assert rows == [[a, None, b, a], [c, None, b, c], [d, None, b, d]]
    ended: list[list[Kernel | None]] = []
    trials = Trials(rows, lambda k: 1, ended.append)
    # c is faster in the first place but slower over both; d is slower than a by less than noise.
    times = [[1.0, 0, 1, 1.0], [0.5, 0, 0.1, 2.0], [0.99, 0, 1, 0.99]]
    assert finished(trials, times) == ROUNDS * len(rows)
    assert ended == [[a, None, b, a]]
    times[2] = [0.9, 0, 1, 0.9]
    trials = Trials(rows, lambda k: 1, ended.append)
    finished(trials, times)
    assert ended[1] == [d, None, b, d]


def test_a_run_that_fails_gives_its_turn_back() -> None:
    trials = Trials([[kernel(0)], [kernel(1)]], lambda k: 1, lambda ways: None)
    turn = trials.turn()
    assert turn is not None
    trials.give_up()
    again = trials.turn()
    assert again is not None and again.number == turn.number


def test_runs_try_kernels_keep_their_bits_and_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    weight = rng.standard_normal((256, 64, 1, 1), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, c, 28, 28))
        for n, c in (("x", 64), ("y", 256))
    ]
    graph = helper.make_graph(
        [node], "g", *[[e] for e in ends], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    # An idle process may wait for long where tests run side by side.
    monkeypatch.setattr(device, "compile_all", lambda *given: compile_all(*given[:3]))
    executables: list[Executable] = []
    made = Executable.__init__

    def watched(self: Executable, *given: object) -> None:
        made(self, *given)  # type: ignore[arg-type]
        executables.append(self)

    monkeypatch.setattr(Executable, "__init__", watched)
    session = whet.build(model.SerializeToString()).session("cpu", 2, tmp_path)
    (tried,) = [e for e in executables if e.plan.graph.inputs]
    inputs = {"x": rng.standard_normal((1, 64, 28, 28), np.float32)}
    first = session.run(inputs)["y"]
    begun, end = False, time.monotonic() + 60
    while (not begun or tried.trials is not None) and time.monotonic() < end:
        assert np.array_equal(session.run(inputs)["y"], first)
        begun = begun or tried.trials is not None
    assert begun and tried.trials is None, "the trials neither began nor ended in a minute"
    assert np.array_equal(session.run(inputs)["y"], first)
    whet.build(model.SerializeToString()).session("cpu", 2, tmp_path)
    (again,) = [e for e in executables if e.plan.graph.inputs and e is not tried]
    assert again.kernels == tried.kernels, "the next start begins with what won"
