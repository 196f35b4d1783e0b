"""Engines of every format version that ever was: they load, and give what they gave."""

from pathlib import Path

import numpy as np
import pytest

from whet.engine.file import EngineFile
from whet.engine.header import VERSION
from whet.engine.validity import check_file
from whet.frontends.onnx.importer import import_model
from whet.ir.evaluate import evaluate

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("*_v*.bin"))


def array(plain: list, dtype: str) -> np.ndarray:
    shape, elements = plain
    return np.array(elements, dtype).reshape(shape)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_engines_of_earlier_versions(path):
    engine = EngineFile.open(path)
    engine.verify()
    given, expected = engine.metadata["inputs"], engine.metadata["outputs"]
    inputs = {v: array(given[v.op.name], v.dtype) for v in engine.graph.inputs}
    results = evaluate(engine.graph, inputs, engine.weights.array)
    assert len(results) == len(expected)
    for name, result in zip(engine.graph.output_names, map(np.asarray, results)):
        wanted = array(expected[name], result.dtype.name)
        np.testing.assert_allclose(result, wanted, 1e-5, 1e-6, err_msg=name)


def test_how_the_model_was_written_is_kept():
    engine = EngineFile.open(next(path for path in FIXTURES if path.name == "model_v2.bin"))
    assert str(import_model(engine.model).graph) == str(engine.graph)


def test_of_the_first_days_the_levels_of_kernels_are_known():
    path = next(path for path in FIXTURES if path.name == "engine_v1.bin")
    assert check_file(path, architecture="x86_64-linux-avx2").is_optimal
    assert not check_file(path, architecture="x86_64-linux-sse2").is_optimal


def test_there_is_one_of_each_version():
    assert {int(path.stem.rpartition("v")[2]) for path in FIXTURES} == set(range(1, VERSION + 1))
