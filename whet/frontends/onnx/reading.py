"""What a reader function that asks for `node` is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.frontends.onnx.model import Body, Node, Tensor
from whet.frontends.onnx.registry import NeedsValue, Refused
from whet.ir.graph import Graph, Value
from whet.ir.sizes import Expr, Size
from whet.ir.types import Type

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Importer, Inner, Scope


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
        return self.importer.known(value)

    def elements(self, sequence: Value, what: str) -> tuple[Value, ...]:
        """The Values in a sequence; raises NeedsValue where only a run can tell how many there are."""
        found = self.importer.elements(sequence)
        if found is None:
            raise NeedsValue(sequence, what)
        return found

    def body(self, body: Body, inputs: Sequence[Value]) -> tuple[Any, ...]:
        """The outputs of an inner graph read in place, its inputs the given Values; it sees the outer names."""
        return self.importer.inline(body, inputs, self.scope, self.node.label)

    def trace(self, body: Body, types: Sequence[Type]) -> Inner:
        """An inner graph read for inputs of the given types."""
        return self.importer.trace(body, types, self.scope, self.node.label)

    def close(self, *inners: Inner) -> tuple[list[Graph], tuple[Value, ...]]:
        """Traced inner graphs as Graphs, and the outer Values that all of them take as further inputs."""
        return self.importer.close(inners)

    def weight(self, tensor: Tensor) -> Value:
        """A stored tensor as a weight of the model, called after the node's output."""
        name = next((o for o in self.node.outputs if o), self.node.label)
        return self.importer.weight(self.scope.prefix + name, tensor)
