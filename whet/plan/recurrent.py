"""The arithmetic between the products of a recurrent layer, as expressions that every target emits.

Leaf n of such an expression is element 0 of buffer n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whet.ir.graph import Graph, Input, Value, make
from whet.ir.types import TensorType
from whet.ops.recurrent import MOST_UNROLLED, Recurrent
from whet.plan.kernel import Expression
from whet.plan.lower import Lowering

FLOATS = ("float32", "float16", "bfloat16")
SMALL_WEIGHT = 1 << 15
"""Elements of a weight that one thread, or one block, reads faster than several share it."""

Simplify = Callable[[Value], Any]


def runs_whole(value: Value, told: bool = False) -> bool:
    """Whether a template is to run a recurrent layer; not so a few steps of a large one, which are
    products of their own. With `told`, a run may tell how many steps and rows there are."""
    there = [i for i in value.inputs if i is not None]
    if type(value.op) is not Recurrent or value.dtype not in FLOATS:
        return False
    if any(0 in i.shape for i in there) or not there[1].tensor.is_static:
        return False
    if not told and not all(i.tensor.is_static for i in there):
        return False
    steps, (units, columns) = there[0].shape[0], there[1].shape
    few = isinstance(steps, int) and steps <= MOST_UNROLLED
    return not (few and units * columns > SMALL_WEIGHT)  # type: ignore[operator]


def lstm(op: Recurrent, peephole: bool, simplify: Simplify) -> tuple[Expression, ...]:
    """The hidden state and the cell, of the sums of the gates, the cell, and three peepholes."""

    def build(i: Any, o: Any, g: Any, d: Any, c: Any, *rest: Any) -> Any:
        return op.lstm_cell((i, o, g, d), c, rest or None)

    return _arithmetic(build, 8 if peephole else 5, simplify)


def gru(op: Recurrent, simplify: Simplify) -> tuple[Expression, ...]:
    """The hidden state with the reset gate behind the product: of the sums of two gates, the
    candidate's input product and its state product, and the state."""

    def build(z: Any, r: Any, own: Any, state: Any, h: Any) -> Any:
        return op.gru_state(op.squash(0, z), own + op.squash(0, r) * state, h)

    return _arithmetic(build, 5, simplify)


def gru_gates(op: Recurrent, simplify: Simplify) -> tuple[Expression, ...]:
    """The update gate, and the state that the reset gate lets through: of their sums and the
    state."""
    return _arithmetic(lambda z, r, h: (op.squash(0, z), op.squash(0, r) * h), 3, simplify)


def gru_candidate(op: Recurrent, simplify: Simplify) -> tuple[Expression, ...]:
    """The hidden state: of the update gate, the candidate's sum and the state."""
    return _arithmetic(op.gru_state, 3, simplify)


def plain(op: Recurrent, simplify: Simplify) -> tuple[Expression, ...]:
    """The hidden state of its sum."""
    return _arithmetic(lambda x: op.squash(0, x), 1, simplify)


def _arithmetic(
    build: Callable[..., Any], leaves: int, simplify: Simplify
) -> tuple[Expression, ...]:
    """What `build` makes of so many numbers."""
    kind = TensorType("float32", (1,))
    given = tuple(make(Input(f"leaf {n}", kind), ())[0] for n in range(leaves))
    built = build(*given)
    graph = Graph(given, built if isinstance(built, tuple) else (built,))
    while (simpler := graph.map(simplify)) is not graph:
        graph = simpler
    lowering = Lowering(lambda v: not isinstance(v.op, Input))
    lowering.buffers.update({v: n for n, v in enumerate(given)})
    return tuple(lowering.pull(v, (0,)) for v in graph.outputs)
