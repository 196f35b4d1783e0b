"""Compiling in several processes, with low priority, so that serving is not disturbed.

A worker is `python -m whet.compile_worker cuda`. It reads jobs from its standard input and writes
results to its standard output: a job is a length and JSON (the architecture, the text, its
launches); a result is a status, a length, and an object or the message of an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from whet.errors import CompileError
from whet.targets.crew import READY, Crew, exactly
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.compile import to_object, unpack
from whet.targets.cuda.source import Launch, Source

_JOB, _RESULT = struct.Struct("<I"), struct.Struct("<BI")

FEWEST_FOR_WORKERS = 4
MOST_WORKERS = 4


@dataclass(eq=False)
class Job:
    """Text to compile; afterwards its object, or what went wrong."""

    source: Source
    code: bytes = b""
    error: CompileError | None = None

    @property
    def is_library(self) -> bool:
        """Whether a library of NVIDIA's runs it: there is no text then."""
        return not self.source.text

    @property
    def name(self) -> str:
        """Who runs it."""
        return unpack(self.code)[0].name if self.is_library else "ours"

    def compile(self, architecture: Architecture) -> None:
        """Compiles it in this process."""
        try:
            self.code = to_object(self.source, architecture)
        except CompileError as error:
            self.error = error


class Queue:
    """Jobs that must be done, the longest first; then others, for so many seconds."""

    def __init__(self, jobs: Sequence[Job], others: Sequence[Job] = (), seconds: float = 0) -> None:
        # The longest first, so that the last to finish is a short one.
        self.jobs = deque(sorted(jobs, key=lambda job: -len(job.source.text)))
        self.others, self.seconds = deque(others), seconds
        self.until = float("inf")
        self.lock = threading.Lock()

    def pop(self) -> Job | None:
        """The next one; None where there is none, or no time for it."""
        with self.lock:
            if self.jobs:
                return self.jobs.popleft()
            if self.until == float("inf"):
                self.until = time.monotonic() + self.seconds
            if self.others and time.monotonic() < self.until:
                return self.others.popleft()
            return None


def compile_all(
    jobs: Sequence[Job],
    architecture: Architecture,
    step: Callable[[], None] = lambda: None,
    others: Sequence[Job] = (),
    seconds: float = 0,
    workers: int = MOST_WORKERS,
) -> None:
    """Compiles all jobs, here and in as many worker processes as there are spare processors; then,
    for so many seconds, as many of the others as that is enough for.

    `step` is called once for each of the jobs that must be done; what it raises ends the workers.
    Raises the first CompileError of these jobs.
    """

    def ask(job: Job, requests: IO[bytes], results: IO[bytes]) -> None:
        _ask(job, architecture, requests, results)

    queue = Queue(jobs, others, seconds)
    crew = Crew("cuda", queue.pop, lambda job: job.compile(architecture), ask)
    helpers = 0
    if len(jobs) + len(others) >= FEWEST_FOR_WORKERS:
        helpers = min(_processors() - 1, workers)
    # A process that has compiled Gluon ends with a page of complaints, as of Triton 3.9.
    apart = any(job.source.is_gluon for job in (*jobs, *others))
    waits = apart or (helpers > 0 and _processors() > workers)
    crew.compile(jobs, helpers + apart, step, waits)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _ask(job: Job, architecture: Architecture, requests: IO[bytes], results: IO[bytes]) -> None:
    launches = [asdict(launch) for launch in job.source.launches]
    data = json.dumps([str(architecture), job.source.text, launches]).encode()
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
        name, text, launches = json.loads(exactly(jobs, *_JOB.unpack(head)))
        job = Job(Source(text, tuple(_launch(fields) for fields in launches)))
        job.compile(Architecture.parse(name))
        data = str(job.error).encode() if job.error else job.code
        results.write(_RESULT.pack(job.error is not None, len(data)) + data)
        results.flush()


def _launch(fields: dict[str, Any]) -> Launch:
    """A launch from JSON, which has lists in place of tuples."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Launch(**plain)
