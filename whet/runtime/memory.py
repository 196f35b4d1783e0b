"""The memory of runs: how much it is, and whose."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import InvalidSetting, OutOfMemory

ALIGNMENT = 64

ON_DEVICE = 256
"""The same for memory of a GPU."""

Allocator = Callable[[int], Any]
"""Given a number of bytes, writable memory of at least so many that begins at a multiple of 64: an
array, or whatever has the buffer protocol. It is given back by being forgotten. For a GPU, memory
on it at a multiple of 256: what has `__cuda_array_interface__`, or an address."""


@dataclass(frozen=True)
class Memory:
    """What a session takes besides code, inputs and outputs, in bytes."""

    weights: int
    """What is prepared from weights: once for all sessions of the engine on the device."""
    resident: int
    """How much of that is in memory at most; less than `weights` with a `weight_budget`."""
    arenas: tuple[int, ...]
    """For intermediate results: one for each plan and each run that is under way at a time. Where
    sizes are open, what the profiles' greatest take, or without a profile what runs took so far."""

    @property
    def arena(self) -> int:
        """What one run at a time takes, in all plans."""
        return sum(self.arenas)


class Arena:
    """Memory that the caller owns, for the intermediate results of sessions: `allocator=Arena(n)`.

    `memory` is an array or a number of bytes; for a GPU, an array on it. Sessions cut their pieces
    from it; where it is too small, a run raises OutOfMemory, and `session.memory` tells beforehand.
    After `reset` other sessions may use it again: those that have used it must not run any more.
    """

    def __init__(self, memory: Any) -> None:
        self._lock, self.used = threading.Lock(), 0
        if hasattr(memory, "__cuda_array_interface__"):
            self._memory, self._grain = memory, ON_DEVICE
            address, size = address_of(memory)
            skipped = -address % ON_DEVICE
            self._cut = lambda start, end: address + skipped + start
        else:
            whole = _fresh(memory) if isinstance(memory, int) else as_bytes(memory)
            self._grain, skipped, size = ALIGNMENT, -whole.ctypes.data % ALIGNMENT, whole.nbytes
            self._cut = lambda start, end: whole[skipped + start : skipped + end]
        self.size = max(size - skipped, 0)
        """The bytes that it holds."""

    def __call__(self, nbytes: int) -> Any:
        """The next piece."""
        with self._lock:
            start, end = self.used, self.used + -(-nbytes // self._grain) * self._grain
            if end > self.size:
                raise OutOfMemory(
                    f"the arena of {self.size:,} bytes has {self.size - start:,} left, a run needs "
                    f"{nbytes:,}; session.memory tells how much all plans take"
                )
            self.used = end
            return self._cut(start, end)

    def reset(self) -> None:
        """Makes all of it free."""
        with self._lock:
            self.used = 0


def _fresh(nbytes: int) -> np.ndarray:
    if nbytes < 0 or isinstance(nbytes, bool):
        raise InvalidSetting(f"an arena has a number of bytes from 0 on, not {nbytes}")
    try:
        return np.empty(nbytes, np.uint8)
    except (MemoryError, OverflowError, ValueError):
        raise OutOfMemory(f"there is no memory for an arena of {nbytes:,} bytes") from None


def as_bytes(memory: Any) -> np.ndarray:
    """Writable memory as bytes; raises InvalidSetting for what is none."""
    try:
        found = np.frombuffer(memory, np.uint8)
    except (TypeError, ValueError, BufferError):
        found = np.zeros(0, np.uint8)
        found.setflags(write=False)
    if not found.flags.writeable:
        kind = type(memory).__name__
        raise InvalidSetting(f"memory for a session must be a writable buffer, got a {kind}")
    return found


def checked(allocator: Allocator) -> Callable[[int], np.ndarray]:
    """What an allocator gives, once it is known to be what was asked for."""
    _require_callable(allocator)

    def allocate(nbytes: int) -> np.ndarray:
        memory = allocator(nbytes)
        if memory is None:
            raise OutOfMemory(f"the allocator gives no {nbytes:,} bytes")
        found = as_bytes(memory)
        if found.nbytes < nbytes or found.ctypes.data % ALIGNMENT:
            raise InvalidSetting(
                f"the allocator gave {found.nbytes:,} bytes at {found.ctypes.data:#x} when asked "
                f"for {nbytes:,}, which must begin at a multiple of {ALIGNMENT}"
            )
        return found[:nbytes]

    return allocate


def _require_callable(allocator: Allocator) -> None:
    if not callable(allocator):
        raise InvalidSetting(
            f"allocator={allocator!r}; a whet.Arena is needed, or a function from a number of "
            "bytes to memory"
        )


@dataclass(frozen=True)
class Lent:
    """Memory of the caller's on a GPU."""

    pointer: int
    owner: Any


def checked_on_device(allocator: Allocator) -> Callable[[int], Lent]:
    """What an allocator gives for a GPU, once it is known to be what was asked for."""
    _require_callable(allocator)

    def allocate(nbytes: int) -> Lent:
        memory = allocator(nbytes)
        if memory is None:
            raise OutOfMemory(f"the allocator gives no {nbytes:,} bytes")
        address, size = address_of(memory)
        if not address or address % ON_DEVICE or not (size < 0 or size >= nbytes):
            given = "memory" if size < 0 else f"{size:,} bytes"
            raise InvalidSetting(
                f"the allocator gave {given} at {address:#x} when asked for {nbytes:,} bytes, "
                f"which must begin at a multiple of {ON_DEVICE}"
            )
        return Lent(address, memory)

    return allocate


def address_of(memory: Any) -> tuple[int, int]:
    """Where memory of a GPU begins, and its bytes, or -1 where nobody tells; raises InvalidSetting
    for what is none."""
    if isinstance(memory, int):
        return memory, -1
    interface = getattr(memory, "__cuda_array_interface__", None)
    if interface is None:
        raise InvalidSetting(
            "the allocator of a session on a GPU gives an address, or an array there, not "
            f"{type(memory).__name__}"
        )
    width = np.dtype(interface["typestr"]).itemsize
    return int(interface["data"][0]), width * math.prod(interface["shape"])
