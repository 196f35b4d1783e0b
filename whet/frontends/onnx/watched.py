"""Tensors inside the bodies of If, Loop, Scan and SequenceMap, made outputs of the model.

A body runs any number of times: what such an output gives is the list of the tensor's arrays, one
for each time, in order. The list is handed from node to node and into the bodies, as a state that
each of them carries, so that nothing else has to know of it. A SequenceMap carries no states: each
run of its body begins a list, and the sequence of these lists is added to the one outside, whatever
the map's inputs are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from whet.frontends.onnx.model import DTYPES, Body, Model, Node
from whet.ir.types import SequenceType, UnrankedType

OPSET = 17
"""In which the nodes that are added have their meaning."""

CARRIES = {"If", "Loop", "Scan"}
MAPS = "SequenceMap"
"""It has no states: what its body gives for each element is a list, whose arrays are added to the
one outside."""


def inner_names(body: Body) -> dict[str, None]:
    """The names that only bodies give a meaning, in their order."""
    found: dict[str, None] = {}
    for node in body.nodes:
        for inner in node.bodies if node.operator in {*CARRIES, MAPS} else ():
            made = (name for n in inner.nodes for name in n.outputs if name)
            found.update(dict.fromkeys(made))
            found.update(inner_names(inner))
    return {name: None for name in found if name not in body.own}


def renamings(before: Iterable[Node], after: Iterable[Node]) -> Iterator[tuple[str, str]]:
    """The new name and the old one of each tensor that nodes give, themselves or inside, where
    they were written again with other names."""
    for old, new in zip(before, after):
        yield from zip(new.outputs, old.outputs)
        for inner, renamed in zip(old.bodies, new.bodies):
            yield from renamings(inner.nodes, renamed.nodes)


def with_old_names(dtypes: Mapping[str, str], renamed: Mapping[str, str]) -> dict[str, str]:
    """The dtypes of tensors also by the names that they had before bodies were written again."""
    found = dict(dtypes)
    for name, dtype in dtypes.items():
        while (name := renamed.get(name, "")) and name not in found:
            found[name] = dtype
    return found


def watched(model: Model, dtypes: Mapping[str, str]) -> Model:
    """The model with further outputs: the lists of these tensors of its bodies, by their names."""
    body = model.body
    for number, (name, dtype) in enumerate(dtypes.items()):
        body = _Watch(name, f"{name}#{number}", dtype).model(body)
    return replace(model, body=body)


class _Watch:
    """One tensor, and the names of its list on the way."""

    def __init__(self, name: str, stem: str, dtype: str) -> None:
        self.name, self.stem, self.dtype, self.count = name, stem, dtype, 0

    def model(self, body: Body) -> Body:
        """The model's own graph with the list as its last output."""
        start = self.fresh()
        nodes, end = self.nodes(body.nodes, start)
        last = _node("Identity", (end,), self.name)
        outputs = (*body.outputs, (self.name, None))
        return replace(body, nodes=(self.empty(start), *nodes, last), outputs=outputs)

    def nodes(self, nodes: Iterable[Node], at: str) -> tuple[list[Node], str]:
        """The nodes, those with the tensor inside carrying the list, and its name behind them."""
        found: list[Node] = []
        for node in nodes:
            if node.operator not in {*CARRIES, MAPS} or not any(map(self.is_in, node.bodies)):
                found.append(node)
                continue
            before, at = at, self.fresh()
            if node.operator in CARRIES:
                found.append(self.carrying(node, before, at))
            else:
                given = self.fresh()
                found += (self.mapping(node, given), *self.adding_lists(given, before, at))
        return found, at

    def is_in(self, body: Body) -> bool:
        """Whether a body, or one inside of it, gives the tensor."""
        return self.name in body.own or any(self.is_in(b) for n in body.nodes for b in n.bodies)

    def carrying(self, node: Node, before: str, after: str) -> Node:
        """A node that is given the list by one name, and gives it by another."""
        if node.operator == "If":  # its branches capture the list, which is their last output
            bodies = {
                key: self.body(branch, before, len(branch.outputs))
                for key, branch in _bodies(node).items()
            }
            outputs = _with(node.outputs, max(len(b.outputs) for b in node.bodies), after, "")
            return replace(node, outputs=outputs, attributes={**node.attributes, **bodies})
        ((key, body),) = _bodies(node).items()
        first = 2 if node.operator == "Loop" else 0  # the iteration and the condition
        scanned = node.attributes.get("num_scan_inputs", 0)
        states = len(body.inputs) - first - scanned
        name = self.fresh()
        # The list is one state more, behind the others.
        inner = self.body(body, name, states + (first and 1))
        inner = replace(inner, inputs=_with(body.inputs, first + states, (name, None), None))
        return replace(
            node,
            inputs=_with(node.inputs, first + states, before, ""),
            outputs=_with(node.outputs, states, after, ""),
            attributes={**node.attributes, key: inner},
        )

    def mapping(self, node: Node, given: str) -> Node:
        """A map that gives the sequence of the lists that the runs of its body begin."""
        ((key, body),) = _bodies(node).items()
        outputs = _with(node.outputs, len(body.outputs), given, "")
        start = self.fresh()
        body = self.body(body, start, len(body.outputs))
        body = replace(body, nodes=(self.empty(start), *body.nodes))
        return replace(node, outputs=outputs, attributes={**node.attributes, key: body})

    def adding_lists(self, lists: str, before: str, after: str) -> Iterator[Node]:
        """Nodes that add all that a sequence of lists has to the list."""
        one, at, end = self.fresh(), self.fresh(), self.fresh()
        yield from self.each(lists, one, (before, after), (at, end), self.adding(one, at, end))

    def adding(self, given: str, before: str, after: str) -> Iterator[Node]:
        """Nodes that add a sequence of arrays to the list."""
        item, at, end = self.fresh(), self.fresh(), self.fresh()
        add = _node("SequenceInsert", (at, item), end)
        yield from self.each(given, item, (before, after), (at, end), [add])

    def each(
        self,
        sequence: str,
        item: str,
        outside: tuple[str, str],
        inside: tuple[str, str],
        step: Iterable[Node],
    ) -> Iterator[Node]:
        """A loop over a sequence whose steps take the list by one name and give it by another."""
        count, number, going, still = (self.fresh() for _ in range(4))
        (before, after), (at, end) = outside, inside
        first = _node("Identity", (going,), still), _node("SequenceAt", (sequence, number), item)
        inputs = ((number, None), (going, None), (at, None))
        body = Body("", (*first, *step), inputs, ((still, None), (end, None)), {})
        yield _node("SequenceLength", (sequence,), count)
        yield _node("Loop", (count, "", before), after, {"body": body})

    def body(self, body: Body, at: str, place: int) -> Body:
        """A body whose output in this place is the list, which it knows as `at`, with all that is
        added to it here."""
        nodes, end = self.nodes(body.nodes, at)
        last = self.fresh()
        adds = self.name in body.own
        nodes.append(
            _node("SequenceInsert", (end, self.name), last)
            if adds
            else _node("Identity", (end,), last)
        )
        kind = SequenceType(UnrankedType(self.dtype))
        outputs = _with(body.outputs, place, (last, kind), None)
        return replace(body, nodes=tuple(nodes), outputs=outputs)

    def empty(self, name: str) -> Node:
        """A node that begins a list."""
        number = next(n for n, found in DTYPES.items() if found == self.dtype)
        return _node("SequenceEmpty", (), name, {"dtype": number})

    def fresh(self) -> str:
        """A name that is not in use."""
        self.count += 1
        return f"{self.stem}.{self.count}"


def _bodies(node: Node) -> dict[str, Body]:
    return {key: value for key, value in node.attributes.items() if isinstance(value, Body)}


def _with(ends: tuple[Any, ...], place: int, new: Any, absent: Any) -> tuple[Any, ...]:
    """A node's or a body's ends with another one in a place; those left out before it are named."""
    ends = (*ends, *[absent] * (place - len(ends)))
    return (*ends[:place], new, *ends[place:])


def _node(
    operator: str, inputs: tuple[str, ...], output: str, attributes: Mapping[str, Any] = {}
) -> Node:
    return Node(operator, "", OPSET, "", inputs, (output,), attributes)
