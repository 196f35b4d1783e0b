"""Control flow: operators with inner graphs, whose inputs after their own are what the graphs
capture.

A `reference` here first takes `run(graph, arrays) -> outputs`: the logic stays on the host, and a
target hands in a function that runs the inner graphs its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from whet.errors import ShapeError, TypeMismatch
from whet.ir.graph import Graph, Op, Value, operator
from whet.ir.sizes import Size, is_different
from whet.ir.types import NUMPY_DTYPES, TensorType, Type, UnrankedType
from whet.ops.movement import Concat, reshape, slice_axis, unsqueeze
from whet.ops.sequence import SequenceType

RunGraph = Callable[[Graph, Sequence[Any]], list[Any]]


class ControlFlow(Op):
    """Runs inner graphs. The types of its results are given, for sizes in them may be known only
    then."""

    runs_graphs: ClassVar[bool] = True
    defines_sizes: ClassVar[bool] = True

    @cached_property
    def has_effect(self) -> bool:  # type: ignore[override]
        """Whether anything inside has one."""
        return any(v.op.has_effect for graph in self.graphs for v in graph)


@operator
class If(ControlFlow):
    """The outputs of one of two graphs, by a bool; both take the captures that follow the
    condition."""

    then: Graph
    otherwise: Graph
    types: tuple[Type, ...]
    is_bookkeeping: ClassVar[bool] = True

    def infer(self, condition: TensorType, *captures: Type) -> tuple[Type, ...]:
        for graph in (self.then, self.otherwise):
            require_fit(captures, [v.type for v in graph.inputs], "a branch")
            require_fit([v.type for v in graph.outputs], self.types, "the results of a branch")
        return self.types

    def reference(self, run: RunGraph, condition: np.ndarray, *captures: Any) -> tuple[Any, ...]:
        return tuple(run(self.then if truth(condition) else self.otherwise, captures))


@operator
class Loop(ControlFlow):
    """Runs `body` while its condition holds, at most `limit` times.

    Inputs: limit (int64, or None), condition (bool, or None for true), the carried values, the
    captures. The body takes (iteration, condition, carried…, captures…) and gives (condition,
    carried…, scanned…). Results: the carried values, then each scanned value of all iterations
    stacked along a new first axis.
    """

    body: Graph
    carried: int
    types: tuple[Type, ...]

    def infer(
        self, limit: TensorType | None, condition: TensorType | None, *rest: Type
    ) -> tuple[Type, ...]:
        inner = [v.type for v in self.body.inputs[2:]]
        require_fit(rest, inner, "the body")
        outputs = [v.type for v in self.body.outputs[1:]]
        require_fit(outputs[: self.carried], inner[: self.carried], "the next iteration")
        require_fit(outputs[: self.carried], self.types[: self.carried], "the results")
        require_fit(rest[: self.carried], self.types[: self.carried], "the results of no iteration")
        return self.types

    def reference(self, run: RunGraph, limit: Any, condition: Any, *rest: Any) -> tuple[Any, ...]:
        carried, captures = list(rest[: self.carried]), rest[self.carried :]
        going = condition is None or truth(condition)
        scanned: list[list[Any]] = [[] for _ in self.types[self.carried :]]
        iteration = 0
        while going and (limit is None or iteration < int(np.reshape(limit, ()))):
            numbers = np.array(iteration, np.int64), np.array(going)
            first = [a.reshape(_shape(v.type)) for a, v in zip(numbers, self.body.inputs)]
            kept, *outputs = run(self.body, [*first, *carried, *captures])
            going, carried = truth(kept), outputs[: self.carried]
            for items, item in zip(scanned, outputs[self.carried :]):
                items.append(item)
            iteration += 1
        return (*carried, *map(stack, scanned, self.types[self.carried :]))


@operator
class Scan(ControlFlow):
    """Runs `body` once for each position along the first axis of its scanned inputs.

    Inputs: the states, the scanned values, the captures. The body takes (states…, one slice of each
    scanned value…, captures…) and gives (states…, scanned results…). Results: the last states, then
    each scanned result stacked along a new first axis.
    """

    body: Graph
    states: int
    scanned: int
    types: tuple[Type, ...]

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        own = self.states + self.scanned
        slices = [_slice(t) for t in inputs[self.states : own]]
        given = [*inputs[: self.states], *slices, *inputs[own:]]
        require_fit(given, [v.type for v in self.body.inputs], "the body")
        outputs = [v.type for v in self.body.outputs]
        require_fit(outputs[: self.states], self.types[: self.states], "the results")
        return self.types

    def reference(self, run: RunGraph, *inputs: Any) -> tuple[Any, ...]:
        own = self.states + self.scanned
        states, values, captures = inputs[: self.states], inputs[self.states : own], inputs[own:]
        results: list[list[Any]] = [[] for _ in self.types[self.states :]]
        for i in range(values[0].shape[0]):
            outputs = run(self.body, [*states, *(v[i] for v in values), *captures])
            states = tuple(outputs[: self.states])
            for items, item in zip(results, outputs[self.states :]):
                items.append(item)
        return (*states, *map(stack, results, self.types[self.states :]))

    def lower(self, *inputs: Value) -> tuple[Value, ...]:
        """The body once for each position, where they are few: then it runs in kernels."""
        own = self.states + self.scanned
        states, values, captures = inputs[: self.states], inputs[self.states : own], inputs[own:]
        steps = values[0].shape[0]
        if not _can_unroll(self.body, steps):
            return self(*inputs)
        lines: list[list[Value]] = [[] for _ in self.types[self.states :]]
        for i in range(steps):
            slices = [reshape(slice_axis(v, 0, i, 1), *v.shape[1:]) for v in values]
            given = dict(zip(self.body.inputs, (*states, *slices, *captures)))
            outputs = self.body.substitute(given).outputs
            states = outputs[: self.states]
            for line, item in zip(lines, outputs[self.states :]):
                line.append(unsqueeze(item, 0))
        results = (*states, *(Concat(0)(*line) if len(line) > 1 else line[0] for line in lines))
        return results if all(map(_has_known_sizes, results)) else self(*inputs)


MOST_UNROLLED = 512
"""Operators that a body may become when it is written once for each position."""


def _can_unroll(body: Graph, steps: Size) -> bool:
    if not isinstance(steps, int) or not 0 < steps * len(body.values) <= MOST_UNROLLED:
        return False
    return not (body.guards or body.definers or body.late or any(v.op.has_effect for v in body))


def _has_known_sizes(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.is_static


@operator
class SequenceMap(ControlFlow):
    """Runs `body` on each element of a sequence; each of its outputs becomes a sequence.

    Inputs: `count` values, of which those in `sequences` give an element at a time and the others
    whole, then the captures. The body takes (one of each…, captures…).
    """

    body: Graph
    count: int
    sequences: tuple[int, ...]
    types: tuple[Type, ...]

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        return self.types

    def reference(self, run: RunGraph, *inputs: Any) -> tuple[Any, ...]:
        lengths = {len(inputs[i]) for i in self.sequences}
        if len(lengths) != 1:
            raise ShapeError(f"the sequences have different lengths: {sorted(lengths)}")
        results: list[list[Any]] = [[] for _ in self.types]
        for n in range(lengths.pop()):
            items = [x[n] if i in self.sequences else x for i, x in enumerate(inputs)]
            for result, item in zip(results, run(self.body, items)):
                result.append(item)
        return tuple(results)


def truth(condition: Any) -> bool:
    """The one element of a bool tensor; raises ShapeError where there are more."""
    array = np.asarray(condition)
    if array.size != 1:
        raise ShapeError(f"a condition must have one element, its shape is {list(array.shape)}")
    return bool(array.reshape(()))


def stack(items: list[Any], kind: Type) -> Any:
    """The items along a new first axis; of none the shape follows from the type, with 0 for open
    sizes."""
    if items:
        return np.stack(items)
    assert isinstance(kind, TensorType)
    sizes = [s if isinstance(s, int) else 0 for s in kind.shape[1:]]
    return np.zeros((0, *sizes), NUMPY_DTYPES[kind.dtype])


def _shape(kind: Type) -> tuple[int, ...]:
    assert isinstance(kind, TensorType)
    return (1,) * kind.rank


def _slice(kind: Type) -> Type:
    if not isinstance(kind, TensorType) or kind.rank == 0:
        raise ShapeError(f"a tensor with an axis to scan is needed, got {kind}")
    return TensorType(kind.dtype, kind.shape[1:])


def require_fit(given: Sequence[Type], wanted: Sequence[Type], what: str) -> None:
    """Raises unless each given type may stand where the other is wanted: same kind, dtype, rank,
    no known misfit."""
    if len(given) != len(wanted):
        raise ShapeError(f"{what}: {len(wanted)} values are needed, got {len(given)}")
    for a, b in zip(given, wanted):
        if not fits(a, b):
            raise TypeMismatch(f"{what}: {b} is needed, got {a}")


def fits(a: Type, b: Type) -> bool:
    """Whether a value of type a may be one of type b, as far as is known."""
    match a, b:
        case TensorType(), TensorType():
            same = a.dtype == b.dtype and a.rank == b.rank
            return same and not any(map(_misfit, a.shape, b.shape))
        case ((TensorType() | UnrankedType()), UnrankedType()):
            return a.dtype == b.dtype
        case SequenceType(), SequenceType():
            return True
    return type(a) is type(b)


def _misfit(a: Size, b: Size) -> bool:
    return isinstance(a, int) and isinstance(b, int) and is_different(a, b)
