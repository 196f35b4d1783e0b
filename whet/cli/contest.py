"""Runners in processes of their own, timed in turns while the others sleep."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whet.cli.contestant import Task
from whet.cli.judge import relative_error
from whet.cli.status import DEFECT
from whet.errors import Error


class RunnerError(Error, RuntimeError):
    """A runner reported an error, of that exit status, or died."""

    def __init__(self, said: str, status: int = DEFECT) -> None:
        self.status = status
        super().__init__(said)


class Process:
    """A `whet.cli.contestant`, stopped by the system whenever it has nothing to answer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the child
        package = str(Path(__file__).parents[2])
        paths = [package, os.environ.get("PYTHONPATH", "")]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "whet.cli.contestant"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the runner's method returns; raises RunnerError."""
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            self._signal("SIGCONT")
            pickle.dump((method, arguments), self.child.stdin)
            self.child.stdin.flush()
            succeeded, result = pickle.load(self.child.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise RunnerError(f"it died: {self._last_words()}") from None
        self._signal("SIGSTOP")
        if not succeeded:
            raise RunnerError(*result)
        return result

    def close(self) -> None:
        self.child.kill()
        self.child.communicate()
        self.errors.close()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):
            self.child.send_signal(getattr(signal, name))

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read()[-600:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"without a word, status {self.child.wait()}"


@dataclass
class Result:
    """What was measured of one runner; times in seconds, by round."""

    name: str
    start: float = 0.0
    cold: float | None = None
    rounds: list[list[float]] = field(default_factory=list)
    outputs: Any = None
    figures: dict[str, Any] = field(default_factory=dict)
    throughput: float | None = None
    kernels: list[tuple[str, str, float]] = field(default_factory=list)
    failure: str | None = None
    status: int = DEFECT
    """The exit status that the failure is worth."""

    @property
    def times(self) -> list[float]:
        return [t for block in self.rounds for t in block]

    @property
    def is_measured(self) -> bool:
        return self.failure is None and bool(self.rounds)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.times, percent))

    def ratio(self, other: Result) -> float:
        """This runner's time over another's: the median of the rounds' ratios."""
        pairs = zip(self.rounds, other.rounds)
        return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)

    def difference(self, other: Result) -> float | None:
        """The largest difference of an output, over the largest element; None without both."""
        mine, theirs = as_list(self.outputs), as_list(other.outputs)
        if len(mine) != len(theirs) or not mine:
            return None
        return max(relative_error(a, b) for a, b in zip(mine, theirs))

    def to_plain(self) -> dict[str, Any]:
        """What goes into a JSON file."""
        if not self.is_measured:
            return {"failure": self.failure}
        percentiles = {f"p{p}": self.percentile(p) for p in (50, 90, 95, 99)}
        latency = {"least": min(self.times), "mean": statistics.fmean(self.times), **percentiles}
        return {
            "start": self.start,
            "cold start": self.cold,
            "runs": len(self.times),
            "latency": latency,
            "round medians": [statistics.median(block) for block in self.rounds],
            "throughput": self.throughput,
            **self.figures,
            "kernel times": self.kernels,
        }


def as_list(outputs: Any) -> list[Any]:
    return list(outputs.values()) if isinstance(outputs, Mapping) else list(outputs or ())


@dataclass(frozen=True)
class Rules:
    """How a contest goes: rounds of blocks, callers at once for the throughput, kernel times."""

    rounds: int = 5
    seconds: float = 1.0
    callers: int = 1
    kernels: bool = False


def compete(
    tasks: Mapping[str, Task],
    feeds: Sequence[dict[str, Any]],
    rules: Rules,
    step: Callable[[float, float, str], None],
) -> list[Result]:
    """Measures each runner on its task; one that fails says so in its result."""
    results = {name: Result(name) for name in tasks}
    with contextlib.ExitStack() as stack:
        running: dict[str, Process] = {}
        for number, (name, task) in enumerate(tasks.items()):
            step(number, len(tasks), f"loading into {name}")
            if name == "whet":
                _try(
                    results[name],
                    {name: Process(name)},
                    partial(_load_cold, task=task, feeds=feeds),
                )
                if results[name].failure is not None:
                    continue
            process = running[name] = Process(name)
            stack.callback(process.close)
            _try(results[name], running, partial(_load, task=task, feeds=feeds))
        for turn in range(rules.rounds):
            names = deque(running)
            names.rotate(-turn)
            for name in names:
                step(turn, rules.rounds, f"round {turn + 1} of {rules.rounds}: {name}")
                _try(results[name], running, partial(_block, rules=rules))
        for name in tuple(running):
            step(rules.rounds, rules.rounds, f"throughput: {name}")
            _try(results[name], running, partial(_finish, rules=rules))
    return list(results.values())


def _try(
    result: Result, running: dict[str, Process], do: Callable[[Process, Result], None]
) -> None:
    try:
        do(running[result.name], result)
    except RunnerError as failure:
        result.failure, result.status = str(failure), failure.status
        del running[result.name]


def _load(process: Process, result: Result, task: Task, feeds: Sequence[Any]) -> None:
    result.start, result.outputs = process.ask("load", result.name, task, list(feeds))


def _load_cold(process: Process, result: Result, task: Task, feeds: Sequence[Any]) -> None:
    """The first start ever, which fills the cache for the one that is measured."""
    try:
        result.cold, _ = process.ask("load", result.name, task, list(feeds[:1]))
    finally:
        process.close()


def _block(process: Process, result: Result, rules: Rules) -> None:
    result.rounds.append(process.ask("block", rules.seconds))


def _finish(process: Process, result: Result, rules: Rules) -> None:
    result.figures = process.ask("figures")
    result.throughput = process.ask("throughput", rules.seconds, rules.callers)
    if rules.kernels and result.name == "whet":
        result.kernels = process.ask("kernels", 20)
