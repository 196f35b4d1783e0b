"""`whet bench`: how fast a model runs, alone and against other runners."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli import models
from whet.cli.contest import Result, Rules, compete
from whet.cli.contestant import Task
from whet.cli.inputs import given_inputs, random_inputs
from whet.cli.parser import a_count, add_inputs, add_model, names, seconds
from whet.cli.status import OK, UsageError
from whet.cli.terminal import duration, note, say, size, table, working
from whet.cli.timeline import add_trace, write_trace

if TYPE_CHECKING:
    from whet.runtime.engine import Engine

ABOUT = """\
Measures build, compile, start, latency, throughput and memory of a model.

Each runner has a process of its own; they take turns in blocks of a second while the others are
stopped, on random inputs that change from run to run. A ratio is whet's time over the other's,
taken round by round: below 1, whet is faster. A start goes from loading to the first result; whet's
is from the engine file, cold with nothing compiled yet, then with all kernels in the cache."""

EXAMPLES = """\
  whet bench model.onnx
  whet bench model.onnx --against onnxruntime,openvino --threads 2
  whet bench model.onnx --against torch=model.pt2      written by torch.export.save
  whet bench model.onnx --kernels                      which kernels take the time
  whet bench model.onnx --trace run.json               and when, thread by thread
  whet bench model.onnx --size batch=8 --callers 4 --json figures.json"""

MOST_BYTES = 64 << 20  # of inputs that are drawn in advance
MOST_SETS = 8


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "bench", help="measure a model, also against others", about=ABOUT, examples=EXAMPLES
    )
    add_model(parser)
    parser.add_argument(
        "--against",
        metavar="LIST",
        type=names,
        default=[],
        help="onnxruntime, openvino, torch=FILE: those that are installed",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=a_count, default=5, help="blocks of each runner (5)"
    )
    parser.add_argument(
        "--seconds", metavar="S", type=seconds, default=1.0, help="length of a block (1)"
    )
    parser.add_argument(
        "--callers",
        metavar="N",
        type=a_count,
        default=1,
        help="threads that call at once for throughput (1)",
    )
    parser.add_argument("--kernels", action="store_true", help="the time of each kernel")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    add_trace(parser)
    add_inputs(parser)
    group = parser.add_argument_group("the session")
    group.add_argument("--device", default="auto", help="auto, cpu, a level such as cpu:avx2, cuda")
    group.add_argument(
        "--threads", metavar="N", type=a_count, help="of each runner (one per physical core)"
    )
    parser.set_defaults(command=run, allow_code=False)


def run(options: argparse.Namespace) -> int:
    """Measures and reports; fails where whet itself could not run."""
    from whet.targets.cpu import host

    peers = peers_of(options.against, options.model)
    start = time.perf_counter()
    engine = models.open_model(options.model)
    built = time.perf_counter() - start
    feeds = _feeds(engine, options)
    threads = options.threads or host.default_threads()
    with tempfile.TemporaryDirectory(prefix="whet-bench-") as folder:
        file = Path(folder) / "model.whet"
        engine.save(file)
        del engine
        scratch = str(Path(folder) / "cache")
        tasks = {
            name: Task(model, str(file), scratch, threads, options.device)
            for name, model in {"whet": str(options.model), **peers}.items()
        }
        rules = Rules(options.rounds, options.seconds, options.callers, options.kernels)
        with working("measuring") as work:
            results = compete(tasks, feeds, rules, work.step)
    report(results, built, models.is_engine(options.model))
    if options.json:
        _write(options, results, built, threads)
    if options.trace:
        write_trace(options, feeds[0])
    return OK if results[0].is_measured else results[0].status


def peers_of(asked: Sequence[str], model: str) -> dict[str, str]:
    """The other runners and the file that each reads; those not installed are left out, aloud."""
    found: dict[str, str] = {}
    for text in asked:
        name, _, path = text.partition("=")
        if name not in ("onnxruntime", "openvino", "torch"):
            raise UsageError(f"--against {text}: onnxruntime, openvino and torch=FILE are known")
        if name == "torch" and not path:
            raise UsageError("--against torch: PyTorch reads no ONNX; say torch=FILE.pt2")
        if path and not Path(path).exists():
            raise UsageError(f"--against {text}: there is no file {path}")
        if not path and models.is_engine(model):
            raise UsageError(f"--against {text}: {name} reads no engine; give the ONNX model")
        if find_spec(name) is None:
            note(f"{name} is not installed and left out: `pip install {name}`")
            continue
        found[name] = path or str(model)
    return found


def _feeds(engine: Engine, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Inputs for several runs: the given ones, or as many random ones as memory allows."""
    first, _ = given_inputs(engine, options)
    if options.input:
        return [first]
    taken = sum(getattr(x, "nbytes", 0) for x in first.values())
    count = max(1, min(MOST_SETS, MOST_BYTES // max(taken, 1)))
    sizes = {**dict.fromkeys(models.named_sizes(engine), 1), **models.profile_sizes(engine)}
    sizes.update({name: likely for name, (_, likely, _) in options.size})
    seeds = range(options.seed + 1, options.seed + count)
    return [first, *(random_inputs(engine, sizes, seed) for seed in seeds)]


def report(results: list[Result], built: float, was_built: bool) -> None:
    """The table of the runners, then what only whet tells."""
    whet = results[0]
    rows = [row(result, whet) for result in results if result.is_measured]
    heads = (
        "runner",
        "median",
        "p90",
        "p99",
        "least",
        "runs/s",
        "memory",
        "start",
        "ratio",
        "differs",
    )
    table(heads, rows)
    for result in results:
        if not result.is_measured:
            say(f"{result.name} failed: {result.failure}", style="red")
    if whet.is_measured:
        _tell(whet, built, was_built)


def row(result: Result, whet: Result) -> tuple[str, ...]:
    """One runner's figures as text."""
    memory = result.figures.get("memory")
    is_whet = result is whet or not whet.is_measured
    differs = None if is_whet else whet.difference(result)
    return (
        result.name,
        *(duration(result.percentile(p)) for p in (50, 90, 99)),
        duration(min(result.times)),
        f"{result.throughput:.4g}" if result.throughput else "-",
        size(memory) if memory else "-",
        duration(result.start),
        "" if is_whet else f"{whet.ratio(result):.3f}",
        "" if differs is None else f"{differs:.1e}",
    )


def _tell(whet: Result, built: float, is_engine: bool) -> None:
    figures = whet.figures
    first = "load" if is_engine else "build"
    say(
        f"{first} {duration(built)}, cold start {duration(whet.cold or 0)}, start from the "
        f"cache {duration(whet.start)}; {figures['kernels']} kernels, "
        f"arena {size(figures['arena'])}, {figures['threads']} threads, {len(whet.times)} runs"
    )
    references = figures["reference ops"]
    if references:
        say(f"slow: {len(references)} nodes run their NumPy reference: {', '.join(references[:8])}")
    if whet.kernels:
        show_kernels(whet.kernels)


def show_kernels(kernels: Sequence[tuple[str, str, float]]) -> None:
    """The kernels, the longest first, and how much of the run each takes."""
    whole = sum(taken for _, _, taken in kernels) or 1.0
    ordered = sorted(enumerate(kernels, 1), key=lambda item: -item[1][2])
    rows = [
        (name, duration(taken), f"{100 * taken / whole:.1f} %", number, _short(nodes))
        for number, (name, nodes, taken) in ordered
    ]
    say()
    table(("kernel", "time", "share", "step", "nodes"), rows, left=(0, 4))


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _write(
    options: argparse.Namespace, results: Sequence[Result], built: float, threads: int
) -> None:
    from whet.cli.devices import describe
    from whet.engine.atomic import atomic_write

    whet = results[0]
    ratios: Mapping[str, float] = {
        r.name: whet.ratio(r) for r in results[1:] if r.is_measured and whet.is_measured
    }
    figures = {
        "model": str(options.model),
        "machine": describe(),
        "threads": threads,
        "build": built,
        "ratios": ratios,
        "runners": {r.name: r.to_plain() for r in results},
    }
    with atomic_write(options.json) as file:
        file.write(json.dumps(figures, indent=1).encode() + b"\n")
    say(f"figures written to {options.json}")
