"""A late region: the ONNX records of what only a run can give ranks and structure, as plain
data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.frontends.onnx.functions import called
from whet.frontends.onnx.model import Body, Function, FunctionKey, Node, Tensor
from whet.frontends.onnx.records import map_function, map_tensors, tensors_in
from whet.ir.graph import Graph, Value

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Importer
    from whet.frontends.onnx.late import Stages
    from whet.frontends.onnx.scope import Scope

Weights = Callable[[str], np.ndarray]


@dataclass(frozen=True, eq=False)
class Region:
    """The nodes that wait for values, what they read, and what they give.

    Its tensors go by their names among the model's weights, those in attributes too.
    """

    body: Body
    outputs: tuple[str, ...]
    functions: Mapping[FunctionKey, Function] = field(default_factory=dict)

    @property
    def captured(self) -> tuple[str, ...]:
        """The names of the values that it takes from the stage before."""
        return tuple(name for name, _ in self.body.inputs)

    @cached_property
    def stages(self) -> Stages:
        """The stages made so far."""
        from whet.frontends.onnx.late import Stages

        return Stages(self)

    def stage(self, captured: Mapping[str, Any], weights: Weights | None = None) -> Graph:
        """The graph for the captured values: arrays, lists of them, or None for an absent
        optional."""
        return self.stages.get(captured, weights).graph

    def without(self, names: Collection[str]) -> Region | None:
        """The region that does not give the outputs of these names; None where none are left."""
        if not set(names) & set(self.outputs):
            return self
        ends = tuple(end for end in self.body.outputs if end[0] not in names)
        if not ends:
            return None
        outputs = tuple(name for name in self.outputs if name not in names)
        return replace(self, body=replace(self.body, outputs=ends), outputs=outputs)

    def to_plain(self) -> dict[str, Any]:
        """JSON-able data; the tensors' bytes are not in it, `tensors` lists what must be kept
        beside it."""
        from whet.frontends.onnx.plain import region_to_plain

        return region_to_plain(self)

    @staticmethod
    def from_plain(plain: Any, weights: Weights) -> Region:
        """The region of to_plain, its tensors read from `weights`; raises InvalidEngine for
        other data."""
        from whet.frontends.onnx.plain import region_from_plain

        return region_from_plain(plain, weights)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor that the nodes may read, by its name among the weights."""
        return {tensor.name: tensor for tensor in reversed(tensors_in(self))}


def cut(importer: Importer, scope: Scope, late: list[str], wanted: tuple[str, ...]) -> Region:
    """The region that computes the `late` names: the postponed nodes they need, and what these
    read."""
    nodes, reads = _needed_nodes(importer, scope, late)
    captured, tensors = [], {}
    for name in reads:
        value = scope.find(name)
        stored = importer.stored.get(name)
        if stored is not None:
            tensors[name] = _keyed(importer, name, stored)
        else:
            captured.append((name, value.type))
    functions = _functions(nodes, importer.functions)
    keep = lambda where, tensor: _keyed(importer, where, tensor)  # noqa: E731
    body = Body(
        "",
        map_tensors(tuple(nodes), keep),
        tuple(captured),
        tuple((name, None) for name in late),
        tensors,
    )
    functions = {key: map_function(f, keep) for key, f in functions.items()}
    return Region(body, tuple(wanted), functions)


def _keyed(importer: Importer, name: str, tensor: Tensor) -> Tensor:
    return replace(tensor, name=importer.key(name, tensor))


def _needed_nodes(
    importer: Importer, scope: Scope, late: list[str]
) -> tuple[list[Node], list[str]]:
    """The postponed nodes behind the names with those that make constants for them, and what
    they read."""
    maker = {name: node for node in importer.nodes for name in node.outputs if name}
    chosen: set[Node] = set()
    reads: dict[str, None] = {}
    stack = list(late)
    while stack:
        name = stack.pop()
        value = scope.find(name)
        if isinstance(value, Value) and not _remade(name, maker, importer, scope):
            reads[name] = None
        elif maker[name] not in chosen:
            chosen.add(maker[name])
            stack.extend(maker[name].reads)
    return [node for node in importer.nodes if node in chosen], list(reads)


def _remade(name: str, maker: Mapping[str, Node], importer: Importer, scope: Scope) -> bool:
    """Whether the node that makes a name may be read again in the region, since it reads
    constants only."""
    return name in maker and all(
        isinstance(v := scope.find(read), Value) and v.is_static for read in maker[name].reads
    )


def _functions(
    nodes: list[Node], functions: Mapping[FunctionKey, Function]
) -> dict[FunctionKey, Function]:
    """The functions that inner graphs of the nodes call, be it through others."""
    found: dict[FunctionKey, Function] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        function = called(node, functions)
        key = (node.domain, node.operator, node.overload)
        if function is not None and key not in found:
            found[key] = function
            stack.extend(function.nodes)
        for body in node.bodies:
            stack.extend(body.nodes)
    return found
