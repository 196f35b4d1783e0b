"""Attributes and operators from plain data: each value must be what the operator's class says."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.engine.elements import byte_count, unpack
from whet.engine.plain import (
    LARGEST,
    Plain,
    a_list,
    a_number,
    a_text,
    an_index,
    entries,
    need,
    short,
)
from whet.engine.schema import Schema, operator_called, schema_of
from whet.engine.size_table import SizeReader
from whet.errors import InvalidEngine
from whet.ir.graph import Graph, Op, Token
from whet.ir.sizes import Expr, Size
from whet.ir.types import NUMPY_DTYPES, OptionalType, SequenceType, TensorType, Type, UnrankedType

MOST_AXES = 64  # NumPy's own limit
MOST_ELEMENTS = 2**58  # of a tensor whose sizes are known: its bytes still count in 64 bits


class AttributeReader:
    """Reads attributes that refer to the sizes, constants and graphs read so far."""

    def __init__(
        self,
        classes: list[Plain],
        sizes: SizeReader,
        constants: memoryview | bytes,
        graphs: Sequence[Graph],
    ) -> None:
        self.sizes = sizes
        self.constants = np.frombuffer(constants, np.uint8)
        self.graphs = graphs
        self.tokens: dict[int, Token] = {}
        self.classes = [self.operator(a_list(entry, "an operator")) for entry in classes]

    def operator(self, entry: list[Any]) -> tuple[Schema, list[str]]:
        """One class and the names of the attributes that the file gives."""
        name, *fields = [a_text(e, "a name") for e in entry] or [""]
        operator = operator_called(name)
        if operator is None:
            raise InvalidEngine(f"this version of whet has no operator called {short(name)}")
        schema = schema_of(operator)  # type: ignore[arg-type]  # a class hashes too
        unknown = [f for f in fields if f not in schema.fields]
        need(not unknown, f"{name} has no attribute {', '.join(unknown)} in this version of whet")
        missing = sorted(schema.required - set(fields))
        need(not missing, f"{name} needs the attribute {', '.join(missing)}")
        need(len(set(fields)) == len(fields), f"{name} has an attribute twice")
        return schema, fields

    def op(self, entry: list[Any]) -> tuple[Op, Schema]:
        kind = an_index(entry[0] if entry else None, len(self.classes), "the operator class")
        schema, fields = self.classes[kind]
        need(
            len(entry) == len(fields) + 1, f"an attribute of {schema.operator.__name__} is missing"
        )
        return self.build(schema, dict(zip(fields, entry[1:]))), schema

    def build(self, schema: Schema, given: Mapping[str, Plain]) -> Op:
        """The operator with these attributes, each of the type that its field is annotated with."""
        attributes = {}
        for field, plain in given.items():
            value = self.attribute(plain)
            if not schema.fields[field](value):
                what = f"{schema.operator.__name__}.{field}"
                raise InvalidEngine(f"{what} cannot be {short(value)}")
            attributes[field] = value
        return schema.operator(**attributes)

    def attribute(self, plain: Plain) -> Any:
        kind = type(plain)
        if kind is int:
            return a_number(plain, -LARGEST, LARGEST, "an attribute")
        if kind is str or kind is bool or plain is None:
            return plain
        if kind is list:
            return tuple([self.attribute(p) for p in plain])
        tag = next(iter(plain)) if kind is dict and len(plain) == 1 else ""
        read = _TAGS.get(tag)
        if read is None:
            raise InvalidEngine(f"{short(plain)} is no attribute")
        return read(self, plain[tag])

    def a_size(self, content: Plain) -> Size:
        return self.sizes.entry(content)

    def a_float(self, content: Plain) -> float:
        data = _from_hex(content)
        need(len(data) == 8, "a float has 8 bytes")
        return float(struct.unpack("<d", data)[0])

    def a_token(self, content: Plain) -> Token:
        return self.tokens.setdefault(a_number(content, 0, LARGEST, "a token"), Token())

    def a_graph(self, content: Plain) -> Graph:
        return self.graphs[an_index(content, len(self.graphs), "the graph")]

    def an_operator(self, content: Plain) -> Op:
        name, given = entries(content, 2, "an operator")
        need(type(given) is dict, "an operator's attributes must be named")
        schema, _ = self.operator([name, *given])
        return self.build(schema, given)

    def a_tensor(self, content: Plain) -> TensorType:
        dtype, shape = entries(content, 2, "a tensor's type")
        kind = TensorType(
            _dtype(dtype), tuple([self.sizes.size(s) for s in a_list(shape, "a shape")])
        )
        check_type(kind)
        return kind

    def an_unranked(self, content: Plain) -> UnrankedType:
        dtype, none = entries(content, 2, "a type without a shape")
        need(type(none) is bool, "an empty sequence's element is marked or not")
        return UnrankedType(_dtype(dtype), none)

    def a_type(self, plain: Plain) -> Type:
        kind = self.attribute(plain)
        if not isinstance(kind, TensorType | UnrankedType | SequenceType | OptionalType):
            raise InvalidEngine(f"{short(plain)} is no type")
        return kind

    def a_sequence(self, content: Plain) -> SequenceType:
        return SequenceType(self.a_type(content))

    def an_optional(self, content: Plain) -> OptionalType:
        return OptionalType(self.a_type(content))

    def an_array(self, content: Plain) -> np.ndarray:
        dtype, sizes, elements = entries(content, 3, "an array")
        shape = tuple([a_number(s, 0, MOST_ELEMENTS, "a size") for s in a_list(sizes, "a shape")])
        check_type(TensorType(_dtype(dtype), shape))
        if dtype == "string":
            return self.strings(shape, a_list(elements, "strings"))
        return unpack(self.stored(elements, byte_count(dtype, shape)), dtype, shape)

    def stored(self, elements: Plain, count: int) -> np.ndarray:
        """The bytes of an array: written out, or an offset in the constants."""
        if type(elements) is str:
            data = np.frombuffer(_from_hex(elements), np.uint8)
        else:
            start = a_number(elements, 0, self.constants.size, "an offset in the constants")
            data = self.constants[start : start + count]
        need(data.size == count, f"an array of {count} bytes has {data.size}")
        return data

    def strings(self, shape: tuple[int, ...], elements: list[Plain]) -> np.ndarray:
        need(len(elements) == math.prod(shape), "a string array lacks elements")
        array = np.empty(len(elements), object)
        for index, plain in enumerate(elements):
            array[index] = self.attribute(plain)
            if not isinstance(array[index], str | bytes | int | Expr):
                raise InvalidEngine(f"{short(plain)} is no string")
        array = array.reshape(shape)
        array.setflags(write=False)
        return array


_TAGS: dict[str, Callable[[AttributeReader, Plain], Any]] = {
    "a": AttributeReader.an_array,
    "b": lambda decoder, content: _from_hex(content),
    "f": AttributeReader.a_float,
    "g": AttributeReader.a_graph,
    "k": AttributeReader.a_token,
    "o": AttributeReader.an_optional,
    "op": AttributeReader.an_operator,
    "q": AttributeReader.a_sequence,
    "s": AttributeReader.a_size,
    "t": AttributeReader.a_tensor,
    "u": AttributeReader.an_unranked,
}


def check_type(kind: Type) -> None:
    """Raises InvalidEngine for an unknown dtype, too many axes, a negative size, or too many
    elements to count."""
    if isinstance(kind, TensorType | UnrankedType):
        _dtype(kind.dtype)
    if not isinstance(kind, TensorType):
        return
    count = 1
    for size in kind.shape:
        if type(size) is int:
            if size < 0:
                raise InvalidEngine(f"no tensor can be {kind}")
            count *= size or 1
    if count > MOST_ELEMENTS or len(kind.shape) > MOST_AXES:
        raise InvalidEngine(f"no tensor can be {kind}")


def _dtype(plain: Plain) -> str:
    if type(plain) is not str or plain not in NUMPY_DTYPES:
        raise InvalidEngine(f"there is no dtype {short(plain)}")
    return plain


def _from_hex(content: Plain) -> bytes:
    try:
        return bytes.fromhex(a_text(content, "bytes"))
    except ValueError:
        raise InvalidEngine(f"{short(content)} is not hexadecimal") from None
