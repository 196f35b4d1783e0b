"""What becomes of weights: engines without them, refit, streaming, sharing, memory while building.

    python -m benchmarks.weights [NETWORK or MODEL.onnx …] [--rounds N]

Networks are those of `scripts/bench`. Times and memory are taken in a process for each model;
sessions that are compared take turns.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import whet
from benchmarks.networks import FOLDER, export
from whet.cli.inputs import random_inputs
from whet.cli.models import named_sizes

MEBI = 1 << 20
SESSIONS = 10
BUDGETS = ("100%", "50%", "25%")


def status(field: str) -> int:
    """A field of this process's /proc status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def timed(fn: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = fn()
    return time.perf_counter() - start, result


def build_peak(model: Path, target: Path) -> int:
    """Most memory of a process that builds and saves, less that of one that has only imported."""
    code = (
        "import sys, whet\n"
        "from whet.runtime import engine\n"
        "from benchmarks.weights import status\n"
        "import onnx, whet.frontends.onnx\n"
        "before = status('VmRSS')\n"
        "whet.build(sys.argv[1]).save(sys.argv[2])\n"
        "print(status('VmHWM') - before)"
    )
    command = [sys.executable, "-c", code, str(model), str(target)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def take_turns(sessions: list[Any], feeds: dict[str, Any], rounds: int) -> list[list[float]]:
    """Seconds of each session's runs, one after the other."""
    for session in sessions:
        session.run(feeds)
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for session, found in zip(sessions, times):
            found.append(timed(lambda s=session: s.run(feeds))[0])  # type: ignore[misc]
    return times


def report(model: Path, rounds: int) -> None:
    """Measures one model, and prints as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        whole, bare, folded = (Path(folder, f"{n}.whet") for n in ("whole", "bare", "folded"))
        size = model.stat().st_size
        peak = build_peak(model, whole)
        print(f"{model.stem}: {size / MEBI:.0f} MiB")
        print(
            f"  build: {peak / MEBI:.0f} MiB at most, {peak / size:.2f} x the model; the aim, 2 x "
            f"plus 200 MB, is {'kept' if peak <= 2 * size + 200e6 else 'MISSED'}"
        )
        engine = whet.load(whole)
        strip, _ = timed(lambda: engine.save(bare, strip=True))
        print(f"  stripped: {bare.stat().st_size / MEBI:.2f} MiB, written in {strip * 1e3:.0f} ms")
        whet.build(model, refittable=False).save(folded)
        print(
            f"  refittable=False: {folded.stat().st_size / MEBI:.1f} MiB instead of "
            f"{whole.stat().st_size / MEBI:.1f}"
        )
        feeds = random_inputs(engine, dict.fromkeys(named_sizes(engine), 1), 0)
        share(engine)
        refit(engine, bare, whole, model)
        stream(engine, feeds, rounds)


def share(engine: Any) -> None:
    """What each further session of an engine costs."""
    first, kept = timed(lambda: engine.session(device="cpu"))
    before = status("RssAnon")
    more = [timed(lambda: engine.session(device="cpu")) for _ in range(SESSIONS - 1)]
    added = (status("RssAnon") - before) / (SESSIONS - 1)
    print(
        f"  sessions: the first starts in {first * 1e3:.0f} ms, each further one in "
        f"{statistics.median(t for t, _ in more) * 1e3:.0f} ms and {added / MEBI:.1f} MiB"
    )
    del kept, more


def refit(engine: Any, bare: Path, whole: Path, model: Path) -> None:
    """How long weights take to exchange."""
    later = whet.load(bare)
    compiled, session = timed(lambda: later.session(device="cpu"))
    given, _ = timed(lambda: later.refit(whole))
    again, _ = timed(lambda: later.refit(model))
    name = max(later.refittable_weights, key=lambda n: engine.weights.array(n).nbytes)
    one, _ = timed(lambda: later.refit({name: engine.weights.array(name)}))
    print(
        f"  refit: session without weights in {compiled * 1e3:.0f} ms, then all from an engine in "
        f"{given * 1e3:.0f} ms, from the ONNX model in {again * 1e3:.0f} ms, "
        f"the largest alone in {one * 1e3:.0f} ms"
    )
    del session


def stream(engine: Any, feeds: dict[str, Any], rounds: int) -> None:
    """Throughput with part of the weights in memory."""
    plain = engine.session(device="cpu")
    budgets = [engine.session(device="cpu", weight_budget=b) for b in BUDGETS]
    base, *times = take_turns([plain, *budgets], feeds, rounds)
    print(f"  streaming: all in memory {statistics.median(base) * 1e3:.1f} ms")
    for budget, session, found in zip(BUDGETS, budgets, times):
        ratio = statistics.median(a / b for a, b in zip(found, base))
        print(
            f"    {budget} of the weights, {session.weight_budget / MEBI:.0f} MiB: "
            f"{statistics.median(found) * 1e3:.1f} ms, {ratio:.2f} x"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["resnet50", "bert_base"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        report(Path(options.models[0]), options.rounds)
        return
    for name in options.models:
        model = name if name.endswith(".onnx") else export(name, options.folder)
        command = [sys.executable, "-m", "benchmarks.weights", "--inside", str(model)]
        subprocess.run([*command, "--rounds", str(options.rounds)], check=True)


if __name__ == "__main__":
    main()
