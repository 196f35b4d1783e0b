"""Code that an engine has for another processor than the one at hand."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.frontends.written import written
from tests.runtime.models import attention, convolutions
from whet.runtime.cache import Cache
from whet.runtime.prebuilt import nearest
from whet.targets.cpu import host
from whet.targets.cpu.architecture import Architecture
from whet.targets.cuda import architecture as cuda

HERE = host.architecture()
pytestmark = pytest.mark.skipif(
    HERE.level not in ("avx2", "avx512"), reason=f"{HERE} runs no other code than its own"
)
LOWER = "sse2+sse4"

CASES = {
    "static": (lambda: convolutions(), (1, 3, 16, 16)),
    "batch": (lambda: convolutions(batch="n"), (3, 3, 16, 16)),
    "length": (lambda: attention(length="n"), (1, 7, 16)),
}


def saved(case: str, folder: Path, *architectures: str) -> tuple[Path, dict[str, Any]]:
    """An engine file with code for these architectures, and inputs of any elements."""
    make, shape = CASES[case]
    whet.build(make(), architectures=architectures).save(folder / "m.whet")
    rng = np.random.default_rng()
    return folder / "m.whet", {"x": rng.standard_normal(shape, np.float32)}


def wait_for_own(session: whet.Session) -> None:
    deadline = time.monotonic() + 120
    while session.architecture != str(HERE):
        assert time.monotonic() < deadline, "no kernels were made in the background"
        time.sleep(0.02)


@pytest.mark.parametrize("finds", ["u = NonZero(c)", "u = Unique<axis = 0>(c)"])
def test_code_of_what_comes_before_a_size_that_data_tells(finds: str, tmp_path: Path) -> None:
    text = f"""g (float[64] x) => (float[64] b, float[N] z) {{
      a = Exp(x)
      b = Tanh(a)
      c = Mul(a, b)
      {finds}
      f = Cast<to = 1>(u)
      z = Neg(f)
    }}"""
    whet.build(written(text), architectures=["current"]).save(tmp_path / "m.whet")
    session = whet.load(tmp_path / "m.whet", allow_code=True).session("cpu", cache=False)
    (plan,) = [p for p in session.plans if p.graph.output_names == ("b",)]
    kernels = {step.kernel for step in plan.steps if step.kernel is not None}
    device: Any = session._runner.device
    assert kernels and all(device.key(kernel) in device.prebuilt for kernel in kernels)
    assert device.compiled == 0


@pytest.mark.parametrize("case", CASES)
def test_code_for_less_is_used_at_once_and_replaced_later(case: str, tmp_path: Path) -> None:
    path, inputs = saved(case, tmp_path, LOWER)
    engine, cache = whet.load(path, allow_code=True), Cache(tmp_path / "cache")
    session = engine.session("cpu", cache=cache)
    device: Any = session._runner.device
    first = session.run(inputs)["y"]
    assert session.architecture == str(Architecture.parse(LOWER)) and device.compiled == 0
    want = whet.load(path).session("cpu", cache=False).run(inputs)["y"]
    np.testing.assert_allclose(first, want, atol=1e-4, rtol=1e-4)
    session.run(inputs)
    wait_for_own(session)
    np.testing.assert_allclose(session.run(inputs)["y"], want, atol=1e-4, rtol=1e-4)
    again = whet.load(path, allow_code=True).session("cpu", cache=cache)
    assert again.architecture == str(HERE), "the next start finds the better kernels"
    np.testing.assert_allclose(again.run(inputs)["y"], want, atol=1e-4, rtol=1e-4)


def test_only_trusted_code_is_used(tmp_path: Path) -> None:
    path, _ = saved("static", tmp_path, LOWER)
    assert whet.load(path).session("cpu", cache=False).architecture == str(HERE)


def test_trust_is_said_and_not_meant(tmp_path: Path) -> None:
    path, _ = saved(next(iter(CASES)), tmp_path, str(HERE))
    assert whet.load(path, allow_code=True).kernels
    for meant in ("no", 1, None):
        assert not whet.load(path, allow_code=meant).kernels  # type: ignore[arg-type]


def test_its_own_code_comes_first(tmp_path: Path) -> None:
    path, inputs = saved("static", tmp_path, LOWER, str(HERE))
    session = whet.load(path, allow_code=True).session("cpu", cache=False)
    assert session.architecture == str(HERE) and session.better is None
    session.run(inputs)
    assert session._runner.device.compiled == 0


def test_a_level_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    path, _ = saved("static", tmp_path, LOWER)
    level = HERE.level
    session = whet.load(path, allow_code=True).session(f"cpu:{level}", cache=False)
    assert session.architecture == str(HERE)


@pytest.mark.parametrize("options", [{"deterministic": True}, {"specialize": "none"}])
def test_nothing_changes_where_it_must_not(options: dict[str, Any], tmp_path: Path) -> None:
    path, inputs = saved("static", tmp_path, LOWER)
    session = whet.load(path, allow_code=True).session("cpu", cache=False, **options)
    first = session.run(inputs)["y"]
    for _ in range(4):
        np.testing.assert_array_equal(session.run(inputs)["y"], first)
    assert session.better is None and session.architecture == str(Architecture.parse(LOWER))


def test_a_refit_reaches_both(tmp_path: Path) -> None:
    path, inputs = saved("static", tmp_path, LOWER)
    engine = whet.load(path, allow_code=True)
    session = engine.session("cpu", cache=False)
    session.run(inputs)
    engine.refit(convolutions(seed=5))
    want = whet.build(convolutions(seed=5)).session("cpu", cache=False).run(inputs)["y"]
    np.testing.assert_allclose(session.run(inputs)["y"], want, atol=1e-4, rtol=1e-4)
    wait_for_own(session)
    np.testing.assert_allclose(session.run(inputs)["y"], want, atol=1e-4, rtol=1e-4)
    engine.refit(convolutions(seed=6))
    want = whet.build(convolutions(seed=6)).session("cpu", cache=False).run(inputs)["y"]
    np.testing.assert_allclose(session.run(inputs)["y"], want, atol=1e-4, rtol=1e-4)


RUN = """
    import sys
    sys.modules["llvmlite"] = None
    import numpy as np, whet
    session = whet.load(sys.argv[1], allow_code=True).session("cpu", cache=False)
    for _ in range(4):
        y = session.run({"x": np.load(sys.argv[2])})["y"]
    np.save(sys.argv[3], y)
    print(session.architecture)
