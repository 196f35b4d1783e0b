"""An ONNX file as plain records: what the readers see instead of protobuf messages."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import InvalidModel
from whet.ir.sizes import Size, symbol
from whet.ir.types import NUMPY_DTYPES, OptionalType, SequenceType, TensorType, Type

if TYPE_CHECKING:
    import onnx

# The numbers that TensorProto.DataType gives to element types.
DTYPES: dict[int, str] = dict(
    enumerate(
        "float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 complex64 "
        "complex128 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 "
        "float4_e2m1fn float8_e8m0fnu uint2 int2".split(),
        start=1,
    )
)


@dataclass(frozen=True)
class Tensor:
    """A stored tensor whose elements are read when asked for."""

    name: str
    type: TensorType
    read: Callable[[], np.ndarray] = field(compare=False)


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an operator in the user's model."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The node's name, or where it has none its first output's."""
        return self.name or next((o for o in self.outputs if o), "") or self.operator


@dataclass(frozen=True, eq=False)
class Body:
    """A graph: the model's own, or the value of an attribute of If, Loop, Scan, SequenceMap."""

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[tuple[str, Type | None], ...]
    outputs: tuple[tuple[str, Type | None], ...]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Function:
    """A model-local function: nodes with named inputs, outputs and attributes."""

    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    attributes: Mapping[str, Any]  # with their defaults; REQUIRED where there is none
    opsets: Mapping[str, int]


REQUIRED = object()


@dataclass(frozen=True)
class Reference:
    """An attribute of a node in a function that takes the value of the function's attribute."""

    name: str


@dataclass(frozen=True, eq=False)
class Model:
    """A whole ONNX model."""

    body: Body
    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str], Function]


