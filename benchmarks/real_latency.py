"""Latency of trained models on their real inputs, against the peers, both of whet's plans.

    python -m benchmarks.real_latency FOLDER [--only PATTERN] [--rounds 5] [--seconds 0.3]

The folders are those of `benchmarks.real_models`. `whet` is the plan for the very sizes; `range` is
the one for every size, which the first runs at a size take. As in `scripts/bench`, each runner has
a process of its own, and they take turns while the others are stopped; ratios are against the
better of the peers that read the model, and the error is that against the outputs expected.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import machine, speed
from benchmarks.inputs import Given
from benchmarks.judge import relative_error
from benchmarks.processes import RunnerError
from benchmarks.real_models import Arrays, read

COLUMNS = ("whet", "range", "onnxruntime", "openvino")


def measure(folder: Path, runners: list[str], plan: speed.Plan, roof: float) -> speed.Row:
    """Times and errors of the runners on one model."""
    io = json.loads((folder / "io.json").read_text())
    inputs = [Given(name, array) for name, array in read(folder, io["inputs"]).items()]
    row = speed.Row(folder.name, roof=roof)
    with speed.processes(folder / "model.onnx", runners, plan, row, None) as running:
        feeds, expected = {x.name: x.array for x in inputs}, read(folder, io["outputs"])
        for name, process in list(running.items()):
            try:
                row.errors[name] = error(process.ask("named", feeds), expected)
            except (RunnerError, ValueError) as failure:
                row.failures[name] = str(failure)
                del running[name]
        row.rounds = {name: [] for name in running}
        for turn in range(plan.rounds):
            speed.time_round(turn, inputs, plan, running, row)
    return row


def error(outputs: Arrays, expected: Arrays) -> float:
    return max(relative_error(np.asarray(outputs[name]), e) for name, e in expected.items())


def ratio(row: speed.Row, name: str) -> float | None:
    peer = row.best_peer(name)
    return median(row.ratios(name, peer)) if peer and name in row.rounds else None


def cells(row: speed.Row) -> list[str]:
    """The model, milliseconds of each runner, both ratios to the better peer, the larger error."""
    times = [f"{1e3 * row.median(n):.3f}" if n in row.rounds else "-" for n in COLUMNS]
    found = [ratio(row, name) for name in COLUMNS[:2]]
    worst = max((row.errors.get(n, np.inf) for n in COLUMNS[:2]), default=np.inf)
    return [row.network, *times, *("-" if r is None else f"{r:.2f}" for r in found), f"{worst:.0e}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="PATTERN", help="models with such a name")
    parser.add_argument("--runners", default=",".join(COLUMNS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a block")
    args = parser.parse_args(argv)

    found = sorted(file.parent for file in args.folder.glob("*/io.json"))
    folders = [folder for folder in found if re.search(args.only, folder.name)]
    if not folders:
        sys.exit(f"{args.folder} holds no model (a folder with io.json) whose name matches")
    plan = speed.Plan(args.threads, args.rounds, args.seconds)
    roof = max(machine.peak_gflops(args.threads) for _ in range(10))
    print("| ms | whet | range | ONNX Runtime | OpenVINO | ratio | range | error |")
    print(f"| --- |{' --: |' * 7}", flush=True)
    for folder in folders:
        row = measure(folder.resolve(), args.runners.split(","), plan, roof)
        print(f"| {' | '.join(cells(row))} |{'' if row.sure else ' unsure'}", flush=True)
        for name, reason in row.failures.items():
            print(f"  {name}: {reason[:200]}", file=sys.stderr, flush=True)
        roof = row.roof


if __name__ == "__main__":
    main()
