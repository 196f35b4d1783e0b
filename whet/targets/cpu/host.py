"""What is particular to the processor and the operating system: features, cores, memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import DeviceError, OutOfMemory
from whet.targets.cpu.architecture import FEATURES, Architecture, best_level, extras_present

HUGE_PAGE = 2 << 20
PAGE = mmap.PAGESIZE


def system() -> str:
    """The operating system, as architectures name it: linux, windows or darwin."""
    return {"win32": "windows"}.get(sys.platform, sys.platform)


def architecture(level: str | None = None) -> Architecture:
    """The processor at hand, or the same held down to a lower `level`, so that it can be tested.

    `level` is a level (`avx2`, with the extras that this processor has) or a whole name of an
    `Architecture`. Raises DeviceError for what this processor cannot run.
    """
    wanted = Architecture.parse(level, system()) if level else None
    if wanted is None or level == wanted.level:
        wanted = _on_this_host(wanted.level if wanted else best_level(machine(), features()))
    missing = wanted.requirements - features()
    if missing or wanted.system != system():
        lacks = f"no {', '.join(sorted(missing))}" if missing else f"runs {system()}"
        raise DeviceError(f"code for {wanted} cannot run here: this machine has {lacks}")
    return wanted


def runs(architecture: Architecture) -> bool:
    """Whether code made for an architecture runs here, such as an engine's prebuilt kernels."""
    return architecture.system == system() and architecture.requirements <= features()


@cache
def _on_this_host(level: str) -> Architecture:
    return Architecture(level, extras_present(level, features()), system())


@cache
def features() -> frozenset[str]:
    """LLVM's names of what this processor has and the operating system permits."""
    found = _linux_features() or _llvm_features()
    if "amx-tile" in found and not permit_amx():
        return frozenset(name for name in found if not name.startswith("amx"))
    return found


def _linux_features() -> frozenset[str]:
    """The kernel's list, which costs a warm start nothing; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    words = set(flags[1].split()) if flags else set()
    return frozenset(name for name in FEATURES if _KERNEL_NAMES.get(name, name) in words)


def _llvm_features() -> frozenset[str]:
    import llvmlite.binding as llvm

    found = {name for name, on in llvm.get_host_cpu_features().items() if on}
    if machine() == "aarch64":
        found |= {"neon", "fp-armv8"}
    return FEATURES & found


# Linux's names in /proc/cpuinfo where they are not LLVM's.
_KERNEL_NAMES = {
    "amx-bf16": "amx_bf16",
    "amx-int8": "amx_int8",
    "amx-tile": "amx_tile",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "bmi": "bmi1",
    "dotprod": "asimddp",
    "fp-armv8": "fp",
    "fullfp16": "asimdhp",
    "lzcnt": "abm",
    "neon": "asimd",
    "sahf": "lahf_lm",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
}


def machine() -> str:
    """The instruction set, as LLVM spells it: x86_64 or aarch64."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


@cache
def libc() -> Any:
    """The C library of this process."""
    return ctypes.CDLL(None if sys.platform != "win32" else "ucrtbase")


def permit_amx() -> bool:
    """Ask the kernel for the AMX tile registers (Linux 5.16: arch_prctl ARCH_REQ_XCOMP_PERM)."""
    if system() != "linux" or machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    arguments = (ctypes.c_long(x) for x in (arch_prctl, request_permission, tile_data))
    return libc().syscall(*arguments) == 0


def cpus() -> tuple[int, ...]:
    """The CPUs that this thread may run on; plain numbers where there is no mask."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cores() -> int:
    """How many threads can run at once: the affinity mask, less a container's CPU quota."""
    return max(1, min(len(cpus()), cpu_quota() or len(cpus())))


def default_threads() -> int:
    """Threads that a session takes unless told: one per physical core, as siblings share units."""
    folder = Path("/sys/devices/system/cpu")
    try:
        siblings = {(folder / f"cpu{n}/topology/thread_siblings_list").read_text() for n in cpus()}
    except OSError:
        return cores()
    return min(cores(), len(siblings))


