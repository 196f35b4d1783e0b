"""Sessions and their cache: at once, elsewhere, damaged, and where there is no compiler."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import whet
from tests.runtime.models import convolutions
from tests.soak.starts import storm
from whet.errors import DeviceError
from whet.runtime import entries
from whet.runtime.cache import SUFFIX, Cache
from whet.targets.cpu import jit

RUN = """
    import sys, numpy as np, whet
    if "blocked" in sys.argv:
        sys.modules["llvmlite"] = None
    session = whet.load(sys.argv[1]).session(threads=2)
    x = np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)
    print(session.run({"x": x})["y"].tobytes().hex())
    if "blocked" in sys.argv:
        found = session.inspect({"x": x}, runs=1)
        assert found.kernels and found.seconds > 0 and found.limits is None
        found.to_json(sys.argv[1] + ".json")
"""


def start(saved: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), saved, *more],
        env={**os.environ, "WHET_CACHE_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def engine() -> whet.Engine:
    return whet.build(convolutions())


@pytest.fixture(scope="module")
def saved(engine: whet.Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("engines") / "m.whet"
    engine.save(path)
    return str(path)


@pytest.fixture
def cache(saved: str, tmp_path: Path) -> Cache:
    """One that a process of its own has filled with all that the engine needs."""
    result(start(saved, tmp_path / "warm"))
    cache = Cache(tmp_path / "warm")
    assert cache.info().entries
    return cache


def test_processes_that_compile_the_same_at_once(saved: str, tmp_path: Path) -> None:
    results = {result(p) for p in [start(saved, tmp_path / "cache") for _ in range(3)]}
    assert len(results) == 1
    kept = Cache(tmp_path / "cache").info().entries
    assert {result(start(saved, tmp_path / "cache"))} == results
    assert Cache(tmp_path / "cache").info().entries == kept


def test_a_killed_start_leaves_whole_entries(saved: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    process = start(saved, folder)
    while process.poll() is None and not list(folder.glob("*" + SUFFIX)):
        pass
    process.kill()
    process.communicate()
    for path in folder.glob("*" + SUFFIX):
        assert entries.unpack(path.read_bytes()) is not None
    result(start(saved, folder))


def test_no_compiler_and_a_cache_from_elsewhere(saved: str, cache: Cache, tmp_path: Path) -> None:
    """What `whet cache export` is for."""
    bare = start(saved, tmp_path / "empty", "blocked")
    _, errors = bare.communicate(timeout=120)
    assert bare.returncode == 1 and "DeviceError" in errors and "whet cache export" in errors
    blob = cache.export()
    assert Cache(tmp_path / "other").import_(blob, trusted=True).kept
    assert result(start(saved, tmp_path / "other", "blocked")) == result(
        start(saved, cache.folder or tmp_path)
    )


def test_code_for_another_processor_is_not_taken(engine: whet.Engine, cache: Cache) -> None:
    """An AVX-512 cache serves an AVX2 session nothing, which compiles its own beside it."""
    level = "sse2" if "avx2" in (cache.entries()[0].about) else "avx2"
    before = {entry.key for entry in cache.entries()}
    x = np.random.default_rng(3).standard_normal((1, 3, 16, 16), dtype=np.float32)
    try:
        lower = engine.session(f"cpu:{level}", cache=cache)
    except DeviceError as error:
        pytest.skip(str(error))
    want = engine.session(cache=cache).run({"x": x})["y"]
    np.testing.assert_allclose(lower.run({"x": x})["y"], want, rtol=1e-4, atol=1e-5)
    assert before < {entry.key for entry in cache.entries()}


@pytest.mark.parametrize("code", [b"", b"\x7fELF", b"garbage", bytes(5000)])
def test_code_that_does_not_load_is_said_and_compiled_anew(
    engine: whet.Engine, cache: Cache, caplog: pytest.LogCaptureFixture, code: bytes
) -> None:
    """Its checksum is right: another compiler, or another version of one, made it."""
    assert cache.folder is not None
    before = {e.key: (e.about, cache.get(e.key)) for e in cache.entries()}
    spoilt = list(before)
    x = np.random.default_rng(3).standard_normal((1, 3, 16, 16), dtype=np.float32)
    want = engine.session(threads=2, cache=False).run({"x": x})["y"]
    for key in spoilt:
        cache.put(key, code, before[key][0])
    got = engine.session(threads=2, cache=cache).run({"x": x})["y"]
    np.testing.assert_array_equal(got, want)
    assert "compiled anew" in caplog.text
    assert any(cache.get(key) == before[key][1] for key in spoilt), "the good code is kept again"


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(DeviceError, match="pip install llvmlite"):
        jit._llvm.__wrapped__()


def test_starts_that_are_killed_leave_whole_entries(tmp_path: Path) -> None:
    """Six here, 50 in scripts/soak."""
    storm(tmp_path, kills=6, processes=3, seed=secrets.randbits(32))


def test_a_cache_that_is_not_used_is_not_said_to_keep_anything(
    engine: whet.Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.INFO, "whet"):
        engine.session(cache=tmp_path / "file")
    said = [r.getMessage() for r in caplog.records if r.name == "whet"]
    assert len(said) == 1 and "compiled" in said[0] and "cached in" not in said[0]
