"""An ONNX model as plain records: what the importer sees instead of protobuf messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from whet.ir.types import TensorType, Type

# The numbers that TensorProto.DataType gives to element types.
_NUMBERED = [
    *("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16"),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "uint4", "int4", "float4_e2m1fn"),
    *("float8_e8m0fnu", "uint2", "int2"),
]
DTYPES: dict[int, str] = dict(enumerate(_NUMBERED, start=1))


@dataclass(frozen=True)
class Tensor:
    """A stored tensor whose elements are read when asked for."""

    name: str
    type: TensorType
    read: Callable[[], np.ndarray] = field(compare=False)


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an operator in the user's model, with the opset that gives it its
    meaning."""

    operator: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    overload: str = ""

    @property
    def label(self) -> str:
        """The node's name, or where it has none its first output's."""
        return self.name or next((o for o in self.outputs if o), "") or self.operator

    @property
    def bodies(self) -> Iterator[Body]:
        """The inner graphs among the attributes."""
        for value in self.attributes.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Body):
                    yield item

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Every name that the node takes from its scope, for itself or for an inner graph; each
        once."""
        inner = (name for body in self.bodies for name in body.reads)
        return tuple(dict.fromkeys(name for name in (*self.inputs, *inner) if name))


@dataclass(frozen=True, eq=False)
class Body:
    """A graph: the model's own, or the value of an attribute of If, Loop, Scan, SequenceMap."""

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[tuple[str, Type | None], ...]
    outputs: tuple[tuple[str, Type | None], ...]
    tensors: Mapping[str, Tensor]

    @cached_property
    def own(self) -> frozenset[str]:
        """The names that the graph itself gives a meaning."""
        made = (name for node in self.nodes for name in node.outputs)
        return frozenset((*(name for name, _ in self.inputs), *self.tensors, *made))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The names that it takes from the scope it stands in; each once."""
        used = (name for node in self.nodes for name in node.reads)
        ends = (name for name, _ in self.outputs)
        return tuple(name for name in unique((*used, *ends)) if name not in self.own)


def unique(names: Iterable[str]) -> list[str]:
    """The names, each once, in order."""
    return list(dict.fromkeys(names))


@dataclass(frozen=True, eq=False)
class Function:
    """A model-local function: nodes with named inputs, outputs and attributes."""

    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    attributes: Mapping[str, Any]
    """Its attributes' default values; one without a default is absent unless a call gives it."""


@dataclass(frozen=True)
class Reference:
    """An attribute of a node in a function that takes the value of the function's attribute."""

    name: str


FunctionKey = tuple[str, str, str]
"""Domain, name, overload."""


@dataclass(frozen=True, eq=False)
class Model:
    """A whole ONNX model."""

    body: Body
    functions: Mapping[FunctionKey, Function]
