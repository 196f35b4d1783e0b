"""What an operator's attributes may be: how they compare, and the named sizes in them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from whet.errors import ShapeError
from whet.ir.sizes import Expr, Size, substitute
from whet.ir.types import (
    OptionalType,
    SequenceType,
    TensorType,
    UnrankedType,
    dtype_name,
    map_sizes,
)


class Keyed:
    """What equals another of its kind where their keys are equal."""

    @property
    def key(self) -> Any:
        raise NotImplementedError


class Nested(Keyed):
    """What an operator's attribute may hold a graph as: a branch, the body of a loop."""

    @property
    def values(self) -> tuple[Any, ...]:
        """All that it computes."""
        raise NotImplementedError

    @property
    def symbols(self) -> frozenset[str]:
        """The named sizes in the attributes of its operators."""
        raise NotImplementedError

    @property
    def uses_sizes(self) -> bool:
        """Whether an attribute of its operators is an expression over named sizes."""
        raise NotImplementedError

    def bind(self, sizes: Mapping[str, Size]) -> Nested:
        """The same with named sizes replaced; raises ShapeError where they do not fit."""
        raise NotImplementedError


class Token:
    """Equal only to itself: what keeps one inner graph's parameter, or one effect, apart from
    another's."""

    _count = itertools.count()
    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = next(Token._count)

    def __repr__(self) -> str:
        return f"#{self.number}"


def attribute_key(x: Any) -> Any:
    """A hashable stand-in that tells apart what Python's == would merge."""
    match x:
        case bool() | None | str() | bytes():
            return type(x), x
        case int():
            return int, x
        case float():
            return float, struct.pack("<d", x)
        case tuple():
            return tuple, *(attribute_key(i) for i in x)
        case np.ndarray():
            return array_key(x)
        case Expr() | TensorType() | UnrankedType() | SequenceType() | OptionalType() | Token():
            return x
        case Keyed():
            return x.key
    raise TypeError(f"an operator's attribute cannot be a {type(x).__name__}: {x!r}")


def native(x: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def array_key(x: np.ndarray) -> tuple[Any, ...]:
    """Dtype, shape and a digest of the bytes."""
    data = repr(x.tolist()).encode() if x.dtype == object else native(x).tobytes()
    return np.ndarray, dtype_name(x.dtype), x.shape, blake2b(data, digest_size=16).digest()


def bind(x: Any, sizes: Mapping[str, Size]) -> Any:
    """The attribute with named sizes replaced."""
    match x:
        case Expr():
            return substitute(x, sizes)
        case tuple():
            bound = tuple(bind(i, sizes) for i in x)
            return x if all(a is b for a, b in zip(x, bound)) else bound
        case TensorType() | SequenceType() | OptionalType():
            return map_sizes(x, lambda size: substitute(size, sizes))
        case Nested():
            try:
                return x.bind(sizes)
            except ShapeError:
                return x  # a branch that these sizes do not fit: the error is for who takes it
    return x


def uses_sizes(x: Any) -> bool:
    """Whether an attribute has named sizes in it, those of an inner graph's types left out."""
    match x:
        case Expr():
            return True
        case tuple():
            return any(map(uses_sizes, x))
        case TensorType():
            return uses_sizes(x.shape)
        case Nested():
            return x.uses_sizes
    return False


def symbols(x: Any) -> frozenset[str]:
    """The names of the sizes in an attribute."""
    match x:
        case Expr():
            return frozenset(s.name for s in x.symbols)
        case tuple():
            return frozenset[str]().union(*map(symbols, x))
        case TensorType():
            return symbols(x.shape)
        case SequenceType() | OptionalType():
            return symbols(x.element)
        case Nested():
            return x.symbols
    return frozenset()


def short(x: Any) -> str:
    """The attribute in a few characters, for one line about an operator."""
    if isinstance(x, np.ndarray):
        return str(x.tolist()) if x.size <= 4 else f"{x.dtype}{list(x.shape)}"
    if isinstance(x, Nested):
        return f"<graph of {len(x.values)}>"
    return str(x) if isinstance(x, Expr) else repr(x)
