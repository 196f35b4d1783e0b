"""Timelines: what Perfetto reads, with every step of a run on the threads that did it."""

import json
from collections import defaultdict

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet
from tests.runtime import models
from whet.plan import timeline
from whet.plan.trace import Timing
from whet.progress import Recorder


def check_format(path):
    """The rules of the trace-event format that a reader relies on; gives slices by track."""
    whole = json.loads(path.read_text())
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert whole["displayTimeUnit"] in ("ms", "ns")
    names, slices = {}, defaultdict(list)
    for event in whole["traceEvents"]:
        assert type(event["pid"]) is int and type(event["tid"]) is int
        assert type(event["name"]) is str and type(event["args"]) is dict
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            if event["name"] == "thread_name":
                names[event["tid"]] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and type(event["cat"]) is str
        assert event["ts"] >= 0 and event["dur"] >= 0
        slices[event["tid"]].append(event)
    assert set(slices) == set(names)
    for track in slices.values():
        check_nesting(track)
    return {names[tid]: found for tid, found in slices.items()}


def check_nesting(track):
    """Slices of one track lie within each other or apart: a reader draws them as a stack."""
    ends = []
    for event in sorted(track, key=lambda e: (e["ts"], -e["dur"])):
        start, end = round(1000 * event["ts"]), round(1000 * (event["ts"] + event["dur"]))
        while ends and ends[-1] <= start:
            ends.pop()
        assert not ends or end <= ends[-1]
        ends.append(end)


@pytest.fixture(params=[1, 2])
def session(request, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(models.convolutions(channels=16).SerializeToString())
    recorder = Recorder()
    made = whet.build(path, progress=recorder).session(
        "cpu", threads=request.param, cache=False, progress=recorder
    )
    return made, recorder


def test_runs(session, tmp_path):
    made, recorder = session
    inputs = {"x": np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    trace = made.trace(inputs, runs=3)
    (plan,) = made.plans
    assert [step for step, _ in trace.steps] == 3 * list(plan.steps)
    for timing in trace.timings:
        assert timing.seconds >= 0 and timing.threads[0][0] == 0
        assert len(timing.threads) <= made.threads
        assert all(0 <= end - timing.start <= timing.seconds + 1e-9 for _, end in timing.threads)

    trace.to_perfetto(tmp_path / "run.json")
    tracks = check_format(tmp_path / "run.json")
    assert len(tracks["thread 0"]) == 3 * len(plan.steps)
    first = tracks["thread 0"][0]
    assert first["args"]["nodes"] == list(plan.steps[0].nodes)
    assert "convolution" in first["name"]

    slices = [*timeline.of_phases(recorder.phases), *timeline.of_trace(trace)]
    timeline.write(tmp_path / "all.json", slices, {"model": "m"})
    tracks = check_format(tmp_path / "all.json")
    assert {e["name"] for e in tracks["build and compile"]} >= {"build", "compile kernels"}


def test_host_steps_have_their_own_track(tmp_path):
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["a"], name="text", case_change_action="LOWER"),
        helper.make_node("LabelEncoder", ["a"], ["b"], name="code", domain="ai.onnx.ml",
                         keys_strings=["a", "b"], values_floats=[1.0, 2.0]),
        helper.make_node("Exp", ["b"], ["y"], name="exp"),
    ]  # fmt: skip
    made = models.model(
        nodes, [models.value("x", [2], TensorProto.STRING)], [models.value("y", [2])]
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    path.write_bytes(made.SerializeToString())
    session = whet.session(path, device="cpu", cache=False)
    session.trace({"x": np.array(["A", "b"], object)}).to_perfetto(tmp_path / "t.json")
    tracks = check_format(tmp_path / "t.json")
    assert set(tracks) == {"host", "thread 0", *(t for t in tracks if t.startswith("thread "))}
    assert all("NumPy" in slice["name"] for slice in tracks["host"])


def test_a_step_without_a_clock_is_left_out(session, tmp_path):
    made, _ = session
    (plan,) = made.plans
    trace = timeline.Recording(timings=[Timing(plan.steps[0], 1e-3)])
    trace.to_perfetto(tmp_path / "t.json")
    assert not check_format(tmp_path / "t.json")


def test_ends_that_touch_do_not_overlap(tmp_path):
    rng = np.random.default_rng(7)
    times = 1.7e5 + np.cumsum(rng.uniform(1e-9, 3e-6, 500))
    slices = [
        timeline.Slice("thread 0", "k", "loops", a, b - a)
        for a, b in zip(times.tolist(), times[1:].tolist())
    ]
    timeline.write(tmp_path / "t.json", slices)
    assert len(check_format(tmp_path / "t.json")["thread 0"]) == 499
