"""Debug aid: every pass must keep the meaning. Nothing is mutated, so both graphs can still run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whet.errors import Error
from whet.ir.atoms import Symbol
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Value, Weight
from whet.ir.sizes import Expr, Size, substitute
from whet.ir.types import FLOATS, INTEGERS, NUMPY_DTYPES, SIGNED, TensorType, dtype_name

Arrays = Mapping[Value, np.ndarray]
ReadWeight = Callable[[str], np.ndarray]

SIZES = (3, 2, 5)
"""What named sizes are tried as, in turn; a model that refuses all of them is not checked."""

TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""How far outputs may differ, of the largest value: passes may change the order of rounding."""


class MeaningChangedError(Error, AssertionError):
    """A pass made a graph that computes something else: a defect of whet."""


def same_meaning(
    before: Graph,
    after: Graph | Mapping[str, Graph],
    weights: ReadWeight | None = None,
    feeds: Iterable[Arrays] | None = None,
    seed: int = 0,
) -> int:
    """Runs a graph and what passes made of it on the same inputs; returns how many runs there were.

    `after` may be several graphs by name. Inputs and weights are random unless given. What the
    graphs share is computed once. Raises MeaningChangedError where an output differs by more than
    rounding. Runs that the graph before refuses, say for sizes that do not fit, do not count.
    """
    made = after if isinstance(after, Mapping) else {"the pass": after}
    graphs = {name: g for name, g in made.items() if g.outputs != before.outputs}
    if any(g.inputs != before.inputs for g in graphs.values()):
        raise MeaningChangedError("a pass changed the graph's inputs")
    outputs = [o for g in (before, *graphs.values()) for o in g.outputs]
    together = replace(before, outputs=tuple(outputs), late=None)
    read = random_weights(together, seed) if weights is None else weights
    runs = 0
    for arrays in random_feeds(before, seed) if feeds is None else feeds:
        try:
            results = iter(evaluate(together, arrays, read))
        except Error:
            if _refuses(before, arrays, read):
                continue
            raise
        wanted = [next(results) for _ in before.outputs]
        for name, graph in graphs.items():
            for i, (a, b) in enumerate(zip(wanted, results)):
                _compare(a, b, f"{name}: output {i}")
            assert len(graph.outputs) == len(wanted)
        runs += 1
    return runs


class Checked:
    """Watches a pipeline: after each pass, the graph is run beside the one before."""

    def __init__(self, graph: Graph, weights: ReadWeight | None = None) -> None:
        self.last = graph
        self.weights = weights

    def __call__(self, name: str, graph: Graph) -> None:
        """Raises MeaningChangedError, with the pass's name, where it computes something else."""
        if same_meaning(self.last, {name: graph}, self.weights) == 0:
            warnings.warn(f"{name} is not checked: the model refuses random inputs", stacklevel=2)
        self.last = graph


def _refuses(graph: Graph, arrays: Arrays, read: ReadWeight) -> bool:
    try:
        evaluate(graph, arrays, read)
    except Error:
        return True
    return False


def random_feeds(graph: Graph, seed: int = 0, sizes: Sequence[int] = SIZES) -> Iterator[Arrays]:
    """Random arrays for the graph's inputs, once for each number that named sizes are tried as."""
    symbolic = any(isinstance(s, Expr) for v in graph.inputs for s in v.shape)
    for size in sizes if symbolic else sizes[:1]:
        rng = np.random.default_rng([seed, size])
        yield {v: random_array(rng, v.tensor, size) for v in graph.inputs}


def random_array(rng: np.random.Generator, type: TensorType, size: int = 3) -> np.ndarray:
    """An array of the type; named sizes are `size`, integers small enough to be indices."""
    shape = [_bound(s, size) for s in type.shape]
    if type.dtype in FLOATS:
        return rng.standard_normal(shape).astype(NUMPY_DTYPES[type.dtype])
    if type.dtype == "bool":
        return rng.random(shape) < 0.7
    if type.dtype in INTEGERS:
        low = -1 if type.dtype in SIGNED else 0
        return rng.integers(low, 2, shape).astype(NUMPY_DTYPES[type.dtype])
    return np.full(shape, "text", object)


def _bound(size: Size, number: int) -> int:
    if isinstance(size, int):
        return size
    bound = substitute(size, {s.name: _within(s, number) for s in size.symbols})
    assert isinstance(bound, int)
    return bound


def _within(symbol: Symbol, number: int) -> int:
    high = symbol.high if isinstance(symbol.high, int) else number
    return max(symbol.low, min(number, high))


def random_weights(graph: Graph, seed: int = 0) -> ReadWeight:
    """Random arrays for the graph's weights: floats lie around 1, since they may be variances."""
    types = {v.op.name: v.op.type for v in _all_values(graph) if isinstance(v.op, Weight)}
    arrays: dict[str, np.ndarray] = {}

    def read(name: str) -> np.ndarray:
        if name not in arrays:
            rng = np.random.default_rng([seed, *name.encode()])
            array = random_array(rng, types[name])
            floats = types[name].dtype in FLOATS
            arrays[name] = (
                (1 + array.astype(np.float32) / 8).astype(array.dtype) if floats else array
            )
        return arrays[name]

    return read


def _all_values(graph: Graph) -> Iterator[Value]:
    for value in graph.values:
        yield value
        for body in value.op.graphs:
            yield from _all_values(body)


def _compare(wanted: Any, got: Any, what: str) -> None:
    if isinstance(wanted, list | tuple):
        for i, (a, b) in enumerate(zip(wanted, got, strict=True)):
            _compare(a, b, f"{what}[{i}]")
        return
    if wanted is None or got is None:
        if wanted is not got:
            raise MeaningChangedError(f"{what}: one is absent")
        return
    a, b = np.asarray(wanted), np.asarray(got)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise MeaningChangedError(
            f"{what} was {a.dtype}{list(a.shape)}, is {b.dtype}{list(b.shape)}"
        )
    if not a.size or a.dtype == object or a.dtype.kind in "biu":
        if not (a == b).all():
            raise MeaningChangedError(
                f"{what} differs in {np.count_nonzero(a != b)} of {a.size} elements"
            )
        return
    _compare_floats(a, b, what)


def _compare_floats(a: np.ndarray, b: np.ndarray, what: str) -> None:
    allowed = TOLERANCE.get(dtype_name(a.dtype), 0.25)
    if a.dtype.kind != "c":
        a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a) == np.isfinite(b)).all() or not (np.isnan(a) == np.isnan(b)).all():
        raise MeaningChangedError(f"{what} has infinities or NaN in other places")
    finite = np.isfinite(a)
    if (a[~finite] != b[~finite])[~np.isnan(a[~finite])].any():
        raise MeaningChangedError(f"{what} has infinities of another sign")
    largest = np.abs(a[finite]).max(initial=0.0)
    error = np.abs(a[finite] - b[finite]).max(initial=0.0)
    if error > allowed * max(largest, 1e-3):
        raise MeaningChangedError(
            f"{what} differs by {error:.3g}; the largest value is {largest:.3g}"
        )
