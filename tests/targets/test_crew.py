"""Processes that compile: no result waits for one that has nothing to do."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import IO, Any

import pytest

from whet.errors import CompileError
from whet.targets.crew import Crew


@dataclass(eq=False)
class Job:
    code: bytes = b""
    error: CompileError | None = None
    where: list[str] = field(default_factory=list)


def crew_of(jobs: list[Job]) -> Crew[Job]:
    waiting = list(jobs)

    def here(job: Job) -> None:
        job.where.append("here")
        job.code = b"code"

    def ask(job: Job, requests: IO[bytes], results: IO[bytes]) -> None:
        raise AssertionError("a process that never starts is given no job")

    return Crew("cpu", lambda: waiting.pop() if waiting else None, here, ask)


@pytest.mark.parametrize("patience", [0.0, 30.0])
@pytest.mark.parametrize("helpers", [1, 3])
def test_processes_that_start_late_are_not_waited_for(
    helpers: int, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    start = subprocess.Popen

    def slow(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", slow)
    jobs = [Job() for _ in range(5)]
    steps: list[None] = []
    monkeypatch.setattr("whet.targets.crew.PATIENCE", patience)
    begin = time.monotonic()
    crew_of(jobs).compile(jobs, helpers, lambda: steps.append(None))
    assert time.monotonic() - begin < 30
    assert [job.where for job in jobs] == [["here"]] * 5 and len(steps) == 5
    assert all(process.poll() is not None for process in started)
