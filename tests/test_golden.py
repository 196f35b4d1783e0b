"""What the compiler says of small things, as text to read: graphs, kernels, code.

A change that means to alter it runs `pytest tests/test_golden.py --update-golden`; the difference
belongs into the same commit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import whet
from tests.runtime.models import attention, convolutions
from whet.ir.graph import Graph, Input, Value, make
from whet.ir.types import TensorType
from whet.ops.elementwise import Max
from whet.ops.reduce import Reduce
from whet.plan.kernel import Kernel
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.targets.cpu import codegen
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.device import Device

FOLDER = Path(__file__).parent / "golden"
AVX2 = Architecture("avx2")


def tensor(name: str, *shape: int) -> Value:
    return make(Input(name, TensorType("float32", shape)), ())[0]


def kernel(*outputs: Value) -> Kernel:
    """The one kernel that computes the Values."""
    inputs = [v for v in Graph((), outputs).values if isinstance(v.op, Input)]
    graph = Graph(tuple(inputs), outputs, tuple(f"y{n}" for n in range(len(outputs))))
    device = Device(AVX2, threads=1)
    (step,) = make_plan(legal(graph, device), device.capabilities).steps
    assert step.kernel is not None
    return step.kernel


def scaled() -> Kernel:
    """An elementwise kernel that broadcasts: max(x * s + 1, 0)."""
    return kernel(Max()(tensor("x", 6, 40) * tensor("s", 40) + 1.0, 0.0))


def summed() -> Kernel:
    """A reduction along the last axis of a difference."""
    return kernel(Reduce("sum", (1,))(tensor("x", 5, 24) - tensor("y", 5, 1)))


TEXTS: dict[str, Callable[[], str]] = {
    "convolutions.graph": lambda: str(whet.build(convolutions()).graph),
    "attention.graph": lambda: str(whet.build(attention(length="n")).graph),
    "scaled.kernel": lambda: str(scaled()),
    "scaled.ll": lambda: codegen.to_llvm(scaled(), AVX2),
    "summed.kernel": lambda: str(summed()),
}


@pytest.mark.parametrize("name", TEXTS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    path, text = FOLDER / name, TEXTS[name]().rstrip() + "\n"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text(), "see the head of this file"


def test_every_text_is_compared() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(TEXTS)
