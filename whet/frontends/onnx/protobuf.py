"""ONNX files and messages to records. The only part of the importer that needs the `onnx`
package."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from whet.errors import InvalidModel
from whet.frontends.onnx.model import (
    DTYPES,
    Body,
    Function,
    FunctionKey,
    Model,
    Node,
    Reference,
    Tensor,
)
from whet.frontends.onnx.registry import NEWEST_OPSET
from whet.frontends.onnx.tensors import dense, elements
from whet.ir.sizes import Size, symbol
from whet.ir.types import OptionalType, SequenceType, TensorType, Type, UnrankedType

if TYPE_CHECKING:
    import onnx

MOST_NESTED = 32  # inner graphs, types and functions within each other; exporters stay below 5

Record = TypeVar("Record")

logger = logging.getLogger("whet")


def read_model(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Model:
    """The records of a model file, its bytes or its ModelProto; raises InvalidModel for what is
    none."""
    proto, folder = parse(source)
    if not proto.HasField("graph"):
        why = "it has no graph" if proto.ByteSize() else "it is empty"
        raise InvalidModel(f"{_where(source)} is not an ONNX model: {why}")
    return Reader(folder).model(proto)


def parse(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
) -> tuple[Any, pathlib.Path | None]:
    """The message, and the folder that external data lies in, where there is one."""
    import onnx
    from google.protobuf.message import DecodeError

    if isinstance(source, onnx.ModelProto):
        return source, None
    folder = None
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        data, folder = _contents(source)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise InvalidModel(
            f"{_where(source)} is not an ONNX model, or only a part of one: {error}, in "
            f"{len(data):,} bytes"
        ) from None
    return proto, folder


def _contents(source: str | os.PathLike[str]) -> tuple[bytes, pathlib.Path]:
    try:
        if not isinstance(source, str | os.PathLike):
            kind = type(source).__name__
            raise ValueError(f"a model is a path, bytes or an onnx.ModelProto, not a {kind}")
        path = pathlib.Path(source)
        if path.is_char_device() or path.is_block_device():
            raise OSError("it is a device, which may have no end")
        return path.read_bytes(), path.resolve().parent
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{_where(source)} cannot be read: {error}") from None


def _where(source: Any) -> str:
    return f"{os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else "the given data"


@dataclass
class Reader:
    """Converts messages to records; knows the folder in which external data lies."""

    folder: pathlib.Path | None
    depth: int = field(default=0, init=False)

    def model(self, proto: Any) -> Model:
        opsets = _opsets(proto.opset_import)
        if opsets.get("", 0) > NEWEST_OPSET:
            logger.warning(
                "the model is of opset %d and is read as of opset %d, the newest that whet knows",
                opsets[""],
                NEWEST_OPSET,
            )
        functions: dict[FunctionKey, Function] = {}
        for f in proto.functions:
            key = (_domain(f.domain), _name(f.name), _name(getattr(f, "overload", "")))
            if key in functions:
                raise InvalidModel(
                    f"the model defines the function {f.name!r} of {f.domain!r} twice"
                )
            functions[key] = self.function(f, opsets)
        return Model(self.body(proto.graph, opsets), functions)

    def function(self, proto: Any, outer: Mapping[str, int]) -> Function:
        opsets = {**outer, **_opsets(proto.opset_import)}
        return Function(
            _name(proto.name),
            _domain(proto.domain),
            _names(proto.input),
            _names(proto.output),
            tuple(self.node(n, opsets) for n in proto.node),
            {_name(a.name): self.attribute(a, opsets) for a in proto.attribute_proto},
        )

    def body(self, proto: Any, opsets: Mapping[str, int]) -> Body:
        self.depth += 1
        if self.depth > MOST_NESTED:
            raise InvalidModel(f"the model nests graphs more than {MOST_NESTED} deep")
        body = Body(
            _name(proto.name),
            tuple(self.node(n, opsets) for n in proto.node),
            tuple(_named(map(_declared, proto.input), "inputs").items()),
            tuple(map(_declared, proto.output)),
            _named(self.tensors(proto), "initializers"),
        )
        self.depth -= 1
        return body

    def tensors(self, proto: Any) -> Iterator[tuple[str, Tensor]]:
        for t in proto.initializer:
            yield _name(t.name), self.tensor(t)
        for sparse in proto.sparse_initializer:
            yield _name(sparse.values.name), self.sparse(sparse)

    def node(self, proto: Any, opsets: Mapping[str, int]) -> Node:
        domain = _domain(proto.domain)
        attributes = ((_name(a.name), self.attribute(a, opsets)) for a in proto.attribute)
        return Node(
            _name(proto.op_type),
            domain,
            opsets.get(domain, 1),
            _name(proto.name),
            _names(proto.input),
            _names(proto.output),
            _named(attributes, f"attributes of the node {proto.name or proto.op_type!r}"),
            _name(getattr(proto, "overload", "")),
        )

    def attribute(self, a: Any, opsets: Mapping[str, int]) -> Any:
        if a.ref_attr_name:
            return Reference(_name(a.ref_attr_name))
        read = ATTRIBUTES.get(a.type)
        if read is None:
            raise InvalidModel(f"attribute {a.name!r} has the unknown type {a.type}")
        return read(self, a, opsets)

    def tensor(self, proto: Any) -> Tensor:
        name = _name(proto.name)
        kind = _tensor_type(name, proto.data_type, proto.dims)
        return Tensor(name, kind, lambda: elements(proto, kind, self.folder))

    def sparse(self, proto: Any) -> Tensor:
        values, indices = self.tensor(proto.values), self.tensor(proto.indices)
        kind = _tensor_type(proto.values.name, proto.values.data_type, proto.dims)
        return Tensor(proto.values.name, kind, lambda: dense(values, indices, kind))


# The numbers that AttributeProto.AttributeType gives to kinds of attribute.
ATTRIBUTES: dict[int, Callable[[Reader, Any, Mapping[str, int]], Any]] = {
    1: lambda reader, a, opsets: float(a.f),
    2: lambda reader, a, opsets: int(a.i),
    3: lambda reader, a, opsets: _text(a.s),
    4: lambda reader, a, opsets: reader.tensor(a.t),
    5: lambda reader, a, opsets: reader.body(a.g, opsets),
    6: lambda reader, a, opsets: tuple(a.floats),
    7: lambda reader, a, opsets: tuple(a.ints),
    8: lambda reader, a, opsets: tuple(_text(s) for s in a.strings),
    9: lambda reader, a, opsets: tuple(reader.tensor(t) for t in a.tensors),
    10: lambda reader, a, opsets: tuple(reader.body(g, opsets) for g in a.graphs),
    11: lambda reader, a, opsets: reader.sparse(a.sparse_tensor),
    12: lambda reader, a, opsets: tuple(reader.sparse(s) for s in a.sparse_tensors),
    13: lambda reader, a, opsets: _type(a.tp),
    14: lambda reader, a, opsets: tuple(_type(t) for t in a.type_protos),
}


def _named(items: Iterable[tuple[str, Record]], what: str) -> dict[str, Record]:
    """The records by name; a name given twice is refused."""
    named: dict[str, Record] = {}
    for name, item in items:
        if name in named:
            raise InvalidModel(f"two {what} have the name {name!r}")
        named[name] = item
    return named


def _domain(domain: str | bytes) -> str:
    return "" if domain == "ai.onnx" else _name(domain)


def _opsets(imports: Iterable[Any]) -> dict[str, int]:
    return {_domain(o.domain): o.version for o in imports}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _name(name: str | bytes) -> str:
    """A field of type string, which protobuf gives as bytes where it is not UTF-8."""
    if isinstance(name, bytes):
        raise InvalidModel(f"the model holds a name that is not UTF-8: {name[:60]!r}")
    return name


def _names(names: Iterable[str | bytes]) -> tuple[str, ...]:
    return tuple(map(_name, names))


def _declared(value: Any) -> tuple[str, Type | None]:
    return _name(value.name), _type(value.type)


def _tensor_type(name: str, number: int, dims: Iterable[int]) -> TensorType:
    dtype = DTYPES.get(number)
    if dtype is None:
        raise InvalidModel(
            f"tensor {name!r} has the element type {number}, which whet does not know; "
            f"it knows {', '.join(DTYPES.values())}"
        )
    shape = tuple(dims)
    if any(d < 0 for d in shape):
        raise InvalidModel(f"tensor {name!r} has the shape {list(shape)}")
    return TensorType(dtype, shape)


def _type(proto: Any, depth: int = 0) -> Type | None:
    """The type that a model declares, or None where it declares none that whet knows."""
    if depth > MOST_NESTED:
        raise InvalidModel(f"the model nests types more than {MOST_NESTED} deep")
    match proto.WhichOneof("value"):
        case "tensor_type" | "sparse_tensor_type" as kind:
            tensor = getattr(proto, kind)
            dtype = DTYPES.get(tensor.elem_type)
            if dtype is None:
                return None
            ranked = tensor.HasField("shape")
            return (
                TensorType(dtype, tuple(_dims(tensor.shape.dim))) if ranked else UnrankedType(dtype)
            )
        case "sequence_type":
            element = _type(proto.sequence_type.elem_type, depth + 1)
            return element and SequenceType(_loose(element))
        case "optional_type":
            element = _type(proto.optional_type.elem_type, depth + 1)
            return element and OptionalType(_loose(element))
    return None


def _loose(element: Type) -> Type:
    """Exporters write scalars as the elements of a sequence where they mean any tensors."""
    match element:
        case TensorType(dtype=dtype, shape=()):
            return UnrankedType(dtype)
        case TensorType(dtype=dtype, shape=shape):
            return TensorType(dtype, tuple(s if isinstance(s, int) else ANY for s in shape))
    return element


ANY = symbol("?")


def _dims(dims: Iterable[Any]) -> Iterator[Size]:
    for d in dims:
        known = d.WhichOneof("value") == "dim_value" and d.dim_value >= 0
        yield d.dim_value if known else symbol(_name(d.dim_param)) if d.dim_param else ANY
