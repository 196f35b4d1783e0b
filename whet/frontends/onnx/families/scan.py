"""ONNX's Scan and SequenceMap: a graph run for each position along an axis, for each element of
a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whet.errors import InvalidModel, ShapeError
from whet.frontends.onnx.families.control import outer_type, stack
from whet.frontends.onnx.functions import Expansion
from whet.frontends.onnx.model import Body
from whet.frontends.onnx.registry import NeedsValue, any_rank, internal_op, onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size
from whet.ir.types import SequenceType, TensorType, Type, map_sizes
from whet.ops import control
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import sequence as sq

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading
    from whet.frontends.onnx.scope import Inner

MOST_UNROLLED = 64  # elements of a sequence


@onnx_op
def Scan(
    lengths: Value | None,
    *inputs: Value,
    num_scan_inputs: int,
    body: Body,
    directions: Sequence[int] = (),
    node: Reading,
) -> Any:
    """Opset 8: a batch axis first, the scanned axis second, and lengths for each batch where
    given."""
    count = _count(inputs, num_scan_inputs, body)
    back = _filled(directions, num_scan_inputs)
    scanned = [mv.Reverse((1,))(x) if d else x for x, d in zip(inputs[count:], back)]
    batched = [*inputs[:count], *scanned, *([] if lengths is None else [lengths])]

    def one_batch(values: Sequence[Value]) -> tuple[Value, ...]:
        states, rest = values[:count], values[count : count + num_scan_inputs]
        length = None if lengths is None else values[-1]
        return _scan_some(body, states, rest, length, node)

    return _close(node.trace(one_batch, [_slice(x) for x in batched]), (), batched, node)


def _scan_some(
    body: Body,
    states: Sequence[Value],
    scanned: Sequence[Value],
    length: Value | None,
    node: Reading,
) -> tuple[Value, ...]:
    """A scan of the first `length` positions: later ones leave the states alone and give zeros."""
    if length is None:
        return scan(body, states, scanned, node)

    count = len(states)

    def step(values: Sequence[Value]) -> tuple[Value, ...]:
        number, *rest = values
        results = node.inline(body, rest)
        going = ew.Less()(number, length)
        kept = [ew.Where()(going, a, b) for a, b in zip(results, rest[:count])]
        given = [ew.Where()(going, r, constant(0, r.dtype)) for r in results[count:]]
        return (number + 1, *kept, *given)

    numbered = (constant(0, "int64"), *states)
    types = [*(s.type for s in numbered), *map(_slice, scanned)]
    return _close(node.trace(step, types), numbered, scanned, node)[1:]


@onnx_op
def Scan_9(
    *inputs: Value,
    num_scan_inputs: int,
    body: Body,
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
    node: Reading,
) -> Any:
    count = _count(inputs, num_scan_inputs, body)
    axes = _filled(scan_input_axes, num_scan_inputs)
    back = _filled(scan_input_directions, num_scan_inputs)
    scanned = [_front(x, a, d) for x, a, d in zip(inputs[count:], axes, back)]
    outputs = len(body.outputs) - count
    axes, back = _filled(scan_output_axes, outputs), _filled(scan_output_directions, outputs)
    try:
        results = scan(body, inputs[:count], scanned, node)
    except NeedsValue:
        if not node.is_late:
            raise
        attributes = {"states": count, "axes": tuple(axes), "reverse": tuple(back)}
        raise unrolled(body, inputs[:count], scanned, attributes, node) from None
    return (*results[:count], *map(_place, results[count:], axes, back))


def _count(inputs: Sequence[Value], scanned: int, body: Body) -> int:
    """The number of states."""
    count = len(inputs) - scanned
    if scanned < 1 or count < 0 or len(body.outputs) < count or len(body.inputs) != len(inputs):
        raise InvalidModel(
            f"{scanned} of {len(inputs)} inputs to scan do not fit a body of {len(body.inputs)} "
            f"inputs and {len(body.outputs)} outputs"
        )
    return count


def _filled(given: Sequence[int], count: int) -> Sequence[int]:
    """The attribute's numbers, or zeros where it is absent."""
    if given and len(given) != count:
        raise InvalidModel(f"an attribute needs {count} numbers, it has {len(given)}")
    return given or (0,) * count


