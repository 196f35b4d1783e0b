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
from benchmarks.inputs import Given, Input, draw, read_inputs
from benchmarks.judge import relative_error
from benchmarks.machine import peak_gflops
from benchmarks.processes import ROOT, Process, RunnerError

PEERS = ("onnxruntime", "openvino")
COLUMNS = ("whet", *PEERS)
BASE = "base"
JUDGE = "onnxruntime"
ERROR_LIMIT = 2.0
"""A row counts only if the error is at most this many times ONNX Runtime's."""

SLOW_PHASE = 0.85
"""A round is dropped when the machine's peak falls below this part of the best seen so far."""

FEWEST_ROUNDS = 3
"""With fewer rounds at full speed, the figures of a row are not to be trusted."""

MOST_ROUNDS = 3
"""How many times the rounds asked for are run at the most to make up for the dropped ones."""


@dataclass(frozen=True)
class Plan:
    """How a network is measured."""

    threads: int = 2
    rounds: int = 7
    seconds: float = 1.0
    sizes: Mapping[str, int] = field(default_factory=dict)


def spread(values: list[float], scale: float, form: str) -> str:
    """Median and range, as text."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle * scale:{form}} ({low * scale:.3f}-{high * scale:.3f})"


@dataclass
class Row:
    """The figures of one network; times in seconds, by runner and round."""

    network: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    roof: float = 0.0

    @property
    def kept(self) -> list[int]:
        """The rounds in which the machine ran at full speed; the fastest few if there are none."""
        full = [i for i, peak in enumerate(self.peaks) if peak >= SLOW_PHASE * self.roof]
        fastest = sorted(range(len(self.peaks)), key=lambda i: -self.peaks[i])
        return full if self.sure else sorted(fastest[:FEWEST_ROUNDS])

    @property
    def sure(self) -> bool:
        """Whether enough rounds ran at full speed for the figures to be trusted."""
        full = sum(peak >= SLOW_PHASE * self.roof for peak in self.peaks)
        return full >= min(FEWEST_ROUNDS, len(self.peaks))

    def times(self, runner: str) -> list[float]:
        return [self.rounds[runner][i] for i in self.kept]

    def median(self, runner: str) -> float:
        return statistics.median(self.times(runner))

    def result(self) -> str:
        """The row of the closing table: whet's time, its peers', and the ratio that counts."""
        cells = [f"{1e3 * self.median(n):.2f}" if n in self.rounds else "-" for n in COLUMNS]
        ratio, peer = "-", self.best_peer("whet")
        if "whet" in self.rounds and peer:
            ratio = f"{statistics.median(self.ratios('whet', peer)):.3f}"
        verdict = "void" if "whet" in self.rounds and self.void("whet") else ""
        verdict = verdict if self.sure else f"{verdict} unsure".strip()
        return f"| {self.network} | {' | '.join(cells)} | {ratio} | {verdict} |"

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

    def report(self) -> Iterator[str]:
        """The row as text: by runner median, spread, error, and ratio to the better peer."""
        dropped, peaks = len(self.peaks) - len(self.kept), self.peaks or [0.0]
        roof = f"peak {min(peaks):.0f}-{max(peaks):.0f} of {self.roof:.0f} GFLOP/s"
        doubt = "" if self.sure else "  UNSURE: the machine was slow or busy throughout"
        yield f"{self.network}: {len(self.kept)} rounds, {dropped} dropped, {roof}{doubt}"
        for name in self.rounds:
            time = spread(self.times(name), 1e3, "8.3f")
            verdict = "  VOID: error above twice ONNX Runtime's" if self.void(name) else ""
            against = self.comparisons(name)
            yield f"  {name:12} {time} ms  error {self.errors[name]:.1e}{against}{verdict}"
        for name, reason in self.failures.items():
            yield f"  {name:12} failed: {reason}"

    def comparisons(self, name: str) -> str:
        """The ratios of whet's time to the better peer's and to the base revision's, as text."""
        others = [] if name in PEERS else dict.fromkeys([self.best_peer(name), BASE])
        named = [other for other in others if other in self.rounds and other != name]
        return "".join(f"  {spread(self.ratios(name, o), 1, '.3f')} x {o}" for o in named)

    def as_json(self) -> dict[str, Any]:
        runners = {
            name: {
                "median": self.median(name),
                "error": self.errors.get(name),
                "void": self.void(name),
                "against": (peer := self.best_peer(name)),
                "ratio": statistics.median(self.ratios(name, peer)) if peer else None,
            }
            for name in self.rounds
        }
        return {**asdict(self), "kept": self.kept, "runners": runners}


def measure(
    path: Path, runners: list[str], plan: Plan, base: Path | None = None, roof: float = 0.0
) -> Row:
    """Time the runners on one network; a runner that fails is named with its reason.

    `roof` is the best peak of the machine seen so far, in GFLOP/s; the row holds the new one.
    """
    row = Row(path.stem, roof=roof)
    inputs = read_inputs(path, plan.sizes)
    with processes(path, runners, plan, row, base) as running:
        check_errors(path, inputs, running, row)
        row.rounds = {name: [] for name in running}
        for turn in range(MOST_ROUNDS * plan.rounds):
            time_round(turn, inputs, plan, running, row)
            if row.sure and len(row.kept) >= plan.rounds:
                break
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
            row.errors[name] = max(
                relative_error(y, e) for y, e in zip(outputs, expected, strict=True)
            )
        except (RunnerError, ValueError) as failure:
            row.failures[name] = str(failure)
            del running[name]


def time_round(
    turn: int,
    inputs: list[Input] | list[Given],
    plan: Plan,
    running: dict[str, Process],
    row: Row,
) -> None:
    """One block of each runner, the machine's peak before each; who begins moves on by one."""
    names = deque(running)
    names.rotate(-turn)
    peaks = []
    for name in names:
        peaks.append(peak_gflops(plan.threads))
        taken = running[name].ask("block", inputs, plan.seconds)
        row.rounds[name].append(statistics.median(taken))
    peaks.append(peak_gflops(plan.threads))
    row.roof = max(row.roof, *peaks)
    row.peaks.append(min(peaks))
