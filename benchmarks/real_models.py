"""Run trained models with real inputs through a backend, against their expected outputs.

    python -m benchmarks.real_models FOLDER [--backend whet] [--only PATTERN]

Each model is a folder with `model.onnx` and `io.json`: the files of its inputs and of the outputs
expected (.npy, or .npz with one array named `array`); `alt` is the same for a second shape, and
`stream` a run step by step, the state handed on. A model matches when every output has the expected
type and shape and differs by at most 1e-3 of its largest value.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.backends import BACKENDS, Loaded
from benchmarks.conformance import describe as describe_error
from benchmarks.conformance import place
from benchmarks.isolation import run_isolated
from benchmarks.judge import relative_error

TOLERANCE = 1e-3
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Result:
    """What became of one model: the largest relative error, or why there is none."""

    model: str
    error: float = float("inf")
    reason: str = ""
    seconds: float = 0.0
    runs: tuple[str, ...] = ()
    references: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        return not self.reason and self.error <= TOLERANCE


class MismatchError(Exception):
    """An output is missing, or has another type or shape than expected."""


def read(folder: Path, files: dict[str, str]) -> Arrays:
    arrays = {name: np.load(folder / file) for name, file in files.items()}
    return {name: x if isinstance(x, np.ndarray) else x["array"] for name, x in arrays.items()}


def compare(outputs: Arrays, expected: Arrays) -> float:
    """The largest relative error of any output."""
    for name, e in expected.items():
        if name not in outputs:
            raise MismatchError(f"there is no output {name!r}")
        y = np.asarray(outputs[name])
        if y.dtype != e.dtype or y.shape != e.shape:
            raise MismatchError(f"{name} is {y.dtype}{y.shape} and not {e.dtype}{e.shape}")
    return max(relative_error(np.asarray(outputs[name]), e) for name, e in expected.items())


def stream(loaded: Loaded, folder: Path, io: dict[str, Any]) -> float:
    """The worst error over a run step by step, the state of each step fed to the next."""
    steps = dict(np.load(folder / io["stream"]["file"]))
    feeds, worst = read(folder, io["inputs"]), 0.0
    given = {k.removeprefix("in_"): x for k, x in steps.items() if k.startswith("in_")}
    expected = {k.removeprefix("out_"): x for k, x in steps.items() if k.startswith("out_")}
    final = {k.removeprefix("final_"): x for k, x in steps.items() if k.startswith("final_")}
    outputs: Arrays = {}
    for step in range(len(next(iter(given.values())))):
        outputs = loaded.run({**feeds, **{name: x[step] for name, x in given.items()}})
        worst = max(worst, compare(outputs, {name: x[step] for name, x in expected.items()}))
        feeds.update({name: outputs[source] for name, source in io["stream"]["state"].items()})
    return max(worst, compare(outputs, final))


def run_model(backend_name: str, cache: Path | None, folder: Path) -> Result:
    """Open a model and run all that its folder gives expectations for."""
    io = json.loads((folder / "io.json").read_text())
    start, worst, runs = time.perf_counter(), 0.0, []
    try:
        loaded = BACKENDS[backend_name](cache).open(folder / "model.onnx")
        for name, files in {"main": io, "alt": io.get("alt")}.items():
            if files:
                outputs = loaded.run(read(folder, files["inputs"]))
                worst = max(worst, compare(outputs, read(folder, files["outputs"])))
                runs.append(name)
        if "stream" in io:
            worst = max(worst, stream(loaded, folder, io))
            runs.append("stream")
    except Exception as error:
        return Result(folder.name, reason=f"{describe_error(error)} ({place(error)})")
    seconds = time.perf_counter() - start
    return Result(folder.name, worst, "", seconds, tuple(runs), tuple(loaded.references()))


def run_all(
    folders: list[Path], backend: str, cache: Path | None = None, **options: Any
) -> Iterator[Result]:
    def open_tasks() -> Callable[[Path], Result]:
        return partial(run_model, backend, cache)

    for index, result in run_isolated(folders, open_tasks, **options):
        yield Result(folders[index].name, reason=result) if isinstance(result, str) else result


def describe(result: Result) -> str:
    if result.reason:
        return f"{result.model:24} FAILED   {result.reason[:400]}"
    verdict = "matches" if result.matches else "DIFFERS"
    slow = f"  reference: {', '.join(result.references)}" if result.references else ""
    runs = "+".join(result.runs)
    return f"{result.model:24} {verdict}  {result.error:.1e}  {result.seconds:6.2f} s  {runs}{slow}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="whet", choices=BACKENDS)
    parser.add_argument("--only", default="", metavar="PATTERN", help="models with such a name")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one model")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="kernels made before")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)

    found = sorted(file.parent for file in args.folder.glob("*/io.json"))
    folders = [folder for folder in found if re.search(args.only, folder.name)]
    if not folders:
        sys.exit(f"{args.folder} holds no model (a folder with io.json) whose name matches")
    results = []
    for result in run_all(folders, args.backend, args.cache, workers=1, seconds=args.timeout):
        results.append(result)
        print(describe(result), flush=True)
    print(f"{sum(result.matches for result in results)} of {len(results)} models match")
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
