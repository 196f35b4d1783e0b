"""Runs a Graph operator by operator on NumPy arrays: slow, right, and the judge of everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Graph, Input, Parameter, Value, Weight
from whet.ir.sizes import Expr, Symbol
from whet.ir.types import TensorType, Type


def evaluate(
    graph: Graph,
    inputs: Mapping[Value, Any],
    weights: Callable[[str], np.ndarray] | None = None,
    sizes: dict[str, int] | None = None,
    watch: Callable[[Value, Any], None] | None = None,
) -> list[Any]:
    """The graph's outputs from arrays for its inputs, through each operator's `reference`.

    `weights` gives a Weight's array by name; `sizes` collects what each named size was.
    """
    sizes = {} if sizes is None else sizes
    results: dict[Value, Any] = dict(inputs)
    for value, array in inputs.items():
        bind_sizes(value.type, array, sizes)
    for guard in graph.guards:
        if all(
            s.name in sizes
            for side in (guard.left, guard.right)
            if isinstance(side, Expr)
            for s in side.symbols
        ):
            guard.check(sizes)
    for value in graph:
        if value in results:
            continue
        if isinstance(value.op, Weight):
            assert weights is not None, f"no weights were given for {value.op.name}"
            outcomes: tuple[Any, ...] = (weights(value.op.name),)
        else:
            assert not isinstance(value.op, Input | Parameter), f"no array was given for {value}"
            outcomes = compute(
                value, [None if i is None else results[i] for i in value.inputs], sizes
            )
        for sibling, outcome in zip(value.siblings, outcomes):
            results[sibling] = outcome
            bind_sizes(sibling.type, outcome, sizes)
            if watch is not None:
                watch(sibling, outcome)
    return [results[output] for output in graph.outputs]


def compute(value: Value, arrays: list[Any], sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """All results of value's operator on the arrays, tensors as arrays of exactly the inferred dtype."""
    outcome = value.op.bind(sizes).reference(*arrays)
    outcomes = outcome if isinstance(outcome, tuple) else (outcome,)
    return tuple(
        np.asarray(o, s.type.numpy) if isinstance(s.type, TensorType) else o
        for s, o in zip(value.siblings, outcomes, strict=True)
    )


def bind_sizes(type: Type, array: Any, sizes: dict[str, int]) -> None:
    """Learns the named sizes that a tensor's type shows by themselves from the array it is."""
    if not isinstance(type, TensorType):
        return
    shape = np.shape(array)
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
