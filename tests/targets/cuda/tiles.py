"""Every size of tile on a GPU, in every dtype: ragged products with an epilogue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, replace

import numpy as np

from tests.targets.cuda.contractions import BOUNDS, Problem, described, error_of, problem
from whet.engine.weights import ImportedWeights
from whet.errors import CompileError
from whet.ops.contract import MatMul
from whet.ops.elementwise import Max
from whet.plan.kernel import Template
from whet.plan.plan import make_plan
from whet.runtime.planned import legal
from whet.runtime.program import Runner
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.device import Device
from whet.targets.cuda.templates import matmul, persistent
from whet.targets.cuda.templates.persistent import Persistent
from whet.targets.cuda.templates.tiling import STREAM, Tile
from whet.targets.cuda.workers import Job, compile_all

SIZES = 500, 520, 700
PARTS = (1, 3, STREAM)
FEW = 7  # multiprocessors, whose blocks take several tiles each


def problems() -> Iterator[Problem]:
    """A product in each dtype; and those that descriptors reach, for blocks that stay."""
    rows, depth, columns = SIZES
    for dtype in ("float16", "bfloat16", "float32"):
        yield problem(
            dtype,
            lambda a, b, c: Max()(MatMul()(a, b) + c, 0.0),
            *((rows, depth), (depth, columns), (columns,)),
            dtype=dtype,
        )
    for dtype in ("float16", "bfloat16"):
        yield from described(dtype)


def kernel_of(made: Problem, device: Device) -> Template:
    """The product of a problem."""
    plan = make_plan(legal(made.graph, device), device.capabilities)
    (kernel,) = (s.kernel for s in plan.steps if isinstance(s.kernel, Template))
    return kernel


def compiled(kernel: Template, device: Device, workers: int) -> dict[Tile, Job]:
    """One job for each size of tile and each way to cut the sum; for blocks that stay, where
    descriptors reach both sides, and the same tiles without."""
    few = replace(device.architecture, multiprocessors=FEW)
    if lasting := _lasting(kernel, few):
        twins = [Tile(*astuple(tile)) for tile in lasting]
        return _jobs(kernel, (*twins, *lasting), few, workers)
    tiles: dict[tuple[int, ...], Tile] = {}
    for tile in codegen.tiles(kernel, device.architecture):
        if tile.split in PARTS:
            tiles.setdefault((tile.rows, tile.columns, tile.warps, tile.split), tile)
    return _jobs(kernel, tiles.values(), device.architecture, workers)


def _lasting(kernel: Template, architecture: Architecture) -> list[Persistent]:
    p = matmul.problem_of(kernel)
    shape = matmul.shape_of(p, matmul.dtype_of(kernel))
    return persistent.ways(kernel, p, shape, architecture)


def _jobs(
    kernel: Template, tiles: Iterable[Tile], architecture: Architecture, workers: int
) -> dict[Tile, Job]:
    jobs = {t: Job(kernel, tile=t) for t in tiles}
    with suppress(CompileError):
        compile_all(list(jobs.values()), architecture, workers=workers)
    return jobs


def wrong(made: Problem, kernel: Template, tile: Tile, jobs: dict[Tile, Job]) -> str:
    """What is wrong with a tile, if anything."""
    job = jobs[tile]
    if job.error is not None:
        return str(job.error)
    got, again = _results(made, kernel, job)
    error = error_of(got, made.wanted()[0])
    if not error <= BOUNDS[made.graph.outputs[0].dtype]:
        return f"error {error:.1e}"
    if isinstance(tile, Persistent):
        plain, _ = _results(made, kernel, jobs[Tile(*astuple(tile))])
        if not _same(got, plain):
            return "other bits than plain blocks'"
    return "" if _same(got, again) else "other bits again"


def _results(made: Problem, kernel: Template, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Those of two runs."""
    device = Device()
    device._objects[kernel] = job.code
    runner = Runner(device, ImportedWeights({}), 1)
    (got,), (again,) = (runner.execute(made.graph, made.arrays) for _ in range(2))
    return got, again


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a.view("u1") == b.view("u1")).all())
