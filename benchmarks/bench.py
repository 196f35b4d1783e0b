"""The command line of the benchmarks."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import machine, networks, speed, trials
from benchmarks.inputs import SIZES
from benchmarks.processes import checkout

AnyRow = TypeVar("AnyRow", speed.Row, trials.Comparison)
BUSY = 0.05
"""Above this share of the machine's time, used by others, figures are not to be trusted."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("networks", nargs="*", default=networks.SPEED, metavar="NAME or FILE.onnx")
    kind = parser.add_mutually_exclusive_group()
    for name, figure in trials.KINDS.items():
        kind.add_argument(
            f"--{name}", dest="kind", action="store_const", const=name, help=figure.purpose
        )
    kind.add_argument("--export", action="store_true", help="write the networks as ONNX files")
    parser.add_argument("--folder", type=Path, default=networks.FOLDER, help="the ONNX files")
    parser.add_argument("--runners", default="whet,onnxruntime,openvino")
    parser.add_argument("--base", metavar="REV", help="also run whet as it was at this revision")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a block")
    parser.add_argument("--sizes", default="", metavar="NAME=N,...", help="symbolic sizes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.export:
        networks.main([*args.networks, "--folder", str(args.folder)])
        return 0
    state = announce()
    paths = [find(name, args.folder) for name in args.networks]
    rows = list(measurements(args, paths))
    print_table(rows)
    if args.json:
        report = {"machine": state, "rows": [row.as_json() for row in rows]}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def announce() -> dict[str, Any]:
    """Print what is measured on, and a warning when others use the machine."""
    state = machine.describe()
    busy, load = machine.busy_share(), os.getloadavg()[0]
    versions = ", ".join(f"{name} {number}" for name, number in state["versions"].items())
    print(f"{state['processor']}, {state['cores']} cores; Python {state['python']}, {versions}")
    print(f"load {load:.2f}, {busy:.0%} of the machine in use by others", flush=True)
    if busy > BUSY:
        print("WARNING: the machine is busy; figures taken now are not to be trusted", flush=True)
    return {**state, "load": load, "busy": busy}


def find(name: str, folder: Path) -> Path:
    path = Path(name) if name.endswith(".onnx") else folder / f"{name}.onnx"
    if not path.exists():
        command = f"scripts/bench --export {name} --folder {folder}"
        sys.exit(f"{path} does not exist; `{command}` makes it where torch and timm are installed")
    return path.resolve()


def measurements(
    args: argparse.Namespace, paths: list[Path]
) -> Iterator[speed.Row | trials.Comparison]:
    """The rows asked for, each printed when it is there."""
    sizes = {**SIZES, **{k: int(v) for k, _, v in pairs(args.sizes)}}
    plan = speed.Plan(args.threads, args.rounds, args.seconds, sizes)
    roof = max(machine.peak_gflops(args.threads) for _ in range(10))
    with ExitStack() as stack:
        base = stack.enter_context(checkout(args.base)) if args.base else None
        for path in paths:
            if args.kind:
                yield shown(trials.measure(args.kind, path, plan))
                continue
            row = speed.measure(path, args.runners.split(","), plan, base, roof)
            roof = row.roof
            yield shown(row)


def shown(row: AnyRow) -> AnyRow:
    print(*row.report(), sep="\n", flush=True)
    return row


def print_table(rows: list[speed.Row | trials.Comparison]) -> None:
    latencies = [row for row in rows if isinstance(row, speed.Row)]
    if len(latencies) > 1:
        print("\n| ms | whet | ONNX Runtime | OpenVINO | ratio to the better | |")
        print("| --- | --: | --: | --: | --: | --- |")
        print(*(row.result() for row in latencies), sep="\n")


def pairs(text: str) -> list[tuple[str, str, str]]:
    return [item.partition("=") for item in text.split(",") if item]
