"""Plain data -> Graph: every name, count and type is checked, and all types are inferred anew."""

from __future__ import annotations

import gc
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
    record,
    short,
)
from whet.engine.schema import Schema, operators, schema_of
from whet.engine.size_table import SizeReader
from whet.errors import Error, InvalidEngine
from whet.ir.graph import Graph, Guard, Input, Op, Parameter, Token, Value, infer, make
from whet.ir.sizes import Expr, Size
from whet.ir.types import NUMPY_DTYPES, OptionalType, SequenceType, TensorType, Type, UnrankedType
from whet.ops.elementwise import collect_guards

MOST_AXES = 64  # NumPy's own limit
MOST_ELEMENTS = 2**58  # of a tensor whose sizes are known: its bytes still count in 64 bits


def decode(plain: Plain, constants: memoryview | bytes = b"") -> Graph:
    """The graph that `encode` wrote; raises InvalidEngine for what it would not have written."""
    try:
        with _no_collection():
            return _Decoder(plain, constants).run()
    except RecursionError:
        raise InvalidEngine("the graph is nested too deep") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Searching thousands of objects that all stay alive for garbage would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Decoder:
    """The tables of one engine, as far as they are read."""

    def __init__(self, plain: Plain, constants: memoryview | bytes) -> None:
        self.size_table, self.class_table, self.graph_table = (
            a_list(part, "a table") for part in record(plain, "sizes", "operators", "graphs")
        )
        self.constants = np.frombuffer(constants, np.uint8)
        self.sizes = SizeReader()
        self.classes: list[tuple[Schema, list[str]]] = []
        self.graphs: list[Graph] = []
        self.tokens: dict[int, Token] = {}
        self.guarded: set[tuple[Size, Size, bool]] = set()

    def run(self) -> Graph:
        need(len(self.graph_table) > 0, "the engine holds no graph")
        for index, entry in enumerate(self.size_table):
            with _locate(f"size {index}"):
                self.sizes.add(a_list(entry, "a size"))
        self.classes = [self.operator(a_list(c, "an operator")) for c in self.class_table]
        for entry in self.graph_table:
            given = entry.get("guards") if type(entry) is dict else []
            guards = self.guards(a_list(given, "guards"))
            self.guarded.update((g.left, g.right, g.broadcast) for g in guards)
        for index, entry in enumerate(self.graph_table):
            outermost = index == len(self.graph_table) - 1
            with _locate("the graph" if outermost else f"inner graph {index}"):
                self.graphs.append(self.graph(entry, Input if outermost else Parameter))
        return self.graphs[-1]

    # Operators

    def operator(self, entry: list[Any]) -> tuple[Schema, list[str]]:
        """One class and the names of the attributes that the file gives."""
        name, *fields = [a_text(e, "a name") for e in entry] or [""]
        if name not in operators():
            raise InvalidEngine(f"this version of whet has no operator called {short(name)}")
        schema = schema_of(operators()[name])  # type: ignore[arg-type]  # a class hashes too
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

    # Types

    def a_tensor(self, content: Plain) -> TensorType:
        dtype, shape = entries(content, 2, "a tensor's type")
        kind = TensorType(
            _dtype(dtype), tuple([self.sizes.size(s) for s in a_list(shape, "a shape")])
        )
        check_type(kind)
        return kind

    def a_type(self, plain: Plain) -> Type:
        kind = self.attribute(plain)
        if not isinstance(kind, TensorType | UnrankedType | SequenceType | OptionalType):
            raise InvalidEngine(f"{short(plain)} is no type")
        return kind

    def a_sequence(self, content: Plain) -> SequenceType:
        return SequenceType(self.a_type(content))

    def an_optional(self, content: Plain) -> OptionalType:
        return OptionalType(self.a_type(content))

    # Arrays

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

    # Graphs

    def graph(self, plain: Plain, leaf: type[Op]) -> Graph:
        """One graph; its inputs are all the Values of class `leaf` in it."""
        ops, nodes, inputs, outputs, names, guards, origins = record(
            plain, "ops", "nodes", "inputs", "outputs", "names", "guards", "origins"
        )
        made = []
        for index, entry in enumerate(a_list(ops, "operators")):
            with _locate(f"operator {index}"):
                made.append(self.op(a_list(entry, "an operator")))
        values = self.values(a_list(nodes, "nodes"), made)
        came_from = self.origins(values, a_list(origins, "origins"))
        graph = Graph(
            self.pick(values, inputs, "inputs"),
            self.pick(values, outputs, "outputs"),
            tuple([a_text(n, "an output's name") for n in a_list(names, "output names")]),
            (*self.guards(a_list(guards, "guards")), *self.missing_guards(values, came_from)),
            came_from,
        )
        _check_ends(graph, values, leaf)
        return graph

    def values(self, nodes: list[Plain], ops: list[tuple[Op, Schema]]) -> list[Value]:
        values: list[Value] = []
        for index, node in enumerate(nodes):
            try:
                values.extend(_node(node, values, ops))
            except Exception as error:
                # An operator's `infer` trusts its caller; given nonsense it may raise anything.
                raise InvalidEngine(f"node {index}: {_reason(error)}") from None
        return values

    def missing_guards(
        self, values: list[Value], origins: Mapping[Value, tuple[str, ...]]
    ) -> Iterator[Guard]:
        """What the nodes need of named sizes and no guard in the file says: kernels rely on it."""
        if not self.sizes.table:
            return
        for value in values:
            needed: list[Guard] = []
            with collect_guards(needed):
                infer(value.op, value.inputs)
            for guard in needed:
                key = (guard.left, guard.right, guard.broadcast)
                if key not in self.guarded:
                    self.guarded.add(key)
                    node = " + ".join(origins.get(value, ())) or str(value.op)
                    yield replace(guard, node=node)

    def pick(self, values: list[Value], indices: Plain, what: str) -> tuple[Value, ...]:
        return tuple([values[an_index(i, len(values), "the value")] for i in a_list(indices, what)])

    def guards(self, plain: list[Plain]) -> tuple[Guard, ...]:
        result = []
        for entry in plain:
            left, right, node, broadcast = entries(entry, 4, "a guard")
            need(type(broadcast) is bool, "a guard is for broadcasting or not")
            guard = Guard(
                self.sizes.size(left), self.sizes.size(right), a_text(node, "a node"), broadcast
            )
            result.append(guard)
        return tuple(result)

    def origins(self, values: list[Value], plain: list[Plain]) -> dict[Value, tuple[str, ...]]:
        result: dict[Value, tuple[str, ...]] = {}
        for entry in plain:
            names, places = entries(entry, 2, "an origin")
            key = tuple([a_text(n, "a node's name") for n in a_list(names, "names")])
            result.update(dict.fromkeys(self.pick(values, places, "values"), key))
        return result


