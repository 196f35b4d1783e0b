"""Latency against the peers: alternating blocks, fresh inputs, paired ratios, checked errors."""

import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import float64
from benchmarks.inputs import Input, draw, read_inputs
from benchmarks.machine import peak_gflops
from benchmarks.processes import ROOT, Process, RunnerError

PEERS = ("onnxruntime", "openvino")
BASE = "base"
JUDGE = "onnxruntime"
ERROR_LIMIT = 2.0
"""A row counts only if the error is at most this many times ONNX Runtime's."""

SLOW_PHASE = 0.85
"""A round is dropped when the machine's peak falls below this part of the best round's."""


@dataclass(frozen=True)
class Plan:
    """How a network is measured."""

    threads: int = 2
    rounds: int = 7
    seconds: float = 1.0
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Row:
    """The figures of one network; times in milliseconds, by runner and round."""

    network: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)

    @property
    def kept(self) -> list[int]:
        """The rounds in which the machine ran at its full speed."""
        best = max(self.peaks, default=0.0)
        return [i for i, peak in enumerate(self.peaks) if peak >= SLOW_PHASE * best]

    def times(self, runner: str) -> list[float]:
        return [self.rounds[runner][i] for i in self.kept]

    def median(self, runner: str) -> float:
        return statistics.median(self.times(runner))

    def best_peer(self, runner: str) -> str | None:
        peers = [name for name in PEERS if name in self.rounds and name != runner]
        return min(peers, key=self.median, default=None)

    def ratios(self, runner: str, against: str) -> list[float]:
        """A runner's time over another's, round by round."""
        return [a / b for a, b in zip(self.times(runner), self.times(against))]

    def void(self, runner: str) -> bool:
        """Whether a runner is too far from the float64 reference for its time to count."""
        judge = self.errors.get(JUDGE)
        error = self.errors.get(runner)
        return judge is not None and (error is None or not error <= ERROR_LIMIT * judge)

    def as_json(self) -> dict[str, Any]:
        runners = {
            name: {
                "median_ms": self.median(name),
                "error": self.errors.get(name),
                "void": self.void(name),
                "against": (peer := self.best_peer(name)),
                "ratio": statistics.median(self.ratios(name, peer)) if peer else None,
            }
            for name in self.rounds
        }
        return {**asdict(self), "kept": self.kept, "runners": runners}


def measure(path: Path, runners: list[str], plan: Plan, base: Path | None = None) -> Row:
    """Time the runners on one network; a runner that fails is named with its reason."""
    row = Row(path.stem)
    inputs = read_inputs(path, plan.sizes)
    with processes(path, runners, plan, row, base) as running:
        check_errors(path, inputs, running, row)
        row.rounds = {name: [] for name in running}
        for turn in range(plan.rounds):
            time_round(turn, inputs, plan, running, row)
    return row


@contextmanager
def processes(
    path: Path, runners: list[str], plan: Plan, row: Row, base: Path | None
) -> Iterator[dict[str, Process]]:
    """A loaded process for each runner that can load the network."""
    with ExitStack() as stack:
        running: dict[str, Process] = {}
        for name in [*runners, BASE] if base else runners:
            process = Process(name, base or ROOT) if name == BASE else Process(name)
            stack.callback(process.close)
            try:
                process.ask("load", "whet" if name == BASE else name, path, plan.threads)
            except RunnerError as failure:
                row.failures[name] = str(failure)
            else:
                running[name] = process
        yield running


def check_errors(path: Path, inputs: list[Input], running: dict[str, Process], row: Row) -> None:
    """The largest error of each runner against float64, over all outputs, on one fresh input."""
    feeds = draw(inputs, np.random.default_rng())
    expected = float64.reference(path, feeds)
    for name, process in list(running.items()):
        try:
            outputs = process.ask("outputs", feeds)
            row.errors[name] = max(float64.relative_errors(outputs, expected))
        except (RunnerError, ValueError) as failure:
            row.failures[name] = str(failure)
            del running[name]


def time_round(
    turn: int, inputs: list[Input], plan: Plan, running: dict[str, Process], row: Row
) -> None:
    """One block of each runner, the machine's peak before each; who begins moves on by one."""
    names = deque(running)
    names.rotate(-turn)
    peaks = []
    for name in names:
        peaks.append(peak_gflops(plan.threads))
        taken = running[name].ask("block", inputs, plan.seconds)
        row.rounds[name].append(1e3 * statistics.median(taken))
    row.peaks.append(min(peaks, default=0.0))


def report(row: Row) -> Iterator[str]:
    """The row as lines of text: per runner median, spread, error, and ratio to the better peer."""
    dropped = len(row.peaks) - len(row.kept)
    peaks = f"peak {min(row.peaks):.0f}-{max(row.peaks):.0f} GFLOP/s" if row.peaks else ""
    yield f"{row.network}: {len(row.kept)} rounds, {dropped} slow ones dropped, {peaks}"
    for name in row.rounds:
        times = row.times(name)
        spread = f"{min(times):.2f}-{max(times):.2f}"
        line = f"  {name:12} {row.median(name):8.3f} ms ({spread})  error {row.errors[name]:.1e}"
        for other in dict.fromkeys([row.best_peer(name), BASE]):
            if other in row.rounds and other != name and name not in PEERS:
                ratios = row.ratios(name, other)
                spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
                line += f"  {statistics.median(ratios):.3f} x {other} ({spread})"
        yield line + ("  VOID: error above twice ONNX Runtime's" if row.void(name) else "")
    for name, reason in row.failures.items():
        yield f"  {name:12} failed: {reason}"
