"""Compiling in several processes, with low priority, so that serving is not disturbed.

What a worker of the crew is sent: a length, and a pickle of the architecture's name, of a text or a
kernel, and of a tile; what it answers: a status, a length, and an object or the message of an
error. Both ends are this program, of one version, and nobody else reads or writes the pipes.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from whet.errors import CompileError
from whet.knobs import knobs
from whet.plan.kernel import Kernel, Template
from whet.targets.crew import READY, Crew, exactly
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.compile import to_object, unpack
from whet.targets.cuda.source import Source
from whet.targets.cuda.ways import Way
from whet.targets.special import Special

_JOB, _RESULT = struct.Struct("<I"), struct.Struct("<BI")

FEWEST_FOR_WORKERS = 4
MOST_WORKERS = 8
MOST_IDLE = 4  # that make way for others, and still fill caches


@dataclass(eq=False)
class Job:
    """Text to compile; afterwards its object, or what went wrong."""

    source: Source | Kernel | Special
    """Of a kernel it is the compiling process that writes the text, and, unless there is a tile
    here, weighs tiles."""
    code: bytes = b""
    error: CompileError | None = None
    tile: Any = None

    @property
    def is_library(self) -> bool:
        """Whether a library of NVIDIA's runs it: there is no text then."""
        return isinstance(self.source, Source) and not self.source.text

    @property
    def kernel(self) -> Kernel | None:
        """The kernel, its sizes put in; None where text was given."""
        source = self.source
        if isinstance(source, Source):
            return None
        return source.known if isinstance(source, Special) else source

    def may_be_gluon(self, architecture: Architecture) -> bool:
        """Whether its text may be Gluon."""
        if isinstance(self.source, Source):
            return self.source.is_gluon
        return self.kernel is not None and codegen.may_be_gluon(self.kernel, architecture)

    @property
    def size(self) -> tuple[bool, int, int]:
        """Which of two jobs takes longer, most likely: templates, and of these what writes most,
        in large tiles."""
        kernel = self.source.kernel if isinstance(self.source, Special) else self.source
        if not isinstance(kernel, Template):
            return False, 0, len(str(kernel))
        extents = [axis.size for axis in kernel.axes if isinstance(axis.size, int)]
        return True, math.prod(extents), len(str(kernel))

    def text(self, architecture: Architecture) -> Source:
        """What Triton is given."""
        if isinstance(self.source, Source):
            return self.source
        if isinstance(self.source, Way):
            return self.source.text(architecture)
        assert self.kernel is not None
        return codegen.to_triton(self.kernel, architecture, self.tile)

    @property
    def name(self) -> str:
        """Who runs it."""
        return unpack(self.code)[0].name if self.is_library else "ours"

    def compile(self, architecture: Architecture) -> None:
        """Compiles it in this process."""
        try:
            self.code = to_object(self.text(architecture), architecture)
        except CompileError as error:
            self.error = error


class Others(Protocol):
    """Jobs that nobody needs, and what can be done with those that are done."""

    def next(self) -> Job | None:
        """One of them, from any thread; None where there is none, or no time for it."""

    def work(self) -> bool:
        """Does a piece of work beside the compiling; False where there is none now."""


class Queue:
    """Jobs that must be done, the longest first, so that the last to finish is a short one; then
    others."""

    def __init__(self, jobs: Sequence[Job], others: Others | None) -> None:
        in_order = sorted(jobs, key=lambda job: job.size, reverse=True)
        self.jobs, self.others = deque(in_order), others

    def pop(self) -> Job | None:
        """The next one; None where there is none."""
        try:
            return self.jobs.popleft()
        except IndexError:
            return self.others.next() if self.others else None


def compile_all(
    jobs: Sequence[Job],
    architecture: Architecture,
    step: Callable[[], None] = lambda: None,
    others: Others | None = None,
    workers: int | None = None,
    idle: bool = False,
) -> None:
    """Compiles all jobs, here and in as many worker processes as there are spare processors; then
    others, as many as there is time for. `workers` are those of WHET_COMPILE_WORKERS.

    `step` is called once for each of the jobs that must be done; what it raises ends the workers.
    Raises the first CompileError of these jobs, once all are done. With `idle` only workers
    compile, which run where nobody else wants the processor.
    """

    def ask(job: Job, requests: IO[bytes], results: IO[bytes]) -> None:
        _ask(job, architecture, requests, results)

    queue = Queue(jobs, others)
    crew = Crew("cuda", queue.pop, lambda job: job.compile(architecture), ask, idle)
    most, there, helpers = workers or knobs.compile_workers or MOST_WORKERS, _processors(), 0
    if idle:
        helpers = max(1, min(there - 1, most, MOST_IDLE, len(jobs)))
    elif len(jobs) >= FEWEST_FOR_WORKERS or others is not None:
        helpers = min(there - 1, most)
    waits = idle or (helpers > 0 and there > most)
    if not waits and any(job.may_be_gluon(architecture) for job in jobs):
        # A process that has compiled Gluon ends with a page of complaints, as of Triton 3.9.
        helpers, waits = helpers + 1, True
    crew.compile(jobs, helpers, step, waits, others.work if others else lambda: False)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _ask(job: Job, architecture: Architecture, requests: IO[bytes], results: IO[bytes]) -> None:
    data = pickle.dumps((str(architecture), job.source, job.tile))
    requests.write(_JOB.pack(len(data)) + data)
    requests.flush()
    status, size = _RESULT.unpack(exactly(results, _RESULT.size))
    answer = exactly(results, size)
    if status:
        job.error = CompileError(answer.decode())
    else:
        job.code = answer


def serve(jobs: IO[bytes], results: IO[bytes]) -> None:
    """A worker's whole life: compiles what it is given until there is no more."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    results.write(READY)
    results.flush()
    while head := jobs.read(_JOB.size):
        name, source, tile = pickle.loads(exactly(jobs, *_JOB.unpack(head)))
        job = Job(source, tile=tile)
        job.compile(Architecture.parse(name))
        data = str(job.error).encode() if job.error else job.code
        results.write(_RESULT.pack(job.error is not None, len(data)) + data)
        results.flush()
