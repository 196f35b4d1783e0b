"""Weights that come from the host's memory to a GPU, against weights that are there.

    python -m benchmarks.gpu_weights [NETWORK …] [--batches 1,16,64]

Networks are those of `scripts/bench-gpu`, with float16 weights. Runs are asked for one after the
other on a caller's stream, as many as keep the device busy, and sessions take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUDGETS = (None, "50%", "25%")
RUNS, ROUNDS = 20, 5


def seconds(session: Any, inputs: dict[str, Any], stream: Any) -> float:
    """The time of one of many runs."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(RUNS):
        session.run(inputs, stream=stream)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / RUNS


def report(model: Path, batch: int) -> None:
    """Measures one network at one batch."""
    import torch

    import whet

    engine = whet.build(model)
    sizes = {name: [batch, *kind.shape[1:]] for name, kind in engine.inputs.items()}  # type: ignore[union-attr]
    rng, inputs = torch.Generator("cuda").manual_seed(0), {}
    for name, kind in engine.inputs.items():
        shape = [n if isinstance(n, int) else 128 for n in sizes[name]]
        dtype = getattr(torch, str(kind.dtype))  # type: ignore[union-attr]
        made = torch.randint(0, 2, shape, device="cuda", generator=rng)
        inputs[name] = made.to(dtype)
    stream = torch.cuda.current_stream()
    sessions = [
        engine.session("cuda", weight_budget=budget, specialize="eager") for budget in BUDGETS
    ]
    results = [
        [torch.from_dlpack(y).clone() for y in s.run(inputs, stream=stream).values()]
        for s in sessions
    ]
    same = all(torch.equal(a, b) for found in results[1:] for a, b in zip(found, results[0]))
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, found in zip(sessions, times):
            found.append(seconds(session, inputs, stream))
    base = statistics.median(times[0])
    print(
        f"{model.stem} x {batch}: {base * 1e3:.2f} ms with all {sessions[0].memory.weights >> 20} "
        f"MiB there; {'the same bits' if same else 'OTHER BITS'}",
        flush=True,
    )
    for budget, session, found in zip(BUDGETS[1:], sessions[1:], times[1:]):
        ratio = statistics.median(a / b for a, b in zip(found, times[0]))
        print(f"  {budget}, {session.memory.resident >> 20} MiB: {ratio:.2f} x (bar at 50 %: 2)")


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks.gpu import path_of
    from benchmarks.networks import export

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["resnet50", "bert_base"])
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args(arguments)
    for name in options.names:
        model = path_of(name, options.folder)
        if not model.exists():
            export(name, options.folder, dynamic=True, half=True)
        for batch in map(int, options.batches.split(",")):
            report(model, batch)


if __name__ == "__main__":
    main()
