"""Which attentions are run by groups of warps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.targets.cuda.contractions import problem, warp_group_attentions
from tests.targets.cuda.needs import needs_triton
from whet.ir.graph import Graph
from whet.ops.attention import Attention
from whet.ops.elementwise import Max
from whet.ops.movement import Slice
from whet.plan.kernel import Kernel
from whet.plan.plan import make_plan
from whet.runtime.planned import legal
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.device import Device
from whet.targets.cuda.templates.warp_groups import Groups

ROOT = Path(__file__).resolve().parents[3]
LARGE = (1, 16, 1024, 64)


def kernel(graph: Graph, architecture: str = "sm90") -> Kernel:
    """The one kernel of a graph."""
    device = Device(Architecture.parse(architecture))
    (step,) = make_plan(legal(graph, device), device.capabilities).steps
    assert step.kernel is not None
    return step.kernel


def tiles(graph: Graph, architecture: str = "sm90") -> list[Any]:
    """The ways to run it."""
    return codegen.tiles(kernel(graph, architecture), Architecture.parse(architecture))


def test_those_that_pay_come_first() -> None:
    for made in warp_group_attentions():
        assert isinstance(tiles(made.graph)[0], Groups), made.name
        assert not any(isinstance(t, Groups) for t in tiles(made.graph, "sm80"))
        assert not any(isinstance(t, Groups) for t in tiles(made.graph, "sm100"))


COMPILE = """
from tests.targets.cuda.contractions import problem
from tests.targets.cuda.test_warp_groups import LARGE, kernel
from whet.ops.attention import Attention
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.workers import Job, compile_all

sm90 = Architecture.parse("sm90")
job = Job(kernel(problem("large", Attention(0.1), *[LARGE] * 3).graph))
compile_all([job], sm90)
assert job.text(sm90).is_gluon and job.may_be_gluon(sm90) and job.code
"""


@needs_triton
def test_nothing_is_said_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shape", [(1, 4, 1024, 64), (16, 16, 256, 64)], ids=str)
def test_small_ones_are_measured(shape: tuple[int, ...]) -> None:
    first, second, *_ = tiles(problem("small", Attention(0.1), *[shape] * 3).graph)
    assert not isinstance(first, Groups) and isinstance(second, Groups)


def beside(start: int) -> Callable[..., Any]:
    """Attention to keys that lie in a larger tensor."""
    cut = Slice((0, 0, 0, start), LARGE, (1, 1, 1, 1))
    return lambda q, k, v: Attention(0.1)(q, cut(k), v)


WIDER = (1, 16, 1024, 72)


def test_keys_may_lie_in_a_larger_tensor() -> None:
    assert isinstance(tiles(problem("wider", beside(8), LARGE, WIDER, LARGE).graph)[0], Groups)


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (Attention(0.1), (LARGE, LARGE, LARGE, (1024, 1024))),
        (Attention(0.1, softcap=3.0), (LARGE,) * 3),
        (Attention(-0.1), (LARGE,) * 3),
        (Attention(0.1), ((1, 16, 1024, 60),) * 3),
        (beside(4), (LARGE, WIDER, LARGE)),
        (Attention(0.1), ((1, 128, 64, 64), LARGE, LARGE)),
        (lambda q, k, v: Max()(Attention(0.1)(q, k, v), 0.0), (LARGE,) * 3),
    ],
    ids=["mask", "softcap", "negative", "strides", "address", "few", "epilogue"],
)
def test_others_are_not(build: Callable[..., Any], shapes: tuple[tuple[int, ...], ...]) -> None:
    found = tiles(problem("other", build, *shapes).graph)
    assert found and not any(isinstance(t, Groups) for t in found)
