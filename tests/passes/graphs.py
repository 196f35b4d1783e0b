"""Small graphs for the passes' tests: inputs and weights by name, and what is left after a pass."""

from __future__ import annotations

from whet.ir.graph import Graph, Input, Op, Value, Weight, make, topological
from whet.ir.sizes import Size
from whet.ir.types import TensorType
from whet.passes.check import same_meaning


def given(name: str, *shape: Size, dtype: str = "float32") -> Value:
    """An input of the graph."""
    return make(Input(name, TensorType(dtype, shape)), ())[0]


def weight(name: str, *shape: Size, dtype: str = "float32") -> Value:
    return make(Weight(name, TensorType(dtype, shape)), ())[0]


def graph(*outputs: Value) -> Graph:
    """The graph of the outputs, with every input they need."""
    inputs = tuple(v for v in topological(outputs) if isinstance(v.op, Input))
    return Graph(inputs, outputs, tuple(f"out{i}" for i in range(len(outputs))))


def count(g: Graph, *classes: type[Op]) -> int:
    """How many operators of the classes each run computes, without what an engine computes once."""
    return sum(isinstance(v.op, classes) and not v.is_static for v in g.values)


def transformed(run, *outputs: Value) -> tuple[Value, ...]:
    """The outputs after a pass, which must keep their meaning on random inputs."""
    before = graph(*outputs)
    after = run(before)
    if after is not before:
        assert same_meaning(before, {run.__name__: after}), "no random input was accepted"
    return after.outputs
