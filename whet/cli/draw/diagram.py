"""What a picture of a plan or a graph shows: boxes, arrows, and what is said of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.cli.terminal import duration, size
from whet.ir.graph import Constant, Graph, Input, Parameter, Value, Weight
from whet.ir.types import TensorType
from whet.ops.elementwise import Max
from whet.plan.kernel import Apply, Expression, Let, Literal, Loops, Reduction, Template, walk
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
    what = {Weight: "weight", Constant: "constant", Input: "input"}.get(type(value.op))
    name = getattr(value.op, "name", "")
    said = f"{what} {name}".strip() if what else "made from weights" if value.is_static else ""
    held = f" ({size(nbytes(value.tensor))})" if _is_sized(value) else ""
    return f"{value.type}{held} {said}".strip()


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
    kind = "movement" if value.is_static else _kind_of_name(name)
    said = "from weights alone: " if value.is_static else ""
    return Box(key, kind, said + name, (graph.node(value), str(value.type)), details)


WORDS = {
    "convolution": ("convolution",),
    "product": ("product", "matmul", "einsum"),
    "attention": ("attention",),
    "reduction": ("reduce", "softmax", "norm", "pool", "cumulat", "arg"),
    "movement": ("transpose", "reshape", "concat", "slice", "shrink", "pad", "broadcast", "gather"),
}


def _kind_of_name(name: str) -> str:
    for kind, words in WORDS.items():
        if any(word in name.lower() for word in words):
            return kind
    return "loops"


def kind_of(step: Step) -> str:
    """Which colour a step has."""
    if step.kernel is None:
        return "reference"
    if isinstance(step.kernel, Template):
        return _kind_of_name(type(step.kernel.op).__name__)
    found = list(_expressions(step.kernel))
    if any(isinstance(e, Reduction) for e in found):
        return "reduction"
    return "loops" if any(isinstance(e, Apply) for e in found) else "movement"


def _expressions(kernel: Loops | Template) -> Iterable[Expression]:
    if isinstance(kernel, Template):
        yield from walk(kernel.epilogue)
        return
    for nest in kernel.nests:
        for store in nest.stores:
            yield from walk(store.value)


def title_of(step: Step) -> str:
    """What a step does, in a few words."""
    if step.kernel is None:
        return f"{type(step.value.op).__name__} (NumPy)"
    work = _work(step.kernel)
    if isinstance(step.kernel, Template):
        return " + ".join([_operator(step.kernel.op), *work[:3], *["…"] * (len(work) > 3)])
    if work:
        return ", ".join(work[:4]) + (" …" if len(work) > 4 else "")
    return type(step.value.op).__name__.lower()


def _operator(op: Any) -> str:
    name = type(op).__name__.removeprefix("Packed").removeprefix("Flash").lower()
    kernel = getattr(op, "kernel", None)
    if kernel is None:
        return name
    is_depthwise = op.groups > 1 and op.groups == op.filters
    strides = "" if set(op.strides) == {1} else "/" + "x".join(map(str, op.strides))
    return f"{'depthwise' if is_depthwise else name} {'x'.join(map(str, kernel))}{strides}"


def _work(kernel: Loops | Template) -> list[str]:
    """The reductions, look-ups and elementwise operators of a kernel, each once."""
    found: dict[str, None] = {}
    for e in _expressions(kernel):
        if isinstance(e, Reduction):
            found[e.kind] = None
        elif isinstance(e, Let):
            found["gather"] = None
        elif isinstance(e, Apply):
            is_relu = isinstance(e.op, Max) and e.args[1] == Literal(0.0, e.dtype)
            found["relu" if is_relu else type(e.op).__name__.lower()] = None
    return list(found)


@dataclass(frozen=True)
class Buffer:
    """A buffer in the arena: its place, its bytes, and the steps from first to last."""

    title: str
    kind: str
    start: int
    bytes: int
    first: int
    last: int


def buffers(plan: Plan) -> list[Buffer]:
    """What lies in the arena when."""
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    maker: dict[Value, Step] = {}
    for number, step in enumerate(plan.steps):
        for value in step.writes:
            first[value], last[value], maker[value] = number, number, step
        for value in step.reads:
            last[value] = number
    return [
        Buffer(
            f"{value.type} of {' + '.join(maker[value].nodes) or maker[value].name}",
            kind_of(maker[value]),
            start,
            nbytes(value.tensor),
            first[value],
            last[value],
        )
        for value, start in plan.offsets.items()
    ]
