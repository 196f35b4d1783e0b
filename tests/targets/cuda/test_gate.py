"""Runs and measurements take turns on a GPU, and none waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.test_ranges import transformer
from tests.targets.cuda.stub import stubbed
from tests.targets.cuda.stub_driver import Driver
from whet.targets.cuda import gate as gates
from whet.targets.cuda.driver import Context, Stream
from whet.targets.cuda.gate import Gate


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as driver:
        yield driver


@pytest.fixture
def context(gpu: Driver) -> Iterator[Context]:
    with Context.of(0) as context:
        yield context


@pytest.fixture
def waited(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The events that were waited for."""
    found = list[int]()
    wait = lambda event: (found.append(int(event)), (0,))[1]  # noqa: E731
    monkeypatch.setattr(gpu, "cuEventSynchronize", wait, raising=False)
    return found


def begun(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def is_free(gate: Gate) -> bool:
    """Whether another thread may pass."""

    def go() -> None:
        with gate.passing():
            pass

    thread = begun(go)
    thread.join(0.2)
    return not thread.is_alive()


def ask(gate: Gate, stream: Stream) -> None:
    """A run on a stream."""
    with gate.passing() as streams:
        streams.append(stream)


def test_a_measurement_waits_for_the_run_before(
    gpu: Driver, context: Context, waited: list[int]
) -> None:
    gate = Gate()
    with gate.up(), gate.closed():
        assert not waited, "there was no run yet"
    with gate.up():
        ask(gate, Stream(context))
        assert gpu.counts["cuEventRecord"] == 1
        with gate.closed():
            assert len(waited) == 1


def test_a_measurement_waits_for_runs_on_all_streams(context: Context, waited: list[int]) -> None:
    gate, streams = Gate(), (Stream(context), Stream(context))
    with gate.up():
        for stream in (*streams, streams[0]):
            ask(gate, stream)
        with gate.closed():
            assert len(set(waited)) == 2


def test_runs_do_not_wait_for_each_other(context: Context) -> None:
    gate = Gate()
    with gate.up(), gate.passing():
        assert is_free(gate)


def test_a_run_may_wait_for_a_run_of_another_thread(context: Context) -> None:
    """As one within control flow does for weights that another thread prepares."""
    gate, was_alone = Gate(), list[bool]()

    def measure() -> None:
        with gate.closed():
            was_alone.append(not gate._runs)

    with gate.up():
        with gate.passing():
            measurement = begun(measure)
            for _ in range(3):
                assert is_free(gate), "the measurement keeps it out, and waits for the first"
            assert not was_alone
        measurement.join(10)
        assert was_alone == [True]


def test_a_measurement_waits_for_a_long_run(context: Context) -> None:
    gate, was_alone = Gate(), list[bool]()

    def measure() -> None:
        with gate.closed():
            was_alone.append(not gate._runs)

    with gate.up():
        with gate.passing():
            measurement = begun(measure)
            time.sleep(3 * gates.PATIENCE)
            assert gate._closed_by, "nobody waits for it: it goes on waiting"
        measurement.join(gates.REST / 2)
        assert was_alone == [True]


def test_a_run_that_is_part_of_another_passes(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "PATIENCE", 60)
    gate = Gate()

    def measure() -> None:
        with gate.closed():
            pass

    with gate.up(), gate.passing():
        measurement = begun(measure)
        deadline = time.monotonic() + 10
        while not gate._closed_by:
            assert time.monotonic() < deadline
        start = time.monotonic()
        with gate.passing():
            assert time.monotonic() - start < 30
    measurement.join(10)
    assert not measurement.is_alive()


def test_runs_that_leave_no_moment_end_a_measurement(context: Context) -> None:
    gate = Gate()
    with gate.up():
        with gate.passing(), pytest.raises(TimeoutError), gate.closed(until=0):
            pytest.fail("a run is under way")
        with gate.closed():
            pass


def test_what_fails_leaves_nothing_closed(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "PATIENCE", 60)
    gate = Gate()
    with suppress(ZeroDivisionError), gate.up(), gate.closed():
        raise ZeroDivisionError
    assert not gate.is_up and is_free(gate)
    with gate.up():
        with suppress(ZeroDivisionError), gate.passing():
            raise ZeroDivisionError
        with gate.closed():
            pass


def test_all_sessions_on_a_gpu_pass_one_gate(gpu: Driver) -> None:
    model = transformer(np.random.default_rng(4))
    sessions: Any = [whet.build(model).session(device="cuda", cache=False) for _ in range(2)]
    first, second = (session._runner.device for session in sessions)
    assert first is not second
    assert first.gate is second.gate
    with first.gate.up():
        with second.gate.up():
            pass
        assert first.gate.is_up, "the other one has not ended"
    assert not first.gate.is_up
