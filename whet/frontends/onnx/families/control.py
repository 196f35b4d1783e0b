"""ONNX's control flow: If, Loop, Scan, SequenceMap.

What is known while reading is expanded in place: the branch taken, a few iterations. What is not
becomes an operator with inner graphs where their types can be told, and is late otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import InvalidModel, ShapeError, TypeMismatch
from whet.frontends.onnx.functions import Expansion
from whet.frontends.onnx.model import Body
from whet.frontends.onnx.registry import NeedsValue, any_rank, internal_op, onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Expr, Size, maximum
from whet.ir.types import TensorType, Type, UnrankedType, map_sizes
from whet.ops import control
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import sequence as sq

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading
    from whet.frontends.onnx.scope import Inner

MOST_UNROLLED = 32  # iterations
MOST_UNROLLED_NODES = 1024
MOST_ROUNDS = 4  # of finding types that an iteration keeps


# If


@onnx_op
@any_rank
def If(condition: Value, *, then_branch: Body, else_branch: Body, node: Reading) -> Any:
    known = node.known(condition)
    if known is None:
        try:
            return _if(condition, then_branch, else_branch, node)
        except (NeedsValue, ShapeError, TypeMismatch):
            # A branch that cannot be read may be one that is never taken: wait for the condition.
            known = node.contents(condition, "which branch is taken")
    taken = then_branch if control.truth(known) else else_branch
    raise node.expand(taken, (), node.node.outputs)[0]


def _if(condition: Value, then_branch: Body, else_branch: Body, node: Reading) -> Any:
    then, otherwise = node.trace(then_branch, ()), node.trace(else_branch, ())
    if len(then.outputs) != len(otherwise.outputs):
        raise InvalidModel(
            f"its branches have {len(then.outputs)} and {len(otherwise.outputs)} outputs"
        )
    inside = then.sizes | otherwise.sizes
    types = tuple(
        outer_type(sq.join(a.type, b.type), inside, node, f"{i}")
        for i, (a, b) in enumerate(zip(then.outputs, otherwise.outputs))
    )
    (graph, other), captures = node.close(then, otherwise)
    return control.If(graph, other, types)(scalar(condition), *captures)


def outer_type(kind: Type, inside: set[str], node: Reading, what: str) -> Type:
    """The type with a fresh size for each that differs, or that means something only inside."""
    if not isinstance(kind, TensorType):
        return map_sizes(kind, lambda s: sq.ANY if _is_inside(s, inside) else s)
    shape = [
        node.fresh_size(f"{what}.{axis}") if _is_inside(size, inside) else size
        for axis, size in enumerate(kind.shape)
    ]
    return TensorType(kind.dtype, tuple(shape))


def _is_inside(size: Size, inside: set[str]) -> bool:
    return isinstance(size, Expr) and any(s.name == "?" or s.name in inside for s in size.symbols)


def scalar(x: Value) -> Value:
    """A tensor of one element without axes; exporters write conditions and counts with one axis."""
    return x if x.rank == 0 else mv.reshape(x)


# Loop


@onnx_op
@any_rank
def Loop(
    limit: Value | None = None,
    condition: Value | None = None,
    *initial: Value,
    body: Body,
    node: Reading,
) -> Any:
    if len(body.inputs) != len(initial) + 2 or len(body.outputs) < len(initial) + 1:
        raise InvalidModel(
            f"its body takes {len(body.inputs)} inputs and has {len(body.outputs)} outputs, "
            f"which does not fit {len(initial)} carried values"
        )
    start = LoopState(constant(0, "int64"), limit, condition, initial, (), body, node)
    if start.is_small():
        raise start.next()
    try:
        return _loop(limit, condition, initial, body, node)
    except NeedsValue:
        going = start.going()
        if not node.is_late:
            raise
    node.contents(going, "whether the loop goes on")
    raise start.next()


def _loop(
    limit: Value | None,
    condition: Value | None,
    initial: Sequence[Value],
    body: Body,
    node: Reading,
) -> Any:
    """The loop as an operator: its carried types are those that every iteration keeps."""
    carried, sizes, inner = _settle(initial, body, node)
    inside = inner.sizes | sizes
    results = [outer_type(t, inside, node, f"{i}") for i, t in enumerate(carried)]
    trips = _trips(limit, condition, inner, node)
    scanned = []
    for i, value in enumerate(inner.outputs[1 + len(initial) :]):
        item = outer_type(value.tensor, inside, node, f"scan{i}")
        assert isinstance(item, TensorType)
        scanned.append(item.with_shape(trips, *item.shape))
    (graph,), captures = node.close(inner)
    first = None if limit is None else scalar(ew.Cast("int64")(limit))
    going = None if condition is None else scalar(condition)
    op = control.Loop(graph, len(initial), (*results, *scanned))
    return op(first, going, *initial, *captures)


def _settle(
    initial: Sequence[Value], body: Body, node: Reading
) -> tuple[list[Type], set[str], Inner]:
    """Types of the carried values that hold before and after every iteration, and the body read
    for them."""
    types: list[Type] = [v.type for v in initial]
    sizes: set[str] = set()
    first = [_like(body.inputs[0][1], "int64"), _like(body.inputs[1][1], "bool")]
    for _ in range(MOST_ROUNDS):
        inner = node.trace(body, [*first, *types])
        results = [v.type for v in inner.outputs[1 : 1 + len(initial)]]
        wider = [_widen(a, b, sizes, node, f"{i}") for i, (a, b) in enumerate(zip(types, results))]
        if wider == types:
            return types, sizes, inner
        types = wider
    raise NeedsValue(None, "the types that the loop carries")


def _like(declared: Type | None, dtype: str) -> TensorType:
    """A scalar, or one axis of size 1 where the body declares one."""
    one_axis = isinstance(declared, TensorType) and declared.rank == 1
    return TensorType(dtype, (1,) if one_axis else ())


def _widen(kind: Type, result: Type, sizes: set[str], node: Reading, what: str) -> Type:
    """A type for values that were of the one type before an iteration and are of the other after
    it."""
    try:
        wide = sq.join(kind, result)
    except TypeMismatch:
        raise NeedsValue(None, "the types that the loop carries") from None
    if not isinstance(wide, TensorType) or not isinstance(kind, TensorType):
        return wide
    shape = []
    for axis, (joined, before) in enumerate(zip(wide.shape, kind.shape)):
        keeps = isinstance(before, Expr) and any(s.name in sizes for s in before.symbols)
        if joined == before or keeps:
            shape.append(before)
        else:
            fresh = node.fresh_size(f"{what}.{axis}.carried")
            sizes.update(s.name for s in fresh.symbols)
            shape.append(fresh)
    return TensorType(wide.dtype, tuple(shape))


def _trips(limit: Value | None, condition: Value | None, inner: Inner, node: Reading) -> Size:
    """How many iterations there are: the limit where nothing else ends the loop."""
    known = None if limit is None else node.known(limit)
    starts = condition is None or is_true(node.known(condition))
    kept = inner.outputs[0]
    goes_on = kept is inner.parameters[1] or is_true(node.known(kept))
    if known is not None and starts and goes_on:
        return maximum(known.ravel().tolist()[0], 0)
    high = known.ravel().tolist()[0] if known is not None else None
    return node.fresh_size("trips", 0, high if isinstance(high, int) and high >= 0 else None)


def is_true(known: np.ndarray | None) -> bool:
    return known is not None and known.dtype != object and control.truth(known)


@dataclass(frozen=True)
class LoopState:
    """A loop before some iteration, to be read one iteration at a time."""

    iteration: Value
    limit: Value | None
    condition: Value | None
    carried: Sequence[Value]
    scanned: Sequence[Value]
    body: Body
    node: Reading

    def is_small(self) -> bool:
        """Whether few iterations are known to come."""
        known = None if self.limit is None else self.node.known(self.limit)
        if known is None or known.dtype == object or known.size != 1:
            return False
        trips = int(known.ravel()[0])
        starts = self.condition is None or is_true(self.node.known(self.condition))
        few = 0 < trips <= MOST_UNROLLED and trips * len(self.body.nodes) <= MOST_UNROLLED_NODES
        return few and starts and self._goes_on()

    def _goes_on(self) -> bool:
        """Whether the body's condition is seen to stay true: passed on, or constant."""
        kept, passed = self.body.outputs[0][0], self.body.inputs[1][0]
        maker = {name: n for n in self.body.nodes for name in n.outputs}
        while kept in maker and maker[kept].operator == "Identity":
            kept = maker[kept].inputs[0]
        if kept == passed:
            return True
        stored = self.body.tensors.get(kept)
        if stored is None and kept in maker and maker[kept].operator == "Constant":
            stored = maker[kept].attributes.get("value")
        return stored is not None and bool(np.all(stored.read()))

    def going(self) -> Value:
        """Whether there is another iteration, a bool scalar."""
        going = constant(True) if self.condition is None else scalar(self.condition)
        if self.limit is None:
            return going
        less = ew.Less()(scalar(self.iteration), scalar(ew.Cast("int64")(self.limit)))
        return ew.And()(going, less)

    def next(self) -> Expansion:
        """To be raised: the nodes of one iteration, and a node for the rest of the loop."""
        node, count = self.node, len(self.carried)
        going = constant(True) if self.condition is None else scalar(self.condition)
        first = [
            mv.reshape(value, *_like(kind, dtype).shape)
            for value, (_, kind), dtype in zip(
                (self.iteration, going), self.body.inputs, ("int64", "bool")
            )
        ]
        step, results = node.expand(self.body, [*first, *self.carried])
        scanned = self.scanned or [
            sq.MakeSequence(sq.nothing("float32"))() for _ in results[1 + count :]
        ]
        rest = [self.iteration + 1, self.limit, *results, *scanned]
        return step.join(node.last("LoopRest", rest, {"body": self.body, "carried": count}))


