"""Folding by value, for engines whose weights are never exchanged: expressions over weights become
weights, and those they were made of are left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from whet.engine.elements import byte_count
from whet.engine.file import weight_names
from whet.engine.weights import ImportedWeights, Source, WeightStore
from whet.ir.evaluate import Run
from whet.ir.graph import Constant, Graph, Value, Weight, make, map_inner, topological
from whet.ir.types import TensorType


@dataclass(frozen=True)
class Computed:
    """An expression over weights as a tensor to read: computed each time, and kept nowhere."""

    value: Value
    weights: WeightStore

    @property
    def type(self) -> TensorType:
        return self.value.tensor

    def read(self) -> np.ndarray:
        """The elements, by each operator's `reference`."""
        array = np.ascontiguousarray(
            Run(self.weights.array, {}).graph(Graph((), (self.value,)), {})[0]
        )
        return array.reshape([int(size) for size in self.value.shape])


def fold_by_value(graph: Graph, weights: WeightStore) -> tuple[Graph, ImportedWeights]:
    """The graph on weights that are folded already, and these weights.

    What would take more memory than the weights it is made of (dequantised, stretched) stays an
    expression.
    """
    folder = _Folder(weights, set(weights.types))
    folded = folder.graph(graph)
    kept = {name: _stored(weights, name) for name in weight_names(folded) if name in weights.types}
    return folded, ImportedWeights({**kept, **folder.made})


def _stored(weights: WeightStore, name: str) -> Source:
    return Computed(make(Weight(name, weights.types[name]), ())[0], weights)


class _Folder:
    def __init__(self, weights: WeightStore, names: set[str]) -> None:
        self.weights, self.names = weights, names
        self.made: dict[str, Source] = {}
        self.done: dict[Value, Value] = {}

    def graph(self, graph: Graph) -> Graph:
        graph = map_inner(graph, self.graph)
        read = [i for v in graph.values if not v.is_static for i in v.inputs if i is not None]
        changes = dict(self.changes(v for v in (*read, *graph.outputs) if v.is_static))
        return graph.substitute(changes)

    def changes(self, values: Iterable[Value]) -> Iterable[tuple[Value, Value]]:
        """For static Values, or what these are made of, the weights that stand for them."""
        stack = list(values)
        while stack:
            value = stack.pop()
            if isinstance(value.op, Constant | Weight) or not _has_weights(value):
                continue
            if value in self.done or _pays(value):
                yield value, self.weight(value)
            else:
                stack.extend(i for i in value.inputs if i is not None)

    def weight(self, value: Value) -> Value:
        """A weight of the Value's elements."""
        if value not in self.done:
            name = self.name(value)
            self.made[name] = Computed(value, self.weights)
            self.done[value] = make(Weight(name, value.tensor), ())[0]
        return self.done[value]

    def name(self, value: Value) -> str:
        """The names of the first weights behind it, with a number where that is taken."""
        behind = [v.op.name for v in topological((value,)) if isinstance(v.op, Weight)]
        stem = "+".join(behind[:2]) + ("+…" if len(behind) > 2 else "")
        found, number = f"{stem} folded", 2
        while found in self.names:
            found, number = f"{stem} folded {number}", number + 1
        self.names.add(found)
        return found


def _has_weights(value: Value) -> bool:
    return any(isinstance(v.op, Weight) or v.op.graphs for v in topological((value,)))


def _pays(value: Value) -> bool:
    """Whether it is a tensor of no more bytes than what it is made of."""
    if not isinstance(value.type, TensorType) or not value.type.is_static:
        return False
    behind = [v for v in topological((value,)) if isinstance(v.op, Weight)]
    return _bytes(value) <= sum(map(_bytes, behind))


def _bytes(value: Value) -> int:
    return byte_count(value.dtype, tuple(int(size) for size in value.shape))
