"""Times candidate tiles of typical products and convolutions, to fit the cost model of tiling.py.

One row for each (problem, tile): microseconds of a launch in a CUDA graph, with several sets of
buffers in turn, and what the model says.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from whet.ir.graph import Graph, Input, make
from whet.ir.types import TensorType
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Max
from whet.ops.movement import transpose
from whet.plan.kernel import Template
from whet.plan.plan import make_plan
from whet.runtime.program import legal
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.compile import to_object, unpack
from whet.targets.cuda.device import Device
from whet.targets.cuda.templates import TEMPLATES, tiling
from whet.targets.cuda.templates.matmul import shape_of

SETS, TURNS = 4, 24

PRODUCTS = (
    (128, 768, 768),
    (128, 3072, 768),
    (128, 768, 3072),
    (197, 768, 3072),
    (197, 3072, 768),
    (197, 2304, 768),
    (2048, 768, 3072),
    (2048, 3072, 768),
    (3152, 768, 768),
    (3152, 3072, 768),
    (3152, 768, 3072),
    (4096, 4096, 4096),
    (784, 128, 512),
    (196, 1024, 256),
    (196, 256, 1024),
    (49, 2048, 512),
    (49, 512, 2048),
    (12544, 256, 64),
    (3136, 256, 1024),
    (50176, 384, 96),
    (200704, 96, 16),
    (1, 1000, 2048),
)
"""Rows, columns and depth."""

CONVOLUTIONS = (
    (1, 56, 64, 64, 3, 1),
    (1, 28, 128, 128, 3, 1),
    (1, 14, 256, 256, 3, 1),
    (1, 7, 512, 512, 3, 1),
    (1, 14, 512, 512, 3, 2),
    (16, 56, 64, 64, 3, 1),
    (16, 28, 128, 128, 3, 1),
    (16, 14, 256, 256, 3, 1),
    (16, 7, 512, 512, 3, 1),
)
"""Batch, size, channels, filters, taps and stride."""


def problems() -> Iterator[tuple[str, Graph]]:
    """All problems, with the work behind them that networks have."""
    for m, n, k in PRODUCTS:
        values = [_input(0, m, k), _input(1, n, k), _input(2, n)]
        y = Max()(MatMul()(values[0], transpose(values[1], 1, 0)) + values[2], 0.0)
        yield f"{m}x{n}x{k}", Graph(tuple(values), (y,))
    for batch, size, c, o, taps, stride in CONVOLUTIONS:
        values = [_input(0, batch, size, size, c), _input(1, o, taps, taps, c), _input(2, o)]
        pad = (taps // 2,) * 2
        op = Convolution((stride, stride), (1, 1), pad, pad)
        y = Max()(op(values[0], values[1]) + values[2], 0.0)
        yield f"conv {batch}x{size}x{c}-{o} {taps}/{stride}", Graph(tuple(values), (y,))


def _input(number: int, *shape: int) -> Any:
    return make(Input(f"x{number}", TensorType("float16", shape)), ())[0]


def kernels(architecture: Architecture) -> Iterator[tuple[str, Template, tiling.Shape]]:
    """The kernel of each problem."""
    device = Device(architecture)
    for name, graph in problems():
        plan = make_plan(legal(graph, device), device.capabilities)
        (kernel,) = (s.kernel for s in plan.steps if isinstance(s.kernel, Template))
        template = TEMPLATES[type(kernel.op)]
        module = sys.modules[type(template).__module__]
        yield name, kernel, shape_of(module.problem_of(kernel), "float16")


def jobs(
    architecture: Architecture, count: int
) -> Iterator[tuple[str, Template, tiling.Shape, tiling.Tile]]:
    """For each problem the tiles that look best, and some others."""
    rng = random.Random(5)
    for name, kernel, shape in kernels(architecture):
        tiles = sorted(
            set(tiling.candidates(shape, architecture)),
            key=lambda t: tiling.cost(shape, t, architecture),
        )
        chosen = tiles[: count // 2]
        rest = [t for t in tiles[count // 2 :] if t.stages in (3, 4) and t.split in (1, 2, 4, 8)]
        rest = rest[: 12 * count]
        chosen += rng.sample(rest, min(len(rest), count - len(chosen)))
        for tile in chosen:
            yield name, kernel, shape, tile


def compile_shard(architecture: Architecture, count: int, shard: int, of: int, to: Path) -> None:
    """Every so many-th job's object as a file."""
    for number, (_, kernel, _, tile) in enumerate(jobs(architecture, count)):
        if number % of == shard:
            try:
                source = TEMPLATES[type(kernel.op)].generate(kernel, architecture, tile)
                (to / str(number)).write_bytes(to_object(source, architecture))
            except Exception as error:
                (to / f"{number}.error").write_text(str(error)[-300:])


