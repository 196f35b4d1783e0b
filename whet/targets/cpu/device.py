"""The CPU as a device: compiles a Plan's kernels, lays out their arguments, walks them with the
worker pool."""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from whet.errors import CompileError, OutOfMemory
from whet.ir.graph import Value
from whet.ir.types import TensorType, Type
from whet.knobs import knobs
from whet.plan.kernel import Kernel, Template
from whet.plan.plan import Plan, nbytes
from whet.plan.target import Capabilities, Limits, Tactic
from whet.progress import phase
from whet.targets.background import Background
from whet.targets.cpu import codegen, host, jit, limits, primitives, tactics
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.executable import Executable
from whet.targets.cpu.functions import LIBRARY
from whet.targets.cpu.legalize import WHOLE, emits, legalize
from whet.targets.cpu.pool import Pool, driver_for
from whet.targets.cpu.special import Special, specialised
from whet.targets.cpu.templates import PLANNED_THREADS, templates_for
from whet.targets.cpu.workers import Job, compile_all

logger = logging.getLogger("whet")

MOST_LAYOUTS = 64
"""Dtypes and shapes of an input that are remembered."""


class ObjectCache(Protocol):
    """Where compiled code is kept between processes."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes, about: str) -> None: ...


class Device:
    """One CPU at one architecture level; compiled kernels are shared by all its programs."""

    def __init__(
        self,
        architecture: Architecture | None = None,
        cache: ObjectCache | None = None,
        prebuilt: Mapping[str, bytes] | None = None,
        threads: int = 2,
        tries: bool = False,
    ) -> None:
        self.architecture = architecture or host.architecture()
        self.cache, self.prebuilt, self.threads = cache, prebuilt or {}, threads
        # Code that is there already was made for the number that is planned with in general.
        self.planned = PLANNED_THREADS if self.prebuilt else max(threads, PLANNED_THREADS)
        self.planned_for = f"{self.about} for {self.planned} threads"
        self.templates = templates_for(self.planned)
        self.capabilities = Capabilities(
            "cpu", self.legalize, emits, self.templates, ranges=True, makeshift=self.makeshift
        )
        self.compiled = 0
        self.tries = tries
        """Whether plans that run often try other kernels in their runs."""
        self.background = Background(self)
        self._code: dict[Kernel | Special, jit.Code] = {}
        self._favourites: dict[Kernel, Kernel] = {}
        self._limits: Limits | None = None
        self._lock = threading.Lock()

    def legalize(self, value: Value) -> Any:
        """An operator in this CPU's terms."""
        if type(value.op) in self.templates:
            return value
        for template in dict.fromkeys(self.templates.values()):
            new = template.legalize(value, self.architecture)
            if new is not None:
                return new
        return legalize(value)

    def code(self, kernel: Kernel | Special) -> int:
        """The address of the kernel's function, compiled or taken from the cache."""
        with self._lock:
            if kernel not in self._code:
                self._code[kernel] = self._loaded(kernel, self.object(kernel))
            return self._code[kernel].address(codegen.ENTRY)

    def key(self, kernel: Kernel | Special | str) -> str:
        """What the cache knows the code of a kernel, or of LLVM text, by."""
        return blake2b(f"{self.about}\n{kernel}".encode(), digest_size=20).hexdigest()

    @property
    def about(self) -> str:
        """What code compiled here is for: the target, the generator's version, the architecture."""
        return f"cpu {codegen.version()} {self.architecture}"

    def driver(self, text: str, architecture: Architecture, imports: Sequence[str]) -> bytes:
        """The worker pool's own code, from the cache as kernels are."""
        return self._cached(self.key(text), lambda: jit.to_object(text, architecture, imports))

    def code_besides(self) -> dict[str, bytes]:
        """What runs need besides kernels, by key: the worker pool's own code."""
        here = self.architecture
        means = primitives.to_llvm(primitives.kind_of(here.system), here.machine)
        text, plainest = driver_for(here.machine, here.system, means)
        return {self.key(text): self.driver(text, plainest, primitives.imports(means))}

    def arrays(self, kinds: Sequence[TensorType]) -> list[np.ndarray]:
        """Arrays that lie one after the other in one piece of memory, each at a multiple of 64
        bytes."""
        places = np.cumsum([0, *(-(-nbytes(kind) // 64) * 64 for kind in kinds)])
        memory = host.aligned_memory(max(int(places[-1]), 64))
        return [
            memory[at : at + nbytes(kind)].view(kind.numpy).reshape(kind.shape)
            for at, kind in zip(places, kinds)
        ]

    def executable(self, plan: Plan, threads: int, before: Plan | None = None) -> Executable:
        """The plan, ready to run; the kernels of one that is run before it are compiled, too."""
        return Executable(plan, self, threads, before)

    def given(self, array: np.ndarray, kept: bool = True) -> np.ndarray:
        """A weight or constant where kernels read it."""
        return array if array.ndim == 0 else np.ascontiguousarray(array)

    def room(self, kind: TensorType, arrays: Sequence[Any]) -> np.ndarray:
        """Fresh memory for a result."""
        try:
            return np.empty(kind.shape, kind.numpy)
        except ValueError as error:  # so NumPy calls what no address could count
            raise OutOfMemory(f"no memory holds a result {kind}") from error

    def footprint(self, plan: Plan, given: Sequence[Value]) -> None:
        """The host's memory is shared."""

    def quick(self, x: Any, layouts: dict[Any, None], stream: Any) -> np.ndarray | None:
        """An array that lies as one that was learnt; None for all others."""
        if type(x) is not np.ndarray or (x.dtype, x.shape) not in layouts:
            return None
        return x if x.flags.c_contiguous else None

    def learn(self, x: Any, array: Any, kind: Type, layouts: dict[Any, None]) -> None:
        """Remembers an array that was taken as it is."""
        if array is x and type(x) is np.ndarray:
            if len(layouts) >= MOST_LAYOUTS:
                layouts.clear()
            layouts[x.dtype, x.shape] = None

    def reserve(self, kinds: Sequence[TensorType], arena: int) -> None:
        """The host's memory needs no asking beforehand."""

    def adopt(self, x: Any, what: str, stream: Any = None) -> Any:
        """Every tensor that speaks DLPack is taken as NumPy does it."""
        return None

    def trim(self) -> None:
        """The allocator of the host needs no telling."""

    def makeshift(self, value: Value) -> bool:
        """Whether a template would run the operator if no run had to tell its sizes."""
        if value.is_static or type(value.op) not in WHOLE:
            return False
        kinds = [i.type for i in value.inputs if i is not None]
        told = any(isinstance(kind, TensorType) and not kind.is_static for kind in kinds)
        templates = dict.fromkeys(self.templates.values())
        return told and all(t.legalize(value, self.architecture) is None for t in templates)

    def later(self, task: Callable[[], Any]) -> None:
        """Does something on another thread, after what it does already."""
        self.background.compile(lambda: [task()] * 0, lambda: None)

    def specialised(
        self, kernel: Kernel, sizes: Mapping[str, int], ordered: bool
    ) -> Kernel | Special:
        """The kernel for the very sizes; itself where it must add up in the same order, and its
        code for these sizes might not."""
        return specialised(kernel, sizes, ordered, self.planned)

    def tactics(self, kernel: Kernel) -> list[Tactic]:
        """The ways to run a kernel that were weighed, the chosen one first."""
        ran = self.favourite(kernel)
        found = tactics.tactics(ran, self.architecture, self.threads)
        if ran is not kernel and found:
            found[0] = replace(found[0], by="measurement")
        return found

    def limits(self) -> Limits:
        """What this CPU can do at most, measured once."""
        if self._limits is None:
            self._limits = limits.measure(self.architecture, self.threads, self.driver)
        return self._limits

    def object(self, kernel: Kernel | Special) -> bytes:
        """The kernel's machine code, prebuilt, from the cache, or compiled now."""
        return self._cached(self.key(kernel), lambda: self._compile(kernel))

    def compile(self, kernels: Sequence[Kernel | Special], idle: bool = False) -> None:
        """Makes sure of the code of many kernels, several processes compiling what is new; with
        `idle`, one that takes no time from others."""
        idle = idle or self.background.is_here
        found = self.objects([k for k in kernels if k not in self._code], idle=idle)
        with self._lock:
            for kernel, code in found.items():
                if kernel not in self._code:
                    self._code[kernel] = self._loaded(kernel, code)

    def objects(
        self,
        kernels: Sequence[Kernel | Special],
        moving: Collection[Kernel] = (),
        idle: bool = False,
    ) -> dict[Kernel | Special, bytes]:
        """The code of many kernels, in their order; nothing is loaded."""
        found = {k: self._found(self.key(k)) for k in dict.fromkeys(kernels)}
        jobs: dict[Kernel | Special, Job] = {k: Job(k) for k, code in found.items() if code is None}
        if jobs:
            shares = Pool.shared(self.driver).sharing() if idle else nullcontext()
            with shares, phase("compile kernels", len(jobs)) as step:
                compile_all(list(jobs.values()), self.architecture, step, idle)
        for kernel, job in jobs.items():
            self._keep(self.key(kernel), job.code)
            if knobs.dump is not None:
                self._dump(kernel, job.text(self.architecture), job.code)
        return {k: jobs[k].code if code is None else code for k, code in found.items()}

    def alike(self, kernel: Kernel) -> list[Kernel]:
        """Kernels that may be faster, and give the same bits from the same buffers."""
        template = self.templates.get(type(kernel.op)) if isinstance(kernel, Template) else None
        alike = getattr(template, "alike", None)
        return alike(kernel, self.architecture) if alike is not None else []

    def favourite(self, kernel: Kernel) -> Kernel:
        """The kernel, or the one that was measured to be faster in its place."""
        if kernel not in self._favourites:
            known = self.cache.get(self._choice(kernel)) if self.cache is not None else None
            ways = self.alike(kernel) if known else []
            found = (way for way in ways if self.key(way).encode() == known)
            self._favourites[kernel] = next(found, kernel)
        return self._favourites[kernel]

    def prefer(self, kernel: Kernel, other: Kernel) -> None:
        """Remembers which of several kernels was measured to be the fastest."""
        for way in {kernel, other}:  # the next start finds the one, and asks about the other
            self._favourites[way] = other
            if self.cache is not None:
                self.cache.put(self._choice(way), self.key(other).encode(), self.about)

    def was_tried(self, kernel: Kernel) -> bool:
        """Whether other kernels were measured in the place of this one."""
        return self.cache is not None and self.cache.get(self._choice(kernel)) is not None

    def _choice(self, kernel: Kernel) -> str:
        """What the cache knows the fastest kernel in the place of this one by."""
        return self.key(f"on {self.threads} threads, the fastest in the place of\n{kernel}")

    def _loaded(self, kernel: Kernel | Special, code: bytes) -> jit.Code:
        """Code as functions; what does not fit this process is said, and compiled anew."""
        try:
            return _load(code)
        except CompileError as error:
            logger.warning(
                "kernel %s is compiled anew: what was kept fails: %s", kernel.name, error
            )
        code = self._compile(kernel)
        self._keep(self.key(kernel), code)
        return _load(code)

    def _found(self, key: str) -> bytes | None:
        code = self.prebuilt.get(key)
        return self.cache.get(key) if code is None and self.cache is not None else code

    def _keep(self, key: str, code: bytes) -> None:
        self.compiled += 1
        if self.cache is not None:
            self.cache.put(key, code, self.about)

    def _cached(self, key: str, make: Callable[[], bytes]) -> bytes:
        code = self._found(key)
        if code is None:
            code = make()
            self._keep(key, code)
        return code

    def _compile(self, kernel: Kernel | Special) -> bytes:
        text = Job(kernel).text(self.architecture)
        code = jit.to_object(text, self.architecture, codegen.imports(text))
        if knobs.dump is not None:
            self._dump(kernel, text, code)
        return code

    def _dump(self, kernel: Kernel | Special, text: str, code: bytes) -> None:
        """Every stage of a kernel as a file of its own, for reading and for comparing."""
        folder = knobs.dump
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{kernel.name}-{blake2b(str(kernel).encode(), digest_size=6).hexdigest()}"
        for suffix, stage in {
            "kernel": f"{kernel}\n".encode(),
            "ll": text.encode(),
            "o": code,
        }.items():
            (folder / f"{stem}.{suffix}").write_bytes(stage)


def _load(code: bytes) -> jit.Code:
    return jit.load(code, [codegen.ENTRY], _library(frozenset(jit.undefined_symbols(code))))


@cache
def _library(names: frozenset[str]) -> Mapping[str, int]:
    """Addresses of the C library's functions that an object calls."""
    wanted = sorted(names & LIBRARY)
    if not wanted:
        return {}
    library = (
        ctypes.CDLL(ctypes.util.find_library("m")) if ctypes.util.find_library("m") else host.libc()
    )
    return {
        name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in wanted
    }
