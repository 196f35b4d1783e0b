"""Commands run in this process on small models, with a cache of their own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from whet.cli import main

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "network.onnx"


@dataclass
class Done:
    """A command's exit status and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o700)
    return folder


@pytest.fixture
def whet(capsys, monkeypatch, cache_folder):
    """Runs a command line, and gives what became of it."""
    monkeypatch.setenv("WHET_CACHE_DIR", str(cache_folder))
    monkeypatch.delenv("WHET_DEBUG", raising=False)

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Done(status, printed.out, printed.err)

    return run


@pytest.fixture
def digits():
    return DIGITS


@pytest.fixture
def engine(whet, tmp_path):
    """The digits network as an engine file."""
    path = tmp_path / "digits.whet"
    assert whet("build", DIGITS, "-o", path).status == 0
    return path


def save(path, nodes, inputs, outputs, weights=()):
    """Writes a model of nodes; `inputs` and `outputs` are (name, ONNX dtype, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.fixture
def two_inputs(tmp_path):
    """An embedding of ids below 7 plus a float: y = table[ids] + shift."""
    return save(
        tmp_path / "two.onnx",
        [
            helper.make_node("Gather", ["table", "ids"], ["found"], name="look_up"),
            helper.make_node("Add", ["found", "shift"], ["y"], name="shifted"),
        ],
        [("ids", TensorProto.INT64, ["n"]), ("shift", TensorProto.FLOAT, [4])],
        [("y", TensorProto.FLOAT, ["n", 4])],
        [("table", np.arange(28, dtype=np.float32).reshape(7, 4))],
    )


@pytest.fixture
def refused(tmp_path):
    """A model with two nodes that nobody knows."""
    return save(
        tmp_path / "refused.onnx",
        [
            helper.make_node("Frobnicate", ["x"], ["a"], name="first"),
            helper.make_node("Twiddle", ["x"], ["b"], name="second"),
        ],
        [("x", TensorProto.FLOAT, [3])],
        [("a", TensorProto.FLOAT, [3]), ("b", TensorProto.FLOAT, [3])],
    )