def time_of(device: Device, kernel: Template, code: bytes, buffers: list[list[int]]) -> float:
    """Microseconds of a launch."""
    from whet.targets.cuda.driver import Call, Event, Graph, Module, Stream

    (function,) = unpack(code)
    module = Module(device.context, function.cubin, function.name, function.shared)
    calls: list[Call] = []
    for turn in range(TURNS):
        found = buffers[turn % SETS]
        named = {"error": found[-1], "counters": found[-2], "scratch": found[-3]}
        slots = [found[s] if isinstance(s, int) else named[s] for s in function.slots]
        arguments = np.array([*slots, *[0] * function.nulls], np.int64)
        calls.append(Call(module, function.grid, function.threads, function.shared, arguments))
    graph, stream = Graph(calls), Stream(device.context)
    best = float("inf")
    for _ in range(4):
        first, last = Event(timed=True), Event(timed=True)
        first.record(stream)
        graph.launch(stream)
        last.record(stream)
        best = min(best, last.seconds_since(first))
    return 1e6 * best / TURNS


def buffers_of(device: Device, kernel: Template) -> tuple[list[list[int]], list[Any]]:
    """Addresses of several sets of a kernel's buffers, filled with noise."""
    rng = np.random.default_rng(0)
    sizes = [0] * len(kernel.buffers)
    for view in (*kernel.inputs, kernel.output):
        if view is not None:
            reach = sum((int(n) - 1) * int(s) for n, s in zip(view.shape, view.strides)) + 1
            sizes[view.buffer] = max(sizes[view.buffer], 2 * (reach + int(view.offset)))
    sizes = [size or 2 * int(kernel.axes[-1].size) for size in sizes]
    sets, memory = [], []
    for _ in range(SETS):
        pieces = [device.context.allocate(size) for size in sizes]
        for piece, size in zip(pieces, sizes):
            noise = rng.normal(size=size // 2).astype(np.float16)
            device.context.stream.upload(piece.pointer, noise.ctypes.data, size)
            device.context.stream.synchronize()
        pieces += [device.context.allocate(n) for n in (1 << 28, 1 << 20, 256)]
        device.context.stream.zero(pieces[-2].pointer, 1 << 20)
        sets.append([p.pointer for p in pieces])
        memory.append(pieces)
    device.context.stream.synchronize()
    return sets, memory


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=32, help="tiles for each problem")
    parser.add_argument("--shard", type=int)
    parser.add_argument("--of", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    options = parser.parse_args(argv)
    if options.shard is not None:
        architecture = Architecture.parse(os.environ["TILES_FOR"])
        compile_shard(architecture, options.count, options.shard, options.of, options.out)
        return 0
    device = Device()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu_tiles", folder]
        command += ["--count", str(options.count), "--of", str(options.of)]
        environment = {**os.environ, "TILES_FOR": str(device.architecture)}
        root = Path(__file__).parents[1]
        running = [
            subprocess.Popen([*command, "--shard", str(n)], cwd=root, env=environment)
            for n in range(options.of)
        ]
        for process in running:
            process.wait()
        rows = timed(device, options.count, Path(folder))
    options.out.write_text(json.dumps(rows))
    for name in dict.fromkeys(r["name"] for r in rows):
        found = sorted((r for r in rows if r["name"] == name), key=lambda r: r["us"])
        chosen = min(found, key=lambda r: r["cost"])
        best = " ".join(f"{r['us']:.1f} {tuple(r['tile'])}" for r in found[:3])
        print(f"{name:26} chosen {chosen['us']:8.1f} {tuple(chosen['tile'])}; best {best}")
    return 0


def timed(device: Device, count: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each job that was compiled."""
    rows: list[dict[str, Any]] = []
    last = ""
    sets: list[list[int]] = []
    memory: list[Any] = []
    for number, (name, kernel, shape, tile) in enumerate(jobs(device.architecture, count)):
        if name != last:
            memory.clear()
            last, (sets, memory) = name, buffers_of(device, kernel)
        if (folder / f"{number}.error").exists():
            print(name, tile, (folder / f"{number}.error").read_text())
            continue
        try:
            taken = time_of(device, kernel, (folder / str(number)).read_bytes(), sets)
        except Exception as error:
            print(name, tile, f"{error!r:.200}")
            continue
        rows.append(
            {
                "name": name,
                "shape": astuple(shape),
                "tile": astuple(tile),
                "us": taken,
                "cost": tiling.cost(shape, tile, device.architecture) * 1e-3,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
