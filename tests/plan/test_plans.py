"""What is planned for small networks, as counts and as text: fused kernels, no references."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import helper

import whet
from tests.runtime.models import MODELS, attention, convolutions, model
from tests.runtime.models import value as declared
from whet.plan.describe import kind_of, title_of
from whet.plan.kernel import Loops
from whet.plan.legalize import legal
from whet.plan.plan import Plan, make_plan
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.device import Device


def plan_of(model: object, level: str = "avx512") -> Plan:
    device = Device(Architecture(level), threads=2)
    engine = whet.build(model)  # type: ignore[arg-type]
    return make_plan(legal(engine.graph, device), device.capabilities)


def test_convolutions_carry_what_follows_them() -> None:
    plan = plan_of(convolutions())
    assert Counter(step.name for step in plan.steps) == {
        "packedconvolution": 2,
        "loops": 2,
        "packedproduct": 1,
    }
    assert [step.nodes[-1] for step in plan.steps] == [
        "relu",
        "pool",
        "residual",
        "mean",
        "classes",
    ]


def test_attention_and_normalisation_are_one_kernel_each() -> None:
    plan = plan_of(attention())
    names = Counter(step.name for step in plan.steps)
    assert names["flashattention"] == 1
    assert names["loops"] == 1, plan  # the normalisation
    assert not plan.reference_ops


def test_pooling_is_one_loop_nest() -> None:
    (pool,) = [s for s in plan_of(convolutions()).steps if s.nodes[-1] == "pool"]
    assert str(pool.kernel) == (
        "loops(float32, float32; 1 written)\n"
        "for i1<8, i2<8, i3<8:\n"
        "  b1[64*i1+8*i2+i3] = max[r0<2, r1<2](b0[256*i1+16*i2+i3+128*r0+8*r1])"
    )


@pytest.mark.parametrize("name", MODELS)
def test_memory_of_living_tensors_does_not_overlap(name: str) -> None:
    plan = plan_of(MODELS[name]())
    alive: dict[object, tuple[int, int]] = {}
    last = {value: n for n, step in enumerate(plan.steps) for value in step.reads}
    for number, step in enumerate(plan.steps):
        alive = {v: place for v, place in alive.items() if last.get(v, -1) >= number}
        for value in step.writes:
            if value not in plan.offsets:
                continue
            start = plan.offsets[value]
            place = (start, start + 4 * int(_elements(value.shape)))
            assert place[1] <= plan.arena
            assert all(place[1] <= a or b <= place[0] for a, b in alive.values())
            alive[value] = place


def _elements(shape: tuple[object, ...]) -> int:
    total = 1
    for size in shape:
        assert isinstance(size, int)
        total *= size
    return total


def test_equal_kernels_are_one() -> None:
    kernels = [s.kernel for s in plan_of(attention()).steps]
    assert len(set(kernels)) < len(kernels)
    assert all(isinstance(k, Loops) or k for k in kernels)


@pytest.mark.parametrize(
    "operator, groups, said",
    [
        ("Conv", 8, "depthwise 3x3"),
        ("ConvInteger", 1, "integer convolution 3x3"),
        ("ConvInteger", 8, "integer depthwise 3x3"),
    ],
)
def test_all_convolutions_are_called_so(operator: str, groups: int, said: str) -> None:
    dtype, number = ("float32", 1) if operator == "Conv" else ("uint8", 2)
    weights = {"w": np.ones((8, 8 // groups, 3, 3), dtype)}
    node = helper.make_node(operator, ["x", "w"], ["y"], group=groups)
    given = [declared("x", [1, 8, 16, 16], number)]
    plan = plan_of(model([node], given, [declared("y", None, 1 if number == 1 else 6)], weights))
    found = {title_of(step): kind_of(step) for step in plan.steps}
    assert found.get(said) == "convolution", found
