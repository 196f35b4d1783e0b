"""The memory of runs: how much it is, and whose."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import InvalidSetting, OutOfMemory

ALIGNMENT = 64

Allocator = Callable[[int], Any]
"""Given a number of bytes, writable memory of at least so many that begins at a multiple of 64: an
array, or whatever has the buffer protocol. It is given back by being forgotten."""


@dataclass(frozen=True)
class Memory:
    """What a session takes besides code, inputs and outputs, in bytes."""

    weights: int
    """What is prepared from weights: once for all sessions of the engine on the device."""
    resident: int
    """How much of that is in memory at most; less than `weights` with a `weight_budget`."""
    arenas: tuple[int, ...]
    """For intermediate results: one for each plan and each run that is under way at a time."""

    @property
    def arena(self) -> int:
        """What one run at a time takes, in all plans."""
        return sum(self.arenas)


class Arena:
    """Memory that the caller owns, for the intermediate results of sessions: `allocator=Arena(n)`.

    `memory` is an array or a number of bytes. Sessions cut their pieces from it; where it is too
    small, a run raises OutOfMemory, and `session.memory` tells beforehand. After `reset` other
    sessions may use it again: those that have used it must not run any more.
    """

    def __init__(self, memory: Any) -> None:
        whole = np.empty(memory, np.uint8) if isinstance(memory, int) else as_bytes(memory)
        start = -whole.ctypes.data % ALIGNMENT
        self._memory, self._lock = whole[start:], threading.Lock()
        self.used = 0

    @property
    def size(self) -> int:
        """The bytes that it holds."""
        return self._memory.nbytes

    def __call__(self, nbytes: int) -> np.ndarray:
        """The next piece."""
        with self._lock:
            start, end = self.used, self.used + -(-nbytes // ALIGNMENT) * ALIGNMENT
            if end > self.size:
                raise OutOfMemory(
                    f"the arena of {self.size:,} bytes has {self.size - start:,} left, a run needs "
                    f"{nbytes:,}; session.memory tells how much all plans take"
                )
            self.used = end
            return self._memory[start:end]

    def reset(self) -> None:
        """Makes all of it free."""
        with self._lock:
            self.used = 0


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
