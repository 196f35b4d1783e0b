"""What is of a wrong kind is refused in words, by an error of whet's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.models import layers
from whet.errors import InvalidModel

WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "model": (
        lambda engine: whet.build(None),
        "a path, bytes or an onnx.ModelProto, not a NoneType",
    ),
    "engine": (lambda engine: whet.load(3), "as a path or its bytes, not as a int"),
    "validity": (lambda engine: whet.engine_validity(3), "as a path or its bytes, not as a int"),
    "target": (lambda engine: engine.save(3), "to a path or a file, not to a int"),
    "name": (lambda engine: engine.save("a\0b"), "'a\\x00b' cannot be written: embedded null byte"),
    "monitor": (
        lambda engine: engine.save("x.whet", progress=3),
        "a whet.ProgressMonitor is needed",
    ),
    "weights": (lambda engine: engine.refit("missing.npz"), "'missing.npz' cannot be read"),
    "profiles": (
        lambda engine: whet.build(layers(), profiles="x=1:4:8"),
        "profiles='x=1:4:8'; a whet.Profile is needed",
    ),
    "shapes": (lambda engine: whet.Profile(None, None, None), "by the inputs' names"),
    "sizes": (lambda engine: whet.Profile(*[{"x": [1.5, 512]}] * 3), "is whole numbers"),
    "no numbers": (
        lambda engine: whet.Profile({"x": [1]}, {"x": [2]}, {"x": [float("nan")]}),
        "max of a profile is whole numbers",
    ),
    "source": (lambda engine: engine.refit(3), "weights cannot come from a int"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_of_a_wrong_kind(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, said = WRONG[what]
    engine = whet.build(layers())
    with pytest.raises(whet.Error) as caught:
        call(engine)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_engine_in_the_place_of_a_model(tmp_path: Path) -> None:
    whet.build(layers()).save(tmp_path / "without.suffix")
    data = (tmp_path / "without.suffix").read_bytes()
    for engine in (tmp_path / "without.suffix", data):
        with pytest.raises(InvalidModel, match=r"whet\.load reads it"):
            whet.build(engine)
        session = whet.session(engine, cache=False)
        assert session.run({"x": np.ones((4, 512), np.float32)})["y"].shape == (4, 512)
    for buffer in (bytearray(data), memoryview(data)):
        assert whet.engine_validity(buffer, "cpu").is_valid
