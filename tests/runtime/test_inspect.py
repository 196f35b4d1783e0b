"""The inspector: what kernels do, in numbers checked by hand, and how they were chosen."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet
from tests.runtime import models
from whet.errors import InvalidInput
from whet.targets.cpu import host, jit, limits
from whet.targets.cpu.architecture import Architecture


def session_of(model, **options):
    return whet.build(model.SerializeToString()).session("cpu", cache=False, **options)


def named(inspection, node):
    (kernel,) = (k for k in inspection.kernels if node in k.nodes)
    return kernel


@pytest.fixture(scope="module")
def convolutions():
    return session_of(models.convolutions(batch=2, channels=16))


def test_work(convolutions):
    found = convolutions.inspect()
    first = named(found, "first")
    outputs = 2 * 16 * 16 * 16
    # Products and sums, a bias and a maximum for each result.
    assert first.operations == 2 * outputs * 27 + 2 * outputs
    assert first.written == 4 * outputs
    assert first.read >= 4 * (2 * 3 * 16 * 16 + 16 * 27 + 16)
    pool = named(found, "pool")
    assert pool.read == 4 * outputs and pool.written == outputs
    assert pool.operations == outputs // 4 * 4
    classes = named(found, "classes")
    assert classes.operations == 2 * 2 * 10 * 16 + 2 * 10
    assert classes.writes[0].source == "output y"
    assert {b.source for b in first.reads} >= {"input x"}
    assert found.arena >= max(
        b.offset + b.bytes for k in found.kernels for b in k.reads if b.offset
    )
    assert found.limits is None and found.seconds is None and first.reached is None


def test_tactics():
    first = named(session_of(models.convolutions(channels=64)).inspect(), "second")
    assert first.tactic.name in ("dense", "winograd", "lanewise") and first.tactic.settings
    assert first.alternatives and first.tactic not in first.alternatives
    costs = [t.cost for t in first.alternatives]
    assert first.tactic.cost <= min(costs)


def test_times(convolutions):
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    found = convolutions.inspect({"x": x}, runs=3)
    assert found.runs == 3 and found.seconds > 0
    for kernel in found.kernels:
        assert kernel.seconds > 0 and kernel.least > 0 and kernel.bound in ("memory", "arithmetic")
        assert kernel.reached == pytest.approx(kernel.least / kernel.seconds)
        moved = (kernel.read + kernel.written) / found.limits.bytes
        computed = kernel.operations / found.limits.operations["float32"]
        assert kernel.least == pytest.approx(max(moved, computed))


def test_json(convolutions, tmp_path):
    x = np.zeros((2, 3, 16, 16), np.float32)
    found = convolutions.inspect({"x": x}, runs=1)
    text = found.to_json(tmp_path / "k.json")
    assert (tmp_path / "k.json").read_text() == text
    plain = json.loads(text)
    assert plain["version"] == 1 and plain["architecture"] == convolutions.architecture
    assert len(plain["kernels"]) == len(found.kernels)
    first = plain["kernels"][0]
    words = "nodes reads writes read written operations tactic alternatives seconds least bound"
    for name in [*words.split(), "reached", "code", "key"]:
        assert name in first
    assert first["tactic"]["settings"]["outputs"] > 0


def test_a_look_up_reads_rows_and_not_the_table():
    rng = np.random.default_rng(3)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"], name="look up")]
    table = rng.standard_normal((1000, 64)).astype(np.float32)
    model = models.model(
        nodes,
        [models.value("ids", [5], TensorProto.INT64)],
        [models.value("y", [5, 64])],
        {"table": table},
    )
    (kernel,) = session_of(model).inspect().kernels
    assert kernel.read == 5 * 64 * 4 + 5 * 8 and kernel.written == 5 * 64 * 4


def test_attention():
    found = session_of(models.attention()).inspect()
    (kernel,) = (k for k in found.kernels if k.kind == "attention")
    assert kernel.operations >= 2 * 12 * 12 * 16 * 2
    assert kernel.tactic.name == "flash"


def test_sizes_that_a_run_tells():
    session = session_of(models.convolutions(batch="n"))
    with pytest.raises(InvalidInput, match="inputs"):
        session.inspect()
    x = np.zeros((3, 3, 16, 16), np.float32)
    found = session.inspect({"x": x}, runs=2)
    assert named(found, "pool").written == 4 * 3 * 8 * 8 * 8
    assert found.arena > 0


def test_what_runs_between_plans_is_told():
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["y"], name="text", case_change_action="UPPER")
    ]
    kinds = [models.value(name, [2], TensorProto.STRING) for name in "xy"]
    model = models.model(nodes, kinds[:1], kinds[1:])
    (kernel,) = session_of(model).inspect({"x": np.array(["a", "b"], object)}, runs=2).kernels
    assert kernel.is_reference and kernel.nodes == ("text",) and kernel.seconds > 0


def test_what_runs_on_the_host_says_so():
    nodes = [
        helper.make_node("LabelEncoder", ["x"], ["a"], name="code", domain="ai.onnx.ml",
                         keys_strings=["a", "b"], values_floats=[1.0, 2.0]),
        helper.make_node("Exp", ["a"], ["y"], name="exp"),
    ]  # fmt: skip
    model = models.model(
        nodes, [models.value("x", [2], TensorProto.STRING)], [models.value("y", [2])]
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    found = session_of(model).inspect({"x": np.array(["a", "b"], object)}, runs=1)
    assert any(kernel.is_reference for kernel in found.kernels)
    for kernel in found.kernels:
        assert kernel.is_reference == (kernel.kind == "reference") == (kernel.key is None)
        assert (kernel.least is None) == kernel.is_reference


@pytest.mark.parametrize("level", [None, "avx2", "sse2"])
def test_limits(level):
    architecture = host.architecture() if level is None else Architecture(level)
    found = limits.measure(architecture, 1, jit.to_object)
    assert found.operations["float32"] > 1e8 and found.bytes > 1e7
