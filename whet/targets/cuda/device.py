"""A GPU as a device: compiles a Plan's kernels, lays out their arguments, runs them as graphs."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from whet.errors import CompileError, DeviceError, InvalidInput
from whet.ir.graph import Value
from whet.ir.types import TensorType, Type
from whet.knobs import knobs
from whet.plan.bind import adds_up
from whet.plan.kernel import Kernel, Loops, Template
from whet.plan.plan import Plan, nbytes
from whet.plan.target import Capabilities, Footprint, Limits, Tactic
from whet.progress import phase
from whet.targets.background import Background, give_way
from whet.targets.cuda import codegen, dlpack, driver, library, limits
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.arithmetic import POINTER
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.autotune import Autotuner
from whet.targets.cuda.compile import Function, has_triton, to_object, unpack
from whet.targets.cuda.footprint import footprint
from whet.targets.cuda.gate import Gate
from whet.targets.cuda.legalize import check_sizes, emits, legalize
from whet.targets.cuda.memory import Heap, Loan, aligned
from whet.targets.cuda.tactics import Loaded, has_room, load
from whet.targets.cuda.templates import TEMPLATES
from whet.targets.cuda.two_steps import in_two_steps
from whet.targets.cuda.ways import Way
from whet.targets.cuda.workers import Job, compile_all
from whet.targets.special import Special, special_of


class ObjectCache(Protocol):
    """Where compiled code is kept between processes."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes, about: str) -> None: ...


def capabilities(architecture: Architecture) -> Capabilities:
    """What planning must know of an architecture."""

    def by_template(value: Value) -> Any:
        found = (t.legalize(value, architecture) for t in dict.fromkeys(TEMPLATES.values()))
        return next((new for new in found if new is not None), None)

    def in_terms(value: Value) -> Any:
        if type(value.op) in TEMPLATES:
            return value
        new = by_template(value)
        if new is not None:
            return new
        check_sizes(value, by_template)
        parts = in_two_steps(value, architecture)
        return legalize(value) if parts is None else parts

    return Capabilities(
        "cuda", in_terms, emits, TEMPLATES, ranges=True, paced_ranges=False, overlaps=True
    )