def _slice(x: Value) -> TensorType:
    if x.rank == 0:
        raise ShapeError("a scalar has no axis to scan")
    return TensorType(x.dtype, x.shape[1:])


def _front(x: Value, axis: int, reverse: int) -> Value:
    """x with the scanned axis first, in the order of the scan."""
    axis = mv.normalize_axis(axis, x.rank)
    x = mv.transpose(x, axis, *(i for i in range(x.rank) if i != axis))
    return mv.Reverse((0,))(x) if reverse else x


def _place(x: Value, axis: int, reverse: int) -> Value:
    """x with its first axis, reversed when asked, in another place."""
    axis = mv.normalize_axis(axis, x.rank)
    x = mv.Reverse((0,))(x) if reverse else x
    order = list(range(1, x.rank))
    order.insert(axis, 0)
    return mv.transpose(x, *order)


def scan(
    body: Body, states: Sequence[Value], scanned: Sequence[Value], node: Reading
) -> tuple[Value, ...]:
    """A scan along the first axes, as an operator."""
    kept = [s.type for s in states]
    while True:
        inner = node.trace(body, [*kept, *map(_slice, scanned)])
        after = [_widened(t, v.type) for t, v in zip(kept, inner.outputs)]
        if after == kept:
            return _close(inner, states, scanned, node)
        kept = after


def _widened(before: Type, after: Type) -> Type:
    """The type of a sequence before and after a step; tensors keep theirs."""
    return sq.join(before, after) if isinstance(before, SequenceType) else before


def _close(
    inner: Inner, states: Sequence[Value], scanned: Sequence[Value], node: Reading
) -> tuple[Value, ...]:
    """The results of a Scan with a traced body."""
    length = scanned[0].shape[0]
    for other in scanned[1:]:
        length = ew.require_equal(length, other.shape[0], "the lengths of scanned inputs")
    types = [before.type for before in inner.parameters[: len(states)]]
    for before, after in zip(types, inner.outputs):
        _require_same(before, after.type)
    for i, value in enumerate(inner.outputs[len(states) :]):
        item = outer_type(value.tensor, inner.sizes, node, f"scan{i}")
        assert isinstance(item, TensorType)
        types.append(item.with_shape(length, *item.shape))
    (graph,), captures = node.close(inner)
    op = control.Scan(graph, len(states), len(scanned), tuple(types))
    result = op(*states, *scanned, *captures)
    return result if isinstance(result, tuple) else (result,)


def _require_same(before: Type, after: Type) -> None:
    """Raises unless a state may keep its type over a step; sizes that may differ are checked at
    each run."""
    if before == after:
        return
    match before, after:
        case TensorType(), TensorType() if (
            before.dtype == after.dtype and before.rank == after.rank
        ):
            for a, b in zip(before.shape, after.shape):
                ew.require_equal(a, b, "the sizes of a state before and after a step")
        case _:
            raise ShapeError(f"a state is {before} before a step and {after} after it")


def unrolled(
    body: Body,
    states: Sequence[Value],
    scanned: Sequence[Value],
    attributes: dict[str, Any],
    node: Reading,
) -> Expansion:
    """To be raised: the body's nodes for each position, and a node that stacks what they give."""
    length = scanned[0].shape[0]
    assert isinstance(length, int)
    before: Sequence[Value | str] = states
    steps, items = Expansion([]), []
    for i in range(length):
        slices = [mv.squeeze(mv.slice_axis(x, 0, i, 1), 0) for x in scanned]
        step, names = node.expand(body, [*before, *slices])
        steps = steps.join(step)
        before, given = names[: len(states)], names[len(states) :]
        items.append(given)
    inputs = [*before, *(name for given in items for name in given)]
    return steps.join(node.last("ScanRest", inputs, attributes))


