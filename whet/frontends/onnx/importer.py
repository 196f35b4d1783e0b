"""ONNX records to a Graph: walks the nodes, hands each to its reader, gathers what cannot be
read."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import Error, InvalidModel, Refusal, UnsupportedModel, located
from whet.frontends.onnx import families
from whet.frontends.onnx.failures import call
from whet.frontends.onnx.functions import MOST_NODES, Expansion, called, check_calls, expand
from whet.frontends.onnx.known import Known
from whet.frontends.onnx.model import (
    Body,
    Function,
    FunctionKey,
    Model,
    Node,
    Reference,
    Tensor,
)
from whet.frontends.onnx.reading import Reading
from whet.frontends.onnx.region import Region, cut
from whet.frontends.onnx.registry import Meaning, NeedsValue, Refused, meaning
from whet.frontends.onnx.scope import Inner, Level, Poison, Poisoned, Postponed, Scope
from whet.frontends.onnx.watched import with_old_names
from whet.ir.graph import (
    Constant,
    Graph,
    Guard,
    Input,
    Parameter,
    Token,
    Value,
    Weight,
    constant,
    make,
)
from whet.ir.sizes import Expr, Size, symbol
from whet.ir.types import TensorType, Type, UnrankedType
from whet.ops.elementwise import collect_guards
from whet.progress import phase

if TYPE_CHECKING:
    import onnx

families.load()

Tensors = TensorType | UnrankedType


@dataclass(frozen=True)
class Imported:
    """A model read: its graph, its weights by name, and which of them were read as shapes."""

    graph: Graph
    weights: Mapping[str, Tensor]
    frozen: frozenset[str]
    needed: Mapping[str, str] = field(default_factory=dict)
    """Of a late stage: the captured values that it was made for, "contents" or only "structure"
    of each."""
    tensors: Mapping[str, Value] = field(default_factory=dict)
    """What each name in the model's own graph stands for, as far as it was read."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Of all tensors, those in the bodies of control flow among them, as far as these were read."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """What a body calls its tensors, by their names where its nodes took the place of another."""
    keys: Mapping[int, str] = field(default_factory=dict)
    """The names of the records' tensors among the weights, by their id."""


