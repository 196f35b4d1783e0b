"""What a picture of a plan or a graph shows: boxes, arrows, and what is said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.cli.terminal import amount, duration, size
from whet.ir.graph import Constant, Graph, Input, Parameter, Value, Weight
from whet.ir.types import TensorType
from whet.plan.describe import kind_of_name, source_of
from whet.plan.plan import Plan, nbytes
from whet.plan.target import Tactic
from whet.runtime.inspect import Buffer, Kernel

KINDS = {
    "convolution": "convolution",
    "product": "matrix product",
    "attention": "attention",
    "reduction": "loops that reduce",
    "loops": "elementwise loops",
    "movement": "movement",
    "reference": "NumPy reference: slow",
    "end": "input or output",
}
"""What a colour means, by its name in the style sheet."""


@dataclass(frozen=True)
class Box:
    """A kernel, an operator, an input or an output; the key is ours, the rest may hold anything."""

    key: str
    kind: str
    title: str
    lines: tuple[str, ...] = ()
    details: tuple[tuple[str, str], ...] = ()


@dataclass
class Diagram:
    """Boxes in an order that no arrow goes against; what an arrow carries is said on hovering."""

    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: dict[tuple[str, str], str] = field(default_factory=dict)

    def connect(self, source: str, reader: str, what: str) -> None:
        before = self.arrows.get((source, reader))
        self.arrows[source, reader] = what if before is None else f"{before}, {what}"


def of_plan(plan: Plan, kernels: Sequence[Kernel]) -> Diagram:
    """The steps of a plan, with what the inspector says of each."""
    picture = Diagram()
    maker: dict[Value, str] = {}
    for value in plan.graph.inputs:
        maker[value] = _add_end(picture, "input", value.op.name, value)  # type: ignore[attr-defined]
    for step, kernel in zip(plan.steps, kernels):
        key = f"step {kernel.number}"
        picture.boxes[key] = _kernel_box(key, kernel)
        for value in step.reads:
            if value in maker:
                picture.connect(maker[value], key, str(value.type))
        maker.update(dict.fromkeys(step.writes, key))
    _add_outputs(picture, maker, plan.graph)
    return picture


def of_graph(graph: Graph) -> Diagram:
    """The operators of a graph; weights and constants are named in the boxes that read them."""
    picture = Diagram()
    maker: dict[Value, str] = {}
    for value in graph.inputs:
        maker[value] = _add_end(picture, "input", value.op.name, value)  # type: ignore[attr-defined]
    for value in graph.values:
        if value in maker or isinstance(value.op, Input | Parameter | Weight | Constant):
            continue
        key = f"value {len(picture.boxes)}"
        picture.boxes[key] = _operator_box(key, value, graph)
        for source in value.inputs:
            if source in maker:
                picture.connect(maker[source], key, str(source.type))
        maker.update(dict.fromkeys(value.siblings, key))
    _add_outputs(picture, maker, graph)
    return picture


def _add_end(picture: Diagram, what: str, name: str, value: Value) -> str:
    key = f"{what} {len(picture.boxes)}"
    picture.boxes[key] = Box(key, "end", name, (f"{what} {value.type}",))
    return key


def _add_outputs(picture: Diagram, maker: Mapping[Value, str], graph: Graph) -> None:
    names = graph.output_names or [f"result {n}" for n in range(len(graph.outputs))]
    for name, value in zip(names, graph.outputs):
        key = _add_end(picture, "output", name, value)
        if value in maker:
            picture.connect(maker[value], key, str(value.type))


def _kernel_box(key: str, kernel: Kernel) -> Box:
    types = ", ".join(buffer.type for buffer in kernel.writes)
    taken = [] if kernel.seconds is None else [duration(kernel.seconds)]
    nodes = " + ".join(kernel.nodes) or kernel.operator
    work = f"reads {size(kernel.read)}, writes {size(kernel.written)}"
    if kernel.operations:
        work += f", {amount(kernel.operations)} operations"
    details = [
        ("kernel", f"number {kernel.number}"),
        ("nodes", nodes),
        ("reads", "\n".join(map(_buffer, kernel.reads))),
        ("writes", "\n".join(map(_buffer, kernel.writes))),
        ("work", work),
        *((("time", ", ".join([*taken, *_limit(kernel)])),) if taken else ()),
        *((("tactic", _tactics(kernel)),) if kernel.tactic is not None else ()),
        ("code", kernel.code),
    ]
    lines = nodes, "  ".join([types, *taken])
    return Box(key, kernel.kind, kernel.title, lines, tuple(details))


def _buffer(buffer: Buffer) -> str:
    place = "" if buffer.offset is None else f" at {buffer.offset}"
    return f"{buffer.type} ({size(buffer.bytes)}) {buffer.source}{place}"


def _limit(kernel: Kernel) -> list[str]:
    if kernel.least is None:
        return []
    return [f"at the limit of {kernel.bound} {duration(kernel.least)}"]


def _tactics(kernel: Kernel) -> str:
    """The chosen tactic, and the others with their cost over its own."""
    assert kernel.tactic is not None
    lines = [f"{tactic_text(kernel.tactic)}, by {kernel.tactic.by}"]
    for other in kernel.alternatives:
        known = other.cost is not None and kernel.tactic.cost
        more = f"{other.cost / kernel.tactic.cost:.2f} x the cost" if known else "not compared"  # type: ignore[operator]
        lines.append(f"or {tactic_text(other)}: {more}")
    return "\n".join(lines)


def tactic_text(tactic: Tactic | None) -> str:
    """A tactic in a few words: its name and the settings that are neither off nor 1."""
    if tactic is None:
        return ""
    settings = [
        _setting(name, value)
        for name, value in tactic.settings.items()
        if value and (value is True or value != 1)
    ]
    return " ".join([tactic.name, *settings])


def _setting(name: str, value: object) -> str:
    if value is True:
        return name
    if isinstance(value, tuple | list):
        distinct = dict.fromkeys(value)
        return f"{name}={'/'.join(map(str, distinct))}"
    return f"{name}={value}"


def _tell(value: Value) -> str:
    """A buffer in words."""
    held = f" ({size(nbytes(value.tensor))})" if _is_sized(value) else ""
    return f"{value.type}{held} {source_of(value)}".strip()


def _is_sized(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.is_static


def _operator_box(key: str, value: Value, graph: Graph) -> Box:
    name = type(value.op).__name__
    details = (
        ("operator", str(value.op)),
        ("nodes", graph.node(value)),
        ("reads", "\n".join("-" if i is None else _tell(i) for i in value.inputs)),
        ("gives", ", ".join(str(s.type) for s in value.siblings)),
    )
    kind = "movement" if value.is_static else kind_of_name(name)
    said = "from weights alone: " if value.is_static else ""
    return Box(key, kind, said + name, (graph.node(value), str(value.type)), details)
