"""Compiling in several processes: LLVM and Python hold one lock in each; threads gain nothing.

What a worker of the crew is sent: two lengths, a header in JSON and a pickled kernel; what it
answers: a status, a length, and object bytes or the message of an error. Both ends are this
program, of one version, and nobody else reads or writes the pipes.
"""

from __future__ import annotations

import json
import pickle
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

from whet.errors import CompileError
from whet.plan.kernel import Kernel, Template
from whet.targets.cpu import codegen, host, jit
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.special import Special
from whet.targets.crew import READY, Crew, exactly

_JOB, _RESULT = struct.Struct("<II"), struct.Struct("<BI")

FEWEST_FOR_WORKERS = 6
"""With fewer kernels than that, a process would start for longer than it compiles."""

MOST_WORKERS = 3


@dataclass(eq=False)
class Job:
    """A kernel, or LLVM text, to compile; afterwards its object code, or what went wrong."""

    source: Kernel | Special | str
    code: bytes = b""
    error: CompileError | None = field(default=None)

    def text(self, architecture: Architecture) -> str:
        """What LLVM is given."""
        source = self.source
        if isinstance(source, str):
            return source
        kernel = source.chosen(architecture) if isinstance(source, Special) else source
        return codegen.to_llvm(kernel, architecture)

    def compile(self, architecture: Architecture) -> None:
        """Compiles it in this process."""
        try:
            text = self.text(architecture)
            self.code = jit.to_object(text, architecture, codegen.imports(text))
        except CompileError as error:
            self.error = error

    @property
    def size(self) -> tuple[bool, int]:
        """Which of two jobs takes longer, most likely."""
        kernel = self.source.kernel if isinstance(self.source, Special) else self.source
        return isinstance(kernel, Template), len(str(kernel))


def compile_all(
    jobs: Sequence[Job],
    architecture: Architecture,
    step: Callable[[], None] = lambda: None,
    idle: bool = False,
) -> None:
    """Compiles all jobs, here and in as many worker processes as there are spare processors.

    `step` is called once for each job that is done; what it raises ends the workers. With `idle`
    there is one worker, which runs where nobody else wants the processor.
    """
    # The longest first, so that the last to finish is a short one.
    queue = deque(sorted(jobs, key=lambda job: job.size, reverse=True))
    lock = threading.Lock()

    def take() -> Job | None:
        with lock:
            return queue.popleft() if queue else None

    def ask(job: Job, requests: IO[bytes], results: IO[bytes]) -> None:
        _ask(job, architecture, requests, results)

    crew = Crew("cpu", take, lambda job: job.compile(architecture), ask, idle)
    helpers = min(host.cores() - 1, MOST_WORKERS) if len(jobs) >= FEWEST_FOR_WORKERS else 0
    crew.compile(jobs, 1 if idle else helpers, step, waits=idle)


def _ask(job: Job, architecture: Architecture, requests: IO[bytes], results: IO[bytes]) -> None:
    header = json.dumps([str(architecture), architecture.system]).encode()
    source = pickle.dumps(job.source)
    requests.write(_JOB.pack(len(header), len(source)) + header + source)
    requests.flush()
    status, size = _RESULT.unpack(exactly(results, _RESULT.size))
    data = exactly(results, size)
    if status:
        job.error = CompileError(data.decode())
    else:
        job.code = data


def serve(jobs: IO[bytes], results: IO[bytes]) -> None:
    """A worker's whole life: compiles what it is given until there is no more."""
    results.write(READY)
    results.flush()
    while head := jobs.read(_JOB.size):
        header_size, source_size = _JOB.unpack(head)
        name, system = json.loads(exactly(jobs, header_size))
        job = Job(pickle.loads(exactly(jobs, source_size)))
        job.compile(Architecture.parse(name, system))
        data = str(job.error).encode() if job.error else job.code
        results.write(_RESULT.pack(job.error is not None, len(data)) + data)
        results.flush()
