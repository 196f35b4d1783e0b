"""Whole-process measurements: build and cold compile, start to first result, peak memory.

Every trial is a fresh process (`benchmarks.trial`); contenders take turns.
"""

import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.inputs import Input, read_inputs, weight_bytes
from benchmarks.processes import ROOT, RunnerError, environment
from benchmarks.speed import Plan

MEMORY_RUNS = 10
SAMPLE_EVERY = 0.002
PRIVATE = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")

Figures = dict[str, float]


@dataclass
class Comparison:
    """Figures by contender and name, one value a round."""

    network: str
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, contender: str, figures: Figures) -> None:
        for name, value in figures.items():
            self.figures.setdefault(contender, {}).setdefault(name, []).append(value)

    def median(self, contender: str, name: str) -> float:
        return statistics.median(self.figures[contender][name])

    def report(self) -> Iterator[str]:
        """The comparison as text: medians, spreads, and whet's ratio to each other contender."""
        yield f"{self.network}:"
        for contender, figures in self.figures.items():
            for name, values in figures.items():
                spread = f"{min(values):.3f}-{max(values):.3f}"
                line = f"  {contender:12} {name:28} {statistics.median(values):9.3f} ({spread})"
                yield line + self.ratios(contender, name)
        for contender, reason in self.failures.items():
            yield f"  {contender:12} failed: {reason}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def ratios(self, contender: str, name: str) -> str:
        if contender != "whet":
            return ""
        others = [c for c in self.figures if c != contender and name in self.figures[c]]
        mine = self.median(contender, name)
        return "".join(f"  {mine / self.median(other, name):.3f} x {other}" for other in others)


@dataclass(frozen=True)
class Kind:
    """A measurement: what it is for, who takes part, and how one trial becomes figures."""

    purpose: str
    contenders: tuple[str, ...]
    trial: Callable[["Bench", str], Figures]


@dataclass(frozen=True)
class Bench:
    """A network, its inputs, and a scratch folder that holds whet's engine file and its cache."""

    path: Path
    inputs: list[Input]
    plan: Plan
    scratch: Path

    def command(self, kind: str, runner: str, scratch: Path, runs: int = 1) -> list[str]:
        argument = {
            "kind": kind,
            "runner": runner,
            "path": str(self.path),
            "scratch": str(scratch),
            "inputs": [asdict(x) for x in self.inputs],
            "threads": self.plan.threads,
            "runs": runs,
        }
        return [sys.executable, "-m", "benchmarks.trial", json.dumps(argument)]

    def prepare(self) -> None:
        """Leave whet's engine file and a warm cache in the scratch folder."""
        with Child(self.command("build", "whet", self.scratch)) as child:
            child.report()

    def build(self, runner: str) -> Figures:
        """Seconds to build, and to build and compile with an empty cache."""
        with tempfile.TemporaryDirectory() as scratch:
            command = self.command("build", runner, Path(scratch))
            with Child(command) as child:
                figures: Figures = child.report()
        return figures

    def start(self, runner: str) -> Figures:
        """Seconds from the start of a process until its first result, the cache warm."""
        start = time.perf_counter()
        with Child(self.command("run", runner, self.scratch)) as child:
            report = child.report()
            seconds = time.perf_counter() - start
        if runner == "whet" and report["onnx imported"]:
            raise RunnerError("running an engine file imported onnx")
        return {"start to first result, s": seconds}

    def memory(self, runner: str) -> Figures:
        """Megabytes at the peak of loading and running, less the initialisers."""
        weights = weight_bytes(self.path) / 1e6
        with Child(self.command("run", runner, self.scratch, MEMORY_RUNS)) as child:
            private = child.peak_private() / 1e6
            child.report()
            resident = child.peak_resident() / 1e6
        return {"private less weights, MB": private - weights, "resident, MB": resident}


class Child:
    """A trial's process; leaving the block ends it."""

    def __init__(self, command: list[str]):
        self.command = command

    def __enter__(self) -> "Child":
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment(), cwd=ROOT
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def report(self) -> Any:
        """The JSON line that the trial prints; raises RunnerError with its last words."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        words = self.process.stderr.read().decode(errors="replace").strip().splitlines()
        raise RunnerError(words[-1] if words else "the trial died without a word")

    def peak_private(self) -> int:
        """The most private bytes seen until the trial's report can be read."""
        assert self.process.stdout is not None
        peak = 0
        while not select.select([self.process.stdout], [], [], SAMPLE_EVERY)[0]:
            peak = max(peak, self.private())
        return peak

    def private(self) -> int:
        """Bytes that would be free if the process ended now; 0 once it has ended."""
        try:
            lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(PRIVATE))

    def peak_resident(self) -> int:
        """The most bytes ever resident, shared libraries and mapped files included."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return 1024 * peak


PEERS = ("whet", "onnxruntime", "openvino")
KINDS = {
    "build": Kind("time of build and cold compile", ("whet", "tensorrt_rtx"), Bench.build),
    "start": Kind("process start to first result", PEERS, Bench.start),
    "memory": Kind("peak private memory less the weights", PEERS, Bench.memory),
}


def measure(name: str, path: Path, plan: Plan) -> Comparison:
    """Trials of every contender in turn; one that fails is named with its reason and left out."""
    kind, comparison = KINDS[name], Comparison(path.stem)
    contenders = list(kind.contenders)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(path, read_inputs(path, plan.sizes), plan, Path(scratch))
        # One trial each that does not count reads the files into memory, and fills whet's cache.
        for turn in range(-1, plan.rounds):
            for contender in list(contenders):
                try:
                    if turn < 0 and contender == "whet":
                        bench.prepare()
                    figures = kind.trial(bench, contender)
                except RunnerError as error:
                    comparison.failures[contender] = str(error)
                    contenders.remove(contender)
                    continue
                if turn >= 0:
                    comparison.add(contender, figures)
    return comparison