@internal_op
@any_rank
def LoopRest(
    iteration: Value,
    limit: Value | None,
    condition: Value,
    *values: Value,
    body: Body,
    carried: int,
    node: Reading,
) -> Any:
    """A loop after some of its iterations: carried values, scanned values of the last one, all
    those before."""
    count = len(body.outputs) - 1 - carried
    items, before = values[carried : carried + count], values[carried + count :]
    scanned = [append(sequence, item) for sequence, item in zip(before, items)]
    state = LoopState(iteration, limit, condition, values[:carried], scanned, body, node)
    if control.truth(node.contents(state.going(), "whether the loop goes on")):
        raise state.next()
    stacked = [stack(node.elements(s, "how many iterations there were")) for s in scanned]
    return (*values[:carried], *stacked)


def append(sequence: Value, item: Value) -> Value:
    """The sequence with one more element."""
    if isinstance(sequence.op, sq.MakeSequence):
        return sq.MakeSequence(item.type)(*sequence.inputs, item)
    return sq.SequenceInsert()(sequence, item)


def stack(items: Sequence[Value]) -> Value:
    """The values along a new first axis."""
    for item in items:
        if isinstance(item.type, UnrankedType):
            raise NeedsValue(item, "the number of axes")
    parts = [mv.unsqueeze(item, 0) for item in items]
    return parts[0] if len(parts) == 1 else mv.Concat(0)(*parts)
