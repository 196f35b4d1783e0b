"""Kernels: what runs, said without any target. Immutable, hashable, printable: the unit of
compiling and caching.

A kernel's body is an expression over loop indices. Offsets count elements of a buffer, and are
integer
expressions over the loop indices (and over named sizes, where a kernel serves more than one size).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar, dataclass_transform

from whet.ir.graph import Op, attribute_key
from whet.ir.sizes import Expr as SizeExpr
from whet.ir.sizes import Size

Class = TypeVar("Class", bound=type)


class Expression:
    """One element of a tensor, computed. Equal expressions may be different objects; their hashes
    are cached."""

    dtype: str

    @property
    def children(self) -> tuple[Expression, ...]:
        return ()

    @cached_property
    def key(self) -> tuple[Any, ...]:
        return (type(self).__name__, *self._attributes(), *self.children)

    def _attributes(self) -> tuple[Any, ...]:
        return (self.dtype,)

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        # What is cached stays behind: another process hashes text in another way.
        return type(self), tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Expression) and self._hash == other._hash and self.key == other.key
        )

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The loop indices and sizes that the element depends on."""
        return (
            self._own_symbols().union(*(c.symbols for c in self.children)) - self._bound_symbols()
        )

    def _own_symbols(self) -> frozenset[str]:
        return frozenset()

    def _bound_symbols(self) -> frozenset[str]:
        return frozenset()

    def __repr__(self) -> str:
        return str(self)


def size_symbols(*sizes: Size) -> frozenset[str]:
    """The names in the sizes."""
    return frozenset(s.name for size in sizes if isinstance(size, SizeExpr) for s in size.symbols)


@dataclass_transform(frozen_default=True, eq_default=False)
def _node(cls: Class) -> Class:
    return dataclass(frozen=True, eq=False, repr=False)(cls)  # type: ignore[return-value]


@_node
class Load(Expression):
    """The element of a buffer at an offset."""

    buffer: int
    offset: Size
    dtype: str

    def _attributes(self) -> tuple[Any, ...]:
        return self.buffer, self.offset, self.dtype

    def _own_symbols(self) -> frozenset[str]:
        return size_symbols(self.offset)

    def __str__(self) -> str:
        return f"b{self.buffer}[{self.offset}]"


@_node
class Literal(Expression):
    """A number."""

    value: int | float | bool
    dtype: str

    def _attributes(self) -> tuple[Any, ...]:
        return attribute_key(self.value), self.dtype

    def __str__(self) -> str:
        return f"{self.value!r}"


@_node
class Index(Expression):
    """An index expression as data."""

    size: Size
    dtype: str = "int64"

    def _attributes(self) -> tuple[Any, ...]:
        return self.size, self.dtype

    def _own_symbols(self) -> frozenset[str]:
        return size_symbols(self.size)

    def __str__(self) -> str:
        return f"index({self.size})"


@_node
class Hole(Expression):
    """The element that a template computed at the same place."""

    dtype: str

    def __str__(self) -> str:
        return "hole"


@_node
class Apply(Expression):
    """A primitive elementwise operator on elements."""

    op: Op
    args: tuple[Expression, ...]
    dtype: str

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.args

    def _attributes(self) -> tuple[Any, ...]:
        return self.op, self.dtype

    def __str__(self) -> str:
        name = repr(self.op) if self.op.names else type(self.op).__name__
        return f"{name}({', '.join(map(str, self.args))})"


Range = tuple[
    Size, Size
]  # an index and the size it must lie below; negative indices lie outside too


@_node
class Select(Expression):
    """`inside` where every index lies within its size, `outside` elsewhere; only the chosen one is
    computed."""

    ranges: tuple[Range, ...]
    inside: Expression
    outside: Expression
    dtype: str

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.inside, self.outside

    def _attributes(self) -> tuple[Any, ...]:
        return self.ranges, self.dtype

    def _own_symbols(self) -> frozenset[str]:
        return size_symbols(*(size for r in self.ranges for size in r))

    def __str__(self) -> str:
        where = " and ".join(f"0<={i}<{n}" for i, n in self.ranges)
        return f"({self.inside} if {where} else {self.outside})"


@_node
class Let(Expression):
    """`body`, in which the loop index `name` is an element's value, checked to lie within `limit`.

    Negative values count from the end. One that is still outside is clamped and raises the error
    flag.
    """

    name: str
    value: Expression
    limit: Size
    body: Expression
    dtype: str

    @property
    def children(self) -> tuple[Expression, ...]:
        return self.value, self.body

    def _attributes(self) -> tuple[Any, ...]:
        return self.name, self.limit, self.dtype

    def _own_symbols(self) -> frozenset[str]:
        return size_symbols(self.limit)

    @cached_property
    def symbols(self) -> frozenset[str]:
        return self._own_symbols() | self.value.symbols | (self.body.symbols - {self.name})

    def __str__(self) -> str:
        return f"let {self.name}={self.value} below {self.limit} in {self.body}"


@dataclass(frozen=True)
class Axis:
    """A loop: the name of its index and how often it runs."""

    name: str
    size: Size

    def __str__(self) -> str:
        return f"{self.name}<{self.size}"