"""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("level", [LOWER, str(HERE)])
def test_no_compiler_is_needed(case: str, level: str, tmp_path: Path) -> None:
    path, inputs = saved(case, tmp_path, level)
    np.save(tmp_path / "x.npy", inputs["x"])
    files = [str(tmp_path / name) for name in ("x.npy", "y.npy")]
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(path), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(Architecture.parse(level))
    want = whet.load(path).session("cpu", cache=False).run(inputs)["y"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want, atol=1e-4, rtol=1e-4)


def test_which_code_is_nearest() -> None:
    def cpu(here: str, *there: str) -> str | None:
        found = nearest(there, Architecture.parse(here), Architecture.parse)
        return found and str(found).rpartition("-")[2]

    assert cpu("avx2+vnni", "avx2", "sse2") == "avx2"
    assert cpu("avx512+amx+vnni", "avx2", "avx512", "avx512+vnni", "sm90x132") == "avx512+vnni"
    assert cpu("avx2", "avx2+vnni", "avx512", "neon") is None
    assert cpu("avx2", "sse2", "sse2+sse4", "x86_64-windows-avx2") == "sse2+sse4"
    assert cpu("neon+vnni", "neon", "avx2") == "neon"

    def gpu(here: str, *there: str) -> str | None:
        found = nearest(there, cuda.Architecture.parse(here), cuda.Architecture.parse)
        return found and str(found)

    assert gpu("sm86", "sm80x108", "x86_64-linux-avx2") == "sm80x108"
    assert gpu("sm89", "sm80x108", "sm86x82") == "sm86x82"
    assert gpu("sm90x132", "sm90x114", "sm80") == "sm90x114"
    assert gpu("sm90x132", "sm90x114", "sm90x132") == "sm90x132"
    assert gpu("sm80", "sm86") is None, "code is not for earlier devices"
    assert gpu("sm87", "sm80") is None, "Orin runs its own code only"
    assert gpu("sm121", "sm120") is None, "from 9.0 on, code is for one capability"
