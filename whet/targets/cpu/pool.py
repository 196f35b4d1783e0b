"""The process's worker threads, leased run by run, and the calls into the native driver."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.errors import CompileError
from whet.targets.cpu import driver, host, jit, words
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.primitives import Primitives, primitives

ToObject = Callable[[str, Architecture, Sequence[str]], bytes]

# How long to spin before giving way to other threads, before sleeping at a barrier, and for a
# worker that has to be woken. A wake-up takes 0.1 ms, at times 4 ms.
HOT, PATIENCE, JOIN = 50e-6, 1e-3, 150e-6

# How many microseconds a thread that waits sleeps at a time while kernels are made in the
# background (Linux adds 50). After a yield it would leave the processor to their compiler for
# milliseconds; who sleeps is let in again at once.
NAP = 1


class Pool:
    """Worker threads that any number of concurrent runs lease from.

    A run takes the workers that are free, up to what it asks for and to what the processors have
    room for; else it runs on its caller's thread alone. Workers spin for `idle` seconds after a
    run, then sleep. They never keep the interpreter alive, start anew after a fork, and are joined
    at exit. `to_object` compiles the driver: a cache may stand in for `jit.to_object`.
    """

    def __init__(
        self,
        capacity: int | None = None,
        idle: float = 1e-3,
        system: str | None = None,
        to_object: ToObject = jit.to_object,
    ) -> None:
        means = primitives(system)
        self._code = load_driver(means, to_object)
        self._calls = {name: self._call(name) for name in driver.SYMBOLS}
        self._run = self._calls["run"]
        self._capacity, self._idle = capacity or host.cores(), idle
        self._reset()
        _watch_process()
        _pools.add(self)

    @staticmethod
    def shared(to_object: ToObject = jit.to_object) -> Pool:
        """The process's one pool, made on the first call."""
        with _shared_lock:
            if not _shared:
                _shared.append(Pool(to_object=to_object))
            return _shared[0]

    @property
    def capacity(self) -> int:
        """How many threads can be at work at once: the processors this process may use."""
        return self._capacity

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Within it, on any thread, runs leave what time they cannot use to the background."""
        self._share(1)
        try:
            yield
        finally:
            self._share(-1)

    def _share(self, more: int) -> None:
        with self._growing:
            self._guests += more
            self._words[words.NAP // 4] = NAP if self._guests > 0 else 0

    @property
    def active(self) -> int:
        """How many threads are at work now, callers included."""
        return int(self._words[words.ACTIVE // 4])

    def run(self, table: int, count: int, threads: int = 1) -> int:
        """Call the `count` kernels of the table at an address; returns how many threads did.

        The table holds {kernel, argument block} pointers, 16 bytes each. It and all it points to
        must stay until the call returns. The interpreter's lock is not held meanwhile.
        """
        if threads > self._ready:
            self._grow(threads)
        return int(self._run(self._block, table, count, threads, 0))

    def run_timed(
        self, table: int, count: int, threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Like `run`; returns times in ns on the system's monotonic clock: the start and the end of
        each entry, and for each thread when it was done with each (0 where it took no part)."""
        if threads > self._ready:
            self._grow(threads)
        times = np.zeros(1 + count * (1 + max(threads, 1)), np.int64)
        self._run(self._block, table, count, threads, times.ctypes.data)
        return times[: count + 1], times[count + 1 :].reshape(-1, count)

    def close(self) -> None:
        """Send the workers home; runs that go on keep theirs to the end, later ones run alone."""
        with self._growing:
            self._closed = True
        self._calls["close"](self._block)
        deadline = time.monotonic() + 0.5
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _call(self, name: str) -> Any:
        word = ctypes.c_int64
        return ctypes.CFUNCTYPE(word, *[word] * driver.SYMBOLS[name])(self._code.address(name))

    def _reset(self) -> None:
        """Make the pool one without workers, as at first and in a forked child."""
        size = words.MAILBOXES + words.MAILBOX_BYTES * self._capacity
        self._memory = host.aligned_memory(size)
        self._memory[:] = 0
        self._words = self._memory.view(np.int32)
        self._block = self._memory.ctypes.data
        self._growing = threading.Lock()
        self._workers: list[threading.Thread] = []
        self._ready, self._closed, self._guests = 1, False, 0
        self._words[words.CAPACITY // 4] = self._capacity
        self._set_patience()
        self._set_mask()

    def _set_patience(self) -> None:
        spins, tries = 500, 3
        took = min(self._calls["relax_time"](spins) for _ in range(tries))
        per_second = spins * 1e9 / max(took, 1)
        longs = self._memory[: words.ACTIVE].view(np.int64)
        for field, seconds in (
            (words.IDLE, self._idle),
            (words.HOT, HOT),
            (words.PATIENCE, PATIENCE),
            (words.JOIN, JOIN),
        ):
            longs[field // 8] = int(seconds * per_second)

    def _set_mask(self) -> None:
        """The CPUs among which workers are steered: none where there is nothing to choose."""
        cpus = host.cpus()
        if len(cpus) < 2 or cpus[-1] >= words.MASK_BYTES_MOST * 8:
            return
        bits = np.zeros(words.MASK_BYTES_MOST * 8, np.uint8)
        bits[list(cpus)] = 1
        self._memory[words.MASK : words.MAILBOXES] = np.packbits(bits, bitorder="little")
        self._words[words.MASK_BYTES // 4] = words.MASK_BYTES_MOST

    def _grow(self, threads: int) -> None:
        """Start the workers that a run of so many threads can use."""
        with self._growing:
            while not self._closed and self._ready < min(threads, self._capacity):
                self._workers.append(self._start_worker(len(self._workers)))
                self._ready += 1
            if self._closed or self._ready == self._capacity:
                self._ready = sys.maxsize

    def _start_worker(self, worker: int) -> threading.Thread:
        box = words.MAILBOXES + words.MAILBOX_BYTES * worker
        job = self._memory[box : box + 8].view(np.int64)
        mailbox = self._memory[box : box + words.MAILBOX_BYTES].view(np.int32)
        job[0], mailbox[words.AVOIDS // 4] = words.TAKEN, -1
        code, block = self._code, self._block

        def serve() -> None:
            mailbox[words.TID // 4] = threading.get_native_id()
            # The closure keeps the mailbox and the driver's code for as long as this runs.
            if code:
                work(block, worker)

        work = self._calls["work"]
        thread = threading.Thread(target=serve, name=f"whet-{worker + 1}", daemon=True)
        thread.start()
        while job[0] == words.TAKEN and thread.is_alive():
            time.sleep(20e-6)
        self._words[words.WORKERS // 4] = worker + 1
        return thread


def driver_for(machine: str, system: str, primitives: str) -> tuple[str, Architecture]:
    """The native driver's text, and what it is compiled for: the plainest processor, as it holds no
    arithmetic."""
    level = "neon" if machine == "aarch64" else "sse2"
    return driver.to_llvm(primitives), Architecture(level, system=system)


def load_driver(means: Primitives, to_object: ToObject = jit.to_object) -> jit.Code:
    """The native driver's code."""
    text, architecture = driver_for(host.machine(), host.system(), means.llvm)
    wanted = text, architecture, tuple(means.symbols)
    try:
        return jit.load(to_object(*wanted), tuple(driver.SYMBOLS), means.symbols)
    except CompileError:  # what a cache has kept does not fit this process
        return jit.load(jit.to_object(*wanted), tuple(driver.SYMBOLS), means.symbols)


_shared: list[Pool] = []
_shared_lock = threading.Lock()
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@cache
def _watch_process() -> None:
    """From the first pool on, forked children start anew and the exit takes workers home."""
    atexit.register(_close_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        pool._reset()
