"""Compiling in several processes, which take jobs from one place together with the caller.

Compilers hold one lock in each process, so that threads gain nothing. A worker is
`python -m whet.compile_worker TARGET`: it says that it is ready, then reads jobs from its standard
input and writes results to its standard output, in the form that the target gives them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, Generic, Protocol, TypeVar

from whet.errors import CompileError

READY = b"whet compile worker\n"
PATIENCE = 0.1
"""Seconds before a process is started: small networks are compiled by then."""
LOOK = 0.05
"""Seconds between two looks at how far the workers are, while there is nothing else to do."""

IDLE = """\
import os, runpy
try:
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
except (AttributeError, OSError):
    pass  # other systems have no such class, and a container may refuse it: the priority does
runpy.run_module("whet.compile_worker", run_name="__main__")
"""
"""What a worker runs that only takes time which nobody else wants: what it imports is among that,
so that it gives way before it imports anything."""


class Job(Protocol):
    """What is compiled: afterwards it has its code, or what went wrong."""

    code: bytes
    error: CompileError | None


J = TypeVar("J", bound=Job)


class Crew(Generic[J]):
    """Worker processes of one target.

    `take` gives the next job, from whatever thread, and None where there is none; `here` compiles
    one in this process, `ask` in a worker, through its pipes. Workers that are `idle` run where
    nobody else wants the processor.
    """

    def __init__(
        self,
        target: str,
        take: Callable[[], J | None],
        here: Callable[[J], None],
        ask: Callable[[J, IO[bytes], IO[bytes]], None],
        idle: bool = False,
    ) -> None:
        self.target, self.take, self.here, self.ask, self.idle = target, take, here, ask, idle
        self.workers: list[subprocess.Popen[bytes]] = []
        self.threads: list[threading.Thread] = []
        self.is_dismissed, self._is_late = False, threading.Event()
        self._starting: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def compile(
        self,
        jobs: Sequence[J],
        helpers: int,
        step: Callable[[], None],
        waits: bool = False,
        meanwhile: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compiles all that `take` gives, here and in so many workers; raises the first
        CompileError of `jobs`, once all are done.

        `step` is called on this thread, once for each of `jobs` that is done; whatever it raises
        ends the workers. With `waits` this process only does what they leave undone. While it waits
        for them it does other work piece by piece: `meanwhile` says whether there was one. Where no
        worker can be started, such as in a frozen application, all is compiled here.
        """
        done = 0

        def tell() -> None:
            nonlocal done
            finished = sum(bool(job.code or job.error) for job in jobs)
            while done < finished:
                done += 1
                step()

        patience = 0.0 if waits else PATIENCE
        try:
            for _ in range(helpers):
                thread = threading.Thread(
                    target=self._feed, args=(patience,), name="whet compile", daemon=True
                )
                self.threads.append(thread)
                thread.start()
            if waits:
                self._wait(tell, meanwhile)
            self._drain(self.here, tell)
            self._give_up_starting()
            self._wait(tell, meanwhile)
            for job in jobs:
                if not job.code and job.error is None:  # its worker died
                    self.here(job)
                    tell()
        except BaseException:
            self.dismiss()
            raise
        for job in jobs:
            if job.error is not None:
                raise job.error

    def dismiss(self) -> None:
        """Ends all workers, whatever they are at."""
        with self._lock:
            self.is_dismissed = True
            self._is_late.set()
            for worker in self.workers:
                worker.kill()
        for thread in self.threads:
            thread.join()

    def _give_up_starting(self) -> None:
        """Ends the workers that still start, now that no job is left for them."""
        with self._lock:
            self._is_late.set()
            for worker in self._starting:
                worker.kill()

    def _wait(self, tell: Callable[[], None], meanwhile: Callable[[], bool]) -> None:
        while at_work := [thread for thread in self.threads if thread.is_alive()]:
            if not meanwhile():
                at_work[0].join(LOOK)
            tell()
        tell()

    def _drain(self, run: Callable[[J], None], tell: Callable[[], None] = lambda: None) -> None:
        while not self.is_dismissed and (job := self.take()) is not None:
            run(job)
            tell()

    def _feed(self, patience: float) -> None:
        """Starts a worker, unless all is done by then, and gives it jobs until there are none left,
        or it fails."""
        self._is_late.wait(patience)
        worker = self._start()
        if worker is None:
            return
        assert worker.stdin is not None and worker.stdout is not None
        with worker, worker.stdin as jobs, worker.stdout as results:
            try:
                if results.read(len(READY)) == READY:
                    with self._lock:  # from now on it has jobs, and is waited for
                        self._starting.remove(worker)
                    self._drain(lambda job: self.ask(job, jobs, results))
            except (OSError, EOFError):
                worker.kill()  # its job is done again in this process

    def _start(self) -> subprocess.Popen[bytes] | None:
        how = ["-c", IDLE] if self.idle else ["-m", "whet.compile_worker"]
        command = [sys.executable, *how, self.target]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self._lock:  # who dismisses the crew must see every worker
            if self.is_dismissed or self._is_late.is_set():
                return None
            try:
                worker = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            except OSError:
                return None
            self.workers.append(worker)
            self._starting.add(worker)
            return worker


def exactly(file: IO[bytes], size: int) -> bytes:
    """So many bytes of a pipe; raises EOFError where it ends before."""
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data
