"""Kernels' code on a device, and the time that it takes there: measured on noise.

Each way is launched many times in a graph, as it will be. Its first operand lies in the caches, as
what the kernel before has just written does; the others, most often weights, do not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from whet.errors import DeviceError, OutOfMemory
from whet.ir.sizes import Expr, Size
from whet.ir.types import NUMPY_DTYPES
from whet.plan.kernel import Load, Template, walk
from whet.targets.cuda import library
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.compile import Function, unpack
from whet.targets.cuda.driver import ALIGNMENT, Context, Event, Stream
from whet.targets.cuda.expressions import size_bound
from whet.targets.cuda.graph import Call, Graph, Module
from whet.targets.cuda.library import Routine, RoutineCall
from whet.targets.cuda.memory import Heap
from whet.targets.cuda.source import Grid

logger = logging.getLogger("whet.cuda")

TURNS = 16
ROUNDS = 3
CACHES = 2
"""How many second-level caches noise would fill, and results: nothing else stays in one then."""
LEAST_FREE = 4
"""How many times what measuring takes must be free: others may want memory meanwhile."""

MOST_SPREAD = 4  # blocks on a multiprocessor
RESERVED = 1024  # bytes of shared memory that every block has besides its own

HALF_ROUNDING, ROUNDING = 1e-2, 1e-4
"""Of the largest result: by how much a library's may differ from ours."""


class Loaded(list[tuple[Function, Module | Routine]]):
    """The functions of a kernel on a device."""


def load(context: Context, code: bytes) -> Loaded:
    """An object's functions on the device."""
    here = context.found.architecture
    functions = [f if f.is_open else spread(f, here) for f in unpack(code)]
    return Loaded((f, placed(context, f)) for f in functions)


def placed(context: Context, function: Function) -> Module | Routine:
    """A function on a device, or a library's in its place."""
    if library.is_library(function.cubin):
        return library.restored(context, function)
    # How much a launch takes may depend on its blocks, which sizes tell.
    is_open = function.is_open and function.spread
    shared = context.found.architecture.shared_bytes if is_open else function.shared
    return Module(context, function.cubin, function.name, shared)


def spread(function: Function, architecture: Architecture) -> Function:
    """A function whose blocks are known, with the shared memory that they take."""
    return replace(function, shared=shared_of(function, function.grid, architecture))


def shared_of(function: Function, grid: Grid, architecture: Architecture) -> int:
    """The shared memory of a function with so many blocks."""
    is_spread = np.array([function.spread and function.waits])
    grids = np.array([[int(n) for n in grid]])
    return int(shared_by(np.array([function.shared]), is_spread, grids, architecture)[0])


