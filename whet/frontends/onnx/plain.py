"""Records of a model or of a late region as JSON-able data and back. Tensors that are weights go by
name: their bytes are the engine's; the others, most of them constants of a few elements, stand
here."""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from whet.errors import InvalidEngine
from whet.frontends.onnx.model import Body, Function, FunctionKey, Model, Node, Reference, Tensor
from whet.frontends.onnx.region import Region, Weights
from whet.ir.size_text import parse
from whet.ir.types import (
    NUMPY_DTYPES,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnrankedType,
)

Plain = dict[str, Any]

MOST_HERE = 1 << 16
"""Elements of a tensor that is no weight: trees of decisions have some more than constants do."""


def region_to_plain(region: Region) -> Plain:
    """The region as dicts, lists, strings and numbers."""
    return {
        "body": _body(region.body),
        "outputs": list(region.outputs),
        "functions": _functions(region.functions),
    }


def model_to_plain(model: Model) -> Plain:
    """A model, its tensors under their names among the weights."""
    return {"body": _body(model.body), "functions": _functions(model.functions)}


def model_from_plain(plain: Any, weights: Weights) -> Model:
    """The model that model_to_plain made plain; raises InvalidEngine for anything else."""
    try:
        read = Reader(weights)
        return Model(read.body(plain["body"]), read.functions(plain["functions"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidEngine(
            f"the model's records in the engine are damaged ({type(error).__name__}: {error}); "
            "build the engine again"
        ) from None


def _functions(functions: Mapping[FunctionKey, Function]) -> list[Any]:
    return [[*key, _function(f)] for key, f in functions.items()]


def region_from_plain(plain: Any, weights: Weights) -> Region:
    """The region that region_to_plain made plain; raises InvalidEngine for anything else."""
    try:
        read = Reader(weights)
        functions = read.functions(plain["functions"])
        return Region(read.body(plain["body"]), _texts(plain["outputs"]), functions)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidEngine(
            f"a late region of the engine is damaged ({type(error).__name__}: {error}); "
            "build the engine again"
        ) from None


def _body(body: Body) -> Plain:
    return {
        "name": body.name,
        "nodes": [_node(n) for n in body.nodes],
        "inputs": [[name, kind and type_to_plain(kind)] for name, kind in body.inputs],
        "outputs": [[name, kind and type_to_plain(kind)] for name, kind in body.outputs],
        "tensors": {name: _tensor(t) for name, t in body.tensors.items()},
    }


def _node(node: Node) -> Plain:
    return {
        "operator": node.operator,
        "domain": node.domain,
        "opset": node.opset,
        "name": node.name,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "attributes": {name: _attribute(v) for name, v in node.attributes.items()},
        "overload": node.overload,
    }


def _function(function: Function) -> Plain:
    return {
        "name": function.name,
        "domain": function.domain,
        "inputs": list(function.inputs),
        "outputs": list(function.outputs),
        "nodes": [_node(n) for n in function.nodes],
        "attributes": {name: _attribute(v) for name, v in function.attributes.items()},
    }


def _tensor(tensor: Tensor) -> list[Any]:
    shape: Any = tensor.type.shape
    said = [tensor.name, tensor.type.dtype, list(shape)]
    return said if tensor.name or math.prod(shape) > MOST_HERE else [*said, _elements(tensor)]


def _elements(tensor: Tensor) -> Any:
    array = np.ascontiguousarray(tensor.read())
    if tensor.type.dtype == "string":
        return [str(item) for item in array.reshape(-1).tolist()]
    return base64.b64encode(_little(array).tobytes()).decode()


def _little(array: np.ndarray) -> np.ndarray:
    return array.byteswap() if sys.byteorder == "big" else array


def _attribute(value: Any) -> Any:
    """Strings and integers stand for themselves; everything else says what it is."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return {"float": value.hex()}
        case tuple():
            return [_attribute(v) for v in value]
        case Tensor():
            return {"tensor": _tensor(value)}
        case Body():
            return {"body": _body(value)}
        case Reference(name=name):
            return {"reference": name}
    return {"type": type_to_plain(value)}


def type_to_plain(kind: Type) -> list[Any]:
    """A type as nested lists, its sizes as text."""
    match kind:
        case TensorType(dtype=dtype, shape=shape):
            return ["tensor", dtype, [s if isinstance(s, int) else str(s) for s in shape]]
        case UnrankedType(dtype=dtype, none=none):
            return ["unranked", dtype, none]
        case SequenceType(element=element):
            return ["sequence", type_to_plain(element)]
        case OptionalType(element=element):
            return ["optional", type_to_plain(element)]
    raise TypeError(f"{kind!r} is no type")


def type_from_plain(plain: Any) -> Type:
    """The type that type_to_plain made plain; raises ValueError for anything else."""
    match plain:
        case ["tensor", str(dtype), [*shape]] if dtype in NUMPY_DTYPES:
            return TensorType(dtype, tuple(_size(s) for s in shape))
        case ["unranked", str(dtype), bool(none)] if dtype in NUMPY_DTYPES:
            return UnrankedType(dtype, none)
        case ["sequence", element]:
            return SequenceType(type_from_plain(element))
        case ["optional", element]:
            return OptionalType(type_from_plain(element))
    raise ValueError(f"{plain!r} is no type")


def _size(plain: Any) -> Any:
    if isinstance(plain, str):
        return parse(plain)
    if not isinstance(plain, int) or isinstance(plain, bool) or plain < 0:
        raise ValueError(f"{plain!r} is no size")
    return plain


def _text(plain: Any) -> str:
    if not isinstance(plain, str):
        raise ValueError(f"{plain!r} is no name")
    return plain


def _texts(plain: Any) -> tuple[str, ...]:
    if not isinstance(plain, list):
        raise ValueError(f"{plain!r} is no list of names")
    return tuple(map(_text, plain))


def _ends(plain: Any) -> tuple[tuple[str, Type | None], ...]:
    """Names of inputs or outputs, and the types that are known of them."""
    return tuple(
        (_text(name), None if kind is None else type_from_plain(kind)) for name, kind in plain
    )


def _not_kept(kind: TensorType) -> np.ndarray:
    raise InvalidEngine(f"the engine does not have a {kind} that the model has: use the ONNX file")


class Reader:
    """Makes records from plain data; tensors read their elements from `weights`."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def body(self, plain: Mapping[str, Any]) -> Body:
        return Body(
            _text(plain["name"]),
            tuple(self.node(n) for n in plain["nodes"]),
            _ends(plain["inputs"]),
            _ends(plain["outputs"]),
            {name: self.tensor(t) for name, t in plain["tensors"].items()},
        )

    def node(self, plain: Mapping[str, Any]) -> Node:
        return Node(
            _text(plain["operator"]),
            _text(plain["domain"]),
            int(plain["opset"]),
            _text(plain["name"]),
            _texts(plain["inputs"]),
            _texts(plain["outputs"]),
            {name: self.attribute(v) for name, v in plain["attributes"].items()},
            _text(plain["overload"]),
        )

    def functions(self, plain: Any) -> dict[FunctionKey, Function]:
        return {
            (str(domain), str(name), str(overload)): self.function(f)
            for domain, name, overload, f in plain
        }

    def function(self, plain: Mapping[str, Any]) -> Function:
        return Function(
            _text(plain["name"]),
            _text(plain["domain"]),
            _texts(plain["inputs"]),
            _texts(plain["outputs"]),
            tuple(self.node(n) for n in plain["nodes"]),
            {name: self.attribute(v) for name, v in plain["attributes"].items()},
        )

    def tensor(self, plain: Any) -> Tensor:
        name, dtype, shape, *here = plain
        name = _text(name)
        kind = type_from_plain(["tensor", dtype, shape])
        assert isinstance(kind, TensorType)
        if not here:
            return Tensor(name, kind, lambda: self.weights(name) if name else _not_kept(kind))
        (data,) = here
        if dtype == "string":
            array = np.array(_texts(data), object)
        else:
            array = _little(np.frombuffer(base64.b64decode(data, validate=True), kind.numpy))
        array = array.reshape(kind.shape)
        return Tensor(name, kind, lambda: array)

    def attribute(self, plain: Any) -> Any:
        match plain:
            case bool() | int() | str() | None:
                return plain
            case list():
                return tuple(self.attribute(v) for v in plain)
            case {"float": str(text)}:
                return float.fromhex(text)
            case {"tensor": tensor}:
                return self.tensor(tensor)
            case {"body": body}:
                return self.body(body)
            case {"reference": str(name)}:
                return Reference(name)
            case {"type": kind}:
                return type_from_plain(kind)
        raise ValueError(f"{plain!r} is no attribute")