def from_onnx(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Imported:
    """Reads an ONNX model; raises UnsupportedModel with every node that cannot be read."""
    from whet.frontends.onnx.protobuf import read_model

    return import_model(read_model(source))


def import_model(model: Model) -> Imported:
    """The first stage of a model: all that does not depend on what only a run can tell."""
    check_calls(model.body.nodes, model.functions)
    importer = Importer(model.functions)
    scope = Scope(own=model.body.own)
    inputs = []
    for name, kind in model.body.inputs:
        if name in model.body.tensors:
            continue  # before IR version 4 every initializer was an input too
        if kind is None:
            raise InvalidModel(f"the model gives no type for its input {name!r}")
        inputs.append(make(Input(name, importer.named_sizes(kind, name)), ())[0])
        scope.values[name] = inputs[-1]
    return importer.finish(model.body, scope, inputs, [name for name, _ in model.body.outputs])


def check_declared(body: Body, ends: Mapping[str, Any]) -> None:
    """Raises InvalidModel where an output has another element type than the model declares."""
    for name, kind in body.outputs:
        found = ends[name].type if isinstance(ends[name], Value) else None
        if not isinstance(found, Tensors) or not isinstance(kind, Tensors):
            continue
        if found.dtype != kind.dtype:
            raise InvalidModel(
                f"the output {name!r} is {found}, the model declares it as {kind}: their element "
                "types differ"
            )


class Importer:
    """One reading of one model, or of one late region with the captured values at hand."""

    def __init__(
        self,
        functions: Mapping[FunctionKey, Function],
        captured: Mapping[str, Any] | None = None,
    ) -> None:
        self.functions = functions
        self.weights: dict[str, Tensor] = {}
        self.keys: dict[int, str] = {}
        self.stored: dict[str, Tensor] = {}
        self.refusals: list[Refusal] = []
        self.levels = [Level()]
        self.read_nodes = 0
        self.nodes: list[Node] = []
        self.names: set[str] = set()
        self.is_late = captured is not None
        self.values = Known(self.weights, captured or {})
        self.dtypes: dict[str, str] = {}
        """Of all tensors read so far, by their names in the model."""
        self.renamed: dict[str, str] = {}
        """What a body calls its tensors, by their names where its nodes took the place of
        another."""

    # The graph of one stage.

    def finish(
        self, body: Body, scope: Scope, inputs: Sequence[Value], wanted: Sequence[str]
    ) -> Imported:
        """Reads the body and returns the graph of what could be read, with the rest as its late
        region."""
        self.levels[0].leaves.update(inputs)
        self.read(body, scope)
        ends = {name: scope.find(name) for name, _ in body.outputs}
        if self.refusals:
            raise UnsupportedModel(self.refusals)
        check_declared(body, ends)
        ready = [name for name, value in ends.items() if isinstance(value, Value)]
        region: Region | None = None
        if len(ready) < len(ends):
            late = [name for name in ends if name not in ready]
            region = cut(self, scope, late, tuple(wanted))
        captured = region.captured if region else ()
        level = self.levels[0]
        graph = Graph(
            tuple(inputs),
            tuple(scope.find(name) for name in (*ready, *captured)),
            tuple(ready),
            tuple(dict.fromkeys(level.guards)),
            level.origins,
            level.definers,
            region,
        )
        tensors = {name: v for name, v in scope.values.items() if isinstance(v, Value)}
        frozen = frozenset(self.values.frozen)
        dtypes = with_old_names(self.dtypes, self.renamed)
        needed = self.values.needed
        more = needed, tensors, dtypes, self.renamed, self.keys
        return Imported(graph, self.weights, frozen, *more)

    def read(self, body: Body, scope: Scope) -> None:
        """Adds a graph's initializers and the results of its nodes to the scope."""
        for name, tensor in body.tensors.items():
            scope.values[name] = self.weight(scope.prefix + name, tensor)
        if scope.parent is None:
            self.stored.update(body.tensors)
        is_model = scope.parent is None
        with phase("read", len(body.nodes)) if is_model else nullcontext() as step:
            for node in body.nodes:
                pending = deque([node])
                while pending:
                    pending.extendleft(reversed(self.node(pending.popleft(), scope)))
                if step is not None:
                    step()

    def weight(self, name: str, tensor: Tensor) -> Value:
        """A Weight for a stored tensor, the same one however often it is read."""
        if tensor.type.dtype == "string":
            return constant(tensor.read())
        return make(Weight(self.key(name, tensor), tensor.type), ())[0]

    def key(self, name: str, tensor: Tensor) -> str:
        """The name that a stored tensor has among the model's weights."""
        if self.is_late:
            self.weights[tensor.name] = tensor
            return tensor.name
        if id(tensor) not in self.keys:
            self.keys[id(tensor)] = key = self.unique(name)
            self.weights[key] = tensor
        return self.keys[id(tensor)]

    def unique(self, name: str) -> str:
        """The name, with a number where it is taken."""
        found, number = name, 2
        while found in self.names:
            found, number = f"{name}'{number}", number + 1
        self.names.add(found)
        return found

    def fresh_size(self, name: str, low: int = 0, high: Size | None = None) -> Expr:
        name = self.unique(name)
        self.levels[-1].sizes.add(name)
        return symbol(name, low, high)

    def named_sizes(self, kind: Type, name: str) -> Type:
        """The type of an input, with a name of its own for every size that the model leaves
        open."""
        if not isinstance(kind, TensorType):
            return kind
        shape = []
        for axis, size in enumerate(kind.shape):
            is_open = isinstance(size, Expr) and any(s.name == "?" for s in size.symbols)
            shape.append(symbol(self.unique(f"{name}.{axis}")) if is_open else size)
            self.names.update(s.name for s in getattr(size, "symbols", ()))
        return TensorType(kind.dtype, tuple(shape))

    # One node.

    def node(self, node: Node, scope: Scope) -> list[Node]:
        """Adds the results of a node to the scope, or returns the nodes to be read in its place."""
        label = scope.prefix + node.label
        self.count()
        try:
            function = called(node, self.functions)
            if function is not None:
                return expand(function, node, self.unique(node.label) + "/")
            outputs = self.outcomes(node, scope)
            self.give(node, outputs, scope)
        except Expansion as expansion:
            return self.put_in_place(expansion, scope)
        except Refused as reason:
            self.refuse(node, label, str(reason))
            self.give(node, [Poison()] * len(node.outputs), scope)
        except Error as error:
            raise located(error, label, node.operator) from error.__cause__
        if scope.parent is None:
            self.nodes.append(node)
        return []

    def give(self, node: Node, outputs: Sequence[Any], scope: Scope) -> None:
        """Puts a node's results into its scope."""
        if len(outputs) < sum(1 for name in node.outputs if name):
            raise InvalidModel(
                f"it has {len(outputs)} outputs, the model names {len(node.outputs)}"
            )
        for name, value in zip(node.outputs, outputs):
            if name and name in scope.values:
                raise InvalidModel(f"the tensor {name!r} has a value already")
            if name:
                scope.values[name] = value
            if isinstance(value, Value) and isinstance(value.type, Tensors):
                self.dtypes[name] = value.type.dtype

    def put_in_place(self, expansion: Expansion, scope: Scope) -> list[Node]:
        """Gives the names of an expansion their values, and returns its nodes."""
        scope.values.update(expansion.values)
        for name, tensor in expansion.tensors.items():
            scope.values[name] = self.weight(scope.prefix + name, tensor)
            if scope.parent is None:
                self.stored[name] = tensor
        return expansion.nodes

    def count(self) -> None:
        self.read_nodes += 1
        if self.read_nodes > MOST_NODES:
            raise InvalidModel(
                f"the model has more than {MOST_NODES:,} nodes once its loops are unrolled"
            )

    def outcomes(self, node: Node, scope: Scope) -> Sequence[Any]:
        """The results of a node, or what stands for them."""
        values = [scope.find(name) for name in node.reads]
        if any(isinstance(v, Poison | Postponed) for v in values):
            self.require_readers(node, scope.prefix)
        reader = self.meaning(node)  # also behind a refused node: one message lists all of them
        if any(isinstance(v, Poison) for v in values):
            return [Poison()] * len(node.outputs)
        if any(isinstance(v, Postponed) for v in values):
            return self.postpone(node)
        inputs = [scope.find(name) if name else None for name in node.inputs]
        try:
            if not reader.takes_any_rank:
                self.require_ranks(inputs)
            return self.apply(reader, node, inputs, scope)
        except Poisoned:
            self.require_readers(node, scope.prefix)
            return [Poison()] * len(node.outputs)
        except NotImplementedError as reason:
            raise Refused(str(reason)) from None
        except NeedsValue as reason:
            if scope.parent is not None:
                raise
            if self.is_late and all(v in self.levels[0].leaves or self.is_fixed(v) for v in values):
                raise Refused(f"{reason.what} depends on more data than can be looked at") from None
            self.require_readers(node, scope.prefix)
            return self.postpone(node)

    def require_readers(self, node: Node, prefix: str) -> None:
        """Notes what cannot be read in inner graphs that are not read now."""
        prefix = f"{prefix}{node.label}/"
        for inner in (n for body in node.bodies for n in body.nodes):
            try:
                if called(inner, self.functions) is None:
                    self.meaning(inner)
            except Refused as reason:
                self.refuse(inner, prefix + inner.label, str(reason))
            self.require_readers(inner, prefix)

    def require_ranks(self, inputs: Iterable[Value | None]) -> None:
        for value in inputs:
            if value is not None and isinstance(value.type, UnrankedType):
                raise NeedsValue(value, "the number of axes")

    def postpone(self, node: Node) -> Sequence[Any]:
        return [Postponed()] * len(node.outputs)

    def refuse(self, node: Node, label: str, reason: str) -> None:
        name = f"{node.domain}::{node.operator}" if node.domain else node.operator
        refusal = Refusal(label, name, node.opset, reason)
        if refusal not in self.refusals:
            self.refusals.append(refusal)

    def meaning(self, node: Node) -> Meaning:
        """The reader of a node; raises Refused where it has none or does not know an attribute."""
        reader = meaning(node.domain, node.operator, node.opset)
        if reader is None:
            raise Refused(f"no reader for this operator; add one to {families.__name__}")
        unknown = sorted(set(node.attributes) - reader.attributes)
        if unknown:
            raise Refused(f"the attribute {', '.join(unknown)} is not understood at this opset")
        for name, value in node.attributes.items():
            if isinstance(value, Reference):
                raise InvalidModel(f"the attribute {name!r} refers to a function's outside of one")
        return reader

    def apply(
        self, reader: Meaning, node: Node, inputs: Sequence[Value | None], scope: Scope
    ) -> Sequence[Value]:
        """What the reader makes of the node."""
        extra = {"node": Reading(self, node, scope, node.opset)} if reader.wants_node else {}
        guards: list[Guard] = []
        with collect_guards(guards):
            result = call(reader, inputs, {**node.attributes, **extra})
        label = scope.prefix + node.label
        self.levels[-1].guards += [Guard(g.left, g.right, label, g.broadcast) for g in guards]
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        for value in results:
            self.remember(value, label)
        return results

    def remember(self, value: Value | None, label: str) -> None:
        """Notes the node as the origin of a Value and of what was newly made for it."""
        stack = [(value, False)]
        while stack:
            v, inputs_done = stack.pop()
            if v is None or isinstance(v.op, Input | Weight | Constant | Parameter):
                continue
            if any(v in known for known in self.levels):
                continue
            if inputs_done:
                self.levels[-1].add(v, label)
                continue
            stack.append((v, True))
            stack.extend((i, False) for i in v.inputs)

    # Inner graphs.

    def inline(
        self, body: Body, inputs: Sequence[Value], outer: Scope, label: str
    ) -> tuple[Any, ...]:
        """The outputs of an inner graph for the given inputs, read in a scope of its own."""
        scope = Scope({}, outer, f"{outer.prefix}{label}/", body.own)
        if len(inputs) != len(body.inputs):
            raise InvalidModel(
                f"its inner graph {body.name!r} takes {len(body.inputs)} inputs, not {len(inputs)}"
            )
        scope.values.update((name, value) for (name, _), value in zip(body.inputs, inputs))
        self.read(body, scope)
        outputs = tuple(scope.find(name) for name, _ in body.outputs)
        if any(isinstance(o, Poison) for o in outputs):
            raise Poisoned
        return outputs

    def trace(
        self,
        body: Body | Callable[[Sequence[Value]], Sequence[Value]],
        types: Sequence[Type],
        outer: Scope,
        label: str,
    ) -> Inner:
        """An inner graph read for inputs of the given types, with a level of its own."""
        level = Level()
        self.levels.append(level)
        try:
            parameters = tuple(make(Parameter(Token(), kind), ())[0] for kind in types)
            level.leaves.update(parameters)
            if isinstance(body, Body):
                outputs: Sequence[Value] = self.inline(body, parameters, outer, label)
            else:
                outputs = body(parameters)
                for value in outputs:
                    self.remember(value, outer.prefix + label)
            return Inner(parameters, tuple(outputs), level)
        finally:
            self.levels.pop()

    def close(self, inners: Sequence[Inner]) -> tuple[list[Graph], tuple[Value, ...]]:
        """Traced inner graphs as Graphs, and the outer Values that each takes after its own
        inputs."""
        parameters: dict[Value, Value] = {}
        for inner in inners:
            for value in self.captures(inner):
                if value not in parameters:
                    parameters[value] = make(Parameter(Token(), value.type), ())[0]
        graphs = []
        for inner in inners:
            graph = Graph(
                (*inner.parameters, *parameters.values()),
                inner.outputs,
                guards=tuple(dict.fromkeys(inner.level.guards)),
                origins=inner.level.origins,
                definers=inner.level.definers,
            )
            with collect_guards([]):  # they are the inner graph's already
                graphs.append(graph.substitute(parameters))
        return graphs, tuple(parameters)

    def captures(self, inner: Inner) -> list[Value]:
        """The outer Values that an inner graph reads; what depends on no input stays inside."""
        found: dict[Value, None] = {}
        seen: set[Value] = set()
        stack = list(reversed(inner.roots))
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            before = [i for i in value.inputs if i is not None]
            if any(value in level for level in self.levels) and not self.values.is_fixed(value):
                found[value] = None
            elif value not in inner.level.leaves:
                stack.extend((*reversed(before), *inner.level.defining(value)))
        return list(found)

    # What is known of values while reading.

    def is_fixed(self, value: Value) -> bool:
        return self.values.is_fixed(value)

    def contents(self, value: Value, what: str) -> np.ndarray:
        """The elements of a tensor; of a captured one those of this run. Raises NeedsValue."""
        known = self.values.contents(value)
        if known is None:
            known = self.values.captured_contents(value)
        if known is None:
            raise NeedsValue(value, what)
        return known

    def known(self, value: Value) -> np.ndarray | None:
        """The elements of a tensor, where they are the same in every run."""
        return self.values.contents(value)

    def elements(self, sequence: Value) -> tuple[Value, ...] | None:
        """The Values in a sequence whose structure is known."""
        return self.values.elements(sequence)