def read_model(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Model:
    """The records of a model file, its bytes or its ModelProto; raises InvalidModel for what is none."""
    import onnx
    from google.protobuf.message import DecodeError

    folder: pathlib.Path | None = None
    if isinstance(source, onnx.ModelProto):
        proto = source
    else:
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
        else:
            path = pathlib.Path(source)
            data, folder = path.read_bytes(), path.resolve().parent
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(data)
        except (DecodeError, ValueError) as error:
            raise InvalidModel(f"{_where(source)} is not an ONNX model: {error}") from None
    if not proto.HasField("graph"):
        raise InvalidModel(f"{_where(source)} is not an ONNX model: it has no graph")
    return _Reader(folder).model(proto)


def _where(source: Any) -> str:
    return f"{os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else "the given data"


class _Reader:
    """Converts messages to records; knows the folder in which external data lies."""

    def __init__(self, folder: pathlib.Path | None) -> None:
        self.folder = folder

    def model(self, proto: Any) -> Model:
        opsets = _opsets(proto.opset_import)
        functions = {}
        for f in proto.functions:
            functions[_domain(f.domain), f.name] = Function(
                f.name,
                _domain(f.domain),
                tuple(f.input),
                tuple(f.output),
                tuple(self.node(n) for n in f.node),
                {
                    **{name: REQUIRED for name in f.attribute},
                    **{a.name: self.attribute(a) for a in f.attribute_proto},
                },
                _opsets(f.opset_import) or opsets,
            )
        return Model(self.body(proto.graph), opsets, functions)

    def body(self, proto: Any) -> Body:
        tensors = {t.name: self.tensor(t) for t in proto.initializer}
        for sparse in proto.sparse_initializer:
            tensors[sparse.values.name] = self.sparse(sparse)
        return Body(
            proto.name,
            tuple(self.node(n) for n in proto.node),
            tuple((v.name, _type(v.type)) for v in proto.input),
            tuple((v.name, _type(v.type)) for v in proto.output),
            tensors,
        )

    def node(self, proto: Any) -> Node:
        return Node(
            proto.op_type,
            _domain(proto.domain),
            proto.name,
            tuple(proto.input),
            tuple(proto.output),
            {a.name: self.attribute(a) for a in proto.attribute},
        )

    def attribute(self, a: Any) -> Any:
        if a.ref_attr_name:
            return Reference(a.ref_attr_name)
        match a.type:
            case a.FLOAT:
                return float(a.f)
            case a.INT:
                return int(a.i)
            case a.STRING:
                return _text(a.s)
            case a.TENSOR:
                return self.tensor(a.t)
            case a.GRAPH:
                return self.body(a.g)
            case a.FLOATS:
                return tuple(a.floats)
            case a.INTS:
                return tuple(a.ints)
            case a.STRINGS:
                return tuple(_text(s) for s in a.strings)
            case a.TENSORS:
                return tuple(self.tensor(t) for t in a.tensors)
            case a.GRAPHS:
                return tuple(self.body(g) for g in a.graphs)
            case a.TYPE_PROTO:
                return _type(a.tp)
            case a.SPARSE_TENSOR:
                return self.sparse(a.sparse_tensor)
        raise InvalidModel(f"attribute {a.name!r} has the unknown type {a.type}")

    def tensor(self, proto: Any) -> Tensor:
        dtype = DTYPES.get(proto.data_type)
        if dtype is None:
            raise InvalidModel(f"tensor {proto.name!r} has the unknown element type {proto.data_type}")
        if any(d < 0 for d in proto.dims):
            raise InvalidModel(f"tensor {proto.name!r} has the shape {list(proto.dims)}")
        kind = TensorType(dtype, tuple(proto.dims))
        return Tensor(proto.name, kind, lambda: self.elements(proto, kind))

    def elements(self, proto: Any, kind: TensorType) -> np.ndarray:
        from onnx import numpy_helper

        try:
            if proto.data_location == proto.EXTERNAL:
                return self.external(proto, kind)
            array = numpy_helper.to_array(proto)
        except InvalidModel:
            raise
        except Exception as error:
            raise InvalidModel(f"tensor {proto.name!r} ({kind}) cannot be read: {error}") from None
        if kind.dtype == "string":
            flat = [_text(s) if isinstance(s, bytes) else str(s) for s in array.ravel()]
            return np.array(flat, object).reshape(kind.shape)
        return array.astype(kind.numpy, copy=False)

    def external(self, proto: Any, kind: TensorType) -> np.ndarray:
        """Maps the file beside the model; a location that leads out of its folder is refused."""
        entries = {e.key: e.value for e in proto.external_data}
        where = entries.get("location", "")
        if self.folder is None:
            raise InvalidModel(
                f"tensor {proto.name!r} lies in the file {where!r}; build from the model's path, not from bytes"
            )
        path = (self.folder / where).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise InvalidModel(f"tensor {proto.name!r} lies in {where!r}, which is no file in the model's folder")
        offset = int(entries.get("offset", 0))
        bits = _bits(kind.dtype)
        count = 1
        for d in kind.shape:
            count *= int(d)  # type: ignore[arg-type]
        length = (count * bits + 7) // 8
        if int(entries.get("length", length)) != length or offset < 0 or path.stat().st_size < offset + length:
            raise InvalidModel(f"tensor {proto.name!r} ({kind}) needs {length} bytes at {offset} of {where!r}")
        raw = np.memmap(path, np.uint8, "r", offset, (length,)) if length else np.zeros(0, np.uint8)
        if bits >= 8:
            return raw.view(kind.numpy).reshape(kind.shape)
        return _unpack(raw, bits, count).view(np.int8 if kind.dtype[0] == "i" else np.uint8).astype(
            kind.numpy
        ).reshape(kind.shape) if kind.dtype != "float4_e2m1fn" else _unpack(raw, bits, count).view(kind.numpy).reshape(kind.shape)

    def sparse(self, proto: Any) -> Tensor:
        values, indices = self.tensor(proto.values), self.tensor(proto.indices)
        kind = TensorType(values.type.dtype, tuple(proto.dims))

        def read() -> np.ndarray:
            dense = np.zeros(kind.shape, kind.numpy)
            where = indices.read()
            where = where.T if where.ndim == 2 else np.unravel_index(where, dense.shape)
            try:
                dense[tuple(where)] = values.read()
            except IndexError as error:
                raise InvalidModel(f"sparse tensor {proto.values.name!r}: {error}") from None
            return dense

        return Tensor(proto.values.name, kind, read)


def _bits(dtype: str) -> int:
    if dtype in ("int4", "uint4", "float4_e2m1fn"):
        return 4
    return 2 if dtype in ("int2", "uint2") else NUMPY_DTYPES[dtype].itemsize * 8


def _unpack(raw: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Elements of less than a byte, the first in the lowest bits; one byte each, sign not extended."""
    parts = [(raw >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).ravel()[:count].astype(np.uint8)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _opsets(imports: Sequence[Any]) -> dict[str, int]:
    return {_domain(o.domain): o.version for o in imports}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _type(proto: Any) -> Type | None:
    match proto.WhichOneof("value"):
        case "tensor_type" | "sparse_tensor_type" as kind:
            tensor = getattr(proto, kind)
            dtype = DTYPES.get(tensor.elem_type)
            if dtype is None or not tensor.HasField("shape"):
                return None
            return TensorType(dtype, tuple(_dims(tensor.shape.dim)))
        case "sequence_type":
            element = _type(proto.sequence_type.elem_type) or _loose(proto.sequence_type.elem_type)
            return element and SequenceType(element)
        case "optional_type":
            element = _type(proto.optional_type.elem_type) or _loose(proto.optional_type.elem_type)
            return element and OptionalType(element)
    return None


def _loose(proto: Any) -> TensorType | None:
    """A tensor type without a shape, inside a sequence or optional: any shape will do there."""
    if proto.WhichOneof("value") != "tensor_type":
        return None
    dtype = DTYPES.get(proto.tensor_type.elem_type)
    return TensorType(dtype, ()) if dtype else None


def _dims(dims: Sequence[Any]) -> Iterator[Size]:
    for d in dims:
        if d.WhichOneof("value") == "dim_value":
            yield d.dim_value
        else:
            yield symbol(d.dim_param) if d.dim_param else symbol("?")
