"""ONNX records to a Graph: walks the nodes, hands each to its reader, gathers what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import Error, InvalidModel, Refusal, UnsupportedModel
from whet.frontends.onnx import families
from whet.frontends.onnx.model import (
    REQUIRED,
    Body,
    Function,
    Model,
    Node,
    Reference,
    Tensor,
    read_model,
)
from whet.frontends.onnx.registry import NeedsValue, Refused, meaning
from whet.ir.graph import Constant, Graph, Guard, Input, Op, Value, Weight, constant, make, topological
from whet.ir.sizes import Expr, Size, substitute, symbol
from whet.ir.types import OptionalType, SequenceType, TensorType, Type
from whet.ops.elementwise import collect_guards

if TYPE_CHECKING:
    import onnx

families.load()


@dataclass(frozen=True)
class Imported:
    """A model read: its graph, its weights by name, and which of them were read as shapes."""

    graph: Graph
    weights: Mapping[str, Tensor]
    frozen: frozenset[str]


def from_onnx(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Imported:
    """Reads an ONNX model; raises UnsupportedModel with every node that cannot be read."""
    return Importer(read_model(source)).run()


@dataclass
class Scope:
    """The names that nodes see: those of one graph or function, and of what encloses it."""

    opsets: Mapping[str, int]
    values: dict[str, Any] = field(default_factory=dict)
    parent: Scope | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""

    def find(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        raise InvalidModel(f"the tensor {name!r} is used before any node or initializer gives it")


class Poison:
    """Stands for the results of a node that was refused, so that its readers are not refused for it."""


@dataclass(frozen=True)
class Reading:
    """What a reader that asks for `node` is given: the node, its scope, and how to read inner graphs."""

    importer: Importer
    node: Node
    scope: Scope
    opset: int

    @property
    def outputs(self) -> int:
        """How many outputs the model names."""
        return len(self.node.outputs)

    def wanted(self, index: int) -> bool:
        """Whether the model reads output `index`."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    def fresh_size(self, what: str, low: int = 0, high: Size | None = None) -> Expr:
        """A size that only a run can tell, named after the node's output."""
        return symbol(f"{self.scope.prefix}{self.node.label}.{what}", low, high)

    def sizes(self, value: Value, what: str) -> tuple[Size, ...]:
        """The elements of an integer tensor of sizes; raises NeedsValue where only a run can tell them."""
        return tuple(self.contents(value, what).ravel().tolist())

    def number(self, value: Value, what: str) -> Any:
        """The one element of a tensor, as sizes() gives them."""
        elements = self.contents(value, what).ravel().tolist()
        if len(elements) != 1:
            raise Refused(f"{what} must have one element, it has {len(elements)}")
        return elements[0]

    def contents(self, value: Value, what: str) -> np.ndarray:
        """The elements of a tensor, reading weights where it depends on them."""
        return self.importer.contents(value, what)

    def known(self, value: Value) -> np.ndarray | None:
        """The elements of a tensor, or None where only a run can tell them."""
        try:
            return self.importer.contents(value, "")
        except NeedsValue:
            return None

    def body(self, body: Body, inputs: Sequence[Value]) -> tuple[Any, ...]:
        """The outputs of an inner graph whose inputs are the given Values; it sees the outer names."""
        return self.importer.inner(body, inputs, self.scope, self.node.label)