def cpu_quota(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """CPUs granted by this process's control groups (version 2, then 1), rounded up."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # A parent's limit binds its children too. Inside a container the path may not be there.
    path = next((line[3:] for line in lines if line.startswith("0::")), "/").strip("/")
    folders = [groups / path, *(groups / path).parents, groups, groups / "cpu"]
    granted = (_granted(folder) for folder in folders if folder.is_relative_to(groups))
    return min((count for count in granted if count), default=None)


def _granted(folder: Path) -> int | None:
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        return None if limit in ("max", "-1") else -(-int(limit) // int(period))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class CacheSizes:
    """Bytes of first- and second-level cache of one core, and of the third level."""

    l1: int
    l2: int
    l3: int


@cache
def cache_sizes() -> CacheSizes:
    """Data cache sizes of CPU 0, or common ones where the system does not tell."""
    sizes = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}
    unit = {"K": 10, "M": 20, "G": 30}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, text = (index / "type").read_text(), (index / "size").read_text().strip()
            level = int((index / "level").read_text())
        except (OSError, ValueError):
            continue
        if not kind.startswith("Instruction"):
            sizes[level] = int(text[:-1]) << unit[text[-1]]
    return CacheSizes(sizes[1], sizes[2], sizes[3])


def available_memory(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still take before the system swaps or ends it; None unknown."""
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return None
    try:
        limit = int((groups / "memory.max").read_text())
        return min(free, max(0, limit - int((groups / "memory.current").read_text())))
    except (OSError, ValueError):
        return free


def aligned_memory(nbytes: int) -> NDArray[np.uint8]:
    """`nbytes` of memory, 64-byte aligned (2 MiB and huge pages when large), freed when dropped.

    The contents are undefined: zeros in fresh pages, anything in small buffers. Raises OutOfMemory.
    """
    try:
        if nbytes < HUGE_PAGE:
            return _aligned(np.empty(nbytes + 64, np.uint8), 64, nbytes)
        pages = mmap.mmap(-1, nbytes + HUGE_PAGE)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        raise OutOfMemory(f"the system has no {nbytes / 2**20:,.0f} MiB of memory left") from error
    memory = _aligned(np.frombuffer(pages, np.uint8), HUGE_PAGE, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Whole huge pages only: one more for the tail could cost 2 MiB for a byte.
        _advise(memory, mmap.MADV_HUGEPAGE, HUGE_PAGE)
    return memory


def _aligned(memory: NDArray[np.uint8], alignment: int, nbytes: int) -> NDArray[np.uint8]:
    start = -memory.ctypes.data % alignment
    return memory[start : start + nbytes]


def drop_pages(mapped: NDArray[Any]) -> None:
    """Give back the memory behind a read-only *file mapping*; the next read loads it again.

    Only whole pages inside the array go. Memory that is no file mapping would lose its contents.
    """
    if hasattr(mmap, "MADV_DONTNEED") and system() == "linux":
        _advise(mapped, mmap.MADV_DONTNEED, PAGE)


def _advise(memory: NDArray[Any], advice: int, page: int) -> None:
    first = -(-memory.ctypes.data // page) * page
    length = (memory.ctypes.data + memory.nbytes) // page * page - first
    if length > 0:
        # A refusal (no huge pages, locked memory) only costs speed.
        libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), advice)


def reserve_code(nbytes: int) -> int:
    """Address of fresh pages that will hold code; raises OutOfMemory."""
    mmap_ = libc().mmap
    mmap_.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    wanted = ctypes.c_size_t(nbytes)
    address = mmap_(None, wanted, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, ctypes.c_long(0))
    if address in (None, ctypes.c_size_t(-1).value):
        raise OutOfMemory(f"the system has no {nbytes} bytes of memory left for code")
    return int(address)


def publish_code(address: int, image: bytes | bytearray) -> None:
    """Fill reserved pages and make them executable, and no longer writable."""
    ctypes.memmove(address, bytes(image), len(image))
    protection = mmap.PROT_READ | mmap.PROT_EXEC
    if libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(len(image)), protection):
        raise DeviceError("the system does not let this process make code executable")


def release_code(address: int, nbytes: int) -> None:
    """Give pages of code back."""
    libc().munmap(ctypes.c_void_p(address), ctypes.c_size_t(nbytes))
