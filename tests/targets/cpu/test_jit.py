"""Text to object to code: what LLVM makes is right, lives as long as it must, and fails by name."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests import levels
from whet.errors import CompileError
from whet.targets.cpu import elf, host, jit

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


@pytest.mark.parametrize("level", levels.LEVELS)
def test_compile_and_load(level):
    text = SCALE.format(factor=1.5)
    code = jit.load(jit.to_object(text, levels.architecture(level)), ["scale"])
    x = np.random.default_rng(1).standard_normal(8).astype(np.float32)
    np.testing.assert_array_equal(scaled(code, x), expected(x, 1.5))


def test_the_same_name_in_many_objects():
    x = np.random.default_rng(2).standard_normal(8).astype(np.float32)
    architecture = host.architecture()
    texts = [SCALE.format(factor=float(k)) for k in range(20)]
    codes = [jit.load(jit.to_object(text, architecture), ["scale"]) for text in texts]
    for k, code in enumerate(codes):
        np.testing.assert_array_equal(scaled(code, x), expected(x, k))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_code_is_unloaded_when_dropped():
    data = jit.to_object(SCALE.format(factor=1.0), host.architecture())
    kept = jit.load(data, ["scale"])
    before = Path("/proc/self/maps").read_text().count("\n")
    for _ in range(300):
        jit.load(data, ["scale"])
    gc.collect()
    assert Path("/proc/self/maps").read_text().count("\n") < before + 20
    x = np.ones(8, np.float32)
    np.testing.assert_array_equal(scaled(kept, x), expected(x, 1.0))


def test_code_is_not_writable():
    data = jit.to_object(SCALE.format(factor=1.0), host.architecture())
    code = jit.load(data, ["scale"])
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    for line in maps.read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= code.address("scale") < last:
            assert line.split()[1] == "r-xp"


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


def test_tables_jumps_and_pointers():
    """What selects and calls through tables needs: every kind of relocation that LLVM writes."""
    text = """
@kept = constant [4 x i64] [i64 11, i64 22, i64 33, i64 44]
@pointers = internal constant [2 x ptr] [ptr @one, ptr @two]
define i64 @one(i64 %x) noinline {
  %y = add i64 %x, 1
  ret i64 %y
}
define internal i64 @two(i64 %x) noinline {
  %y = add i64 %x, 2
  ret i64 %y
}
define i64 @kernel(i64 %i) {
  switch i64 %i, label %other [i64 0, label %a  i64 1, label %b  i64 2, label %c  i64 3, label %d]
a:
  %v = load i64, ptr @kept
  ret i64 %v
b:
  %f = load ptr, ptr @pointers
  %w = call i64 %f(i64 100)
  ret i64 %w
c:
  %q = getelementptr ptr, ptr @pointers, i64 1
  %g = load volatile ptr, ptr %q
  %x = call i64 %g(i64 200)
  ret i64 %x
d:
  %y = call i64 @outside(i64 7)
  ret i64 %y
other:
  %z = call i64 @one(i64 %i)
  ret i64 %z
}
declare i64 @outside(i64)
"""
    callback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    square = callback(lambda x: x * x)
    address = ctypes.cast(square, ctypes.c_void_p).value or 0
    data = jit.to_object(text, host.architecture(), ["outside"])
    for load in (jit.load, jit._load_by_llvm):
        code = load(data, ["kernel", "one"], {"outside": address})
        kernel = callback(code.address("kernel"))
        assert [kernel(i) for i in range(5)] == [11, 101, 202, 49, 5]
        assert callback(code.address("one"))(1) == 2
    with pytest.raises(CompileError, match="outside"):
        jit.load(data, ["kernel"])


def test_variables_are_left_to_llvm():
    text = """
@count = internal global i64 5
define i64 @next() {
  %x = load i64, ptr @count
  %y = add i64 %x, 1
  store i64 %y, ptr @count
  ret i64 %y
}
"""
    code = jit.load(jit.to_object(text, host.architecture()), ["next"])
    call = ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("next"))
    assert [call(), call()] == [6, 7]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_objects_are_refused_or_load(seed):
    """Truncated and bit-flipped bytes: an error that says so, or code that is never called here."""
    data = jit.to_object(SCALE.format(factor=1.0), host.architecture())
    rng = np.random.default_rng(seed)
    for _ in range(200):
        damaged = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data)
        for at in rng.integers(0, len(damaged), rng.integers(0, 4)):
            damaged[at] ^= 1 << rng.integers(8)
        try:
            elf.Object(bytes(damaged)).image(0, lambda name: 0)
        except (ValueError, UnicodeDecodeError):
            continue


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_another_thread_compiles():
    script = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import os, warnings
from test_jit import *
warnings.simplefilter("ignore", DeprecationWarning)
jit._llvm()  # Python itself cannot fork in the middle of an import
text = SCALE.format(factor=1.0)
def compile():
    while True:
        jit.load(jit.to_object(text, host.architecture()), ["scale"])
for _ in range(2):
    threading.Thread(target=compile, daemon=True).start()
for _ in range(10):
    child = os.fork()
    if not child:
        code = jit.load(jit.to_object(text, host.architecture()), ["scale"])
        os._exit(int(scaled(code, np.ones(8, np.float32)).sum()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 36
print("done", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


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
