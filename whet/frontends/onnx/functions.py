"""Calls of model-local functions, replaced by the functions' nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.errors import InvalidModel
from whet.frontends.onnx.model import Body, Function, FunctionKey, Node, Reference, Tensor
from whet.ir.graph import Value

MOST_NODES = 1 << 18  # with functions expanded and loops unrolled; a small file may ask for 2**64


def called(node: Node, functions: Mapping[FunctionKey, Function]) -> Function | None:
    """The function that a node calls, or None for an operator."""
    if not functions:
        return None
    return functions.get((node.domain, node.operator, node.overload))


def expand(function: Function, node: Node, prefix: str) -> list[Node]:
    """The function's nodes in the names of the call; all that the function names itself gets the
    prefix."""
    if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
        raise InvalidModel(
            f"the function {function.name!r} takes {len(function.inputs)} inputs and has "
            f"{len(function.outputs)} outputs, the call has {len(node.inputs)} and "
            f"{len(node.outputs)}"
        )
    given = [*node.inputs, *[""] * (len(function.inputs) - len(node.inputs))]
    names = dict(zip(function.inputs, given))
    passed = []
    for inner, outer in zip(function.outputs, node.outputs):
        if inner in names and outer:
            passed.append((inner, outer))
        elif outer:
            names[inner] = outer
    call = Call(prefix, names, {**function.attributes, **node.attributes})
    nodes = [call.node(child) for child in function.nodes]
    return nodes + [_identity(call.name(inner), outer, prefix) for inner, outer in passed]


class Expansion(Exception):  # noqa: N818
    """Raised by the reader of a node that other nodes take the place of: with new names' values
    and tensors."""

    def __init__(
        self,
        nodes: list[Node],
        values: Mapping[str, Value] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__("other nodes take this one's place")
        self.nodes, self.values, self.tensors = nodes, values or {}, tensors or {}

    def join(self, other: Expansion) -> Expansion:
        """Both, one after the other."""
        return Expansion(
            self.nodes + other.nodes,
            {**self.values, **other.values},
            {**self.tensors, **other.tensors},
        )


def expand_body(
    body: Body, inputs: Sequence[Value | str], outputs: Sequence[str], prefix: str
) -> Expansion:
    """An inner graph's nodes for given inputs, its own names with the prefix, its outputs under
    given names."""
    if len(inputs) != len(body.inputs):
        raise InvalidModel(
            f"its inner graph {body.name!r} takes {len(body.inputs)} inputs, not {len(inputs)}"
        )
    made = {name for node in body.nodes for name in node.outputs if name}
    names = {name: prefix + name for name in body.own}
    names.update((n, v) for (n, _), v in zip(body.inputs, inputs) if isinstance(v, str))
    passed = []
    for (inner, _), outer in zip(body.outputs, outputs):
        if inner in made and outer:
            made.discard(inner)
            names[inner] = outer
        elif outer:
            passed.append((inner, outer))
    call = Call(prefix, {**{r: r for r in body.reads}, **names}, {})
    nodes = [replace(call.node(node), name=prefix + node.label) for node in body.nodes]
    nodes += [_identity(names.get(inner, inner), outer, prefix) for inner, outer in passed]
    values = {names[n]: v for (n, _), v in zip(body.inputs, inputs) if isinstance(v, Value)}
    return Expansion(nodes, values, {names[name]: t for name, t in body.tensors.items()})


def _identity(source: str, target: str, prefix: str) -> Node:
    return Node("Identity", "", 14, f"{prefix}{target}", (source,), (target,), {})


@dataclass(frozen=True)
class Call:
    """How names and attributes of a function read at one call."""

    prefix: str
    names: Mapping[str, str]
    attributes: Mapping[str, Any]

    def name(self, name: str) -> str:
        return self.names.get(name, self.prefix + name) if name else ""

    def node(self, node: Node) -> Node:
        attributes = {name: self.attribute(value) for name, value in node.attributes.items()}
        return replace(
            node,
            name=self.prefix + node.label,
            inputs=tuple(map(self.name, node.inputs)),
            outputs=tuple(map(self.name, node.outputs)),
            attributes={name: value for name, value in attributes.items() if value is not None},
        )

    def attribute(self, value: Any) -> Any:
        """The value with references resolved; None where it is absent from the call."""
        match value:
            case Reference(name=name):
                return self.attributes.get(name)
            case Body():
                return self.body(value)
            case tuple():
                return tuple(self.attribute(item) for item in value)
        return value

    def body(self, body: Body) -> Body:
        # Names of an inner graph hide the function's, which may stand for names of the caller.
        inner = {name: self.prefix + name for name in body.own}
        call = Call(self.prefix, {**self.names, **inner}, self.attributes)
        return Body(
            body.name,
            tuple(call.node(node) for node in body.nodes),
            tuple((call.name(name), kind) for name, kind in body.inputs),
            tuple((call.name(name), kind) for name, kind in body.outputs),
            {call.name(name): tensor for name, tensor in body.tensors.items()},
        )


def check_calls(nodes: Sequence[Node], functions: Mapping[FunctionKey, Function]) -> None:
    """Raises InvalidModel where a function calls itself, or where calls expand to more than
    MOST_NODES."""
    sizes: dict[FunctionKey, int] = {}
    for key in functions:
        _measure(key, functions, sizes)
    total = _expanded(nodes, functions, sizes)
    if total > MOST_NODES:
        raise InvalidModel(
            f"the model has {total:,} nodes once its functions are expanded, at most "
            f"{MOST_NODES:,} can be read: fewer calls within calls are needed"
        )


def _measure(
    start: FunctionKey, functions: Mapping[FunctionKey, Function], sizes: dict[FunctionKey, int]
) -> None:
    """Adds to `sizes` how many nodes a function, and each that it calls, expands to."""
    path = {start: iter(_calls(functions[start].nodes, functions))}
    while path:
        key, calls = next(reversed(path.items()))
        callee = next((c for c in calls if c not in sizes), None)
        if callee in path:
            raise InvalidModel(f"the function {callee[1]!r} calls itself")
        if callee is not None:
            path[callee] = iter(_calls(functions[callee].nodes, functions))
            continue
        sizes[key] = _expanded(functions[key].nodes, functions, sizes)
        del path[key]


def _expanded(
    nodes: Sequence[Node],
    functions: Mapping[FunctionKey, Function],
    sizes: Mapping[FunctionKey, int],
) -> int:
    """How many nodes there are, with calls expanded and inner graphs counted."""
    calls = _calls(nodes, functions)
    return len(nodes) + sum(sizes[key] for key in calls)


def _calls(nodes: Sequence[Node], functions: Mapping[FunctionKey, Function]) -> list[FunctionKey]:
    """The functions that nodes call, those in inner graphs among them."""
    found = []
    for node in nodes:
        key = (node.domain, node.operator, node.overload)
        if key in functions:
            found.append(key)
        for body in node.bodies:
            found += _calls(body.nodes, functions)
    return found
