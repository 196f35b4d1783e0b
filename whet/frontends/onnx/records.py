"""A model's records with its tensors exchanged: under their names among the weights, or read from
elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from whet.frontends.onnx.model import Body, Function, Model, Node, Tensor

R = TypeVar("R", bound=Any)  # a Model or a Region

Exchange = Callable[[str, Tensor], Tensor]
"""What takes the place of a tensor, told where that stands."""


def map_tensors(nodes: tuple[Node, ...], fn: Exchange, prefix: str = "") -> tuple[Node, ...]:
    """The nodes with each stored tensor t in them replaced by fn(where, t)."""

    def node(n: Node) -> Node:
        where = f"{prefix}{n.label}"
        found = {name: _changed(v, f"{where}.{name}", fn) for name, v in n.attributes.items()}
        return replace(n, attributes=found)

    return tuple(node(n) for n in nodes)


def _changed(item: Any, where: str, fn: Exchange) -> Any:
    match item:
        case Tensor():
            return fn(where, item)
        case tuple():
            return tuple(_changed(i, f"{where}.{n}", fn) for n, i in enumerate(item))
        case Body():
            return map_body(item, fn, f"{where}/")
    return item


def map_body(body: Body, fn: Exchange, prefix: str = "") -> Body:
    """The same of a graph, its own tensors among them."""
    tensors = {name: fn(f"{prefix}{name}", t) for name, t in body.tensors.items()}
    return replace(body, nodes=map_tensors(body.nodes, fn, prefix), tensors=tensors)


def map_function(function: Function, fn: Exchange) -> Function:
    """The same of a function, its attributes' default values among them."""
    defaults = {n: _changed(v, f"{function.name}.{n}", fn) for n, v in function.attributes.items()}
    return replace(function, nodes=map_tensors(function.nodes, fn), attributes=defaults)


def map_records(records: R, fn: Exchange) -> R:
    """The same of a whole model, or of a late region."""
    functions = {key: map_function(f, fn) for key, f in records.functions.items()}
    return replace(records, body=map_body(records.body, fn), functions=functions)


def named(model: Model, names: Mapping[int, str]) -> Model:
    """The model with its tensors under their names among the weights, by their id; those that
    nothing has read yet have none."""
    return map_records(model, lambda _, t: replace(t, name=names.get(id(t), "")))


def reading(records: R, weights: Callable[[str], np.ndarray]) -> R:
    """The records with those tensors that have names read from `weights`."""

    def exchanged(where: str, tensor: Tensor) -> Tensor:
        return replace(tensor, read=lambda: weights(tensor.name)) if tensor.name else tensor

    return map_records(records, exchanged)


def tensors_in(records: Any) -> list[Tensor]:
    """All tensors of a model or a late region, be it in bodies and functions."""
    found: list[Tensor] = []

    def look(where: str, tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_records(records, look)
    return found
