"""Every row of the case table on every target, judged by `reference`."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType

import numpy as np
import pytest

from tests.fences import fenced
from tests.levels import LEVELS, architecture
from tests.ops.cases import CASES
from tests.ops.draw import Case, assert_close
from whet.engine.weights import ImportedWeights
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Op, Value
from whet.ops import (
    attention,
    block_quantized,
    cast,
    contract,
    elementwise,
    gather,
    index,
    linear_algebra,
    linear_attention,
    ml,
    movement,
    quantize,
    random,
    recurrent,
    reduce,
    signal,
    text,
    transcendental,
    window,
)
from whet.runtime.program import Runner
from whet.targets.cpu import host
from whet.targets.cpu.device import Device

SEED = secrets.randbits(32)

Run = Callable[[Graph, list[np.ndarray]], list[np.ndarray]]


def by_reference(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    return evaluate(graph, dict(zip(graph.inputs, arrays)))


def by_primitives(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Every operator in terms of those that targets emit."""
    while (simpler := graph.map(lowered)) is not graph:
        graph = simpler
    return by_reference(graph, arrays)


def lowered(value: Value) -> Value:
    return value if value.op.is_primitive else value.op.lower(*value.inputs)


@cache
def by_cpu(level: str) -> Run:
    """The CPU's own machine code, for one processor level."""

    def run(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
        runner = Runner(Device(architecture(level)), ImportedWeights({}), threads=2)
        return runner.execute(graph, [fenced(array) for array in arrays])

    return run


TARGETS: dict[str, Run] = {"reference": by_primitives} | {f"cpu-{n}": by_cpu(n) for n in LEVELS}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("target", TARGETS)
def test_agrees_with_reference(target: str, case: Case) -> None:
    graph, arrays = case.graph(), case.arrays(SEED)
    agree(TARGETS[target](graph, arrays), by_reference(graph, arrays), case)


@pytest.mark.parametrize("case", [c for c in CASES if c.named_sizes], ids=lambda case: case.name)
def test_named_sizes_mean_the_same(case: Case) -> None:
    arrays = case.arrays(SEED)
    agree(by_primitives(case.graph(named=True), arrays), by_reference(case.graph(), arrays), case)


@pytest.mark.parametrize("case", [c for c in CASES if c.named_sizes], ids=lambda case: case.name)
def test_kernels_for_all_sizes_agree(case: Case) -> None:
    graph, arrays = case.graph(named=True), case.arrays(SEED)
    runner = Runner(Device(host.architecture()), ImportedWeights({}), threads=2, specialize="none")
    agree(runner.execute(graph, arrays), by_reference(case.graph(), arrays), case)


def agree(got: list[np.ndarray], want: list[np.ndarray], case: Case) -> None:
    print(f"the inputs are case.arrays({SEED})")  # pytest shows it where the case fails
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, case)


def test_names_are_unique() -> None:
    assert not [name for name, count in Counter(case.name for case in CASES).items() if count > 1]


FAMILIES = [
    attention,
    block_quantized,
    cast,
    contract,
    elementwise,
    gather,
    index,
    linear_algebra,
    linear_attention,
    ml,
    movement,
    quantize,
    random,
    recurrent,
    reduce,
    signal,
    text,
    transcendental,
    window,
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_operator_has_a_row(family: ModuleType) -> None:
    used = {type(value.op) for case in CASES for value in case.graph()}
    assert not [op for op in operators(family) if op not in used]


def operators(family: ModuleType) -> Iterator[type[Op]]:
    """The operators that a module defines; base classes have no `reference`."""
    for thing in vars(family).values():
        is_operator = isinstance(thing, type) and issubclass(thing, Op)
        if is_operator and thing.__module__ == family.__name__ and hasattr(thing, "reference"):
            yield thing