def shared_by(
    shared: np.ndarray, spread: np.ndarray, grids: np.ndarray, architecture: Architecture
) -> np.ndarray:
    """Shared memory of functions, so much that no multiprocessor has more blocks of one than it
    must: blocks that come early go where there is room, and would crowd there."""
    each = -(-grids.prod(axis=1) // architecture.multiprocessors)
    most = architecture.shared_bytes
    least = np.minimum((most + RESERVED) // (each + 1) - RESERVED + 128, most)
    return np.where(spread & (each <= MOST_SPREAD), np.maximum(shared, least), shared)


def extents(kernel: Template) -> list[int]:
    """About how many bytes of each of its buffers a kernel reaches; the last is written."""
    reach = [0] * len(kernel.buffers)

    def note(buffer: int, offset: Size) -> None:
        reach[buffer] = max(reach[buffer], 1 + int(size_bound(iter([offset]))))

    for view in (*(v for v in kernel.inputs if v is not None), kernel.output):
        steps = (int(n) * abs(int(s)) for n, s in zip(view.shape, view.strides))
        note(view.buffer, sum(steps, int(view.offset)))
    for node in walk(kernel.epilogue):
        if isinstance(node, Load):
            note(node.buffer, node.offset)
    return [n * NUMPY_DTYPES[d].itemsize for n, d in zip(reach, kernel.buffers)]


def has_room(context: Context, kernels: Iterable[Any]) -> bool:
    """Whether kernels can be measured on a device, and leave much of its memory to others."""
    reach = [extents(kernel) for kernel in kernels if isinstance(kernel, Template)]
    read, written = (sum(sizes[:-1]) for sizes in reach), (sizes[-1] for sizes in reach)
    size = sum(max([region(context), *sizes]) for sizes in (read, written))
    free = context.free_bytes()
    if not reach or free >= LEAST_FREE * size:
        return bool(reach)
    said = "kernels are not measured: that takes %d MB, and %d MB of the device are free"
    logger.info(said, size / 1e6, free / 1e6)
    return False


def region(context: Context) -> int:
    """The bytes of noise at least, and of results."""
    return CACHES * context.found.cache


class Bench:
    """Memory full of noise, and the time that kernels take on it."""

    def __init__(self, context: Context) -> None:
        self.context, self.stream, self.heap = context, Stream(context), Heap.of(context)
        self.noise, self.room = self.heap.take(1), self.heap.take(1)

    def seconds(self, kernel: Template, code: bytes) -> float:
        """The time of one run of a kernel; infinite for code that the device refuses."""
        try:
            return self._seconds(kernel, load(self.context, code))
        except (DeviceError, OutOfMemory):
            return float("inf")

    def agrees(self, kernel: Template, ours: bytes, theirs: bytes) -> bool:
        """Whether two ways give the same but for rounding, and no number for the same elements."""
        try:
            found = [self._result(kernel, load(self.context, code)) for code in (ours, theirs)]
        except (DeviceError, OutOfMemory):
            return False
        first, second = found
        known = np.isfinite(first)
        if (known != np.isfinite(second)).any():
            return False
        first, second = first[known], second[known]
        most = np.abs(first).max(initial=0)
        bound = ROUNDING if kernel.buffers[-1] == "float32" else HALF_ROUNDING
        return bool(np.abs(first - second).max(initial=0) <= bound * most)

    def _result(self, kernel: Template, loaded: Loaded) -> np.ndarray:
        """What a kernel writes, some of what it reads being no number."""
        graph = Graph(self._calls(kernel, loaded, 0))
        self.stream.zero(self.room.pointer, self.room.size)
        strange = np.array([0x7FFF], np.uint16)  # NaN, or the half of one, in every dtype
        usual, at = np.empty_like(strange), self.noise.pointer + 6
        self.stream.download(usual.ctypes.data, at, 2)
        self.stream.upload(at, strange.ctypes.data, 2)
        graph.launch(self.stream)
        self.stream.upload(at, usual.ctypes.data, 2)
        written = np.empty(extents(kernel)[-1], np.uint8)
        self.stream.download(written.ctypes.data, self.room.pointer, written.nbytes)
        self.stream.synchronize()
        return written.view(NUMPY_DTYPES[kernel.buffers[-1]]).astype(np.float32)

    def _seconds(self, kernel: Template, loaded: Loaded) -> float:
        calls = [c for turn in range(TURNS) for c in self._calls(kernel, loaded, turn)]
        graph = Graph(calls)
        best = float("inf")
        for _ in range(ROUNDS):
            self.stream.zero(self.room.pointer, self.room.size)  # nothing else stays in the caches
            first, last = Event(timed=True), Event(timed=True)
            first.record(self.stream)
            graph.launch(self.stream)
            last.record(self.stream)
            best = min(best, last.seconds_since(first))
        return best / TURNS

    def _calls(self, kernel: Template, loaded: Loaded, turn: int) -> list[Call | RoutineCall]:
        """The kernel's launches on the memory of one turn."""
        first, *others, written = (-(-n // ALIGNMENT) * ALIGNMENT for n in extents(kernel))
        self._grow(first + sum(others), written)
        free = (self.noise.size - first - sum(others)) // ALIGNMENT
        at = self.noise.pointer + first + turn * sum(others) // ALIGNMENT % (free + 1) * ALIGNMENT
        places: dict[int | str, int] = {"error": self.words.pointer, 0: self.noise.pointer}
        for number, size in enumerate(others, 1):
            places[number] = at
            at += size
        places[len(others) + 1] = self.room.pointer
        calls: list[Call | RoutineCall] = []
        for function, module in loaded:
            self._zeros(4 * int(function.counters), int(function.scratch))
            places |= {"counters": self.counters.pointer, "scratch": self.scratch.pointer}
            given = [places[slot] for slot in function.slots if not isinstance(slot, Expr)]
            arguments = np.array([*given, *[0] * function.nulls], np.int64)
            calls.append(module.call(function, arguments, function.name))
        return calls

    def _grow(self, read: int, written: int) -> None:
        """Enough memory for a kernel's operands and results."""
        if not hasattr(self, "words"):
            self.words = self.heap.take(ALIGNMENT)
            self.counters, self.scratch = self.heap.take(1), self.heap.take(1)
            self.stream.zero(self.counters.pointer, self.counters.size)
        if self.noise.size < read:
            self.noise = self.heap.take(max(region(self.context), read))
            rng = np.random.default_rng(0)
            piece = rng.normal(size=1 << 20).astype(np.float16)
            first = min(piece.nbytes, self.noise.size)
            self.stream.upload(self.noise.pointer, piece.ctypes.data, first)
            for at in range(piece.nbytes, self.noise.size, piece.nbytes):
                size = min(piece.nbytes, self.noise.size - at)
                self.stream.copy(self.noise.pointer + at, self.noise.pointer, size)
        if self.room.size < written:
            self.room = self.heap.take(max(region(self.context), written))
        self.stream.synchronize()

    def _zeros(self, counters: int, scratch: int) -> None:
        if self.counters.size < counters:
            self.counters = self.heap.take(counters)
            self.stream.zero(self.counters.pointer, self.counters.size)
        if self.scratch.size < scratch:
            self.scratch = self.heap.take(scratch)
        self.stream.synchronize()
