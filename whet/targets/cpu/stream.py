"""Weights that stay in a file: they come in ahead of the kernels that read them, and go again.

What is prepared from weights lies in a mapped file without a name. A budget bounds how much of it
is in this process's memory at any time: some weights stay, spread evenly over the plan; the others
are read window by window, each while the kernels of the one before run. Pages that were let go may
remain in the system's page cache, which it takes back when it needs memory.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import queue
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from whet.errors import OutOfMemory
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan.plan import nbytes
from whet.plan.windows import SMALL, Budget, Schedule, is_streamed, pages_of, schedule
from whet.targets.cpu import host

POPULATE_READ = 22  # Linux 5.14


class Stream(Budget):
    """The memory of one set of prepared weights: a file, of which a part is there at a time."""

    def __init__(self, budget: int | str, folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__(budget, host.available_memory)
        self.folder = folder
        self.running = threading.RLock()
        """Held by the run that is under way: two at once would need twice the memory."""
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def arrays(self, kinds: Sequence[TensorType]) -> list[np.ndarray]:
        """Room for tensors: the large ones in a file, each on pages of its own."""
        places, end = [], 0
        for kind in kinds:
            places.append(end if is_streamed(kind) else None)
            end += pages_of(nbytes(kind)) if is_streamed(kind) else 0
        memory = self._map(end) if end else np.zeros(0, np.uint8)
        return [
            _view(host.aligned_memory(nbytes(k)) if p is None else memory[p : p + nbytes(k)], k)
            for k, p in zip(kinds, places)
        ]

    def copy(self, array: np.ndarray, kind: TensorType) -> np.ndarray:
        """A weight that kernels read as it is, in the file where it is large."""
        if not is_streamed(kind):
            return np.ascontiguousarray(array)
        (room,) = self.arrays([kind])
        room[...] = array
        return room

    def let_go(self, arrays: Iterable[np.ndarray]) -> None:
        """Takes arrays out of memory until they are read again."""
        for array in arrays:
            if array.nbytes >= SMALL:
                host.drop_pages(array)

    def _map(self, size: int) -> np.ndarray:
        folder = self.folder or tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(prefix="whet-weights-", dir=folder) as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                pages = mmap.mmap(file.fileno(), size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG):
                raise
            raise OutOfMemory(f"{folder} has no {size / 2**20:,.0f} MiB left for weights") from None
        return np.frombuffer(pages, np.uint8)

    def paced(self, executable: Any, given: Sequence[Value]) -> Pace:
        """Cuts an executable's segments so that its weights come and go."""
        made = schedule(executable.plan, executable.segments, given, self)
        executable.segments = list(made.segments)
        executable.pace = Pace(made, self)
        return executable.pace

    def ask(self, job: Any) -> None:
        """Has the worker do something, after what it was asked before."""
        if self._worker is None or not self._worker.is_alive():
            jobs = self._jobs
            self._worker = threading.Thread(
                target=_serve, args=(jobs,), name="whet-weights", daemon=True
            )
            self._worker.start()
            weakref.finalize(self, jobs.put, None)
        self._jobs.put(job)


def _serve(jobs: queue.SimpleQueue[Any]) -> None:
    """The worker: it waits for the disk so that runs need not."""
    while (job := jobs.get()) is not None:
        job()


def _view(memory: np.ndarray, kind: TensorType) -> np.ndarray:
    return memory.view(kind.numpy).reshape([int(size) for size in kind.shape])


class Pace:
    """One plan's way through the weights: a run happens within it, and walks its segments."""

    def __init__(self, schedule: Schedule, stream: Stream) -> None:
        self.schedule, self.stream = schedule, stream
        self._there: dict[int, threading.Event] = {}
        self._left: list[np.ndarray] = []

    def __enter__(self) -> None:
        """Runs come one after the other: two at once would need twice the memory."""
        if not self.schedule.is_still:
            self.stream.running.acquire()

    def __exit__(self, *error: object) -> None:
        """Also what a run that failed has left is let go."""
        if self.schedule.is_still:
            return
        self.stream.let_go(self._left)
        self._there.clear()
        self._left.clear()
        self.stream.running.release()

    def walk(self, values: Mapping[Value, Any]) -> Iterator[tuple[int, int]]:
        """The segments, each when its weights are there; the next one's come in meanwhile."""
        windows, touched = self.schedule.windows, self.schedule.touched
        for number, segment in enumerate(self.schedule.segments):
            self._bring(number, values)
            if number in self._there:
                self._there[number].wait()
            if self.schedule.ahead(number + 1):
                self._bring(number + 1, values)
            yield segment
            kept = windows[number + 1] if number + 1 < len(windows) else ()
            gone = [values[v] for v in (*windows[number], *touched[number]) if v not in kept]
            if gone:
                self.stream.ask(partial(self.stream.let_go, gone))

    def _bring(self, number: int, values: Mapping[Value, Any]) -> None:
        """Asks for the weights of a segment, once."""
        if number in self._there or not self.schedule.windows[number]:
            return
        there = self._there[number] = threading.Event()
        arrays = [values[v] for v in self.schedule.windows[number]]
        self._left.extend(arrays)

        def bring() -> None:
            try:
                for array in arrays:
                    bring_in(array)
            finally:
                there.set()

        self.stream.ask(bring)


def bring_in(array: np.ndarray) -> None:
    """Reads a mapped array's pages, and returns when they are there."""
    if array.nbytes < SMALL:
        return
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = array.ctypes.data + array.nbytes - start
    if host.system() == "linux":
        address, count = ctypes.c_void_p(start), ctypes.c_size_t(length)
        if host.libc().madvise(address, count, POPULATE_READ) == 0:
            return
    # Elsewhere, one byte of each page is read.
    array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max()
