"""What a picture of a plan or a graph shows: boxes, arrows, and what is said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.cli.terminal import duration, size
from whet.ir.graph import Constant, Graph, Input, Parameter, Value, Weight
from whet.ir.types import TensorType
from whet.plan.describe import kind_of, kind_of_name, source_of, title_of
from whet.plan.plan import Plan, Step, nbytes

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


def of_plan(plan: Plan, seconds: Sequence[float] | None = None) -> Diagram:
    """The kernels of a plan, with what each took where that was measured."""
    picture = Diagram()
    maker: dict[Value, str] = {}
    for value in plan.graph.inputs:
        maker[value] = _add_end(picture, "input", value.op.name, value)  # type: ignore[attr-defined]
    for number, step in enumerate(plan.steps, 1):
        key = f"step {number}"
        taken = None if seconds is None else seconds[number - 1]
        picture.boxes[key] = _step_box(key, step, taken)
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


def _step_box(key: str, step: Step, seconds: float | None) -> Box:
    types = ", ".join(str(value.type) for value in step.writes)
    taken = [duration(seconds)] if seconds is not None else []
    nodes = " + ".join(step.nodes) or str(step.value.op)
    details = [
        ("kernel", key.replace("step", "number")),
        ("nodes", nodes),
        ("reads", "\n".join(_tell(value) for value in step.reads)),
        ("writes", "\n".join(_tell(value) for value in step.writes)),
        *((("time", taken[0]),) if taken else ()),
        ("code", str(step.kernel or step.value.op)),
    ]
    return Box(
        key, kind_of(step), title_of(step), (nodes, "  ".join([types, *taken])), tuple(details)
    )


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
