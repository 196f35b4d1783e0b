"""Operators on sequences (lists of values) and optionals (a value or nothing)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from whet.errors import IndexOutOfRange, ShapeError, TypeMismatch
from whet.ir.graph import Op, operator
from whet.ir.sizes import Size, symbol
from whet.ir.types import OptionalType, SequenceType, TensorType, Type, UnrankedType

ANY = symbol("?")
"""The size of an axis that differs from one element of a sequence to the next."""


def join(a: Type, b: Type) -> Type:
    """The narrowest type that values of both types have; raises TypeMismatch where there is
    none."""
    if a == b:
        return a
    match a, b:
        case UnrankedType(none=True), TensorType() | UnrankedType() if a.dtype == b.dtype:
            return b
        case TensorType() | UnrankedType(), UnrankedType(none=True) if a.dtype == b.dtype:
            return a
        case TensorType(), TensorType() if a.dtype == b.dtype and a.rank == b.rank:
            return TensorType(a.dtype, tuple(_either(x, y) for x, y in zip(a.shape, b.shape)))
        case ((TensorType() | UnrankedType()), (TensorType() | UnrankedType())) if (
            a.dtype == b.dtype
        ):
            return UnrankedType(a.dtype)
        case SequenceType(), SequenceType():
            return SequenceType(join(a.element, b.element))
        case OptionalType(), OptionalType():
            return OptionalType(join(a.element, b.element))
    raise TypeMismatch(f"{a} and {b} have no type in common")


def _either(a: Size, b: Size) -> Size:
    return a if a == b else ANY


def nothing(dtype: str) -> UnrankedType:
    """The element type of a sequence that is known to be empty."""
    return UnrankedType(dtype, none=True)


def element_of(sequence: Type) -> Type:
    """The type of a sequence's elements; raises TypeMismatch for what is no sequence."""
    if not isinstance(sequence, SequenceType):
        raise TypeMismatch(f"a sequence is needed, got {sequence}")
    return sequence.element


def position(index: Any, length: int, last: int) -> int:
    """An index counted from the front; negative ones count from the end."""
    found = int(np.asarray(index).reshape(()))
    if not -length <= found <= last:
        raise IndexOutOfRange(f"position {found} of a sequence of {length} does not exist")
    return found + length if found < 0 else found


@operator
class MakeSequence(Op):
    """The inputs, in order. `element` is the type of what an empty one could hold."""

    element: Type
    is_bookkeeping: ClassVar[bool] = True

    def infer(self, *inputs: Type) -> SequenceType:
        element: Type = self.element
        for position, kind in enumerate(inputs):
            element = kind if position == 0 else join(element, kind)
        return SequenceType(element)

    def reference(self, *items: Any) -> list[Any]:
        return list(items)


@operator
class SequenceAt(Op):
    """The element at a position, which has the type `kind`; a negative one counts from the end."""

    kind: Type
    defines_sizes: ClassVar[bool] = True
    is_bookkeeping: ClassVar[bool] = True

    def infer(self, sequence: Type, index: TensorType) -> Type:
        element_of(sequence)
        return self.kind

    def reference(self, sequence: list[Any], index: np.ndarray) -> Any:
        return sequence[position(index, len(sequence), len(sequence) - 1)]


@operator
class SequenceLength(Op):
    """The number of elements, an int64 scalar."""

    is_bookkeeping: ClassVar[bool] = True

    def infer(self, sequence: Type) -> TensorType:
        element_of(sequence)
        return TensorType("int64", ())

    def reference(self, sequence: list[Any]) -> np.ndarray:
        return np.array(len(sequence), np.int64)


@operator
class SequenceInsert(Op):
    """The sequence with an element put before a position, or at the end without one."""

    is_bookkeeping: ClassVar[bool] = True

    def infer(self, sequence: Type, item: Type, index: TensorType | None = None) -> Type:
        return SequenceType(join(element_of(sequence), item))

    def reference(
        self, sequence: list[Any], item: Any, index: np.ndarray | None = None
    ) -> list[Any]:
        length = len(sequence)
        place = length if index is None else position(index, length, length)
        return [*sequence[:place], item, *sequence[place:]]


@operator
class SequenceErase(Op):
    """The sequence without the element at a position, or without its last."""

    is_bookkeeping: ClassVar[bool] = True

    def infer(self, sequence: Type, index: TensorType | None = None) -> Type:
        element_of(sequence)
        return sequence

    def reference(self, sequence: list[Any], index: np.ndarray | None = None) -> list[Any]:
        last = len(sequence) - 1
        place = position(-1 if index is None else index, len(sequence), last)
        return [*sequence[:place], *sequence[place + 1 :]]


@operator
class JoinSequence(Op):
    """A sequence's elements one after the other along an axis, or stacked along a new one.

    `kind` is the result's type: an axis whose size only the run tells has a name of its own.
    """

    axis: int
    new_axis: bool
    kind: TensorType
    defines_sizes: ClassVar[bool] = True

    def infer(self, sequence: Type) -> TensorType:
        element_of(sequence)
        return self.kind

    def reference(self, sequence: list[np.ndarray]) -> np.ndarray:
        if not sequence:
            raise ShapeError("an empty sequence has no elements to join")
        return (np.stack if self.new_axis else np.concatenate)(sequence, self.axis)


@operator
class SplitSequence(Op):
    """A tensor cut along an axis into a sequence: parts of the given sizes, or of one size and a
    rest."""

    axis: int
    keep_axis: bool
    kind: Type

    def infer(self, x: TensorType, sizes: TensorType) -> SequenceType:
        return SequenceType(self.kind)

    def reference(self, x: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        length = x.shape[self.axis]
        if sizes.ndim == 0:
            cuts = np.arange(int(sizes), length, int(sizes))
        elif sizes.sum() != length:
            raise ShapeError(f"parts of {sizes.tolist()} do not make up an axis of {length}")
        else:
            cuts = np.cumsum(sizes)[:-1]
        parts = np.split(x, cuts, self.axis)
        return parts if self.keep_axis else [np.squeeze(part, self.axis) for part in parts]


@operator
class MakeOptional(Op):
    """Its input as an optional of elements of a type, or nothing where there is none."""

    element: Type
    is_bookkeeping: ClassVar[bool] = True

    def infer(self, value: Type | None = None) -> OptionalType:
        return OptionalType(self.element if value is None else value)

    def reference(self, value: Any = None) -> Any:
        return value


@operator
class HasElement(Op):
    """Whether an optional holds a value, a bool scalar."""

    is_bookkeeping: ClassVar[bool] = True

    def infer(self, optional: Type) -> TensorType:
        return TensorType("bool", ())

    def reference(self, optional: Any) -> np.ndarray:
        return np.array(optional is not None)


@operator
class GetElement(Op):
    """The value in an optional, which has the type `kind`."""

    kind: Type
    defines_sizes: ClassVar[bool] = True
    is_bookkeeping: ClassVar[bool] = True

    def infer(self, optional: Type) -> Type:
        if not isinstance(optional, OptionalType):
            raise TypeMismatch(f"an optional is needed, got {optional}")
        return self.kind

    def reference(self, optional: Any) -> Any:
        if optional is None:
            raise ShapeError("the optional holds no element")
        return optional
