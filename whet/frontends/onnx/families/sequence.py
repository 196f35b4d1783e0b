"""ONNX's operators on sequences and optionals.

A sequence whose structure is known while reading is a MakeSequence: its elements are that
operator's inputs, and most operators on it come down to a choice among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.errors import InvalidModel
from whet.frontends.onnx.model import DTYPES
from whet.frontends.onnx.registry import NeedsValue, any_rank, onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size
from whet.ir.types import OptionalType, TensorType, Type, UnrankedType
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import sequence as sq

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading

MOST_PARTS = 1024  # of a split into parts of size 1


@onnx_op
def SequenceEmpty(*, dtype: int = 1) -> Value:
    if dtype not in DTYPES:
        raise InvalidModel(f"the attribute dtype is {dtype}, which names no element type")
    return sq.MakeSequence(sq.nothing(DTYPES[dtype]))()


@onnx_op
@any_rank
def SequenceConstruct(*items: Value) -> Value:
    return sq.MakeSequence(items[0].type)(*items)


def made_of(sequence: Value) -> tuple[Value, ...] | None:
    """The elements of a sequence whose structure is known, in every run the same."""
    sq.element_of(sequence.type)
    if not isinstance(sequence.op, sq.MakeSequence):
        return None
    return tuple(v for v in sequence.inputs if v is not None)


def place(index: Value | None, default: int, node: Reading) -> int | None:
    """A position where it is known in every run."""
    if index is None:
        return default
    known = node.known(index)
    return None if known is None or known.dtype == object else int(known.reshape(()))


@onnx_op
@any_rank
def SequenceInsert(
    sequence: Value, item: Value, index: Value | None = None, *, node: Reading
) -> Value:
    items = made_of(sequence)
    if items is not None:
        at = place(index, len(items), node)
        if at is not None:
            at = sq.position(at, len(items), len(items))
            return sq.MakeSequence(item.type)(*items[:at], item, *items[at:])
    return sq.SequenceInsert()(sequence, item, index)


@onnx_op
@any_rank
def SequenceErase(sequence: Value, index: Value | None = None, *, node: Reading) -> Value:
    items = made_of(sequence)
    if items is not None:
        at = place(index, -1, node)
        if at is not None:
            at = sq.position(at, len(items), len(items) - 1)
            return sq.MakeSequence(sq.element_of(sequence.type))(*items[:at], *items[at + 1 :])
    return sq.SequenceErase()(sequence, index)


@onnx_op
@any_rank
def SequenceAt(sequence: Value, index: Value, *, node: Reading) -> Value:
    items = made_of(sequence)
    at = place(index, 0, node)
    if items is not None and at is not None:
        return items[sq.position(at, len(items), len(items) - 1)]
    return sq.SequenceAt(named(sq.element_of(sequence.type), node, "item"))(sequence, index)


def named(kind: Type, node: Reading, what: str) -> Type:
    """The type of an element with a name for each size that differs between elements."""
    if not isinstance(kind, TensorType):
        return kind
    shape = [
        node.fresh_size(f"{what}.{axis}") if size == sq.ANY else size
        for axis, size in enumerate(kind.shape)
    ]
    return TensorType(kind.dtype, tuple(shape))


@onnx_op
@any_rank
def SequenceLength(sequence: Value) -> Value:
    items = made_of(sequence)
    return sq.SequenceLength()(sequence) if items is None else constant(len(items), "int64")


@onnx_op
@any_rank
def ConcatFromSequence(sequence: Value, *, axis: int, new_axis: int = 0, node: Reading) -> Value:
    items = made_of(sequence)
    if items is None and not isinstance(sq.element_of(sequence.type), TensorType):
        items = node.elements(sequence, "the number of axes of the elements")
    if items is None:
        return _joined(sequence, axis, bool(new_axis), node)
    if not items:
        raise InvalidModel("an empty sequence has no elements to join")
    for item in items:
        if isinstance(item.type, UnrankedType):
            raise NeedsValue(item, "the number of axes")
    if new_axis:
        place = mv.normalize_axis(axis, items[0].rank + 1)
        items = tuple(mv.unsqueeze(item, place) for item in items)
    place = mv.normalize_axis(axis, items[0].rank)
    return items[0] if len(items) == 1 else mv.Concat(place)(*items)


def _joined(sequence: Value, axis: int, new_axis: bool, node: Reading) -> Value:
    """The elements of a sequence of unknown length, joined."""
    element = sq.element_of(sequence.type)
    assert isinstance(element, TensorType)
    place = mv.normalize_axis(axis, element.rank + new_axis)
    shape: list[Size] = list(element.shape)
    if new_axis:
        shape.insert(place, sq.ANY)
    shape[place] = sq.ANY
    kind = named(TensorType(element.dtype, tuple(shape)), node, "joined")
    assert isinstance(kind, TensorType)
    return sq.JoinSequence(place, new_axis, kind)(sequence)


@onnx_op
def SplitToSequence(
    x: Value, split: Value | None = None, *, axis: int = 0, keepdims: int = 1, node: Reading
) -> Value:
    place = mv.normalize_axis(axis, x.rank)
    length = x.shape[place]
    keep = split is not None or bool(keepdims)  # keepdims only counts where parts are of size 1
    sizes = _parts(split, length, node)
    if sizes is not None and len(sizes) <= MOST_PARTS:
        parts = mv.split(x, sizes, place)
        return sq.MakeSequence(x.type)(*(p if keep else mv.squeeze(p, place) for p in parts))
    split = constant(1, "int64") if split is None else ew.Cast("int64")(split)
    size = 1 if split is None else sq.ANY
    shape = [size if i == place else s for i, s in enumerate(x.shape) if keep or i != place]
    return sq.SplitSequence(place, keep, TensorType(x.dtype, tuple(shape)))(x, split)


def _parts(split: Value | None, length: Size, node: Reading) -> tuple[Size, ...] | None:
    """The sizes of the parts, where their number is known."""
    if split is None:
        return (1,) * length if isinstance(length, int) else None
    known = node.known(split)
    if known is None or split.rank == 1:
        return None if known is None else tuple(known.tolist())
    size = known.reshape(()).tolist()
    if not isinstance(size, int) or not isinstance(length, int):
        return None
    if size < 1:
        raise InvalidModel(f"parts of {size} elements cannot be made")
    rest = length % size
    return (*(size,) * (length // size), *((rest,) if rest else ()))


# Optionals


@onnx_op
@any_rank
def Optional(value: Value | None = None, *, type: Type | None = None) -> Value:
    if value is None and type is None:
        raise InvalidModel("an Optional needs an input or the attribute type")
    return sq.MakeOptional(type if value is None else value.type)(value)  # type: ignore[arg-type]


@onnx_op
@any_rank
def OptionalHasElement(optional: Value | None = None) -> Value:
    if optional is None:
        return constant(False)
    if not isinstance(optional.type, OptionalType):
        return constant(True)
    if isinstance(optional.op, sq.MakeOptional):
        return constant(optional.inputs[0] is not None if optional.inputs else False)
    return sq.HasElement()(optional)


@onnx_op
@any_rank
def OptionalGetElement(optional: Value, *, node: Reading) -> Value:
    if not isinstance(optional.type, OptionalType):
        return optional
    if isinstance(optional.op, sq.MakeOptional):
        if not optional.inputs or optional.inputs[0] is None:
            raise InvalidModel("the optional holds no element")
        return optional.inputs[0]
    return sq.GetElement(named(optional.type.element, node, "element"))(optional)
