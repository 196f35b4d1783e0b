"""Named sizes as kernels for a range of them have them: with bounds, and a likely value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from whet.errors import Error, ShapeError, located
from whet.ir.atoms import Symbol
from whet.ir.attributes import Nested, uses_sizes
from whet.ir.evaluate import bind_shape, check_guards
from whet.ir.graph import Graph, Input, Parameter, Value
from whet.ir.sizes import Expr, Size, substitute, symbol
from whet.ir.types import OptionalType, SequenceType, TensorType, Type, map_sizes
from whet.ops import elementwise as ew
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.movement import Concat, Gather, Reshape, Sizes, Transpose
from whet.ops.reduce import LayerNorm, Reduce, RMSNorm
from whet.ops.window import Pool
from whet.plan.describe import arena_of
from whet.plan.plan import Plan
from whet.runtime.profile import Profile
from whet.targets.bound import evaluator

_LOOP = re.compile(r"(?:[irgs]\d+[ab]*|row)")
"""What kernels call the indices of their loops."""


@dataclass(frozen=True)
class Ranges:
    """The sizes that a graph's runs tell, by their names in the model."""

    sizes: Mapping[str, Expr] = field(default_factory=dict)
    """What stands for them in kernels."""
    likely: Mapping[str, int] = field(default_factory=dict)
    """Values that schedules are chosen for, by the names in kernels."""

    @property
    def names(self) -> list[str]:
        """What kernels call them."""
        return [_name(size) for size in self.sizes.values()]

    def values(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes of a run by their names in kernels."""
        return {_name(self.sizes[name]): size for name, size in sizes.items() if name in self.sizes}

    def serve(self, sizes: Mapping[str, int]) -> bool:
        """Whether the sizes of a run lie within the bounds."""
        return all(_holds(_symbol(size), sizes[name]) for name, size in self.sizes.items())

    def arena(self, plan: Plan) -> int:
        """What a plan's results take at the greatest sizes; 0 where one has no bound."""
        highs = {_name(size): _symbol(size).high for size in self.sizes.values()}
        bounds = {name: high for name, high in highs.items() if isinstance(high, int)}
        return arena_of(plan, bounds)[0] if len(bounds) == len(highs) else 0

    def inside(self) -> Ranges:
        """The same for graphs in which sizes have the names that they have in kernels."""
        return replace(self, sizes={_name(size): size for size in self.sizes.values()})

    def with_names(self, names: Iterable[str], low: int) -> Ranges:
        """The ranges, and further sizes of which nothing but the least value is known."""
        new = {name: symbol(kernel_name(name), low) for name in names if name not in self.sizes}
        return replace(self, sizes={**self.sizes, **new})


def kernel_name(name: str) -> str:
    """A size's name in kernels, which is never that of a loop."""
    return f"size {name}" if _LOOP.fullmatch(name) else name


def _symbol(size: Expr) -> Symbol:
    ((atom,),) = (mono for mono, _ in size.terms)
    assert isinstance(atom, Symbol)
    return atom


def _holds(size: Symbol, number: int) -> bool:
    """Whether a number lies within a size's own bounds."""
    most = size.high if isinstance(size.high, int) else None
    return size.low <= number and (most is None or number <= most)


def _name(size: Expr) -> str:
    return _symbol(size).name


def names_shown(graph: Graph) -> list[str]:
    """The named sizes that the shapes of a graph's inputs show by themselves."""
    found: dict[str, None] = {}
    for value in graph.inputs:
        if isinstance(value.type, TensorType):
            atoms = [
                s.terms[0][0][0] for s in value.type.shape if isinstance(s, Expr) and s.is_atom
            ]
            found.update((a.name, None) for a in atoms if isinstance(a, Symbol))
    return list(found)


IMAGE = 224
"""How far an image reaches, unless a profile says otherwise."""


def image_sizes(graph: Graph) -> dict[str, int]:
    """Likely values, by their names in kernels, of sizes that images have which are convolved."""
    images = [v.inputs[0] for v in graph.values if isinstance(v.op, Convolution)]
    sides = [size for x in images if x is not None for size in x.shape[1:-1]]
    found = {s.name for size in sides if isinstance(size, Expr) for s in size.symbols}
    return {kernel_name(name): IMAGE for name in sorted(found)}


def ranges_of(graph: Graph, profiles: Sequence[Profile]) -> Ranges:
    """The sizes of a model's inputs: within all profiles' bounds, likely as the first one says."""
    lows = [_sizes_at(graph, profile.min) for profile in profiles]
    highs = [_sizes_at(graph, profile.max) for profile in profiles]
    likely = dict(item for p in reversed(profiles) for item in _sizes_at(graph, p.opt).items())
    sizes: dict[str, Expr] = {}
    for name in names_shown(graph):
        # Runs without elements have plans of their own: most kernels have nothing to do then.
        low, high = 1, None
        if profiles and all(name in bounds for bounds in (*lows, *highs)):
            low = max(min(bounds[name] for bounds in lows), 1)
            high = max(low, *(bounds[name] for bounds in highs))
        sizes[name] = symbol(kernel_name(name), low, high)
    return Ranges(sizes, {kernel_name(n): size for n, size in likely.items() if n in sizes})


def _sizes_at(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The named sizes where inputs have such shapes."""
    found: dict[str, int] = {}
    for value in graph.inputs:
        shape: Any = shapes.get(value.op.name)  # type: ignore[attr-defined]
        if shape is not None and isinstance(value.type, TensorType):
            try:
                bind_shape(value.type, tuple(shape), found)
            except ShapeError:
                continue  # a profile whose shapes contradict each other bounds nothing
    return found


GUARDED = (
    ew.Elementwise,
    ew.Pow,
    ew.Where,
    ew.Cast,
    Attention,
    MatMul,
    Concat,
    Gather,
    LayerNorm,
    Reduce,
    RMSNorm,
    Reshape,
    Sizes,
    Transpose,
)
"""Operators of whose sizes the graph's guards say all."""


class Guards:
    """What a graph's guards ask of the sizes that its inputs show."""

    def __init__(self, graph: Graph) -> None:
        self.guards = graph.guards
        self._evaluate = evaluator([side for g in self.guards for side in (g.left, g.right)])

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raises ShapeError for the first one that is broken."""
        if not self.guards:
            return
        try:
            numbers = iter(self._evaluate(sizes))
        except (KeyError, ZeroDivisionError):  # some sizes are known later; or another is broken
            check_guards(self.guards, sizes)
            return
        for guard, left, right in zip(self.guards, numbers, numbers):
            if left != right and not (guard.broadcast and 1 in (left, right)):
                guard.check(sizes)


class Demands:
    """What a graph's operators ask of sizes beyond its guards, unless it is proved: that one is not
    below another."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        firsts = dict.fromkeys(value.siblings[0] for value in graph.values)
        open_ones = [
            v
            for v in firsts
            if not isinstance(v.op, GUARDED) and _is_open(v) and not _accepts_all(v)
        ]
        # The layers of a network ask the same over and over: the first of them speaks for all.
        asked: dict[Any, Value] = {}
        for v in open_ones:
            asked.setdefault((v.op, *(None if i is None else i.type for i in v.inputs)), v)
        self.values = list(asked.values())
        self._opened = [_open_attributes(v) for v in self.values]
        sizes = [s for v, found in zip(self.values, self._opened) for s in _sizes_in(v, found)]
        self._sizes = list(dict.fromkeys(sizes))
        self._evaluate = evaluator(self._sizes)

    def check(self, sizes: Mapping[str, int]) -> None:
        """Infers such operators at known sizes; raises what they raise, with the node's name."""
        known: dict[Type, Type] = {}
        numbers: dict[Size, int] = dict(zip(self._sizes, self._evaluate(sizes)))

        def number(size: Size) -> Size:
            found = numbers.get(size)
            return substitute(size, sizes) if found is None else found

        def at(kind: Type) -> Type:
            if kind not in known:
                known[kind] = map_sizes(kind, number)
            return known[kind]

        for value, opened in zip(self.values, self._opened):
            try:
                changes = {name: _known(attribute, number) for name, attribute in opened.items()}
                op = type(value.op)(**{**value.op.attributes, **changes}) if changes else value.op
                op.infer(*(None if i is None else at(i.type) for i in value.inputs))
            except Error as error:
                raise located(error, self.graph.node(value)) from error.__cause__


def _accepts_all(value: Value) -> bool:
    """Whether an operator is proved to ask nothing of any sizes."""
    return value.op.accepts_all(*(None if i is None else i.type for i in value.inputs))


def _open_attributes(value: Value) -> dict[str, Any]:
    """An operator's attributes that have sizes which only runs tell, inner graphs left out."""
    found = value.op.attributes.items()
    return {name: x for name, x in found if not isinstance(x, Nested) and uses_sizes(x)}


def _sizes_in(value: Value, attributes: Mapping[str, Any]) -> Iterator[Expr]:
    """The expressions in an operator's attributes and in the types of its inputs."""
    stack: list[Any] = [*attributes.values(), *(i.type for i in value.inputs if i is not None)]
    while stack:
        x = stack.pop()
        if isinstance(x, Expr):
            yield x
        elif isinstance(x, tuple | TensorType):
            stack += x if isinstance(x, tuple) else x.shape


def _known(x: Any, number: Callable[[Size], Size]) -> Any:
    """An attribute with numbers in the place of sizes."""
    match x:
        case Expr():
            return number(x)
        case tuple():
            return tuple([_known(i, number) for i in x])
        case TensorType() | SequenceType() | OptionalType():
            return map_sizes(x, number)
    return x


def _is_open(value: Value) -> bool:
    """Whether an operator's attributes or inputs have sizes that only runs tell."""
    if isinstance(value.op, Input | Parameter):
        return False
    if isinstance(value.op, Convolution | Pool):
        images = (value.inputs[0], value)  # they ask nothing of the batch
        return not all(isinstance(s, int) for v in images if v is not None for s in v.shape[1:])
    kinds = (i.type for i in value.inputs if i is not None and isinstance(i.type, TensorType))
    return value.op.uses_sizes or not all(kind.is_static for kind in kinds)
