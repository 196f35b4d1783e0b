"""Runs a Graph operator by operator on NumPy arrays: slow, right, and the judge of everything
else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import ShapeError
from whet.ir.atoms import Symbol
from whet.ir.graph import Graph, Guard, Input, Parameter, Value, Weight
from whet.ir.sizes import Expr
from whet.ir.types import TensorType, Type

Weights = Callable[[str], np.ndarray]
Watch = Callable[[Value, Any], None]


def evaluate(
    graph: Graph,
    inputs: Mapping[Value, Any],
    weights: Weights | None = None,
    sizes: dict[str, int] | None = None,
    watch: Watch | None = None,
) -> list[Any]:
    """The model's outputs from arrays for the graph's inputs, through each operator's `reference`.

    `weights` gives a Weight's array by name; `sizes` collects what each named size was. Where the
    graph ends in a late region, its further stages run too, and the outputs are those of the whole
    model.
    """
    run = Run(weights, {} if sizes is None else sizes, watch)
    results = run.graph(graph, inputs)
    if graph.late is None:
        return results
    named: dict[str, Any] = {}
    late = graph.late
    while True:
        ready = len(graph.output_names)
        named.update(zip(graph.output_names, results))
        if graph.late is None:
            return [named[name] for name in late.outputs]
        captured = dict(zip(graph.late.captured, results[ready:]))
        graph = graph.late.stage(captured, weights)
        run = Run(weights, {}, watch)
        results = run.graph(graph, {v: captured[v.op.name] for v in graph.inputs})  # type: ignore[attr-defined]


@dataclass
class Run:
    """One evaluation: where weights come from, and the sizes that are known so far."""

    weights: Weights | None
    sizes: dict[str, int]
    watch: Watch | None = None

    def graph(self, graph: Graph, inputs: Mapping[Value, Any]) -> list[Any]:
        """The graph's own outputs."""
        results: dict[Value, Any] = dict(inputs)
        for value, array in inputs.items():
            bind_sizes(value.type, array, self.sizes)
        pending = check_guards(graph.guards, self.sizes)
        for value in graph:
            if value in results:
                continue
            known = len(self.sizes)
            self.apply(value, results)
            if pending and len(self.sizes) > known:
                pending = check_guards(pending, self.sizes)
        return [results[output] for output in graph.outputs]

    def apply(self, value: Value, results: dict[Value, Any]) -> None:
        """Adds the results of value's operator."""
        outcomes = self.outcomes(value, results)
        for sibling, outcome in zip(value.siblings, outcomes):
            results[sibling] = outcome
            bind_sizes(sibling.type, outcome, self.sizes)
            if self.watch is not None:
                self.watch(sibling, outcome)

    def outcomes(self, value: Value, results: Mapping[Value, Any]) -> tuple[Any, ...]:
        if isinstance(value.op, Weight):
            assert self.weights is not None, f"no weights were given for {value.op.name}"
            return (self.weights(value.op.name),)
        assert not isinstance(value.op, Input | Parameter), f"no array was given for {value}"
        arrays = [None if i is None else results[i] for i in value.inputs]
        if value.op.runs_graphs:
            return compute(value, [self.inner, *arrays], self.sizes)
        return compute(value, arrays, self.sizes)

    def inner(self, graph: Graph, arrays: Sequence[Any]) -> list[Any]:
        """The outputs of an inner graph, whose own sizes are new each time."""
        return Run(self.weights, dict(self.sizes), self.watch).graph(
            graph, dict(zip(graph.inputs, arrays, strict=True))
        )


def compute(value: Value, arrays: list[Any], sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """All results of value's operator on the arrays, tensors as arrays of exactly the inferred
    dtype."""
    with np.errstate(all="ignore"):
        outcome = value.op.bind(sizes, inner=False).reference(*arrays)
    outcomes = outcome if isinstance(outcome, tuple) else (outcome,)
    return tuple(
        np.asarray(o, s.type.numpy) if isinstance(s.type, TensorType) else o
        for s, o in zip(value.siblings, outcomes, strict=True)
    )


def check_guards(guards: Sequence[Guard], sizes: Mapping[str, int]) -> list[Guard]:
    """Checks each guard whose sizes are known, and returns the others."""
    pending = []
    for guard in guards:
        sides = [side for side in (guard.left, guard.right) if isinstance(side, Expr)]
        if all(symbol.name in sizes for side in sides for symbol in side.symbols):
            guard.check(sizes)
        else:
            pending.append(guard)
    return pending


def bind_sizes(type: Type, array: Any, sizes: dict[str, int]) -> None:
    """Learns the named sizes that a tensor's type shows by themselves from the array it is."""
    if isinstance(type, TensorType):
        bind_shape(type, np.shape(array), sizes)


def bind_shape(type: TensorType, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Learns the named sizes that a tensor's type shows by themselves from its shape."""
    if shape == type.shape:
        return
    if len(shape) != type.rank:
        raise ShapeError(
            f"a tensor {type} has {type.rank} axes, the array has the shape {list(shape)}"
        )
    for size, actual in zip(type.shape, shape):
        if isinstance(size, int):
            if size != actual:
                raise ShapeError(f"a tensor {type} was given an array of the shape {list(shape)}")
        elif (
            size.is_atom
            and isinstance(atom := size.terms[0][0][0], Symbol)
            and sizes.setdefault(atom.name, actual) != actual
        ):
            raise ShapeError(f"the size {atom.name} is {sizes[atom.name]} and {actual} in one run")
