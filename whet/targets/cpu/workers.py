"""Compiling in several processes: LLVM holds one lock in each, so that threads gain nothing.

A worker is `python -m whet.compile_worker cpu`. It reads jobs from its standard input and writes
results to its standard output: a job is two lengths, a header in JSON and LLVM text; a result is a
status, a length, and object bytes or the message of an error.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

from whet.errors import CompileError
from whet.targets.cpu import host, jit
from whet.targets.cpu.architecture import Architecture

_JOB, _RESULT = struct.Struct("<II"), struct.Struct("<BI")
_READY = b"whet compile worker\n"

FEWEST_FOR_WORKERS = 6
"""With fewer kernels than that, a process would start for longer than it compiles."""

MOST_WORKERS = 3


@dataclass(eq=False)
class Job:
    """LLVM text to compile; afterwards its object code, or what went wrong."""

    text: str
    imports: Sequence[str]
    code: bytes = b""
    error: CompileError | None = field(default=None)

    def compile(self, architecture: Architecture) -> None:
        """Compiles it in this process."""
        try:
            self.code = jit.to_object(self.text, architecture, self.imports)
        except CompileError as error:
            self.error = error


def compile_all(
    jobs: Sequence[Job], architecture: Architecture, done: Callable[[], None] = lambda: None
) -> None:
    """Compiles all jobs, here and in as many worker processes as there are spare processors.

    `done` is called after each job that this process compiles. Where no worker can be started,
    such as in a frozen application, all of them are compiled here.
    """
    # The longest first, so that the last to finish is a short one.
    queue = deque(sorted(jobs, key=lambda job: -len(job.text)))
    helpers: list[threading.Thread] = []
    if len(jobs) >= FEWEST_FOR_WORKERS:
        for _ in range(min(host.cores() - 1, MOST_WORKERS)):
            helpers.append(threading.Thread(target=_feed, args=(queue, architecture), daemon=True))
            helpers[-1].start()

    def here(job: Job) -> None:
        job.compile(architecture)
        done()

    _drain(queue, here)
    for helper in helpers:
        helper.join()
    # A worker that died has left its job undone.
    for job in jobs:
        if not job.code and job.error is None:
            job.compile(architecture)
        if job.error is not None:
            raise job.error


def _drain(queue: deque[Job], run: Callable[[Job], None]) -> None:
    while True:
        try:
            job = queue.popleft()
        except IndexError:
            return
        run(job)


def _feed(queue: deque[Job], architecture: Architecture) -> None:
    """Starts a worker and gives it jobs until there are none left, or it fails."""
    command = [sys.executable, "-m", "whet.compile_worker", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        return
    assert worker.stdin is not None and worker.stdout is not None
    with worker, worker.stdin as jobs, worker.stdout as results:
        try:
            if results.read(len(_READY)) == _READY:
                _drain(queue, lambda job: _ask(job, architecture, jobs, results))
        except (OSError, EOFError):
            worker.kill()  # its job is done again in this process


def _ask(job: Job, architecture: Architecture, jobs: IO[bytes], results: IO[bytes]) -> None:
    header = json.dumps([str(architecture), architecture.system, list(job.imports)]).encode()
    text = job.text.encode()
    jobs.write(_JOB.pack(len(header), len(text)) + header + text)
    jobs.flush()
    status, size = _RESULT.unpack(_exactly(results, _RESULT.size))
    data = _exactly(results, size)
    if status:
        job.error = CompileError(data.decode())
    else:
        job.code = data


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def serve(jobs: IO[bytes], results: IO[bytes]) -> None:
    """A worker's whole life: compiles what it is given until there is no more."""
    results.write(_READY)
    results.flush()
    while head := jobs.read(_JOB.size):
        header_size, text_size = _JOB.unpack(head)
        name, system, imports = json.loads(_exactly(jobs, header_size))
        job = Job(_exactly(jobs, text_size).decode(), imports)
        job.compile(Architecture.parse(name, system))
        data = str(job.error).encode() if job.error else job.code
        results.write(_RESULT.pack(job.error is not None, len(data)) + data)
        results.flush()
