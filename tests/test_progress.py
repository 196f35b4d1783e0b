"""Phases and steps while a model is built and made ready, and what a cancel leaves: nothing."""

import threading

import numpy as np
import pytest

import whet
from tests.runtime.models import save_all
from whet.progress import Recorder, monitored, phase


class Log(whet.ProgressMonitor):
    """Keeps every call, and cancels at a given one."""

    def __init__(self, cancel_at=None):
        self.calls, self.cancel_at, self.steps = [], cancel_at, 0

    def phase_start(self, phase_name, parent_phase, num_steps):
        self.calls.append(("start", phase_name, parent_phase, num_steps))

    def step_complete(self, phase_name, step):
        self.calls.append(("step", phase_name, step))
        self.steps += 1
        return self.steps != self.cancel_at

    def phase_finish(self, phase_name):
        self.calls.append(("finish", phase_name))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_all(folder)
    return max(folder.glob("*.onnx"), key=lambda path: path.stat().st_size)


def check_order(calls):
    """Phases lie within each other, each is finished, and steps count from 0."""
    open_phases = []
    for kind, name, *rest in calls:
        if kind == "start":
            parent, steps = rest
            assert parent == (open_phases[-1][0] if open_phases else None) and steps >= 0
            open_phases.append([name, 0, steps])
        elif kind == "step":
            assert open_phases[-1][:2] == [name, rest[0]]
            open_phases[-1][1] += 1
        else:
            assert open_phases.pop()[0] == name
    assert not open_phases


def test_build_and_session(model):
    log = Log()
    engine = whet.build(model, progress=log)
    check_order(log.calls)
    totals = {c[1]: c[3] for c in log.calls if c[0] == "start"}
    assert list(totals)[:3] == ["build", "read", "optimise"]
    done = [c for c in log.calls if c[:2] == ("step", "read")]
    assert len(done) == totals["read"] > 0

    log = Log()
    engine.session("cpu", cache=False, progress=log)
    check_order(log.calls)
    totals = {c[1]: c[3] for c in log.calls if c[0] == "start"}
    assert totals["compile kernels"] > 0
    assert len({c for c in log.calls if c[:2] == ("step", "compile kernels")}) > 0


def test_a_monitor_may_be_any_object_with_the_methods(model):
    assert whet.session(model, device="cpu", cache=False, progress=Log()).inputs


@pytest.mark.parametrize("cancel_at", [1, 2, 5])
def test_a_cancelled_build(model, cancel_at):
    log = Log(cancel_at)
    with pytest.raises(whet.Cancelled, match="progress monitor"):
        whet.build(model, progress=log)
    check_order(log.calls)
    assert log.steps == cancel_at


@pytest.mark.parametrize("which", [2, "last"])
def test_a_cancelled_session_leaves_nothing(model, which, tmp_path):
    folder = tmp_path / "cache"
    whole = Log()
    whet.build(model).session("cpu", cache=tmp_path / "whole", progress=whole)
    assert list((tmp_path / "whole").glob("*"))
    engine = whet.build(model)
    log = Log(cancel_at=whole.steps if which == "last" else which)
    threads = set(threading.enumerate())
    with pytest.raises(whet.Cancelled):
        engine.session("cpu", cache=folder, progress=log)
    assert not list(folder.glob("*")), "no kernel of a session that there is not"
    assert not {t for t in threading.enumerate() if t.name.startswith("whet compile")} - threads
    # The next one is as if nothing had been.
    session = engine.session("cpu", cache=folder)
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal([s if isinstance(s, int) else 2 for s in kind.shape], np.float32)
        for name, kind in session.inputs.items()
    }
    assert session.run(feeds)


def test_what_a_monitor_raises_ends_the_work(model):
    class Broken(Log):
        def step_complete(self, phase_name, step):
            raise KeyError("mine")

    log = Broken()
    with pytest.raises(KeyError, match="mine"):
        whet.build(model, progress=log)
    check_order([c for c in log.calls if c[0] != "step"])


def test_forgetting_to_return_is_not_cancelling(model):
    class Silent(whet.ProgressMonitor):
        def step_complete(self, phase_name, step):
            pass

    whet.build(model, progress=Silent())


def test_phases_are_timed_and_passed_on():
    log = Log()
    recorder = Recorder(log)
    with monitored(recorder), phase("outer", 1) as step:
        with phase("inner", 2) as inner:
            inner()
            inner()
        step()
    check_order(log.calls)
    assert [(p.name, p.parent) for p in recorder.phases] == [("inner", "outer"), ("outer", None)]
    inside, outside = recorder.phases
    assert outside.start <= inside.start
    assert inside.start + inside.seconds <= outside.start + outside.seconds


def test_nobody_is_told_unless_asked():
    with phase("alone", 3) as step:
        step()


def test_a_cancelled_save_leaves_what_was_there(model, tmp_path):
    engine = whet.build(model)
    path = tmp_path / "m.whet"
    path.write_bytes(b"before")
    with pytest.raises(whet.Cancelled):
        engine.save(path, progress=Log(cancel_at=1))
    assert [p.name for p in tmp_path.iterdir()] == ["m.whet"] and path.read_bytes() == b"before"
    log = Log()
    engine.save(path, progress=log)
    check_order(log.calls)
    assert log.calls[0][1] == "write weights"
