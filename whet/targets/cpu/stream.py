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
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from whet.errors import InvalidSetting, OutOfMemory
from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.knobs import a_size
from whet.plan.kernel import Expression, Let, Load, Loops, size_symbols
from whet.plan.plan import Plan, Step, nbytes
from whet.targets.cpu import host

SMALL = 64 << 10
"""Bytes of a weight that is not worth the trouble: it stays in memory."""

PARTS = 8
"""A window is an eighth of the budget, unless one kernel reads more."""

POPULATE_READ = 22  # Linux 5.14


class Stream:
    """The memory of one set of prepared weights: a file, of which a part is there at a time."""

    def __init__(self, budget: int | str, folder: str | os.PathLike[str] | None = None) -> None:
        self.asked, self.folder = budget, folder
        self._limit = parsed(budget)
        self.budget: int | None = None
        """Bytes that may be in memory; known with the first plan, where it was asked for in
        percent."""
        self.running = threading.RLock()
        """Held by the run that is under way: two at once would need twice the memory."""
        self.resident: set[Value] = set()
        self.needed = 0
        """Bytes that plans need at once, where one kernel reads more than the budget allows."""
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def arrays(self, kinds: Sequence[TensorType]) -> list[np.ndarray]:
        """Room for tensors: the large ones in a file, each on pages of its own."""
        places, end = [], 0
        for kind in kinds:
            places.append(end if is_streamed(kind) else None)
            end += _pages(nbytes(kind)) if is_streamed(kind) else 0
        memory = self._map(end) if end else np.zeros(0, np.uint8)
        return [
            _view(host.aligned_memory(nbytes(k)) if p is None else memory[p : p + nbytes(k)], k)
            for k, p in zip(kinds, places)
        ]

    def copy(self, array: np.ndarray, kind: TensorType) -> np.ndarray:
        """A weight that kernels read as it is, in the file where it is large."""
        if not is_streamed(kind):
            return array
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

    @property
    def most(self) -> int:
        """Bytes that are in memory at most."""
        return max(self.budget or 0, self.needed)

    def limit(self, total: int) -> int:
        """The budget in bytes, for weights of `total` bytes."""
        if self.budget is None:
            self.budget = self._limit(total)
        return self.budget

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


