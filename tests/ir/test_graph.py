"""Graphs: contents, guards, sizes that data defines, binding, walking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from whet.errors import ShapeError, TypeMismatch
from whet.ir.contents import MOST_CONTENTS
from whet.ir.evaluate import evaluate
from whet.ir.graph import (
    Graph,
    Guard,
    Input,
    Parameter,
    Token,
    Value,
    collect_guards,
    constant,
    make,
    map_inner,
    topological,
)
from whet.ir.sizes import Expr, symbol
from whet.ir.types import SequenceType, TensorType, map_sizes
from whet.ops import control
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops.select import Extent, NonZero
from whet.ops.sequence import MakeSequence

N, M = symbol("n"), symbol("m")


def tensor(name: str, *shape: Any, dtype: str = "float32") -> Value:
    return make(Input(name, TensorType(dtype, shape)), ())[0]


def elements(value: Value) -> list[Any] | None:
    return None if value.contents is None else value.contents.tolist()


# Contents.


def test_contents_of_sizes() -> None:
    shape = mv.Sizes((N, 2, M))()
    assert elements(shape) == [N, 2, M]
    assert elements(shape * 2 + 1) == [2 * N + 1, 5, 2 * M + 1]
    assert elements(mv.Concat(0)(shape, constant([7]))) == [N, 2, M, 7]
    assert elements(mv.Gather(0)(shape, constant(-1))) == M
    assert elements(mv.Sizes((3, 2))()) == [3, 2]
    assert mv.Sizes((3, 2))().contents.dtype == np.int64


def test_contents_that_only_a_run_tells() -> None:
    x = tensor("x", N)
    assert elements(x) is None and elements(x + 1.0) is None
    undecided = ew.Equal()(mv.Sizes((N,))(), constant([3]))
    assert elements(undecided) is None
    decided = ew.Equal()(mv.Sizes((N,))(), constant([-3]))
    assert elements(decided) == [False]
    assert elements(mv.broadcast_to(constant(1.0), N)) is None


def test_contents_are_bounded() -> None:
    assert elements(mv.broadcast_to(constant(1), MOST_CONTENTS)) is not None
    assert elements(mv.broadcast_to(constant(1), MOST_CONTENTS + 1)) is None
    large = mv.broadcast_to(constant(1), 2**40)
    assert elements(mv.slice_axis(large, 0, 0, 1)) is None


def test_contents_are_those_of_the_reference() -> None:
    value = ew.Exp()(constant([0.0, 1.0], "float32"))
    assert elements(value) == np.exp(np.float32([0, 1])).tolist()


# Guards.


def test_guards_are_checked_before_and_while_running() -> None:
    x, y = tensor("x", N), tensor("y", M)
    guards: list[Guard] = []
    with collect_guards(guards):
        total = x + y
    (guard,) = guards
    graph = Graph((x, y), (total,), guards=(Guard(guard.left, guard.right, "sum", True),))
    one, three = np.ones(1, np.float32), np.ones(3, np.float32)
    assert evaluate(graph, {x: three, y: one})[0].tolist() == [2, 2, 2]
    with pytest.raises(ShapeError, match=r'"sum".*n = 3 and m = 2'):
        evaluate(graph, {x: three, y: np.ones(2, np.float32)})
    count = NonZero(symbol("count"))(x)
    late = Guard(symbol("count"), 2, "two of them")
    found = Graph((x,), (count,), guards=(late,))
    assert evaluate(found, {x: np.array([1, 0, 1], np.float32)})[0].tolist() == [[0, 2]]
    with pytest.raises(ShapeError, match=r'"two of them".*count = 3'):
        evaluate(found, {x: three})


def test_inputs_must_have_their_sizes() -> None:
    x, y = tensor("x", N, 2), tensor("y", N)
    graph = Graph((x, y), (x, y))
    ones = np.ones
    for a, b in ((ones((3, 3)), ones(3)), (ones((3, 2)), ones(2)), (ones(3), ones(3))):
        with pytest.raises(ShapeError):
            evaluate(graph, {x: a, y: b})


# Sizes that data defines.


def counted() -> tuple[Value, Value, Graph]:
    """Ones, as many as a number in a tensor says: nothing but the size ties the two."""
    k = tensor("k", dtype="int64")
    size = symbol("size")
    extent = Extent(size)(k)
    return k, extent, Graph((k,), (mv.broadcast_to(constant(1), size),), definers={"size": extent})


def test_what_defines_a_size_runs_first() -> None:
    k, extent, graph = counted()
    assert extent in graph.values and k in graph.values
    order = graph.values
    assert order.index(extent) < order.index(graph.outputs[0])
    sizes: dict[str, int] = {}
    assert evaluate(graph, {k: np.array(3)}, sizes=sizes)[0].tolist() == [1, 1, 1]
    assert sizes == {"size": 3}


def test_what_defines_a_size_is_rebuilt_too() -> None:
    k, extent, graph = counted()
    other = tensor("other", dtype="int64")
    new = graph.substitute({k: other + other})
    assert new.definers["size"] is not extent
    assert evaluate(new, {other: np.array(2)})[0].shape == (4,)
    mapped = graph.map(lambda v: Extent(v.op.size)(ew.Abs()(k)) if v is extent else v)  # type: ignore[attr-defined]
    assert evaluate(mapped, {k: np.array(-2)})[0].shape == (2,)
    assert graph.map(lambda v: v) is graph


def test_needs_in_a_circle_are_an_error() -> None:
    k = tensor("k", dtype="int64")
    size = symbol("size")
    ones = mv.broadcast_to(constant(1), size)
    graph = Graph((k,), (ones,), definers={"size": ew.Abs()(ones)})
    with pytest.raises(RuntimeError, match="comes after it"):
        list(graph)


# Binding.


def test_bind() -> None:
    x = tensor("x", N, 4)
    graph = Graph((x,), (mv.reshape(ew.Exp()(x), N * 4),), ("y",))
    bound = graph.bind({"n": 3})
    assert bound.inputs[0].shape == (3, 4) and bound.outputs[0].shape == (12,)
    assert bound.output_names == ("y",)
    assert graph.outputs[0].shape == (N * 4,)
    assert graph.bind({"other": 3}).outputs[0] is graph.outputs[0]


def test_bind_reaches_inner_graphs() -> None:
    x, flag = tensor("x", N), tensor("flag", dtype="bool")
    inner = make(Parameter(Token(), x.type), ())[0]
    branch = Graph((inner,), (mv.reshape(inner, 1, N),))
    outcome = control.If(branch, branch, (TensorType("float32", (1, N)),))(flag, x)
    bound = Graph((x, flag), (outcome,)).bind({"n": 3})
    op = bound.outputs[0].op
    assert isinstance(op, control.If)
    assert op.types[0].shape == (1, 3) and op.then.outputs[0].shape == (1, 3)  # type: ignore[union-attr]
    kept = outcome.op.bind({"n": 3}, inner=False)
    assert isinstance(kept, control.If) and isinstance(outcome.op, control.If)
    assert kept.then is outcome.op.then and kept.types == op.types
    assert outcome.op.graphs == (branch, branch) and "n" in outcome.op.symbols


def test_a_branch_that_sizes_do_not_fit_is_an_error_only_when_taken() -> None:
    x, flag = tensor("x", N), tensor("flag", dtype="bool")
    inner = make(Parameter(Token(), x.type), ())[0]
    guard = Guard(N, 4, "reshape")
    misfit = Graph((inner,), (mv.reshape(inner, 4),), guards=(guard,))
    other = Graph((inner,), (mv.broadcast_to(constant(0.0, "float32"), 4),))
    outcome = control.If(misfit, other, (TensorType("float32", (4,)),))(flag, x)
    bound = Graph((x, flag), (outcome,)).bind({"n": 3})
    given = np.ones(3, np.float32)
    ready = dict(zip(bound.inputs, [given, np.array(False)]))
    assert evaluate(bound, ready)[0].tolist() == [0] * 4
    with pytest.raises(ShapeError, match='"reshape"'):
        evaluate(bound, {**ready, bound.inputs[1]: np.array(True)})


def test_bind_reaches_types_of_sequences() -> None:
    kind = SequenceType(TensorType("float32", (N, 2)))
    assert map_sizes(kind, lambda s: 3 if isinstance(s, Expr) else s) == SequenceType(
        TensorType("float32", (3, 2))
    )
    assert map_sizes(kind, lambda s: s) is kind
    assert MakeSequence(kind.element).bind({"n": 3}) == MakeSequence(TensorType("float32", (3, 2)))


# Walking.


def test_topological() -> None:
    x = tensor("x", 2)
    a, b = ew.Exp()(x), ew.Abs()(x)
    c = a + b
    assert list(topological((c,))) == [x, a, b, c]
    assert list(topological((c,), stop=(a,))) == [a, x, b, c]
    assert list(topological((c,), stop=(a, b))) == [a, b, c]
    assert list(topological((c, c, a))) == [x, a, b, c]
    assert Graph((x,), (c, a)).uses == {x: 2, a: 2, b: 1, c: 1}


def test_inner_graphs_are_not_walked_unasked() -> None:
    x = tensor("x", 2)
    graph = Graph((x,), (ew.Exp()(x),))

    def refuse(inner: Graph) -> Graph:
        raise AssertionError(inner)

    assert map_inner(graph, refuse) is graph


@pytest.mark.parametrize("number", [0.5, np.float32(0.5), np.float64(1e300), 300, -1, float("nan")])
def test_numbers_that_a_tensors_dtype_does_not_have_are_refused(number: Any) -> None:
    with pytest.raises(TypeMismatch, match="is no uint8"):
        tensor("x", 3, dtype="uint8") * number


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.int64(2)])
def test_numbers_take_the_dtype_of_the_tensor(number: Any) -> None:
    assert (tensor("x", 3, dtype="uint8") * number).inputs[1] is constant(2, "uint8")