class Importer:
    """One reading of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.frozen: set[str] = set()
        self.refusals: list[Refusal] = []
        self.origins: dict[Value, tuple[str, ...]] = {}
        self.guards: list[Guard] = []

    def run(self) -> Imported:
        body = self.model.body
        scope = Scope(self.model.opsets)
        inputs = []
        for name, kind in body.inputs:
            if name in body.tensors:
                continue  # before IR version 4 every initializer was an input too
            if kind is None:
                raise InvalidModel(f"the model gives no type and number of axes for its input {name!r}")
            inputs.append(make(Input(name, named_sizes(kind, name)), ())[0])
            scope.values[name] = inputs[-1]
        self.read(body, scope)
        if self.refusals:
            raise UnsupportedModel(self.refusals)
        outputs = []
        for name, _ in body.outputs:
            outputs.append(scope.find(name))
        graph = Graph(
            tuple(inputs),
            tuple(outputs),
            tuple(name for name, _ in body.outputs),
            tuple(dict.fromkeys(self.guards)),
            self.origins,
        )
        return Imported(graph, self.weights, frozenset(self.frozen))

    def read(self, body: Body, scope: Scope) -> None:
        """Adds a graph's initializers and the results of its nodes to the scope."""
        for name, tensor in body.tensors.items():
            scope.values[name] = self.weight(scope.prefix + name, tensor)
        for node in body.nodes:
            self.node(node, scope)

    def weight(self, name: str, tensor: Tensor) -> Value:
        if tensor.type.dtype == "string":
            return constant(tensor.read())
        self.weights[name] = tensor
        return make(Weight(name, tensor.type), ())[0]

    def node(self, node: Node, scope: Scope) -> None:
        opset = scope.opsets.get(node.domain, 1)
        try:
            inputs = [scope.find(name) if name else None for name in node.inputs]
            if any(isinstance(i, Poison) for i in inputs):
                outputs: Sequence[Any] = [Poison()] * len(node.outputs)
            else:
                outputs = self.apply(node, inputs, scope, opset)
        except (Refused, NeedsValue, NotImplementedError) as reason:
            self.refuse(node, scope, opset, str(reason))
            outputs = [Poison()] * len(node.outputs)
        except UnsupportedModel:
            raise
        except Error as error:
            raise type(error)(f'at node "{scope.prefix}{node.label}" ({node.operator}): {error}') from None
        for name, value in zip(node.outputs, outputs):
            if name:
                scope.values[name] = value

    def refuse(self, node: Node, scope: Scope, opset: int, reason: str) -> None:
        name = f"{node.domain}::{node.operator}" if node.domain else node.operator
        self.refusals.append(Refusal(scope.prefix + node.label, name, opset, reason))

    def apply(self, node: Node, inputs: list[Any], scope: Scope, opset: int) -> Sequence[Any]:
        """The results of one node, from its reader or its model-local function."""
        attributes = {k: self.attribute(k, v, scope) for k, v in node.attributes.items()}
        attributes = {k: v for k, v in attributes.items() if v is not REQUIRED}
        function = self.model.functions.get((node.domain, node.operator))
        if function is not None:
            return self.call(function, node, inputs, attributes, scope)
        reader = meaning(node.domain, node.operator, opset)
        if reader is None:
            raise Refused(f"no reader for this operator; add one to {families.__name__}")
        unknown = sorted(set(attributes) - reader.attributes)
        if unknown:
            raise Refused(f"the attribute {', '.join(unknown)} is not understood at this opset")
        extra = {"node": Reading(self, node, scope, opset)} if reader.wants_node else {}
        guards: list[Guard] = []
        try:
            with collect_guards(guards):
                result = reader.read(*inputs, **attributes, **extra)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                raise InvalidModel(f"its inputs or attributes do not fit: {error}") from None
            raise
        label = scope.prefix + node.label
        self.guards += [Guard(g.left, g.right, label, g.broadcast) for g in guards]
        results = result if isinstance(result, tuple | list) else (result,)
        for value in results:
            self.remember(value, label)
        return results

    def attribute(self, name: str, value: Any, scope: Scope) -> Any:
        return scope.attributes.get(value.name, REQUIRED) if isinstance(value, Reference) else value

    def remember(self, value: Any, label: str) -> None:
        """Notes the node as the origin of a Value and of what was newly made for it."""
        stack = [value]
        while stack:
            v = stack.pop()
            if isinstance(v, Value) and v not in self.origins and not isinstance(v.op, Input | Weight | Constant):
                self.origins[v] = (label,)
                stack.extend(v.inputs)

    def call(
        self, function: Function, node: Node, inputs: list[Any], attributes: Mapping[str, Any], scope: Scope
    ) -> list[Any]:
        """Reads a model-local function's nodes in place of the call."""
        depth, outer = 0, scope
        while outer.parent is not None:
            depth, outer = depth + 1, outer.parent
        if scope.prefix.count("/") > MOST_CALLS:
            raise InvalidModel(f"the function {function.name} calls itself")
        given = {**{k: v for k, v in function.attributes.items() if v is not REQUIRED}, **attributes}
        inner = Scope(function.opsets, attributes=given, prefix=f"{scope.prefix}{node.label}/")
        inner.values = dict(zip(function.inputs, [*inputs, *[None] * len(function.inputs)]))
        for child in function.nodes:
            self.node(child, inner)
        return [inner.find(name) for name in function.outputs]

    def inner(self, body: Body, inputs: Sequence[Value], outer: Scope, label: str) -> tuple[Any, ...]:
        scope = Scope(outer.opsets, parent=outer, attributes=outer.attributes, prefix=f"{outer.prefix}{label}/")
        scope.values = {name: value for (name, _), value in zip(body.inputs, inputs)}
        self.read(body, scope)
        return tuple(scope.find(name) for name, _ in body.outputs)

    def contents(self, value: Value, what: str) -> np.ndarray:
        if value.contents is not None:
            return value.contents
        weights = [v for v in topological((value,)) if isinstance(v.op, Weight)]
        constants = {v: constant(self.array(v.op.name)) for v in weights}  # type: ignore[attr-defined]
        known = Graph((), (value,)).substitute(constants).outputs[0].contents if weights else None
        if known is None:
            raise NeedsValue(value, what)
        self.frozen.update(v.op.name for v in weights)  # type: ignore[attr-defined]
        return known

    def array(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            self.arrays[name] = self.weights[name].read()
        return self.arrays[name]


MOST_CALLS = 64  # functions within functions; ONNX forbids recursion, a damaged file may have it


def named_sizes(kind: Type, name: str) -> Type:
    """The type with a name of its own for every size that the model leaves open."""
    if not isinstance(kind, TensorType):
        return kind
    shape = tuple(
        substitute(size, {"?": symbol(f"{name}.{axis}")}) if isinstance(size, Expr) or size >= 0 else symbol(f"{name}.{axis}")
        for axis, size in enumerate(kind.shape)
    )
    return TensorType(kind.dtype, shape)
