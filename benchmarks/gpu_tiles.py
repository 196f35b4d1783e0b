"""Times many tiles of the networks' products, convolutions and attentions, to fit cost models.

python -m benchmarks.gpu_tiles OUT.json FOLDER: one row for each (kernel, tile), with microseconds;
prints, for each network and batch, the sum over its kernels with the tile that the model ranks
first, with the best of its first few, and with the best of all that were tried.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import whet
from whet.plan.kernel import Kernel, Template
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.device import Device
from whet.targets.cuda.tactics import Bench
from whet.targets.cuda.templates import matmul, tiling
from whet.targets.cuda.templates.convolution import ImplicitConvolution
from whet.targets.cuda.templates.convolution import problem_of as convolution_of
from whet.targets.cuda.templates.matmul import Product
from whet.targets.cuda.workers import Job, compile_all

Row = dict[str, Any]
TRIED_BY_SESSIONS = 4


def kernels_of(path: Path, batch: int, device: Device) -> Counter[Kernel]:
    """How often each kernel with tiles runs in a network."""
    graph = whet.build(path).graph
    named = {
        s.name for v in graph.inputs for n in v.tensor.shape for s in getattr(n, "symbols", ())
    }
    graph = graph.bind({name: 128 if "seq" in name else batch for name in named})
    plan = make_plan(legal(graph, device), device.capabilities)
    return Counter(s.kernel for s in plan.steps if isinstance(s.kernel, Template))


def shape_of(kernel: Template) -> tiling.Shape | None:
    """The sizes of the product that a kernel is."""
    if not isinstance(kernel.op, Product | ImplicitConvolution):
        return None
    found = convolution_of if isinstance(kernel.op, ImplicitConvolution) else matmul.problem_of
    return matmul.shape_of(found(kernel), matmul.dtype_of(kernel))


def jobs_of(kernel: Template, architecture: Architecture, count: int) -> list[tuple[Any, Job]]:
    """Tiles that look best, and some others."""
    ranked = codegen.tiles(kernel, architecture)
    chosen, shape = ranked[: count // 3], shape_of(kernel)
    if shape is not None:
        # Of each area and depth the cheapest, so that no mistake of the model stays hidden.
        found = sorted(
            set(tiling.candidates(shape, architecture)) - set(chosen),
            key=lambda t: tiling.cost(shape, t, architecture),
        )
        kinds = {(t.rows, t.columns, t.depth): t for t in reversed(found)}
        rest = [t for t in found if t in set(kinds.values())][: 2 * count]
        left = min(len(rest), count - len(chosen))
        chosen += random.Random(5).sample(rest, left)
    if shape is None:
        chosen = ranked[:count]
    return [(t, Job(kernel, tile=t)) for t in chosen]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, help="where the networks' files are")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--count", type=int, default=12, help="tiles for each kernel")
    parser.add_argument("--seconds", type=float, default=120, help="for compiling")
    options = parser.parse_args(argv)
    device = Device()
    used = {
        (path.stem, batch): kernels_of(path, batch, device)
        for path in sorted(options.folder.glob("*.onnx"))
        for batch in map(int, options.batches.split(","))
    }
    distinct: dict[str, Template] = {}
    for kernel in sorted({k for c in used.values() for k in c}, key=str):
        assert isinstance(kernel, Template)
        distinct.setdefault(name_of(kernel), kernel)
    jobs = {n: jobs_of(k, device.architecture, options.count) for n, k in distinct.items()}
    order = [j[rank][1] for rank in range(options.count) for j in jobs.values() if rank < len(j)]
    workers = max(1, (os.cpu_count() or 2) - 1)
    compile_all([], device.architecture, others=Listed(order, options.seconds), workers=workers)
    print(f"{len(distinct)} kernels, {sum(bool(j.code) for j in order)} of {len(order)} ways")
    rows = timed(device, distinct, jobs)
    options.out.write_text(json.dumps(rows))
    for (network, batch), kernels in used.items():
        print(summary(f"{network} {batch}", kernels, rows))
    return 0


class Listed:
    """Ways to be compiled, one after the other, for so many seconds."""

    def __init__(self, jobs: Sequence[Job], seconds: float) -> None:
        self.jobs, self.until = deque(jobs), time.monotonic() + seconds

    def next(self) -> Job | None:
        """The next one, while there is time."""
        try:
            return self.jobs.popleft() if time.monotonic() < self.until else None
        except IndexError:
            return None

    def work(self) -> bool:
        """Nothing is measured yet."""
        return False


def name_of(kernel: Template) -> str:
    """What tells kernels apart whose time may differ."""
    shape = shape_of(kernel)
    views = [(v.shape, v.strides) if v else None for v in kernel.inputs]
    return f"{kernel.name} {astuple(shape)}" if shape and kernel.name == "product" else str(views)


def timed(device: Device, kernels: dict[str, Template], jobs: dict[str, Any]) -> list[Row]:
    """A row for each way that was compiled."""
    bench, rows = Bench(device.context), []
    for name, kernel in kernels.items():
        shape = shape_of(kernel)
        for rank, (tile, job) in enumerate(jobs[name]):
            if not job.code:
                if job.error is not None:
                    print(kernel.name, shape, tile, str(job.error)[-300:])
                continue
            row: Row = {"name": name, "kind": kernel.name, "rank": rank, "tile": astuple(tile)}
            with device.context:
                row["us"] = 1e6 * bench.seconds(kernel, job.code)
            if shape is not None:
                row["shape"] = astuple(shape)
                row["cost"] = 1e-3 * tiling.cost(shape, tile, device.architecture)
            rows.append(row)
    return rows


def summary(what: str, kernels: Counter[Kernel], rows: list[Row]) -> str:
    """A network's sums."""
    first = few = best = 0.0
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    for kernel, count in kernels.items():
        found = by_name.get(name_of(kernel), [])  # type: ignore[arg-type]
        if found:
            first += count * next((r["us"] for r in found if r["rank"] == 0), float("inf"))
            few += count * min(r["us"] for r in found if r["rank"] < TRIED_BY_SESSIONS)
            best += count * min(r["us"] for r in found)
    return f"{what:36} first {first:8.1f} us, of {TRIED_BY_SESSIONS} {few:8.1f}, best {best:8.1f}"


if __name__ == "__main__":
    sys.exit(main())
