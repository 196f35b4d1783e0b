"""Sizes that only runs tell: first runs, stalls, kernels for a range against kernels for one size.

    python -m benchmarks.dynamic [NETWORK or MODEL.onnx …] [--device cpu|cuda] [--threads N]
                                 [--rounds N] [--walk N]

Networks are those of `scripts/bench`, with named sizes; on a GPU those that
`python -m benchmarks.networks --dynamic --half` writes. Kernels are compiled anew: no cache is
used. What is compared takes turns in one process; only ratios are to be trusted. On a GPU inputs
are PyTorch's tensors on its stream, and a run ends when the device is done.
"""

from __future__ import annotations

import argparse
import gc
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
from whet.targets.cuda.library import RoutineCall

Sizes = Mapping[str, int]
NETWORKS = {
    "cpu": ("resnet50_dyn", "bert_base_dyn"),
    "cuda": ("resnet50_half_dyn", "bert_base_half_dyn"),
}
BATCHES, LENGTHS = {"cpu": (1, 3, 8), "cuda": (1, 8, 64)}, (16, 128, 384)
LONG, MOST_ROUNDS = 3.0, 60
"""Seconds of runs that a comparison takes where they are short, and how many at most."""
PATIENCE = 120.0
"""Seconds to wait for kernels from the background."""


def seconds_of(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def take_turns(rounds: int, *runs: Callable[[], Any]) -> list[float]:
    """The median of each one's seconds; none always comes behind the same other."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        for turn in range(len(runs)):
            each = (number + (turn if number % 2 else -turn)) % len(runs)
            times[each].append(seconds_of(runs[each]))
    return [statistics.median(taken) for taken in times]


class Collections:
    """How long Python's garbage collector takes within a block, which looks at all objects of the
    process, most of them of other libraries."""

    def __enter__(self) -> Collections:
        self.begin = self.longest = 0.0
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self.begin = time.perf_counter()
        else:
            self.longest = max(self.longest, time.perf_counter() - self.begin)

    def __str__(self) -> str:
        return f"{1e3 * self.longest:.0f} ms"


class Runs:
    """How a session is run on a device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def inputs(self, engine: whet.Engine, sizes: Sizes) -> dict[str, Any]:
        """Random inputs, where the device has them."""
        arrays = random_inputs(engine, sizes, 0)
        if self.device == "cpu":
            return arrays
        import torch

        return {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}

    def of(self, session: Any, inputs: Mapping[str, Any]) -> Callable[[], Any]:
        """A run to its end."""
        if self.device == "cpu":
            return lambda: session.run(inputs)
        import torch

        stream = torch.cuda.current_stream()

        def run() -> None:
            session.run(inputs, stream=stream)
            torch.cuda.synchronize()

        return run

    def peer(self, model: Path, threads: int) -> tuple[str, Callable[[Mapping[str, Any]], Any]]:
        """Whom a walk is compared with, and its run."""
        if self.device == "cpu":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
            return "ONNX Runtime", lambda inputs: session.run(None, inputs)
        import torch

        from benchmarks.networks import create

        network, _ = create(model.stem.removesuffix("_half_dyn"), half=True)
        network = network.eval().cuda()

        def run(inputs: Mapping[str, Any]) -> None:
            with torch.no_grad():
                network(*inputs.values())
            torch.cuda.synchronize()

        return "PyTorch", run


def cases(engine: whet.Engine, device: str) -> list[Sizes]:
    """Sets of sizes of a network: a few batches of it, or lengths of a text."""
    names = list(named_sizes(engine))
    if len(names) == 1:
        return [{names[0]: batch} for batch in BATCHES[device]]
    batch, length = names[0], names[1]
    return [*({batch: 1, length: n} for n in LENGTHS), {batch: 4, length: 40}]


def show(sizes: Sizes) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def settle(session: Any, run: Callable[[], Any]) -> None:
    """Runs until no other kernels take turns in the runs any more, nor wait for theirs."""
    deadline = time.monotonic() + PATIENCE
    for _ in range(RUNS_BEFORE_TRIALS):
        run()
    (stage,) = session._runner._compiled
    while time.monotonic() < deadline:
        is_busy = session._runner.device.background.is_busy
        if not is_busy and getattr(stage.program.executable, "trials", None) is None:
            return
        run()


def bound(session: Any, sizes: Sizes) -> Any:
    """What the session's first plan keeps of some sizes."""
    stage = session._runner.wide(session.graph)
    return stage.program.executable.bound(stage.ranges.values(sizes))


def is_making(session: Any, sizes: Sizes) -> bool:
    """Whether kernels for some sizes are being made, or other ways to run them measured."""
    measuring = getattr(session._runner.device, "measuring", None)
    return not bound(session, sizes).is_special or (measuring is not None and measuring.is_busy)


def report(model: Path, device: str, threads: int, rounds: int, walk: int) -> None:
    """Measures one model, and prints as it goes."""
    measure(whet.build(model), model, Runs(device), threads, rounds, walk)


def measure(
    engine: whet.Engine,
    model: Path,
    runs: Runs,
    threads: int,
    rounds: int,
    walk: int,
    chosen: Sequence[Sizes] | None = None,
    **more: Any,
) -> None:
    """The same of an engine."""
    options: dict[str, Any] = {"device": runs.device, "threads": threads, "cache": False, **more}
    start = time.perf_counter()
    lazy = engine.session(**options)
    print(f"{model.stem}: kernels for all sizes in {time.perf_counter() - start:.1f} s")
    wide = engine.session(**options, specialize="none")
    warm = runs.inputs(engine, dict.fromkeys(named_sizes(engine), 2))
    for session in (lazy, wide):
        runs.of(session, warm)()
    plan(wide, engine)
    for sizes in chosen or cases(engine, runs.device):
        print(f"  {show(sizes)}")
        at(engine, lazy, wide, runs, sizes, options, rounds)
    if len(named_sizes(engine)) > 1 and walk:
        wander(engine, lazy, runs, runs.peer(model, threads), walk)


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
        work = bound(session, sizes).evaluated
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
    runs: Runs,
    sizes: Sizes,
    options: dict[str, Any],
    rounds: int,
) -> None:
    """Everything about one set of sizes."""
    inputs = runs.inputs(engine, sizes)
    run_wide, run_lazy = runs.of(wide, inputs), runs.of(lazy, inputs)
    first = seconds_of(run_wide)
    (steady,) = take_turns(rounds, run_wide)
    rounds = int(np.clip(LONG / steady, rounds, MOST_ROUNDS))
    print(f"    first run {first / steady:.2f} x the steady one, {steady * 1e3:.2f} ms (aim 1.5)")
    meanwhile: list[float] = []
    deadline = time.monotonic() + PATIENCE
    with Collections() as collections:
        while is_making(lazy, sizes) and time.monotonic() < deadline:
            meanwhile.append(seconds_of(run_lazy))
    if not bound(lazy, sizes).is_special:
        print(f"    no kernels of their own after {PATIENCE:.0f} s")
        return
    # What the machine does to runs while nothing is made: the same number of them, right after.
    after = [seconds_of(run_wide) for _ in meanwhile]
    late, usual = (np.quantile(taken, 0.99) / steady for taken in (meanwhile, after))
    stall, other = ((max(taken) - steady) * 1e3 for taken in (meanwhile, after))
    print(
        f"    {len(meanwhile)} runs while kernels are made, {sum(meanwhile):.1f} s: p99 "
        f"{late:.2f} x the steady median (aim 2; {usual:.2f} while none are), the longest stall "
        f"{stall:.0f} ms (aim 100; {other:.0f}), Python's longest collection {collections}"
    )
    static = engine.session(**options, specialize="eager")
    run_static = runs.of(static, inputs)
    settle(static, run_static)
    everywhere, special, alone = take_turns(rounds, run_wide, run_lazy, run_static)
    print(
        f"    for all sizes {everywhere / special:.2f} x its own kernels (aim 1.5), which take "
        f"{special / alone:.2f} x a static build's (aim 1.05)"
    )
    if runs.device == "cuda":
        run_lazy()
        on_device(lazy, static)


