"""The processor and the operating system: what is found, how it is held down, memory, cores."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import levels
from whet.errors import DeviceError, OutOfMemory
from whet.targets.cpu import host
from whet.targets.cpu.architecture import LEVELS, Architecture

X86 = [name for name, level in LEVELS.items() if level.machine == "x86_64"]
WIDE = """
define void @wide(ptr %x) {
  %a = load <16 x float>, ptr %x
  %b = fadd <16 x float> %a, %a
  store <16 x float> %b, ptr %x
  ret void
}
"""


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("level", [None, *X86])
def test_names_say_all(level):
    architecture = host.architecture() if level is None else levels.architecture(level)
    assert Architecture.parse(str(architecture)) == architecture
    assert host.architecture(str(architecture)) == architecture
    assert host.runs(architecture)


def test_names_are_independent_of_order():
    assert Architecture("avx512", ("vnni", "amx")) == Architecture.parse("avx512+amx+vnni+amx")
    assert str(Architecture("avx2")) == "x86_64-linux-avx2"
    assert str(Architecture("neon", ("bf16",), "darwin")) == "aarch64-darwin-neon+bf16"


@pytest.mark.parametrize("level", X86)
def test_levels_hold_the_processor_down(level):
    """Restricting is real: the code made has no wider registers than the level's."""
    import llvmlite.binding as llvm

    machine = Architecture(level).target_machine()
    assembly = machine.emit_assembly(llvm.parse_assembly(WIDE))
    widest = max(bytes_ for bytes_, r in ((64, "zmm"), (32, "ymm"), (16, "xmm")) if r in assembly)
    assert widest == Architecture(level).vector_bytes


@pytest.mark.parametrize("level", LEVELS)
def test_llvm_knows_every_feature(level, capfd):
    machine = Architecture(level, tuple(LEVELS[level].extras)).target_machine()
    assert machine.triple.startswith(LEVELS[level].machine)
    assert capfd.readouterr().err == ""


def test_properties_follow_the_extras():
    full = Architecture("avx512", ("amx", "bf16", "fp16", "vnni"))
    assert full.amx and full.bf16 and full.fp16 and full.vnni and full.fma and full.rounding
    plain = Architecture("sse2")
    assert not (plain.amx or plain.bf16 or plain.fma or plain.rounding or plain.half_conversion)
    assert Architecture("sse2", ("sse4",)).rounding


@pytest.mark.parametrize("name", ["avx1024", "avx2+amx", "", "x86_64-linux-avx512+tea"])
def test_unknown_architectures(name):
    with pytest.raises(DeviceError, match="knows"):
        Architecture.parse(name)


def test_foreign_architectures_are_refused():
    foreign = "neon" if host.machine() == "x86_64" else "avx2"
    with pytest.raises(DeviceError, match="cannot run here"):
        host.architecture(foreign)
    assert not host.runs(Architecture(foreign, system=host.system()))
    assert not host.runs(Architecture(host.architecture().level, system="plan9"))


def test_detection_agrees_with_llvm():
    assert host.features() == host._llvm_features() or not host.permit_amx()
    assert host._linux_features() in (host._llvm_features(), frozenset())


def test_amx_is_only_there_when_permitted(monkeypatch):
    if "amx" not in host.architecture().extras:
        pytest.skip("no AMX here")
    assert host.permit_amx()
    monkeypatch.setattr(host, "permit_amx", lambda: False)
    assert not any(name.startswith("amx") for name in host.features.__wrapped__())


def test_cores_follow_the_affinity_mask():
    assert 1 <= host.default_threads() <= host.cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        script = (
            f"import sys, os; sys.path.insert(0, {str(ROOT)!r})\n"
            "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\n"
            "from whet.targets.cpu import host; print(host.cores())"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30)
        assert done.stdout.strip() == b"1"


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "files, cpus",
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "junk"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_cpu_quota(tmp_path, files, cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.cpu_quota(tmp_path) == cpus


@pytest.mark.parametrize("nbytes", [0, 1, 63, 4096, (2 << 20) - 1, 2 << 20, (6 << 20) + 5])
def test_aligned_memory(nbytes):
    memory = host.aligned_memory(nbytes)
    assert memory.nbytes == nbytes and memory.dtype == np.uint8 and memory.flags.writeable
    alignment = 64 if nbytes < host.HUGE_PAGE else host.HUGE_PAGE
    assert nbytes == 0 or memory.ctypes.data % alignment == 0
    memory[:] = 0xA5
    view = memory[nbytes // 2 :].copy()
    assert (view == 0xA5).all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_goes_when_its_last_view_goes():
    before = resident()
    memory = host.aligned_memory(64 << 20)
    memory[:] = 1
    assert resident() - before > 48 << 20
    view = memory.view(np.float32)[:10].reshape(2, 5)
    del memory
    assert view.view(np.uint8).sum() == 40 and resident() - before > 48 << 20
    del view
    assert resident() - before < 16 << 20


def test_too_much_memory():
    with pytest.raises(OutOfMemory, match="MiB"):
        host.aligned_memory(1 << 60)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_dropped_pages_are_read_again(tmp_path):
    data = np.random.default_rng(4).integers(0, 256, 32 << 20, np.uint8)
    data.tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.uint8, mode="r")
    total, before = int(data.sum()), resident()
    assert int(mapped.sum()) == total
    filled = resident()
    host.drop_pages(mapped[1:-1])
    assert filled - before > 24 << 20 and resident() - before < 8 << 20
    assert int(mapped.sum()) == total
    host.drop_pages(mapped[5:50])  # less than a page: nothing to do


def test_cache_sizes_are_plausible():
    sizes = host.cache_sizes()
    assert 8 << 10 <= sizes.l1 <= sizes.l2 <= 1 << 30
