"""Running sums of long lines in parts: the same results, and no thread that does a whole line."""

from __future__ import annotations

import pytest

from tests.passes.graphs import given, graph
from whet.ir.graph import Input, Value, make
from whet.ir.sizes import symbol
from whet.ir.types import TensorType
from whet.ops.reduce import Cumulative
from whet.passes.check import same_meaning
from whet.plan.kernel import Loops
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.device import Device
from whet.targets.cuda.two_steps import LONGEST_SCAN, in_two_steps

H200 = Architecture.parse("sm90x132")


@pytest.mark.parametrize("kind", ["sum", "prod"])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape, axis", [((65,), 0), ((2, 131), 1), ((3, 300, 2), 1)])
def test_parts_give_the_same(
    kind: str, exclusive: bool, reverse: bool, shape: tuple[int, ...], axis: int
) -> None:
    whole = Cumulative(kind, axis, exclusive, reverse)(given("x", *shape))
    parts = in_two_steps(whole, H200)
    assert parts is not None
    assert same_meaning(graph(whole), {"in parts": graph(parts)}) >= 1


@pytest.mark.parametrize("size", [65, 4099, 8400, 1 << 20])
def test_no_thread_does_a_long_line(size: int) -> None:
    kernels = kernels_of(Cumulative("sum", 0)(given("x", size)))
    ordered = [a.size for k in kernels for n in k.nests for a in n.axes if a.name in n.ordered]
    assert 1 < len(ordered) <= 4 and max(ordered) <= LONGEST_SCAN


def test_lines_that_a_run_tells_are_in_parts() -> None:
    x = make(Input("x", TensorType("float32", (2, symbol("n")))), ())[0]
    kernels = kernels_of(Cumulative("sum", 1)(x))
    assert sum(bool(nest.ordered) for kernel in kernels for nest in kernel.nests) > 1


@pytest.mark.parametrize("shape", [(64,), (1 << 16, 100)])
def test_what_is_short_or_many_stays_whole(shape: tuple[int, ...]) -> None:
    whole = Cumulative("sum", len(shape) - 1)(given("x", *shape))
    assert in_two_steps(whole, H200) is None


def kernels_of(y: Value) -> list[Loops]:
    """The kernels of a plan for a GPU."""
    device = Device(H200)
    plan = make_plan(legal(graph(y), device), device.capabilities)
    found = [step.kernel for step in plan.steps if isinstance(step.kernel, Loops)]
    assert len(found) == len(plan.steps)
    return found