@internal_op
@any_rank
def ScanRest(
    *values: Value, states: int, axes: Sequence[int], reverse: Sequence[int]
) -> tuple[Value, ...]:
    """The last states, and each result of the steps stacked."""
    items = values[states:]
    stacked = [stack(items[i :: len(axes)]) for i in range(len(axes))]
    return (*values[:states], *map(_place, stacked, axes, reverse))


@onnx_op
@any_rank
def SequenceMap(sequence: Value, *others: Value, body: Body, node: Reading) -> Any:
    values = (sequence, *others)
    mapped = [i for i, v in enumerate(values) if isinstance(v.type, SequenceType)]
    made = all(isinstance(values[i].op, sq.MakeSequence) for i in mapped)
    if not made or len(sequence.inputs) > MOST_UNROLLED:
        try:
            return _map(values, mapped, body, node)
        except NeedsValue:
            pass
    raise _mapped(values, mapped, body, node)


def _map(values: Sequence[Value], mapped: Sequence[int], body: Body, node: Reading) -> Any:
    """The map as an operator."""
    types = [
        _item(v.type, node, f"item{i}") if i in mapped else v.type for i, v in enumerate(values)
    ]
    sizes = {s.name for t in types if isinstance(t, TensorType) for s in _symbols(t)}
    outer = {s.name for v in values if isinstance(v.type, TensorType) for s in _symbols(v.tensor)}
    inner = node.trace(body, types)
    inside = inner.sizes | (sizes - outer)

    def result(value: Value) -> SequenceType:
        return SequenceType(map_sizes(value.type, lambda s: _any_if_inside(s, inside)))

    results = tuple(result(value) for value in inner.outputs)
    (graph,), captures = node.close(inner)
    return control.SequenceMap(graph, len(values), tuple(mapped), results)(*values, *captures)


def _symbols(kind: TensorType) -> list[Any]:
    return [s for size in kind.shape if not isinstance(size, int) for s in size.symbols]


def _any_if_inside(size: Size, inside: set[str]) -> Size:
    if isinstance(size, int) or not any(s.name in inside for s in size.symbols):
        return size
    return sq.ANY


def _item(kind: Type, node: Reading, what: str) -> Type:
    """The type of one element, whose open sizes get names."""
    element = sq.element_of(kind)
    if not isinstance(element, TensorType):
        return element
    shape = [
        node.fresh_size(f"{what}.{axis}") if size == sq.ANY else size
        for axis, size in enumerate(element.shape)
    ]
    return TensorType(element.dtype, tuple(shape))


def _mapped(values: Sequence[Value], mapped: Sequence[int], body: Body, node: Reading) -> Expansion:
    """To be raised: the body's nodes for each element, and a node that gathers what they give."""
    lists = {i: node.elements(values[i], "the length of the sequence") for i in mapped}
    lengths = {len(items) for items in lists.values()}
    if len(lengths) != 1:
        raise ShapeError(f"the sequences have different lengths: {sorted(lengths)}")
    steps, items = Expansion([]), []
    for n in range(lengths.pop()):
        step, names = node.expand(
            body, [lists[i][n] if i in lists else v for i, v in enumerate(values)]
        )
        steps = steps.join(step)
        items += names
    return steps.join(node.last("SequenceMapRest", items, {"body": body}))


@internal_op
@any_rank
def SequenceMapRest(*items: Value, body: Body) -> tuple[Value, ...]:
    """A sequence for each output of the body."""
    count = len(body.outputs)
    kinds = [kind for _, kind in body.outputs]
    return tuple(
        sq.MakeSequence(kinds[i] or sq.nothing("float32"))(*items[i::count]) for i in range(count)
    )
