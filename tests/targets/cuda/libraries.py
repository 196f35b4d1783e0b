"""Products and convolutions by NVIDIA's libraries, on a GPU that has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.targets.cuda.contractions import BOUNDS, Problem, error_of, large, small
from whet.engine.weights import ImportedWeights
from whet.plan.kernel import Kernel, Template
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.runtime.program import Runner
from whet.targets.cuda import cublas, cudnn
from whet.targets.cuda.compile import unpack
from whet.targets.cuda.device import Device


class LibraryDevice(Device):
    """A GPU on which a library runs whatever it can: its way of some rank."""

    rank = 0

    def object(self, kernel: Kernel) -> bytes:
        if isinstance(kernel, Template):
            for maker in (cublas, cudnn):
                ways = maker.ways(self.context, kernel)
                if ways:
                    self.ran.append(unpack(ways[self.rank % len(ways)])[0].name)
                    return ways[self.rank % len(ways)]
        return super().object(kernel)

    def compile(self, kernels: Any, idle: bool = False, moving: Any = ()) -> None:
        for kernel in kernels:
            self.code(kernel)


def problems() -> Iterator[Problem]:
    """Those of which a library can run something."""
    device = Device()
    for made in (*small(("float16", "bfloat16", "float32")), *large()):
        plan = make_plan(legal(made.graph, device), device.capabilities)
        kernels = [s.kernel for s in plan.steps if isinstance(s.kernel, Template)]
        if any(cublas.matched(k) or cudnn.matched(k) for k in kernels):
            yield made


def check(made: Problem, rank: int, number: int = 0) -> tuple[str, list[str]]:
    """What is wrong, if anything, and which libraries ran."""
    device = LibraryDevice(number=number)
    device.rank, device.ran = rank, []  # type: ignore[attr-defined]
    runner = Runner(device, ImportedWeights({}), 1)
    (got,) = runner.execute(made.graph, made.arrays)
    ran = list(device.ran)  # type: ignore[attr-defined]
    (again,) = runner.execute(made.graph, made.arrays)
    error = error_of(got, made.wanted()[0])
    if error > BOUNDS[made.graph.outputs[0].dtype]:
        return f"error {error:.1e}", ran
    if not (got.view("u1") == again.view("u1")).all():
        return "other bits again", ran
    arrays = [a.copy() for a in made.arrays]
    arrays[0].reshape(-1)[3] = np.nan
    (holed,) = runner.execute(made.graph, arrays)
    (wanted,) = (np.asarray(w) for w in Problem(made.name, made.graph, arrays).wanted())
    if not (np.isnan(holed.astype(np.float32)) == np.isnan(wanted.astype(np.float32))).all():
        return "NaN is lost", ran
    return "", ran
