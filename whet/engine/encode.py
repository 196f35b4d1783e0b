"""Graph -> plain data: lists, numbers and text that JSON holds, and the bytes of larger constants.

    {"sizes": [["symbol", "n", 0, null], ["//", {"s": 0}, 2], ["+", [1, 0], [4]], …],
     "operators": [["Reshape", "shape"], …],            a class and its attributes' names
     "graphs": [{"ops": [[0, [{"s": 2}, 64]], …],       inner graphs first, the outermost last
                 "nodes": [[0, 5], [1, 6, null], …],    an op and the Values that it reads
                 "inputs": …, "outputs": …, "names": …, "guards": …, "origins": …, "definers": …,
                 "late": …}, …]}

A Value is the number it gets by counting the nodes' results. A list is a tuple, and what JSON has
no exact form for stands in an object of one entry: {"s": a size}, {"f": the bits of a float},
{"b": bytes}, {"a": an array}, {"g": a graph}, {"k": a token}, {"op": an operator}, {"t": a tensor's
type}, {"u": a tensor's without a shape}, {"q": a sequence's}, {"o": an optional's}.

The same graph gives the same data in every process.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Any

import numpy as np

from whet.engine.elements import pack
from whet.engine.plain import Plain
from whet.engine.size_table import SizeWriter
from whet.ir.graph import Graph, Op, Token, Value, topological
from whet.ir.sizes import Expr
from whet.ir.types import OptionalType, SequenceType, TensorType, UnrankedType, dtype_name

INLINE_BYTES = 256  # a larger array goes to the constants section
ALIGNMENT = 64


def encode(graph: Graph) -> tuple[Plain, bytes]:
    """The graph as plain data, and the bytes of the constants that are too large for it."""
    return encode_with_tokens(graph)[:2]


def encode_with_tokens(graph: Graph) -> tuple[Plain, bytes, tuple[Token, ...]]:
    """The same, and the graph's tokens by their numbers there."""
    encoder = _Encoder()
    encoder.graph(graph)
    plain = {
        "sizes": encoder.sizes.table,
        "operators": list(encoder.operators.values()),
        "graphs": encoder.graphs,
    }
    return plain, bytes(encoder.constants), tuple(encoder.tokens)


class _Encoder:
    """The tables that one engine's graphs share, in the order in which they are first needed."""

    def __init__(self) -> None:
        self.sizes = SizeWriter()
        self.operators: dict[type[Op], list[str]] = {}
        self.graphs: list[Plain] = []
        self.constants = bytearray()
        self._graph_index: dict[int, int] = {}
        self.tokens: dict[Token, int] = {}
        self._offsets: dict[tuple[str, bytes], int] = {}

    def graph(self, graph: Graph) -> int:
        """The graph's place in the table; inner graphs of its operators come before it."""
        if id(graph) in self._graph_index:
            return self._graph_index[id(graph)]
        number: dict[Value, int] = {}
        ops: dict[Op, int] = {}
        rows: list[Plain] = []
        nodes: list[Plain] = []
        ends = (*graph.inputs, *graph.roots)
        for value in topological(ends, needs=graph.needs if graph.definers else None):
            if value in number:
                continue
            reads = [None if i is None else number[i] for i in value.inputs]
            if value.op not in ops:
                rows.append(self.op(value.op))
                ops[value.op] = len(ops)
            nodes.append([ops[value.op], *reads])
            for sibling in value.siblings:
                number[sibling] = len(number)
        guards = [
            [self.sizes.plain(g.left), self.sizes.plain(g.right), g.node, g.broadcast]
            for g in graph.guards
        ]
        self.graphs.append(
            {
                "ops": rows,
                "nodes": nodes,
                "inputs": [number[v] for v in graph.inputs],
                "outputs": [number[v] for v in graph.outputs],
                "names": list(graph.output_names),
                "guards": guards,
                "origins": _origins(graph, number),
                "definers": [[n, number[v]] for n, v in graph.definers.items() if v in number],
                "late": _late(graph.late),
            }
        )
        return self._graph_index.setdefault(id(graph), len(self.graphs) - 1)

    def op(self, op: Op) -> Plain:
        """The number of the operator's class, and its attributes in the order of that entry."""
        attributes = map(self.plain, op.attributes.values())
        self.operators.setdefault(type(op), [type(op).__name__, *op.names])
        return [list(self.operators).index(type(op)), *attributes]

    def plain(self, x: Any) -> Plain:
        """An attribute's value, its type and its bits."""
        match x:
            case None | bool() | str():
                return x
            case int():
                return int(x)
            case float():
                return {"f": struct.pack("<d", x).hex()}
            case bytes():
                return {"b": x.hex()}
            case tuple():
                return [self.plain(i) for i in x]
            case Expr():
                return self.sizes.plain(x)
            case np.ndarray():
                return {"a": self.array(x)}
            case TensorType():
                return {"t": [x.dtype, self.plain(x.shape)]}
            case UnrankedType():
                return {"u": [x.dtype, x.none]}
            case SequenceType():
                return {"q": self.plain(x.element)}
            case OptionalType():
                return {"o": self.plain(x.element)}
            case Token():
                return {"k": self.tokens.setdefault(x, len(self.tokens))}
            case Graph():
                return {"g": self.graph(x)}
            case Op():
                names = [f.name for f in fields(x)]  # type: ignore[arg-type]
                return {"op": [type(x).__name__, {n: self.plain(getattr(x, n)) for n in names}]}
        raise TypeError(f"an engine cannot hold the attribute {x!r} of type {type(x).__name__}")

    def array(self, array: np.ndarray) -> Plain:
        """Dtype, shape and elements: a list, hexadecimal bytes, or an offset in the constants."""
        dtype = dtype_name(array.dtype)
        shape = list(array.shape)
        if dtype == "string":
            return [dtype, shape, [self.plain(_element(x)) for x in array.reshape(-1).tolist()]]
        data = pack(array, dtype).tobytes()
        if len(data) <= INLINE_BYTES:
            return [dtype, shape, data.hex()]
        return [dtype, shape, self.constant(dtype, data)]

    def constant(self, dtype: str, data: bytes) -> int:
        """The offset in the constants of these bytes."""
        key = (dtype, data)
        if key not in self._offsets:
            self.constants.extend(bytes(-len(self.constants) % ALIGNMENT))
            self._offsets[key] = len(self.constants)
            self.constants.extend(data)
        return self._offsets[key]


def _element(x: Any) -> Any:
    """A string tensor's element. Sizes as data are ints and expressions, and stay so."""
    return x if isinstance(x, str | bytes | int | Expr) else str(x)


def _origins(graph: Graph, number: dict[Value, int]) -> Plain:
    """[names, Values] pairs: which of the user's nodes each Value came from."""
    grouped: dict[tuple[str, ...], list[int]] = {}
    for value, place in number.items():
        names = graph.origins.get(value)
        if names:
            grouped.setdefault(names, []).append(place)
    return [[list(names), places] for names, places in grouped.items()]


def _late(late: Any) -> Plain:
    """A late region is what its frontend makes of it."""
    return None if late is None else {"onnx": late.to_plain()}
