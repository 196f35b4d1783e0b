"""Text to object to code: what LLVM makes is right, lives as long as it must, and fails by name."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from whet.errors import CompileError
from whet.targets.cpu import host, jit

ROOT = Path(__file__).parents[3]

SCALE = """
@factors = internal constant <8 x float> <float {factor}, float 2.0, float 3.0, float 4.0,
                                          float 5.0, float 6.0, float 7.0, float 8.0>, align 32
define internal <8 x float> @times(<8 x float> %x) noinline {{
  %f = load <8 x float>, ptr @factors
  %y = fmul <8 x float> %x, %f
  ret <8 x float> %y
}}
define void @scale(ptr %x, i64 %thread, i64 %threads) {{
  %v = load <8 x float>, ptr %x, align 4
  %w = call <8 x float> @times(<8 x float> %v)
  store <8 x float> %w, ptr %x, align 4
  ret void
}}
"""
CALLS_LIBRARY = """
define void @softmax_3(ptr %x, i64 %thread, i64 %threads) {
  %v = load float, ptr %x
  %e = call float @llvm.exp.f32(float %v)
  store float %e, ptr %x
  ret void
}
declare float @llvm.exp.f32(float)
"""


def scaled(code: jit.Code, x: np.ndarray) -> np.ndarray:
    y = x.copy()
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    kernel(code.address("scale"))(y.ctypes.data, 0, 1)
    return y


def expected(x: np.ndarray, factor: float) -> np.ndarray:
    return x * np.array([factor, 2, 3, 4, 5, 6, 7, 8], np.float32)


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2"])
def test_compile_and_load(level):
    try:
        architecture = host.architecture(level)
    except host.DeviceError as error:
        pytest.skip(str(error))
    code = jit.load(jit.to_object(SCALE.format(factor=1.5), architecture), ["scale"])
    x = np.random.default_rng(1).standard_normal(8).astype(np.float32)
    np.testing.assert_array_equal(scaled(code, x), expected(x, 1.5))


def test_the_same_name_in_many_objects():
    x = np.random.default_rng(2).standard_normal(8).astype(np.float32)
    architecture = host.architecture()
    texts = [SCALE.format(factor=float(k)) for k in range(20)]
    codes = [jit.load(jit.to_object(text, architecture), ["scale"]) for text in texts]
    for k, code in enumerate(codes):
        np.testing.assert_array_equal(scaled(code, x), expected(x, k))


def test_code_is_unloaded_when_dropped():
    """Thousands of loads neither fail nor leave their code behind."""
    data = jit.to_object(SCALE.format(factor=1.0), host.architecture())
    before = len(jit._loaded)
    kept = jit.load(data, ["scale"])
    for _ in range(1000):
        jit.load(data, ["scale"])
    gc.collect()
    assert len(jit._loaded) == before + 1
    x = np.ones(8, np.float32)
    np.testing.assert_array_equal(scaled(kept, x), expected(x, 1.0))


def test_the_same_text_gives_the_same_bytes():
    text, architecture = SCALE.format(factor=1.0), host.architecture()
    assert jit.to_object(text, architecture) == jit.to_object(text, architecture)


def test_objects_load_in_another_process(tmp_path):
    data = jit.to_object(SCALE.format(factor=2.5), host.architecture())
    (tmp_path / "scale.o").write_bytes(data)
    script = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from test_jit import *
code = jit.load(Path({str(tmp_path / "scale.o")!r}).read_bytes(), ["scale"])
print(scaled(code, np.ones(8, np.float32)).sum())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert float(done.stdout) == 2.5 + 35


def test_many_threads_compile_and_load():
    x = np.random.default_rng(3).standard_normal(8).astype(np.float32)
    failures = []

    def work(k: int) -> None:
        for i in range(10):
            factor = float(10 * k + i)
            text = SCALE.format(factor=factor)
            code = jit.load(jit.to_object(text, host.architecture()), ["scale"])
            if not np.array_equal(scaled(code, x), expected(x, factor)):
                failures.append(factor)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


@pytest.mark.parametrize(
    "text, reason",
    [
        ("define void @gelu_7(ptr %x) { ret i32 1 }", "result type"),
        ("define void @gelu_7(ptr %x) {\n %y = add i64 %z, 1\n ret void }", "undefined value"),
        ("define void @gelu_7() {\n br label %a\na:\n %i = phi i32 [0, %a]\n ret void }", "PHI"),
    ],
)
def test_refused_text_names_the_kernel(text, reason):
    with pytest.raises(CompileError, match=f"(?s)'gelu_7' on {host.machine()}.*{reason}"):
        jit.to_object(text, host.architecture())


def test_calls_of_the_c_library_are_refused():
    with pytest.raises(CompileError, match=r"'softmax_3'.*expf"):
        jit.to_object(CALLS_LIBRARY, host.architecture())
    assert jit.to_object(CALLS_LIBRARY, host.architecture(), imports=["expf"])


def test_filling_memory_is_allowed():
    text = """
define void @clear(ptr %x, i64 %thread, i64 %threads) {
  call void @llvm.memset.p0.i64(ptr %x, i8 7, i64 %threads, i1 false)
  ret void
}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
"""
    code = jit.load(jit.to_object(text, host.architecture()), ["clear"])
    x = np.full(5000, 0xA5, np.uint8)
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    kernel(code.address("clear"))(x.ctypes.data, 0, 4000)
    assert (x[:4000] == 7).all() and (x[4000:] == 0xA5).all()


def test_a_symbol_that_is_not_there():
    data = jit.to_object(SCALE.format(factor=1.0), host.architecture())
    with pytest.raises(CompileError, match="other"):
        jit.load(data, ["other"])


@pytest.mark.parametrize("data", [b"", b"junk", b"\x7fELF\x02" + bytes(100)])
def test_bytes_that_are_no_object(data):
    with pytest.raises(CompileError, match="scale"):
        jit.load(data, ["scale"])


def test_kernel_names():
    assert jit.kernel_name(SCALE) == "scale"
    assert jit.kernel_name("define dso_local void @a.b-c() {") == "a.b-c"
    assert jit.kernel_name("nothing") == "?"


def test_importing_loads_no_compiler():
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import whet.targets.cpu.jit, whet.targets.cpu.pool, whet.targets.cpu.host
print([name for name in sys.modules if name.startswith("llvmlite")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