class Device:
    """One GPU, or only its architecture, to compile for; kernels are shared by all its programs."""

    def __init__(
        self,
        architecture: Architecture | None = None,
        cache: ObjectCache | None = None,
        prebuilt: Mapping[str, bytes] | None = None,
        number: int = 0,
        tune: float = 0,
    ) -> None:
        self.number, self.tune = number, tune
        self.architecture = architecture or driver.find(number).architecture
        self.cache, self.prebuilt = cache, prebuilt or {}
        self.capabilities = capabilities(self.architecture)
        self.legalize = self.capabilities.legalize
        self.planned_for = self.about
        self.compiled = 0
        self.background = Background(self)
        self.measuring = Background(self)
        self._objects: dict[Kernel | Special, bytes] = {}
        self._code: WeakValueDictionary[Kernel | Special, Loaded] = WeakValueDictionary()
        """What is on the GPU: as long as something runs it."""
        self._lock = threading.Lock()
        self._quick_types: set[type] = set()
        self._theirs: tuple[Any, driver.Stream | None] = None, None
        """The stream that a caller gave last, and what it is here."""

    @cached_property
    def context(self) -> driver.Context:
        """The GPU itself, opened when it is first needed."""
        return driver.Context.of(self.number)

    @cached_property
    def heap(self) -> Heap:
        """Where weights and the arenas of runs lie."""
        return Heap.of(self.context)

    @cached_property
    def gate(self) -> Gate:
        """Who has the GPU to itself."""
        return Gate.of(self.context)

    def later(self, task: Callable[[], Any]) -> None:
        """Does something on another thread, after what it does already."""
        self.background.compile(lambda: [task()] * 0, lambda: None)

    def specialised(
        self, kernel: Kernel, sizes: Mapping[str, int], ordered: bool
    ) -> Kernel | Special:
        """The kernel for the very sizes; itself where it must add up in the same order, and its
        code for these sizes might not."""
        adds = not isinstance(kernel, Loops) or adds_up(kernel)
        if not kernel.sizes or (ordered and adds):
            return kernel
        return special_of(kernel, sizes)

    def code(self, kernel: Kernel | Special) -> Loaded:
        """The kernel's functions, loaded."""
        with self._lock:
            found = self._code.get(kernel)
            if found is None:
                code = self._objects.get(kernel)
                if code is None:
                    code = self._objects[kernel] = self.object(kernel)
                found = self._code[kernel] = self._load(kernel, code)
            return found

    def object_of(self, kernel: Special) -> bytes | None:
        """The code that runs take; None where it is forgotten."""
        return self._objects.get(kernel)

    def replace(self, kernel: Special, code: bytes) -> None:
        """Lets other code take the place of a kernel's, unless it is forgotten; what runs it now
        keeps the old one."""
        with self._lock:
            if self._objects.get(kernel) not in (None, code):
                self._objects[kernel] = code
                self._code.pop(kernel, None)

    def forget(self, kernel: Special) -> None:
        """Lets go of a kernel's code, which what runs it keeps."""
        self._objects.pop(kernel, None)

    def compile_ways(self, ways: Sequence[Way]) -> dict[Way, bytes]:
        """The code of other ways to run kernels, from processes that take no time from others;
        those left out that there are not, or that cannot be compiled."""
        jobs = {way: Job(way) for way in ways}
        if jobs:
            with suppress(CompileError):
                compile_all(list(jobs.values()), self.architecture, idle=True)
        return {way: job.code for way, job in jobs.items() if job.code}

    def functions(self, kernel: Kernel | Special) -> list[Function]:
        """What is known of a kernel's code before it is on the device."""
        if kernel not in self._objects:
            self._objects[kernel] = self.object(kernel)
        return unpack(self._objects[kernel])

    def _load(self, kernel: Kernel | Special, code: bytes) -> Loaded:
        """Code on the device; what was made for one with more shared memory, or for a library that
        refuses it here, is made anew."""
        try:
            return load(self.context, code)
        except DeviceError:
            own = self.context.found.architecture
            if own == self.architecture and not self.library_of(kernel):
                raise
            self._objects[kernel] = to_object(Job(kernel).text(own), own)
            return load(self.context, self._objects[kernel])

    def key(self, kernel: Kernel | Special | str) -> str:
        """What the cache knows the code of a kernel by."""
        return blake2b(f"{self.about}\n{kernel}".encode(), digest_size=20).hexdigest()

    @property
    def about(self) -> str:
        """What code compiled here is for: the target, the generator's version, the architecture."""
        return f"cuda {codegen.version()} {self.architecture}"

    def object(self, kernel: Kernel | Special) -> bytes:
        """The kernel's machine code, prebuilt, from the cache, or compiled now."""
        key = self.key(kernel)
        code = self._found(key)
        if code is None:
            job = Job(kernel)
            code = job.code = to_object(job.text(self.architecture), self.architecture)
            self._keep(kernel, job)
        return code

    def code_besides(self) -> dict[str, bytes]:
        """What runs need besides kernels: nothing."""
        return {}

    def compile(
        self,
        kernels: Sequence[Kernel | Special],
        idle: bool = False,
        moving: Collection[Kernel] = (),
    ) -> None:
        """Makes sure of the code of many kernels, several processes compiling what is new; with
        `idle`, such as take no time from others, and nothing is measured. The buffers of those that
        are `moving` lie elsewhere in each run."""
        idle = idle or self.background.is_here
        missing = [k for k in dict.fromkeys(kernels) if self._is_missing(k, moving)]
        found = {k: self._found(self._key_for(k, moving)) or self._found_known(k) for k in missing}
        jobs: dict[Any, Job] = {k: Job(k) for k, code in found.items() if code is None}
        tuner = None if idle or not self.tune else self._tuner(kernels, found, jobs, moving)
        if jobs or tuner is not None:
            with phase("compile kernels", len(jobs)) as step:
                compile_all(list(jobs.values()), self.architecture, step, tuner, idle=idle)
        if tuner is not None:
            jobs |= {**tuner.first, **tuner.chosen()}
            self.trim()
        for kernel, job in jobs.items():
            if job.code != found[kernel]:
                self._keep(kernel, job, moving)
            self._mark(kernel, tuner)
        for kernel, code in found.items():
            self._objects[kernel] = jobs[kernel].code if kernel in jobs else code  # type: ignore[assignment]
            self._code.pop(kernel, None)

    def _is_missing(self, kernel: Kernel | Special, moving: Collection[Kernel]) -> bool:
        return kernel not in self._objects or (kernel in moving and bool(self.library_of(kernel)))

    def _key_for(self, kernel: Kernel | Special, moving: Collection[Kernel]) -> str:
        """What the cache knows a kernel's code by: another key where buffers move, and the code is
        a library's, whose launch would be captured anew in each run."""
        key = self.key(kernel)
        if kernel in moving and _library_in(self._found(key)):
            return self.key(f"where buffers move\n{kernel}")
        return key

    def _tuner(
        self,
        kernels: Sequence[Any],
        found: Mapping[Any, bytes | None],
        jobs: Mapping[Any, Job],
        moving: Collection[Kernel],
    ) -> Autotuner | None:
        """What measures kernels that are new, and those to which less time was given before."""
        # Where sizes are open, there is nothing to measure yet.
        known = {k: job for k, job in jobs.items() if not is_open(k)}
        known |= {k: Job(k, code) for k, code in found.items() if code and self._may_gain(k, code)}
        if not known or not has_room(self.context, known):
            return None
        until, counts = time.monotonic() + self.tune, Counter[Any](kernels)
        return Autotuner(self.context, known, counts, self.architecture, until, moving)

    def _may_gain(self, kernel: Kernel | Special, code: bytes) -> bool:
        """Whether more ways to run a kernel that the cache has may be tried now."""
        if self.cache is None or not isinstance(kernel, Template):
            return False
        if _library_in(code) or self.key(kernel) in self.prebuilt:
            return False
        kept = self.cache.get(self._tried(kernel))
        return kept is not None and float(kept) < self.tune and has_triton()

    def _mark(self, kernel: Kernel | Special, tuner: Autotuner | None) -> None:
        """Notes for how many seconds ways were tried, unless it was all of them: a session that has
        more goes on."""
        if self.cache is None or not isinstance(kernel, Template) or is_open(kernel):
            return
        is_done = tuner is not None and tuner.is_done(kernel)
        seconds = float("inf") if is_done else self.tune if tuner is not None else 0.0
        key = self._tried(kernel)
        if not is_done or self.cache.get(key) is not None:
            self.cache.put(key, str(seconds).encode(), self.about)

    def _tried(self, kernel: Kernel) -> str:
        return self.key(f"seconds of trying\n{kernel}")

    def objects(
        self, kernels: Sequence[Kernel], moving: Collection[Kernel] = ()
    ) -> dict[Kernel, bytes]:
        """The code of many kernels, in their order; nothing is loaded."""
        self.compile(kernels, moving=moving)
        return {kernel: self._objects[kernel] for kernel in dict.fromkeys(kernels)}

    def compile_for_others(
        self, kernels: Sequence[Kernel], workers: int | None = None
    ) -> list[tuple[Kernel, CompileError]]:
        """Fills the cache for machines that have such a device; gives what cannot be compiled."""
        new = [k for k in dict.fromkeys(kernels) if self._found(self.key(k)) is None]
        jobs = {k: Job(k) for k in new}
        with suppress(CompileError):
            compile_all(list(jobs.values()), self.architecture, workers=workers)
        for kernel, job in jobs.items():
            if job.code:
                self._keep(kernel, job)
        return [(kernel, job.error) for kernel, job in jobs.items() if job.error is not None]

    def _found_known(self, kernel: Kernel | Special) -> bytes | None:
        """What is there for a kernel of the very sizes: in an engine that was built for these, or
        measured to be the fastest by a session that had no others."""
        if not isinstance(kernel, Special):
            return None
        give_way()  # sizes are put in here, and runs need the interpreter as well
        code = self._found(self.key(kernel.known))
        # What sizes tell may lie elsewhere in each run.
        return None if _library_in(code) else code

    def _found(self, key: str) -> bytes | None:
        code = self.prebuilt.get(key)
        if code is None and self.cache is not None:
            code = self.cache.get(key)
        return None if code is not None and _is_foreign(code) else code

    def _keep(self, kernel: Kernel | Special, job: Job, moving: Collection[Kernel] = ()) -> None:
        self.compiled += 1
        if self.cache is not None:
            self.cache.put(self._key_for(kernel, moving), job.code, self.about)
        if knobs.dump is not None:
            self._dump(kernel, job)

    def _dump(self, kernel: Kernel | Special, job: Job) -> None:
        """Every stage of a kernel as a file of its own, for reading and for comparing."""
        folder = knobs.dump
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{kernel.name}-{blake2b(str(kernel).encode(), digest_size=6).hexdigest()}"
        source = job.text(self.architecture)
        launches = "".join(f"# {launch}\n" for launch in source.launches)
        stages = {
            "kernel": f"{kernel}\n".encode(),
            "triton.py": (launches + source.text).encode(),
            "cubin": job.code,
        }
        for suffix, stage in stages.items():
            (folder / f"{stem}.{suffix}").write_bytes(stage)

    def tactics(self, kernel: Kernel) -> list[Tactic]:
        """The ways to run a kernel that were weighed, the likely best first; which of them `tune`
        has measured to be fastest is not told."""
        tiles = codegen.tiles(kernel, self.architecture)
        by, chosen = self.library_of(kernel), list[Tactic]()
        if by:
            said = json.loads(self.functions(kernel)[0].cubin[len(library.MARK) :])
            chosen = [Tactic(by, said["how"], by="a measurement")]
        return chosen + [Tactic(type(tile).__name__.lower(), asdict(tile)) for tile in tiles]

    def library_of(self, kernel: Kernel | Special | None) -> str:
        """The library of NVIDIA's that was found to run a kernel fastest; "" where that is ours."""
        return "" if kernel is None else _library_in(self._objects.get(kernel))

    def footprint(self, plan: Plan, given: Sequence[Value]) -> Footprint:
        """What a session is going to take of the device's memory."""
        return footprint(plan, given, self.architecture)

    def limits(self) -> Limits:
        """What this GPU can do at most."""
        return limits.known(self.number, self.architecture)

    # What a runner needs besides.

    def executable(self, plan: Plan, threads: int, before: Plan | None = None) -> Any:
        """The plan, ready to run; the kernels of one that is run before it are compiled, too."""
        from whet.targets.cuda.executable import Executable

        return Executable(plan, self, before)

    def reserve(self, kinds: Sequence[TensorType], arena: int) -> None:
        """Makes sure of one piece of memory for weights that come one by one, and for a run."""
        sizes = [aligned(nbytes(kind)) for kind in kinds if holds(kind)]
        self.heap.reserve(sum(sizes) + aligned(arena))

    def arrays(self, kinds: Sequence[TensorType]) -> list[Any]:
        """Room for tensors, one after the other in one piece of memory; those that no kernel can
        hold stay with the host."""
        sizes = [aligned(nbytes(kind)) if holds(kind) else 0 for kind in kinds]
        memory = self.heap.take(sum(sizes))
        places = np.cumsum([memory.pointer, *sizes])
        return [
            DeviceArray(self.context, int(at), kind.numpy, numbers(kind), memory)
            if holds(kind)
            else np.empty(numbers(kind), kind.numpy)
            for at, kind in zip(places, kinds)
        ]

    def given(self, array: np.ndarray, kept: bool = True) -> Any:
        """A weight or constant where kernels read it: for good, or only while others are made."""
        if not holds(TensorType(str(array.dtype), ())) and array.dtype.name not in POINTER:
            return array
        context, size = self.context, array.nbytes
        memory = self.heap.take(size) if kept else Loan(context.stream, size)
        made = DeviceArray(context, memory.pointer, array.dtype, array.shape, memory).fill(array)
        if array.nbytes <= KEPT_BYTES:
            made.host = array  # operators on the host often ask for it: shapes, axes, limits
        return made

    def room(self, kind: TensorType, arrays: Sequence[Any]) -> Any:
        """Memory for a result: where the inputs are. On a GPU, the run takes it from its stream."""
        if holds(kind) and any(isinstance(a, DeviceArray) for a in arrays):
            return DeviceArray(self.context, 0, kind.numpy, numbers(kind), None)
        return np.empty(numbers(kind), kind.numpy)

    def adopt(self, x: Any, what: str, stream: Any = None) -> Any:
        """Another library's tensor, as it is; None where it is on the host. What comes next on the
        caller's stream, or else on this device's own, finds it finished."""
        its = None if stream is None else self.context.foreign(stream)
        if isinstance(x, DeviceArray):
            if x.context is not self.context:
                raise InvalidInput(
                    f"{what} lies on cuda:{x.context.found.number}; the session runs on "
                    f"cuda:{self.number}: copy it there"
                )
            return x.on(its)
        return dlpack.adopt(x, self.context, its, what)

    def quick(self, x: Any, layouts: dlpack.Layouts, stream: Any) -> DeviceArray | None:
        """What `adopt` gives, for tensors like those that were learnt, on a caller's stream; None
        for all others."""
        if stream is None or type(x) not in self._quick_types:
            return None
        array = dlpack.known(x, self.context, layouts)
        if array is not None:
            theirs, its = self._theirs
            if theirs is not stream:
                self._theirs = stream, self.context.foreign(stream)
                its = self._theirs[1]
            array.stream = its
        return array

    def learn(self, x: Any, array: Any, kind: Type, layouts: dlpack.Layouts) -> None:
        """Remembers what a tensor was taken as."""
        if type(array) is DeviceArray and dlpack.is_torch(type(x)):
            self._quick_types.add(type(x))
            dlpack.learn(x, array, kind, layouts)

    def trim(self) -> None:
        """Gives memory back to the device that nothing uses any more."""
        self.context.trim()


def is_open(kernel: Kernel | Special) -> bool:
    """Whether runs tell a kernel sizes."""
    return not isinstance(kernel, Special) and bool(kernel.sizes)


def _library_in(code: bytes | None) -> str:
    """The library of NVIDIA's that code is for; "" where it is ours."""
    found = unpack(code) if code is not None and library.MARK in code[:4096] else []
    return "".join(f.name for f in found[:1] if library.is_library(f.cubin))


def _is_foreign(code: bytes) -> bool:
    """Whether it is for a library that is not here, or in another version."""
    return bool(_library_in(code)) and not library.usable(unpack(code)[0].cubin)


KEPT_BYTES = 4096


def holds(kind: TensorType) -> bool:
    """Whether kernels can read and write a tensor of this dtype."""
    return kind.dtype in POINTER


def numbers(kind: TensorType) -> tuple[int, ...]:
    """A shape whose sizes are known."""
    return tuple(int(n) for n in kind.shape)
