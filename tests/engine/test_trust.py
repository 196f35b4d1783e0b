"""What an engine promises: the same bytes from the same model, use on lesser machines, a reason for
every refusal."""

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import whet
from tests.runtime.models import MODELS, save_all
from tests.runtime.test_refit import inputs_of
from whet.engine.checksum import checksum
from whet.engine.file import EngineFile
from whet.engine.header import VERSION
from whet.errors import InvalidEngine
from whet.targets.cpu import host

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "network.onnx"

BUILD = """
import sys, whet
for source in sys.argv[2:]:
    engine = whet.build(source, architectures=["sse2"] if "convolutions" in source else [])
    engine.save(f"{sys.argv[1]}/{source.rpartition('/')[2]}.whet")
"""


def test_the_same_model_gives_the_same_bytes(tmp_path):
    save_all(str(tmp_path))
    models = sorted(map(str, (DIGITS, *tmp_path.glob("*.onnx"))))
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "WHET_CACHE_DIR": str(folder)}
        command = [sys.executable, "-c", BUILD, str(folder), *models]
        subprocess.run(command, check=True, env=environment)
        written.append({path.name: path.read_bytes() for path in folder.glob("*.whet")})
    assert len(written[0]) == len(models)
    assert written[0].keys() == written[1].keys()
    differ = [name for name in written[0] if written[0][name] != written[1][name]]
    assert not differ


LEVELS = ["avx512", "avx2", "sse2"]


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_for_one_processor_runs_on_lesser_ones(name, tmp_path):
    here = host.architecture()
    if here.level not in LEVELS:
        pytest.skip(f"x86 levels; this is {here.level}")
    levels = LEVELS[LEVELS.index(here.level) :]
    whet.build(MODELS[name](), architectures=[str(here)]).save(tmp_path / "m.whet")
    engine = whet.load(tmp_path / "m.whet", allow_code=True)
    feeds, results = inputs_of(engine), []
    for level in levels:
        session = engine.session(device=f"cpu:{level}", cache=False)
        assert session._runner.device.compiled <= (1 if level == here.level else 99)  # type: ignore[attr-defined]
        results.append(next(iter(session.run(feeds).values())))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], 1e-4, 1e-5)


def test_the_header_says_what_the_kernels_are_for(tmp_path):
    engine = whet.build(MODELS["convolutions"](), architectures=["sse2", "avx2"])
    engine.save(tmp_path / "m.whet")
    assert EngineFile.open(tmp_path / "m.whet").header.architectures == ("sse2", "avx2")
    whet.load(tmp_path / "m.whet", allow_code=True).save(tmp_path / "again.whet")
    assert (tmp_path / "again.whet").read_bytes() == (tmp_path / "m.whet").read_bytes()
    whet.load(tmp_path / "m.whet").save(tmp_path / "bare.whet")
    assert EngineFile.open(tmp_path / "bare.whet").header.architectures == ()


def test_kernels_without_weights(tmp_path):
    """Built for a machine that is not there, shipped without weights, run without compiling."""
    target = host.architecture("sse2" if host.machine() == "x86_64" else None)
    engine = whet.build(MODELS["convolutions"](), architectures=[str(target)])
    engine.save(tmp_path / "m.whet", strip=True)
    stripped = whet.load(tmp_path / "m.whet", allow_code=True)
    session = stripped.session(device=f"cpu:{target}", cache=False)
    assert session._runner.device.compiled <= 1, "the worker pool's own code"  # type: ignore[attr-defined]
    stripped.refit(MODELS["convolutions"]())
    feeds = inputs_of(engine)
    want = engine.session(device=f"cpu:{target}", cache=False).run(feeds)["y"]
    np.testing.assert_array_equal(session.run(feeds)["y"], want)


def of_version(data: bytes, version: int) -> bytes:
    """The engine as another version's would begin."""
    head = bytearray(data[:60])
    head[8:12] = struct.pack("<I", version)
    return bytes(head) + struct.pack("<I", checksum(bytes(head))) + data[64:]


def test_validity(tmp_path, monkeypatch):
    path = tmp_path / "m.whet"
    here = host.architecture()
    whet.build(MODELS["convolutions"](), architectures=[str(here)]).save(path)
    data = path.read_bytes()
    for source in (path, data, data[:64]):
        assert whet.engine_validity(source, "cpu").is_optimal
    if here.level != "sse2":
        lower = whet.engine_validity(path, "cpu:sse2", whole=False)
        assert lower.is_valid and [f.kind for f in lower.findings] == ["architecture"]
    if here.extras:
        bare = replace(here, extras=())
        found = whet.engine_validity(path, f"cpu:{bare}")
        assert found.is_valid and f"its kernels are for {here}; on {bare}" in str(found)
    path.write_bytes(of_version(data, VERSION + 1))
    for source in (path, path.read_bytes()[:64]):
        found = whet.engine_validity(source, "cpu")
        assert not found.is_valid and "update whet" in str(found)
    with pytest.raises(InvalidEngine, match=f"format is version {VERSION + 1}.*update whet"):
        whet.load(path)
    damaged = bytearray(data)
    damaged[data.index(b"w1")] ^= 1
    assert whet.engine_validity(bytes(damaged[:64]), "cpu").is_valid
    assert [f.kind for f in whet.engine_validity(bytes(damaged), "cpu").findings] == ["damage"]
    monkeypatch.setattr(host, "available_memory", lambda: 1000)
    found = whet.engine_validity(data[:64], "cpu")
    assert not found.is_valid and "there are 1,000" in str(found)
    whet.load(data).save(path, strip=True)
    found = whet.engine_validity(path, "cpu")
    assert found.is_valid and [f.kind for f in found.findings] == ["weights"]