_TAGS: dict[str, Callable[[_Decoder, Plain], Any]] = {
    "a": _Decoder.an_array,
    "b": lambda decoder, content: _from_hex(content),
    "f": _Decoder.a_float,
    "g": _Decoder.a_graph,
    "k": _Decoder.a_token,
    "o": _Decoder.an_optional,
    "op": _Decoder.an_operator,
    "q": _Decoder.a_sequence,
    "s": _Decoder.a_size,
    "t": _Decoder.a_tensor,
    "u": lambda decoder, content: UnrankedType(_dtype(content)),
}


def _node(entry: Plain, values: list[Value], ops: list[tuple[Op, Schema]]) -> tuple[Value, ...]:
    """The results of one more node, which reads Values that are there already."""
    if type(entry) is not list or not entry:
        raise InvalidEngine(f"{short(entry)} is no node")
    op, schema = ops[an_index(entry[0], len(ops), "the operator")]
    count = len(values)
    reads = [None if i is None else values[an_index(i, count, "the value")] for i in entry[1:]]
    if not schema.least_inputs <= len(reads) <= schema.most_inputs:
        raise InvalidEngine(f"{op} cannot take {len(reads)} inputs")
    results = make(op, reads)
    for result in results:
        check_type(result.type)
    return results


def check_type(kind: Type) -> None:
    """Raises InvalidEngine for too many axes, a negative size, or too many elements to count."""
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


def _check_ends(graph: Graph, values: Sequence[Value], leaf: type[Op]) -> None:
    """Inputs are distinct leaves, and all there are; each output has a name, or none has."""
    need(all(isinstance(v.op, leaf) for v in graph.inputs), f"an input that is no {leaf.__name__}")
    need(len(set(graph.inputs)) == len(graph.inputs), "an input that is listed twice")
    leaves = {v for v in values if isinstance(v.op, Input | Parameter)}
    need(leaves == set(graph.inputs), "a value that neither is an input nor comes from one")
    names = [v.op.name for v in graph.inputs if isinstance(v.op, Input)]
    need(len(set(names)) == len(names), "two inputs of one name")
    need(len(graph.output_names) in (0, len(graph.outputs)), "an output without a name")


def _dtype(plain: Plain) -> str:
    if type(plain) is not str or plain not in NUMPY_DTYPES:
        raise InvalidEngine(f"there is no dtype {short(plain)}")
    return plain


def _from_hex(content: Plain) -> bytes:
    try:
        return bytes.fromhex(a_text(content, "bytes"))
    except ValueError:
        raise InvalidEngine(f"{short(content)} is not hexadecimal") from None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"


@contextmanager
def _locate(where: str) -> Iterator[None]:
    """Says where in the engine an error is."""
    try:
        yield
    except InvalidEngine as error:
        raise InvalidEngine(f"{where}: {error}") from None
