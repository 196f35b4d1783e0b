"""Memory: pieces of few large blocks on the device, loans in order with a stream, pinned memory."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from whet.errors import DeviceError
from whet.ir.sizes import Size
from whet.targets.cuda.driver import ALIGNMENT, Context, Stream, api, check, direct, failure

GRAIN = 2 << 20
"""The driver gives device memory by so many bytes."""


def aligned(size: int, to: int = ALIGNMENT) -> int:
    """A number of bytes, rounded up."""
    return -(-size // to) * to


class Needs(Protocol):
    """A function to launch, compiled or not."""

    @property
    def counters(self) -> Size: ...

    @property
    def scratch(self) -> Size: ...


def room(arena: int, functions: Iterable[Needs]) -> tuple[int, int, int]:
    """The bytes of a run's arena, counters and scratch, where sizes are known."""
    found = list(functions)
    return (
        aligned(arena),
        aligned(4 * max((int(f.counters) for f in found), default=0)),
        aligned(max((int(f.scratch) for f in found), default=0)),
    )


class Room:
    """What one run at a time needs: an arena, and behind it counters and scratch."""

    def __init__(self, memory: Any, sizes: tuple[int, int, int]) -> None:
        self.memory, self.sizes = memory, sizes
        self.arena: int = memory.pointer
        self.counters = self.arena + sizes[0]
        self.scratch = self.counters + sizes[1]

    def holds(self, sizes: tuple[int, int, int]) -> bool:
        """Whether it is large enough."""
        return all(have >= size for have, size in zip(self.sizes, sizes))


class Heap:
    """Where what stays for long lies: blocks of whole grains, shared by as many pieces as fit.

    `allocate` gives a block's address and `free` takes it back: those of a device, or, to find out
    how much a plan would take, of none.
    """

    def __init__(self, allocate: Callable[[int], int], free: Callable[[int], object]) -> None:
        self._allocate, self._free = allocate, free
        self._blocks: dict[int, int] = {}
        """Bytes by address."""
        self._gaps: dict[int, int] = {}
        self._returned: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()
        self.settle: Callable[[], object] = lambda: None
        """Waits for what may still use pieces that were given back."""
        self._is_settled = True

    @classmethod
    def of(cls, context: Context) -> Heap:
        """One on a device."""

        def allocate(size: int) -> int:
            with context:
                status, pointer = api().cuMemAlloc(size)
            if int(status):
                raise _refused(context, status, size)
            return int(pointer)

        heap = cls(allocate, lambda block: _free(context, block))
        heap.settle = lambda: _settle(context)
        return heap

    @property
    def taken(self) -> int:
        """The bytes of all blocks."""
        return sum(self._blocks.values())

    def reserve(self, size: int) -> None:
        """Makes sure that so many bytes lie together, which further pieces are cut from."""
        with self._lock:
            self._tidy()
            if size and size > max(self._gaps.values(), default=0):
                at, whole = self._block(aligned(size))
                self._gaps[at] = whole

    def take(self, size: int) -> Piece:
        """Memory, at least one byte of it."""
        size = aligned(max(size, 1))
        with self._lock:
            self._tidy()
            at = min(
                (gap for gap, free in self._gaps.items() if free >= size),
                key=lambda gap: self._gaps[gap],
                default=None,
            )
            if at is None:
                at, whole = self._block(size)
                self._gaps[at] = whole
            elif not self._is_settled:
                self.settle()
                self._is_settled = True
            free = self._gaps.pop(at)
            if free > size:
                self._gaps[at + size] = free - size
        return Piece(self, at, size)

    def _block(self, size: int) -> tuple[int, int]:
        whole = aligned(size, GRAIN)
        at = self._allocate(whole)
        self._blocks[at] = whole
        return at, whole

    def give_back(self, pointer: int, size: int) -> None:
        """Takes a piece back. May be called at any moment, as objects end: also within `take`."""
        self._returned.append((pointer, size))
        if self._lock.acquire(blocking=False):
            try:
                self._tidy()
            finally:
                self._lock.release()

    def _tidy(self) -> None:
        """Joins what came back with the gaps beside it; blocks that are all gap go."""
        if not self._returned:
            return
        while self._returned:
            pointer, size = self._returned.popleft()
            self._gaps[pointer] = size
            self._is_settled = False
        joined: dict[int, int] = {}
        last = 0
        for at in sorted(self._gaps):
            # Blocks may touch: a gap never reaches from one into the next.
            if joined and last + joined[last] == at and at not in self._blocks:
                joined[last] += self._gaps[at]
            else:
                joined[at], last = self._gaps[at], at
        empty = [at for at, size in joined.items() if self._blocks.get(at) == size]
        for at in empty:
            del joined[at], self._blocks[at]
            self._free(at)
        self._gaps = joined

    def __del__(self) -> None:
        blocks, self._blocks = self._blocks, {}  # pieces may come back even now
        for block in blocks:
            self._free(block)


class Piece:
    """A piece of a heap, which has it back with the last reference."""

    __slots__ = ("heap", "pointer", "size")

    def __init__(self, heap: Heap, pointer: int, size: int) -> None:
        self.heap, self.pointer, self.size = heap, pointer, size

    def __del__(self) -> None:
        self.heap.give_back(self.pointer, self.size)


def _refused(context: Context, status: Any, size: int) -> Exception:
    """What it means that the driver gives no memory."""
    there = f"{context.found.name}, of which {context.free_bytes():,} are free"
    return failure(status, f"allocating {size:,} bytes on {there}")


def _free(context: Context, pointer: int) -> None:
    """Once all that the device does is done."""
    with suppress(DeviceError), context:  # one that is lost has nothing to give back
        api().cuMemFree(pointer)


def _settle(context: Context) -> None:
    with context:
        check(api().cuCtxSynchronize(), "running on the device")


class Loan:
    """Memory from the device's pool, there for what comes next on a stream; it goes back, in order
    with the stream, with the last reference, and the stream keeps some for who asks next."""

    __slots__ = ("pointer", "size", "stream")

    def __init__(self, stream: Stream, size: int) -> None:
        self.stream, self.size = stream, max(size, 1)
        self.pointer = stream.recall(self.size) or self._borrow()

    def _borrow(self) -> int:
        context, found = self.stream.context, ctypes.c_uint64()
        address, number = ctypes.addressof(found), self.stream.number
        with context:
            status = direct().cuMemAllocAsync(address, self.size, number)
        if status:
            raise _refused(context, status, self.size)
        return found.value

    def __del__(self) -> None:
        pointer = getattr(self, "pointer", 0)
        if pointer and not self.stream.keep(self.size, pointer):
            with suppress(DeviceError), self.stream.context:
                direct().cuMemFreeAsync(pointer, self.stream.number)


class Pinned:
    """Memory of the host that the device can read and write directly, as a NumPy array."""

    def __init__(self, context: Context, size: int) -> None:
        self.context = context
        doing = f"allocating {size:,} bytes of pinned memory"
        with context:
            self.pointer = int(check(api().cuMemHostAlloc(max(size, 1), 0), doing))
        bytes_there: Any = (ctypes.c_uint8 * max(size, 1)).from_address(self.pointer)
        self.array: np.ndarray = np.ctypeslib.as_array(bytes_there)

    def __del__(self) -> None:
        pointer = getattr(self, "pointer", 0)
        if pointer:
            self.pointer = 0
            with suppress(DeviceError), self.context:
                api().cuMemFreeHost(pointer)
