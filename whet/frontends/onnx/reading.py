"""What a reader function that asks for `node` is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import TypeMismatch
from whet.frontends.onnx.functions import Expansion, expand_body
from whet.frontends.onnx.model import Body, Node, Tensor
from whet.frontends.onnx.registry import INTERNAL, NeedsValue, Refused
from whet.frontends.onnx.watched import renamings
from whet.ir.graph import Graph, Value
from whet.ir.sizes import Expr, Size
from whet.ir.types import INTEGERS, Type
from whet.ops.movement import reshape, slice_axis
from whet.ops.select import Extent

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Importer
    from whet.frontends.onnx.scope import Inner, Scope

MOST_COUNTS = 64  # sizes in one tensor that is data


@dataclass(frozen=True)
class Reading:
    """The node, its scope, and how to read values, weights and inner graphs."""

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
        """A size that only a run can tell, named after the node and what it counts."""
        return self.importer.fresh_size(f"{self.scope.prefix}{self.node.label}.{what}", low, high)

    def sizes(self, value: Value, what: str) -> tuple[Size, ...]:
        """The elements of an integer tensor of sizes; raises NeedsValue where only a run can
        tell them."""
        if value.dtype not in INTEGERS:
            raise TypeMismatch(f"{what} must be integers, got {value.type}")
        return tuple(self.contents(value, what).ravel().tolist())

    def counts(self, value: Value, what: str) -> tuple[Size, ...]:
        """As sizes(), but numbers that only a run can tell get names: for sizes that cannot be
        negative."""
        if self.known(value) is not None:
            return self.sizes(value, what)
        length = value.shape[0] if value.rank == 1 else 1
        if not isinstance(length, int) or value.rank > 1 or length > MOST_COUNTS:
            raise NeedsValue(value, what)
        return tuple(self._extent(value, i, length, what) for i in range(length))

    def _extent(self, value: Value, i: int, length: int, what: str) -> Expr:
        size = self.fresh_size(f"{what}.{i}" if length > 1 else what)
        self.importer.remember(
            Extent(size)(reshape(value if length == 1 else slice_axis(value, 0, i, 1))),
            self.scope.prefix + self.node.label,
        )
        return size

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
        return self.importer.known(value)

    def elements(self, sequence: Value, what: str) -> tuple[Value, ...]:
        """The Values in a sequence; raises NeedsValue where only a run can tell how many there
        are."""
        found = self.importer.elements(sequence)
        if found is None:
            raise NeedsValue(sequence, what)
        return found

    @property
    def is_late(self) -> bool:
        """Whether this is a stage of a late region: captured values are at hand, all sizes
        numbers."""
        return self.importer.is_late

    def expand(
        self, body: Body, inputs: Sequence[Value | str], outputs: Sequence[str] | None = None
    ) -> tuple[Expansion, list[str]]:
        """The nodes of an inner graph to take this node's place, and the names of its outputs.

        Inputs may be names that earlier nodes of the expansion give.
        """
        prefix = self.importer.unique(self.node.label) + "/"
        names = list(outputs or (f"{prefix}output{i}" for i in range(len(body.outputs))))
        expansion = expand_body(body, inputs, names, prefix)
        self.importer.renamed.update(renamings(body.nodes, expansion.nodes))
        return expansion, names

    def last(
        self,
        operator: str,
        inputs: Sequence[Value | str | None],
        attributes: Mapping[str, Any],
    ) -> Expansion:
        """A node of our own that gives this node's results, to be the last of an expansion."""
        prefix = self.importer.unique(self.node.label) + "/"
        names, values = [], {}
        for i, item in enumerate(inputs):
            name = item if isinstance(item, str) else "" if item is None else f"{prefix}input{i}"
            names.append(name)
            if isinstance(item, Value):
                values[name] = item
        outputs = self.node.outputs
        node = Node(operator, INTERNAL, 1, self.node.label, tuple(names), outputs, attributes)
        return Expansion([node], values)

    def inline(self, body: Body, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """The outputs of an inner graph for the given inputs, read at once."""
        return self.importer.inline(body, inputs, self.scope, self.node.label)

    def trace(
        self, body: Body | Callable[[Sequence[Value]], Sequence[Value]], types: Sequence[Type]
    ) -> Inner:
        """An inner graph, or what a function makes of its inputs, read for inputs of the given
        types."""
        return self.importer.trace(body, types, self.scope, self.node.label)

    def close(self, *inners: Inner) -> tuple[list[Graph], tuple[Value, ...]]:
        """Traced inner graphs as Graphs, and the outer Values that all of them take as further
        inputs."""
        return self.importer.close(inners)

    def weight(self, tensor: Tensor) -> Value:
        """A stored tensor as a weight of the model, called after the node's output."""
        name = next((o for o in self.node.outputs if o), self.node.label)
        return self.importer.weight(self.scope.prefix + name, tensor)
