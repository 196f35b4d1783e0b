"""What is known of Values while a model is read: elements that no run changes, and captured
ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np

from whet.frontends.onnx.model import Tensor
from whet.ir.contents import MOST_CONTENTS
from whet.ir.evaluate import Run
from whet.ir.graph import (
    Graph,
    Input,
    Parameter,
    Value,
    Weight,
    constant,
    topological,
)
from whet.ir.types import SequenceType, TensorType, dtype_name
from whet.ops.elementwise import collect_guards
from whet.ops.sequence import MakeSequence, SequenceAt

MOST_WORK = 1 << 20  # elements computed to learn the contents of one Value


class Known:
    """Contents and structure of Values, from weights, and from what a late region has captured."""

    def __init__(self, weights: Mapping[str, Tensor], captured: Mapping[str, Any]) -> None:
        self.weights = weights
        self.captured = captured
        self.frozen: set[str] = set()
        self.needed: dict[str, str] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._fixed: dict[Value, bool] = {}
        self._contents: MutableMapping[Value, np.ndarray | None] = {}

    def array(self, name: str) -> np.ndarray:
        """The elements of a weight."""
        if name not in self._arrays:
            self._arrays[name] = self.weights[name].read()
        return self._arrays[name]

    def is_fixed(self, value: Value) -> bool:
        """Whether no input, parameter or effect is behind it: weights, constants and sizes make
        it."""
        return depends_on_none(value, _varies, self._fixed)

    def contents(self, value: Value) -> np.ndarray | None:
        """The elements, where sizes, constants and weights tell them; these weights are then
        frozen."""
        if value.contents is not None:
            return value.contents
        if not isinstance(value.type, TensorType) or not self.is_fixed(value):
            return None
        if value not in self._contents:
            self._contents[value] = self._from_weights(value)
        return self._contents[value]

    def _from_weights(self, value: Value) -> np.ndarray | None:
        behind = list(topological((value,)))
        weights = [v for v in behind if isinstance(v.op, Weight)]
        if not small(value) or work(behind) > MOST_WORK:
            return None
        if any(v.contents is not None and v.contents.dtype == object for v in behind):
            return self._symbolic(value, weights)
        known = np.asarray(Run(self.array, {}).graph(Graph((), (value,)), {})[0])
        self.frozen.update(v.op.name for v in weights)  # type: ignore[attr-defined]
        return known

    def _symbolic(self, value: Value, weights: list[Value]) -> np.ndarray | None:
        """Elements that named sizes and weights make together."""
        constants = {v: constant(self.array(v.op.name)) for v in weights if small(v)}  # type: ignore[attr-defined]
        with collect_guards([]):
            known = Graph((), (value,)).substitute(constants).outputs[0].contents
        if known is not None:
            self.frozen.update(v.op.name for v in constants)  # type: ignore[attr-defined]
        return known

    def captured_contents(self, value: Value) -> np.ndarray | None:
        """The elements in this run, where captured values tell them; these are then needed."""
        if not self.captured or not isinstance(value.type, TensorType) or not small(value):
            return None
        behind = list(topological((value,)))
        inputs = [v for v in behind if isinstance(v.op, Input)]
        if any(isinstance(v.op, Parameter) or v.op.has_effect for v in behind):
            return None
        if work(behind) > MOST_WORK:
            return None
        given = {v: self.captured[v.op.name] for v in inputs}  # type: ignore[attr-defined]
        known = np.asarray(Run(self.array, {}).graph(Graph((), (value,)), given)[0])
        self.needed.update((v.op.name, "contents") for v in inputs)  # type: ignore[attr-defined]
        return known

    def elements(self, sequence: Value) -> tuple[Value, ...] | None:
        """The Values in a sequence: those it was made of, or those of a captured list."""
        if isinstance(sequence.op, MakeSequence):
            return tuple(v for v in sequence.inputs if v is not None)
        if not isinstance(sequence.op, Input) or sequence.op.name not in self.captured:
            return None
        items = self.captured[sequence.op.name]
        if not isinstance(items, list | tuple):
            return None
        self.needed.setdefault(sequence.op.name, "structure")
        return tuple(
            SequenceAt(kind_of(item))(sequence, constant(i, "int64"))
            for i, item in enumerate(items)
        )


def kind_of(item: Any) -> TensorType | SequenceType:
    """The type of an array, or of a list of arrays."""
    if isinstance(item, list | tuple):
        return SequenceType(kind_of(item[0]))
    array = np.asarray(item)
    return TensorType(dtype_name(array.dtype), array.shape)


def small(value: Value) -> bool:
    """Whether a tensor has so few elements that they may be a shape."""
    sizes = [s for s in value.shape if isinstance(s, int)]
    return len(sizes) == value.rank and math.prod(sizes) <= MOST_CONTENTS


def work(values: list[Value]) -> int:
    """How many elements are computed to get to the last of the values; those read are not
    counted."""
    total = 0
    for value in values:
        if isinstance(value.op, Weight | Input) or not isinstance(value.type, TensorType):
            continue
        known = [s for s in value.shape if isinstance(s, int)]
        total += math.prod(known)
    return total


def _varies(value: Value) -> bool:
    return isinstance(value.op, Input | Parameter) or value.op.has_effect


def depends_on_none(value: Value, test: Callable[[Value], bool], memo: dict[Value, bool]) -> bool:
    """Whether the test fails for the Value and for all behind it."""
    stack = [value]
    while stack:
        v = stack[-1]
        inputs = [i for i in v.inputs if i is not None]
        if v in memo:
            stack.pop()
        elif test(v) or any(memo.get(i) is False for i in inputs):
            memo[v] = False
            stack.pop()
        elif unknown := [i for i in inputs if i not in memo]:
            stack.extend(unknown)
        else:
            memo[v] = True
            stack.pop()
    return memo[value]
