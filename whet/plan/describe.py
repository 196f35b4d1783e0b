"""Plans in words: what a step does, what it reads, and what lies in the arena when."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from whet.ir.graph import Constant, Input, Value, Weight
from whet.ir.sizes import substitute
from whet.ops.elementwise import Max
from whet.plan.kernel import Apply, Expression, Let, Literal, Loops, Reduction, Template, walk
from whet.plan.plan import Plan, Step
from whet.plan.work import Sizes, nbytes_at

WORDS = {
    "convolution": ("convolution", "depthwise"),
    "product": ("product", "matmul", "einsum"),
    "attention": ("attention",),
    "reduction": ("reduce", "softmax", "norm", "pool", "cumulat", "arg"),
    "movement": ("transpose", "reshape", "concat", "slice", "shrink", "pad", "broadcast", "gather"),
}


TARGETS_OWN = ("Packed", "Flash", "Implicit", "Fused", "Sorted")
"""What targets put before the names of the operators that they run whole."""


def kind_of_name(name: str) -> str:
    for kind, words in WORDS.items():
        if any(word in name.lower() for word in words):
            return kind
    return "loops"


def kind_of(step: Step) -> str:
    """Which colour a step has."""
    if step.kernel is None:
        return "reference"
    if isinstance(step.kernel, Template):
        return kind_of_name(type(step.kernel.op).__name__)
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
    name = type(op).__name__
    for own in TARGETS_OWN:
        name = name.removeprefix(own)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    kernel = getattr(op, "kernel", None)
    if kernel is None:
        return name
    if op.groups > 1 and op.groups == op.filters:
        name = name.replace("convolution", "depthwise")
    strides = "" if set(op.strides) == {1} else "/" + "x".join(map(str, op.strides))
    return f"{name} {'x'.join(map(str, kernel))}{strides}"


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


def source_of(value: Value) -> str:
    """Where a step finds a Value that no step made: "weight w", "input x", "" for the arena."""
    what = {Weight: "weight", Constant: "constant", Input: "input"}.get(type(value.op))
    if what is None:
        return "made from weights" if value.is_static else ""
    return f"{what} {getattr(value.op, 'name', '')}".strip()


def arena_of(plan: Plan, sizes: Sizes) -> tuple[int, dict[Value, int]]:
    """The arena's bytes, and where each buffer lies, at given sizes."""
    if not plan.rooms.members:
        return plan.arena, plan.offsets
    places, whole = plan.rooms.layout(lambda size: int(substitute(size, sizes)))
    return whole, {v: places[room] for v, room in plan.rooms.rooms.items()}  # type: ignore[misc]


@dataclass(frozen=True)
class Buffer:
    """A buffer in the arena: its place, its bytes, and the steps from first to last."""

    title: str
    short: str
    kind: str
    start: int
    bytes: int
    first: int
    last: int


def buffers(plan: Plan, sizes: Sizes) -> list[Buffer]:
    """What lies in the arena when, at given sizes."""
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
            title_of(maker[value]),
            kind_of(maker[value]),
            start,
            nbytes_at(value.type, sizes),
            first[value],
            last[value],
        )
        for value, start in arena_of(plan, sizes)[1].items()
    ]
