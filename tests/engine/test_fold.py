"""Engines that are never refitted: their weights are folded by value."""

from pathlib import Path

import numpy as np
import pytest

import whet
from tests.runtime.test_refit import MODELS, inputs_of
from whet.engine.file import EngineFile


@pytest.mark.parametrize("name", MODELS)
def test_the_same_results_from_fewer_weights(name: str, tmp_path: Path) -> None:
    proto = MODELS[name](seed=1)
    plain, folded = whet.build(proto), whet.build(proto, refittable=False)
    feeds = inputs_of(plain)
    plain.save(tmp_path / "plain.whet")
    folded.save(tmp_path / "folded.whet")
    sizes = [
        EngineFile.open(tmp_path / f"{n}.whet").header.weight_bytes for n in ("plain", "folded")
    ]
    assert sizes[1] <= sizes[0]
    loaded = whet.load(tmp_path / "folded.whet")
    loaded.save(tmp_path / "again.whet")
    assert (tmp_path / "again.whet").read_bytes() == (tmp_path / "folded.whet").read_bytes()
    expected = plain.session(device="cpu", cache=False).run(feeds)
    for engine in (folded, loaded):
        for key, y in engine.session(device="cpu", cache=False).run(feeds).items():
            np.testing.assert_allclose(y, expected[key], 1e-4, 1e-5)


def test_nothing_is_left_of_a_batch_normalisation() -> None:
    engine = whet.build(MODELS["normalised"](), refittable=False)
    names = list(engine.names.types)
    assert len(names) == 3, "two convolutions and a bias"
    assert not {"s", "b", "m", "v", "w"} & set(names)
    assert engine.refittable_weights == {}
