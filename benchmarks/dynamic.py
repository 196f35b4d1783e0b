"""Sizes that only runs tell: first runs, stalls, kernels for a range against kernels for one size.

    python -m benchmarks.dynamic [NETWORK or MODEL.onnx …] [--threads N] [--rounds N] [--walk N]

Networks are those of `scripts/bench`, with named sizes. Kernels are compiled anew: no cache is
used. What is compared takes turns in one process; only ratios are to be trusted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import whet
from benchmarks.networks import FOLDER
from whet.cli.inputs import random_inputs
from whet.cli.models import named_sizes
from whet.targets.cpu.executable import RUNS_BEFORE_TRIALS

Sizes = Mapping[str, int]
NETWORKS = ("resnet50_dyn", "bert_base_dyn")
BATCHES, LENGTHS = (1, 3, 8), (16, 128, 384)
LONG, MOST_ROUNDS = 3.0, 60
"""Seconds of runs that a comparison takes where they are short, and how many at most."""
PATIENCE = 120.0
"""Seconds to wait for kernels from the background."""


def seconds_of(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def take_turns(rounds: int, *runs: Callable[[], Any]) -> list[float]:
    """The median of each one's seconds."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, taken in zip(runs, times):
            taken.append(seconds_of(run))
    return [statistics.median(taken) for taken in times]


def cases(engine: whet.Engine) -> list[Sizes]:
    """Sets of sizes of a network: a few batches of it, or lengths of a text."""
    names = list(named_sizes(engine))
    if len(names) == 1:
        return [{names[0]: batch} for batch in BATCHES]
    batch, length = names[0], names[1]
    return [*({batch: 1, length: n} for n in LENGTHS), {batch: 4, length: 40}]


def show(sizes: Sizes) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def settle(session: Any, inputs: Mapping[str, Any]) -> None:
    """Runs until no other kernels take turns in the runs any more, nor wait for theirs."""
    deadline = time.monotonic() + PATIENCE
    for _ in range(RUNS_BEFORE_TRIALS):
        session.run(inputs)
    (stage,) = session._runner._compiled
    while time.monotonic() < deadline:
        is_busy = session._runner.device.background.is_busy
        if not is_busy and stage.program.executable.trials is None:
            return
        session.run(inputs)


def bound(session: Any, sizes: Sizes) -> Any:
    """What the session's first plan keeps of some sizes."""
    stage = session._runner.wide(session.graph)
    return stage.program.executable.bound(stage.ranges.values(sizes))


def report(model: Path, threads: int, rounds: int, walk: int) -> None:
    """Measures one model, and prints as it goes."""
    engine = whet.build(model)
    options: dict[str, Any] = {"device": "cpu", "threads": threads, "cache": False}
    start = time.perf_counter()
    lazy = engine.session(**options)
    print(f"{model.stem}: kernels for all sizes in {time.perf_counter() - start:.1f} s")
    wide = engine.session(**options, specialize="none")
    warm = random_inputs(engine, dict.fromkeys(named_sizes(engine), 2), 0)
    for session in (lazy, wide):
        session.run(warm)
    plan(wide, engine)
    for sizes in cases(engine):
        print(f"  {show(sizes)}")
        at(engine, lazy, wide, sizes, options, rounds)
    if len(named_sizes(engine)) > 1 and walk:
        wander(engine, lazy, model, threads, walk)


def plan(session: Any, engine: whet.Engine) -> None:
    """What a new size costs before its first run."""
    names = list(named_sizes(engine))
    taken, work = [], 0
    demands = session._runner.wide(session.graph).demands
    for n in range(11, 31):
        sizes = dict.fromkeys(names, n)

        def meet(sizes: Sizes = sizes) -> None:
            demands.check(sizes)
            bound(session, sizes)

        start = time.thread_time()  # Python's own work, whatever else the machine does
        meet()
        taken.append(time.thread_time() - start)
        work = len(bound(session, sizes)._memo)
    steps = len(session.plans[0].steps)
    per_300 = statistics.median(taken) * 300 / steps
    print(
        f"  a new size: {statistics.median(taken) * 1e3:.2f} ms for {steps} kernels, {work} "
        f"expressions; for 300 kernels {per_300 * 1e3:.2f} ms (aim 5)"
    )


def at(
    engine: whet.Engine,
    lazy: Any,
    wide: Any,
    sizes: Sizes,
    options: dict[str, Any],
    rounds: int,
) -> None:
    """Everything about one set of sizes."""
    inputs = random_inputs(engine, sizes, 0)
    first = seconds_of(lambda: wide.run(inputs))
    (steady,) = take_turns(rounds, lambda: wide.run(inputs))
    rounds = int(np.clip(LONG / steady, rounds, MOST_ROUNDS))
    print(f"    first run {first / steady:.2f} x the steady one, {steady * 1e3:.1f} ms (aim 1.5)")
    meanwhile: list[float] = []
    deadline = time.monotonic() + PATIENCE
    while not bound(lazy, sizes).is_special and time.monotonic() < deadline:
        meanwhile.append(seconds_of(lambda: lazy.run(inputs)))
    if not bound(lazy, sizes).is_special:
        print(f"    no kernels of their own after {PATIENCE:.0f} s")
        return
    # What the machine does to runs while nothing is made: the same number of them, right after.
    after = [seconds_of(lambda: wide.run(inputs)) for _ in meanwhile]
    late, usual = (np.quantile(taken, 0.99) / steady for taken in (meanwhile, after))
    stall, other = ((max(taken) - steady) * 1e3 for taken in (meanwhile, after))
    print(
        f"    {len(meanwhile)} runs while kernels are made, {sum(meanwhile):.1f} s: p99 "
        f"{late:.2f} x the steady median (aim 2; {usual:.2f} while none are), the longest stall "
        f"{stall:.0f} ms (aim 100; {other:.0f})"
    )
    static = engine.session(**options, specialize="eager")
    settle(static, inputs)
    runs = [lambda s=s: s.run(inputs) for s in (wide, lazy, static)]
    everywhere, special, alone = take_turns(rounds, *runs)
    print(
        f"    for all sizes {everywhere / special:.2f} x its own kernels (aim 1.5), which take "
        f"{special / alone:.2f} x a static build's (aim 1.05)"
    )


def wander(engine: whet.Engine, session: Any, model: Path, threads: int, steps: int) -> None:
    """A random walk over lengths, each run once, against ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    other = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    batch, length = list(named_sizes(engine))[:2]
    at, ours, theirs = 128, 0.0, 0.0
    for _ in range(steps):
        at = int(np.clip(at + rng.integers(-48, 49), 8, 384))
        inputs = random_inputs(engine, {batch: 1, length: at}, 0)
        ours += seconds_of(lambda inputs=inputs: session.run(inputs))  # type: ignore[misc]
        theirs += seconds_of(lambda inputs=inputs: other.run(None, inputs))  # type: ignore[misc]
    print(
        f"  {steps} runs on a random walk of lengths: {ours:.2f} s, ONNX Runtime {theirs:.2f} s, "
        f"{theirs / ours:.2f} x as fast"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--walk", type=int, default=64, help="runs of the random walk")
    args = parser.parse_args(arguments)
    for name in args.models:
        path = Path(name) if name.endswith(".onnx") else FOLDER / f"{name}.onnx"
        if not path.exists():
            sys.exit(f"{path} does not exist; scripts/bench --export writes networks")
        report(path, args.threads, args.rounds, args.walk)


if __name__ == "__main__":
    main()
