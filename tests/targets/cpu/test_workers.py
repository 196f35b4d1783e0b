"""Compiling in worker processes: the same bytes, errors carried over, lost workers made up for."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from whet.errors import CompileError
from whet.plan.kernel import Axis, Literal, Loops, Nest, Store
from whet.targets.cpu import host, jit
from whet.targets.cpu.workers import Job, compile_all
from whet.targets.crew import READY


def jobs(count: int) -> list[Job]:
    text = "define i64 @add{0}(i64 %x) {{\n %y = add i64 %x, {0}\n ret i64 %y\n}}\n"
    return [Job(text.format(n)) for n in range(count)]


def test_workers_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 3)
    made = jobs(40)
    compile_all(made, host.architecture())
    for job in made:
        assert job.code == jit.to_object(job.text(host.architecture()), host.architecture())


def test_workers_generate_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 3)
    kernels = [
        Loops(("float32",), 1, (Nest((Axis("i0", n),), (Store(0, 0, Literal(0.5, "float32")),)),))
        for n in range(1, 20)
    ]
    made, here = [[Job(kernel) for kernel in kernels] for _ in range(2)]
    compile_all(made, host.architecture())
    for job in here:
        job.compile(host.architecture())
    assert [job.code for job in made] == [job.code for job in here]


def test_an_error_names_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 2)
    bad = Job("define void @broken() {\n ret i64 0\n}\n")
    with pytest.raises(CompileError, match="broken"):
        compile_all([*jobs(20), bad], host.architecture())


@pytest.mark.parametrize(
    "program", ["/nowhere/python", "/bin/true", "/bin/cat"], ids=["absent", "silent", "echo"]
)
def test_without_workers_all_is_compiled_here(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(host, "cores", lambda: 2)
    monkeypatch.setattr(sys, "executable", program)
    made = jobs(12)
    compile_all(made, host.architecture())
    assert all(job.code for job in made)


def test_a_worker_that_dies_loses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = tmp_path / "python"
    ready = READY.decode().strip()
    dying.write_text(f"#!/bin/sh\necho '{ready}'\nhead -c 100 >/dev/null\nexit 1\n")
    dying.chmod(0o755)
    monkeypatch.setattr(host, "cores", lambda: 2)
    monkeypatch.setattr(sys, "executable", str(dying))
    made = jobs(12)
    compile_all(made, host.architecture())
    assert all(job.code for job in made)


class Enough(Exception):  # noqa: N818
    """What a progress monitor may raise."""


def test_whoever_stops_ends_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def note(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(host, "cores", lambda: 3)
    monkeypatch.setattr(subprocess, "Popen", note)
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Enough

    made, before = jobs(2000), set(threading.enumerate())  # others compile in the background
    with pytest.raises(Enough):
        compile_all(made, host.architecture(), stop)
    assert all(worker.poll() is not None for worker in started)
    new = set(threading.enumerate()) - before
    assert not any(thread.name.startswith("whet compile") for thread in new)
    assert sum(bool(job.code) for job in made) < len(made)


def test_each_job_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 2)
    made, steps = jobs(30), list[None]()
    compile_all(made, host.architecture(), lambda: steps.append(None))
    assert len(steps) == len(made)