def parsed(budget: int | str) -> Any:
    """What a budget (bytes, `500M`, `50%`, `auto`) is for weights of a number of bytes."""
    if budget == "auto":
        return lambda total: min(total, (host.available_memory() or 2 * total) // 2)
    try:
        if isinstance(budget, str) and budget.endswith("%"):
            share = float(budget[:-1]) / 100
            if not 0 <= share <= 1:
                raise ValueError
            return lambda total: int(total * share)
        size = a_size(budget) if isinstance(budget, str) else int(budget)
        if size < 0:
            raise ValueError
    except ValueError:
        raise InvalidSetting(
            f"weight_budget={budget!r}; bytes, 500M, 50% or auto are needed"
        ) from None
    return lambda total: size


def is_streamed(kind: TensorType) -> bool:
    return nbytes(kind) >= SMALL


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _view(memory: np.ndarray, kind: TensorType) -> np.ndarray:
    return memory.view(kind.numpy).reshape([int(size) for size in kind.shape])


@dataclass(frozen=True)
class Schedule:
    """Segments of a plan's steps, and the weights that each brings in and lets go of."""

    segments: tuple[tuple[int, int], ...]
    windows: tuple[tuple[Value, ...], ...]
    touched: tuple[tuple[Value, ...], ...]
    """Tables of which data says what is read: that comes in as it is read."""
    budget: int
    """What the plan really needs: more than was asked for where one kernel reads more."""

    @property
    def is_still(self) -> bool:
        """Whether nothing comes or goes: all weights stay."""
        return not any(self.windows) and not any(self.touched)

    def ahead(self, number: int) -> bool:
        """Whether a window may come in while the one before is in use."""
        if not 0 < number < len(self.windows):
            return False
        return _total(self.windows[number - 1]) + _total(self.windows[number]) <= self.budget


def _total(values: Iterable[Value]) -> int:
    return sum(_pages(nbytes(v.tensor)) for v in values)


def schedule(
    plan: Plan, segments: Sequence[tuple[int, int]], given: Sequence[Value], stream: Stream
) -> Schedule:
    """Which weights stay, and where the plan's segments are cut for the others."""
    streamed = {v for v in given if is_streamed(v.tensor)}
    tables = [[v for v in chosen_from(step) if v in streamed] for step in plan.steps]
    reads = [
        [v for v in dict.fromkeys(step.reads) if v in streamed and v not in chosen]
        for step, chosen in zip(plan.steps, tables)
    ]
    order = list(dict.fromkeys(v for values in reads for v in values))
    small = sum(nbytes(v.tensor) for v in given if v not in streamed)
    budget = stream.limit(_total(order) + small) - small
    if _total(order) + _total(stream.resident.difference(order)) <= budget:
        stream.resident.update(order)
        cut = list(segments)
        return Schedule(tuple(cut), ((),) * len(cut), _touched(tables, cut, stream), budget)
    largest = max(map(_total, reads), default=0)
    window = max(budget // PARTS, largest)
    _stay(stream, order, budget - 2 * window)
    cut, windows = [], []
    for begin, end in segments:
        for first, last, values in _windows(reads, begin, end, window, stream.resident):
            cut.append((first, last))
            windows.append(values)
    needed = _total(stream.resident) + max(map(_total, windows), default=0)
    stream.needed = max(stream.needed, needed + small)
    own = max(budget, needed) - _total(stream.resident)
    return Schedule(tuple(cut), tuple(windows), _touched(tables, cut, stream), own)


def _touched(
    tables: Sequence[Sequence[Value]], segments: Sequence[tuple[int, int]], stream: Stream
) -> tuple[tuple[Value, ...], ...]:
    """The tables that each segment reads some rows of."""
    return tuple(
        tuple({v: None for values in tables[a:b] for v in values if v not in stream.resident})
        for a, b in segments
    )


def chosen_from(step: Step) -> list[Value]:
    """What a step reads at indices that are data: perhaps a few rows of a large table."""
    if not isinstance(step.kernel, Loops):
        return []
    found: set[int] = set()
    for nest in step.kernel.nests:
        for store in nest.stores:
            _find_chosen(store.value, frozenset(), found)
    return [v for number, v in enumerate(step.reads) if number in found]


def _find_chosen(expression: Expression, names: frozenset[str], found: set[int]) -> None:
    """Adds the buffers that an expression loads from at an index among the names."""
    if isinstance(expression, Load) and names & size_symbols(expression.offset):
        found.add(expression.buffer)
    if isinstance(expression, Let):
        names |= {expression.name}
    for child in expression.children:
        _find_chosen(child, names, found)


def _stay(stream: Stream, order: Sequence[Value], room: int) -> None:
    """Chooses weights that stay in memory, as evenly over the plan as their sizes allow: then
    there is work to do while each of the others comes in."""
    room -= _total(stream.resident)
    rest = [v for v in order if v not in stream.resident]
    share, owed = max(room, 0) / max(_total(rest), 1), 0.0
    for value in rest:
        size = _total([value])
        owed += share * size
        if size <= min(owed, room):
            stream.resident.add(value)
            owed, room = owed - size, room - size


def _windows(
    reads: Sequence[Sequence[Value]], begin: int, end: int, most: int, resident: set[Value]
) -> Iterable[tuple[int, int, tuple[Value, ...]]]:
    """Cuts a segment so that no part of it reads more than `most` bytes from the file."""
    values: dict[Value, None] = {}
    first = begin
    for number in range(begin, end):
        new = dict.fromkeys(v for v in reads[number] if v not in resident)
        if values and _total({**values, **new}) > most:
            yield first, number, tuple(values)
            first, values = number, {}
        values.update(new)
    yield first, end, tuple(values)


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
