"""Every size of tile on a GPU, in every dtype: ragged products with an epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tests.targets.cuda.contractions import BOUNDS, Problem, error_of, problem
from whet.engine.weights import ImportedWeights
from whet.errors import CompileError
from whet.ops.contract import MatMul
from whet.ops.elementwise import Max
from whet.plan.kernel import Template
from whet.plan.plan import make_plan
from whet.runtime.planned import legal
from whet.runtime.program import Runner
from whet.targets.cuda import codegen
from whet.targets.cuda.device import Device
from whet.targets.cuda.templates.tiling import STREAM, Tile
from whet.targets.cuda.workers import Job, compile_all

SIZES = 500, 520, 700
PARTS = (1, 3, STREAM)


def problems() -> Iterator[Problem]:
    """A product in each dtype."""
    rows, depth, columns = SIZES
    for dtype in ("float16", "bfloat16", "float32"):
        yield problem(
            dtype,
            lambda a, b, c: Max()(MatMul()(a, b) + c, 0.0),
            *((rows, depth), (depth, columns), (columns,)),
            dtype=dtype,
        )


def kernel_of(made: Problem, device: Device) -> Template:
    """The product of a problem."""
    plan = make_plan(legal(made.graph, device), device.capabilities)
    (kernel,) = (s.kernel for s in plan.steps if isinstance(s.kernel, Template))
    return kernel


def compiled(kernel: Template, device: Device, workers: int) -> dict[Tile, Job]:
    """One job for each size of tile and each way to cut the sum."""
    tiles: dict[tuple[int, ...], Tile] = {}
    for tile in codegen.tiles(kernel, device.architecture):
        if tile.split in PARTS:
            tiles.setdefault((tile.rows, tile.columns, tile.warps, tile.split), tile)
    jobs = {t: Job(kernel, tile=t) for t in tiles.values()}
    with suppress(CompileError):
        compile_all(list(jobs.values()), device.architecture, workers=workers)
    return jobs


def wrong(made: Problem, kernel: Template, job: Job) -> str:
    """What is wrong with a tile, if anything."""
    if job.error is not None:
        return str(job.error)
    device = Device()
    device._objects[kernel] = job.code
    runner = Runner(device, ImportedWeights({}), 1)
    (got,) = runner.execute(made.graph, made.arrays)
    (again,) = runner.execute(made.graph, made.arrays)
    error = error_of(got, made.wanted()[0])
    if not error <= BOUNDS[made.name]:
        return f"error {error:.1e}"
    return "" if (got.view("u1") == again.view("u1")).all() else "other bits again"