@_node
class Reduction(Expression):
    """`kind` ("sum", "prod", "max", "min", "argmax", "argmin", with "_last") of the body over inner
    loops."""

    kind: str
    axes: tuple[Axis, ...]
    body: Expression
    dtype: str

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.body,)

    def _attributes(self) -> tuple[Any, ...]:
        return self.kind, self.axes, self.dtype

    def _own_symbols(self) -> frozenset[str]:
        return size_symbols(*(a.size for a in self.axes))

    def _bound_symbols(self) -> frozenset[str]:
        return frozenset(a.name for a in self.axes)

    def __str__(self) -> str:
        return f"{self.kind}[{', '.join(map(str, self.axes))}]({self.body})"


@dataclass(frozen=True)
class Choice:
    """A loop index `name` that is an element's value, as Let has it; nothing is stored for one that
    is outside."""

    name: str
    value: Expression
    limit: Size

    def __str__(self) -> str:
        return f"{self.name}={self.value} below {self.limit}"


@dataclass(frozen=True)
class Store:
    """Where a loop's element goes. `combine` is a binary operator with what stands there already,
    `choices` are the indices in the offset that are data."""

    buffer: int
    offset: Size
    value: Expression
    combine: Op | None = None
    choices: tuple[Choice, ...] = ()

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The loop indices and sizes that it depends on."""
        found = self.value.symbols | size_symbols(self.offset, *(c.limit for c in self.choices))
        return found.union(*(c.value.symbols for c in self.choices)) - {
            c.name for c in self.choices
        }

    def __str__(self) -> str:
        how = f" {type(self.combine).__name__}" if self.combine else ""
        chosen = f" where {', '.join(map(str, self.choices))}" if self.choices else ""
        return f"b{self.buffer}[{self.offset}] ={how} {self.value}{chosen}"


@dataclass(frozen=True)
class Nest:
    """Loops around stores. The loops named in `ordered` run in order, on one thread; in the others
    any order will do, and no two turns of theirs touch the same element."""

    axes: tuple[Axis, ...]
    stores: tuple[Store, ...]
    ordered: tuple[str, ...] = ()

    @cached_property
    def sizes(self) -> frozenset[str]:
        """The names in it that are no loop's index."""
        found = size_symbols(*(axis.size for axis in self.axes)).union(
            *(s.symbols for s in self.stores)
        )
        return found - {axis.name for axis in self.axes}

    def __str__(self) -> str:
        axes = (f"{a} in order" if a.name in self.ordered else str(a) for a in self.axes)
        return f"for {', '.join(axes) or '()'}:\n" + "\n".join(f"  {s}" for s in self.stores)


@dataclass(frozen=True)
class Loops:
    """Loop nests that run one after the other: elementwise work, movement and reductions, fused.

    `buffers` are the dtypes of the kernel's buffers, inputs first; `outputs` of them are written.
    """

    buffers: tuple[str, ...]
    outputs: int
    nests: tuple[Nest, ...]

    @property
    def name(self) -> str:
        return "loops"

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """The named sizes that a run tells the kernel."""
        return tuple(sorted(frozenset[str]().union(*(nest.sizes for nest in self.nests))))

    def __str__(self) -> str:
        return f"loops({', '.join(self.buffers)}; {self.outputs} written)\n" + "\n".join(
            map(str, self.nests)
        )


@dataclass(frozen=True)
class View:
    """How a template sees a buffer: element (i, j, …) lies at offset + i*strides[0] + j*strides[1]
    + …."""

    buffer: int
    dtype: str
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size = 0

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The named sizes in it."""
        return size_symbols(*self.shape, *self.strides, self.offset)

    def __str__(self) -> str:
        shape = ",".join(map(str, self.shape))
        strides = ",".join(map(str, self.strides))
        return f"b{self.buffer}:{self.dtype}[{shape}]@{self.offset}+({strides})"


@dataclass(frozen=True)
class Template:
    """An operator run whole by a target's hand-scheduled code, and what is computed from each
    result element.

    `inputs` has None for an absent optional input. The epilogue is an expression over `axes`, one
    per axis
    of the operator's result, in which Hole is the result's element; `output` is where it goes.
    """

    op: Op
    inputs: tuple[View | None, ...]
    buffers: tuple[str, ...]
    axes: tuple[Axis, ...]
    epilogue: Expression
    output: View

    @property
    def name(self) -> str:
        return type(self.op).__name__.lower()

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """The named sizes that a run tells the kernel."""
        views = [view.symbols for view in (*self.inputs, self.output) if view is not None]
        own = self.epilogue.symbols - {axis.name for axis in self.axes}
        sizes = size_symbols(*(axis.size for axis in self.axes))
        return tuple(sorted(own.union(sizes, self.op.symbols, *views)))

    def __str__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        axes = ", ".join(map(str, self.axes))
        return f"{self.op}({inputs})\nfor {axes}:\n  {self.output} = {self.epilogue}"


Kernel = Loops | Template


def walk(expression: Expression) -> Iterator[Expression]:
    """Every distinct node of an expression, children first."""
    seen: set[int] = set()
    stack = [(expression, False)]
    while stack:
        node, done = stack.pop()
        if id(node) in seen:
            continue
        if done:
            seen.add(id(node))
            yield node
            continue
        stack.append((node, True))
        stack.extend((c, False) for c in reversed(node.children))