def on_device(lazy: Any, static: Any) -> None:
    """What two sessions launched in their last runs, by the device's own clock, and how."""
    from benchmarks.gpu_time import graphs, program_time

    for name, session in (("own kernels", lazy), ("a static build", static)):
        (stage,) = session._runner._compiled
        seconds = program_time(stage.program)
        found = graphs(stage.program)
        calls = [call for graph in found for call in graph.calls]
        libraries = sum(isinstance(call, RoutineCall) for call in calls)
        early = sum(getattr(graph, "early", 0) for graph in found)
        print(
            f"    {name}: {seconds * 1e6:.0f} us on the device, {len(calls)} launches, of which "
            f"{early} start early and {libraries} are a library's"
        )


def wander(
    engine: whet.Engine,
    session: Any,
    runs: Runs,
    peer: tuple[str, Callable[[Mapping[str, Any]], Any]],
    steps: int,
) -> None:
    """A random walk over lengths, each run once, against another library."""
    name, other = peer
    rng = np.random.default_rng(0)
    batch, length = list(named_sizes(engine))[:2]
    at, walk = 128, []
    for _ in range(steps):
        at = int(np.clip(at + rng.integers(-48, 49), 8, 384))
        walk.append(runs.inputs(engine, {batch: 1, length: at}))
    other(walk[0])  # libraries load themselves in the first run
    # One after the other: what waits for its own next run would take time from the other's.
    theirs = sum(seconds_of(lambda inputs=inputs: other(inputs)) for inputs in walk)  # type: ignore[misc]
    ours = sum(seconds_of(runs.of(session, inputs)) for inputs in walk)
    print(
        f"  {steps} runs on a random walk of lengths: {ours * 1e3:.0f} ms, {name} "
        f"{theirs * 1e3:.0f} ms, {theirs / ours:.2f} x as fast"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--device", choices=NETWORKS, default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--walk", type=int, default=64, help="runs of the random walk")
    args = parser.parse_args(arguments)
    for name in args.models or NETWORKS[args.device]:
        path = Path(name) if name.endswith(".onnx") else FOLDER / f"{name}.onnx"
        if not path.exists():
            sys.exit(f"{path} does not exist; scripts/bench --export writes networks")
        report(path, args.device, args.threads, args.rounds, args.walk)


if __name__ == "__main__":
    main()
