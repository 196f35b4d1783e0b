"""The tensor graph: an Op applied to Values makes Values. Nothing here is ever mutated."""

from __future__ import annotations

import itertools
import math
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, Protocol, TypeVar, dataclass_transform
from weakref import WeakValueDictionary

import numpy as np

from whet.errors import Error, ShapeError, TypeMismatch, located
from whet.ir.sizes import Expr, Size, Undecided, substitute
from whet.ir.types import (
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnrankedType,
    dtype_name,
    map_sizes,
)

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True)
def operator(cls: Class) -> Class:
    """Makes an operator: a frozen dataclass whose equality is by the type and the bits of its
    attributes."""
    made: Any = dataclass(frozen=True, eq=False, repr=False)(cls)
    if made.has_effect is True and not any("Token" in str(f.type) for f in fields(made)):
        raise TypeError(f"{cls.__name__} has an effect and needs a Token among its attributes")
    return made  # type: ignore[no-any-return]


class Op:
    """What to compute. A subclass is one frozen dataclass whose fields are the operator's
    attributes."""

    infer: Callable[..., Any]
    """Input types -> output type, or a tuple of them. Raises ShapeError or TypeMismatch."""

    reference: Callable[..., Any]
    """The meaning, in NumPy: the judge in tests, the constant folder, the host kernel."""

    lower: Callable[..., Any]
    """The same result from simpler operators. An operator without it is primitive: targets emit
    it."""

    operations: Callable[..., Any]
    """Input types -> how many multiplications, additions and the like it takes: for operators that
    are measured by their arithmetic. Padding counts as elements do."""

    has_effect: ClassVar[bool] = False
    """Never merged with an equal one, never folded: random numbers, debug output, user code."""

    defines_sizes: ClassVar[bool] = False
    """Whether named sizes in its results' shapes become known only when it runs."""

    runs_graphs: ClassVar[bool] = False
    """Whether `reference` first takes a function that runs an inner graph: (graph, arrays) ->
    outputs."""

    is_bookkeeping: ClassVar[bool] = False
    """Whether it touches no elements: a size that is read, a branch taken, a sequence put together.
    The host does that by design, and no kernel could do it faster."""

    folds: ClassVar[bool] = False
    """Whether results may be computed while a model is read, where all inputs are known then."""

    computes_sizes: ClassVar[bool] = False
    """Whether `reference` also works on object arrays that hold symbolic sizes."""

    is_commutative: ClassVar[bool] = False
    """Whether its two inputs may change places."""

    def __call__(self, *inputs: Any) -> Any:
        if any(isinstance(i, Pattern) for i in inputs):
            return Pattern(self, tuple(as_pattern(i) for i in inputs))
        like = next((i for i in inputs if isinstance(i, Value)), None)
        values = make(self, tuple(as_value(i, like) for i in inputs))
        return values[0] if len(values) == 1 else values

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """The class, and the attributes by type and bits: 0.0 is neither -0.0 nor False, NaN equals
        itself."""
        return type(self), *(attribute_key(getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.key == other.key)

    def __repr__(self) -> str:
        shown = ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{k}={_short(v)}' for k, v in shown)})"

    @cached_property
    def uses_sizes(self) -> bool:
        """Whether an attribute is an expression over named sizes."""
        return any(_uses_sizes(getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The named sizes in the attributes, those of inner graphs among them."""
        attributes = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return frozenset[str]().union(*map(_symbols, attributes))

    @property
    def is_primitive(self) -> bool:
        return not hasattr(self, "lower")

    def bind(self, sizes: Mapping[str, Size], inner: bool = True) -> Op:
        """The operator with the named sizes in its attributes replaced, in inner graphs unless told
        not to."""
        return self._changed(lambda x: _bind(x, sizes) if inner or not isinstance(x, Graph) else x)

    def map_graphs(self, fn: Callable[[Graph], Graph]) -> Op:
        """The operator with each of its inner graphs g replaced by fn(g), which has the same
        inputs."""
        return self._changed(lambda x: fn(x) if isinstance(x, Graph) else x)

    def _changed(self, fn: Callable[[Any], Any]) -> Op:
        changes = {f.name: fn(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        if all(changes[name] is getattr(self, name) for name in changes):
            return self
        return type(self)(**changes)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The inner graphs among the attributes: a branch, the body of a loop."""
        attributes = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return tuple(x for x in attributes if isinstance(x, Graph))


def attribute_key(x: Any) -> Any:
    """A hashable stand-in that tells apart what Python's == would merge."""
    match x:
        case bool() | None | str() | bytes():
            return type(x), x
        case int():
            return int, x
        case float():
            return float, struct.pack("<d", x)
        case tuple():
            return tuple, *(attribute_key(i) for i in x)
        case np.ndarray():
            return array_key(x)
        case Graph():
            return Graph, tuple(map(id, x.inputs)), tuple(map(id, x.outputs)), x.guards
        case Expr() | TensorType() | UnrankedType() | SequenceType() | OptionalType() | Token():
            return x
        case Op():
            return x.key
        case Pattern():
            return Pattern, id(x)
    raise TypeError(f"an operator's attribute cannot be a {type(x).__name__}: {x!r}")


def _native(x: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def array_key(x: np.ndarray) -> tuple[Any, ...]:
    """Dtype, shape and a digest of the bytes."""
    data = repr(x.tolist()).encode() if x.dtype == object else _native(x).tobytes()
    return np.ndarray, dtype_name(x.dtype), x.shape, blake2b(data, digest_size=16).digest()


def _bind(x: Any, sizes: Mapping[str, Size]) -> Any:
    match x:
        case Expr():
            return substitute(x, sizes)
        case tuple():
            bound = tuple(_bind(i, sizes) for i in x)
            return x if all(a is b for a, b in zip(x, bound)) else bound
        case TensorType() | SequenceType() | OptionalType():
            return map_sizes(x, lambda size: substitute(size, sizes))
        case Graph():
            try:
                return x.bind(sizes)
            except ShapeError:
                return x  # a branch that these sizes do not fit: the error is for who takes it
    return x


def _uses_sizes(x: Any) -> bool:
    match x:
        case Expr():
            return True
        case tuple():
            return any(map(_uses_sizes, x))
        case TensorType():
            return _uses_sizes(x.shape)
        case Graph():
            return any(v.op.uses_sizes for v in x)
    return False


def _symbols(x: Any) -> frozenset[str]:
    """The names of the sizes in an attribute."""
    match x:
        case Expr():
            return frozenset(s.name for s in x.symbols)
        case tuple():
            return frozenset[str]().union(*map(_symbols, x))
        case TensorType():
            return _symbols(x.shape)
        case SequenceType() | OptionalType():
            return _symbols(x.element)
        case Graph():
            return frozenset[str]().union(*(v.op.symbols for v in x.values))
    return frozenset()


def _short(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return str(x.tolist()) if x.size <= 4 else f"{x.dtype}{list(x.shape)}"
    if isinstance(x, Graph):
        return f"<graph of {sum(1 for _ in x)}>"
    return str(x) if isinstance(x, Expr) else repr(x)


class Token:
    """Equal only to itself: what keeps one inner graph's parameter, or one effect, apart from
    another's."""

    _count = itertools.count()
    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = next(Token._count)

    def __repr__(self) -> str:
        return f"#{self.number}"


class Arithmetic:
    """`a * b` builds a graph when a is a Value, and a pattern when a is a Pattern."""

    def __add__(self, other: Any) -> Any:
        return OPERATORS["+"]()(self, other)

    def __sub__(self, other: Any) -> Any:
        return OPERATORS["-"]()(self, other)

    def __mul__(self, other: Any) -> Any:
        return OPERATORS["*"]()(self, other)

    def __truediv__(self, other: Any) -> Any:
        return OPERATORS["/"]()(self, other)

    def __radd__(self, other: Any) -> Any:
        return OPERATORS["+"]()(other, self)

    def __rsub__(self, other: Any) -> Any:
        return OPERATORS["-"]()(other, self)

    def __rmul__(self, other: Any) -> Any:
        return OPERATORS["*"]()(other, self)

    def __rtruediv__(self, other: Any) -> Any:
        return OPERATORS["/"]()(other, self)


OPERATORS: dict[str, Callable[[], Op]] = {}  # filled by ops/, so that ir/ imports nothing of ours


@dataclass(frozen=True, eq=False, repr=False)
class Value(Arithmetic):
    """One result of `op` on `inputs` (None where an optional input is absent). Equal Values are one
    object."""

    op: Op
    inputs: tuple[Value | None, ...]
    type: Type
    index: int = 0

    def __reduce__(self) -> Any:
        raise TypeError("a Value is one object in one process; send another process text instead")

    def __repr__(self) -> str:
        names = ", ".join("-" if i is None else str(i.type) for i in self.inputs)
        which = f"[{self.index}]" if self.index else ""
        return f"{self.op}({names}){which} : {self.type}"

    @property
    def tensor(self) -> TensorType:
        """The type, of a Value that must be a tensor."""
        if not isinstance(self.type, TensorType):
            raise TypeMismatch(f"a tensor is needed here, got {self.type} from {self.op}")
        return self.type

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def rank(self) -> int:
        return len(self.tensor.shape)

    @property
    def is_static(self) -> bool:
        """Whether it depends on weights and constants alone: then an engine computes it once."""
        return self.__dict__["is_static"]  # type: ignore[no-any-return]

    @cached_property
    def siblings(self) -> tuple[Value, ...]:
        """All results of the same operator application, this one among them."""
        return make(self.op, self.inputs)

    @property
    def contents(self) -> np.ndarray | None:
        """The elements where they are known from sizes and constants alone; symbolic ones as
        objects."""
        stack: list[Value] = [self]
        while stack:
            value = stack[-1]
            unknown = _inputs_without_contents(value)
            stack.extend(unknown)
            if not unknown:
                value.__dict__.setdefault("_contents", _contents(value))
                stack.pop()
        known: np.ndarray | None = self.__dict__["_contents"]
        return known


MOST_CONTENTS = 4096  # elements; more than that is data, not sizes


def _inputs_without_contents(value: Value) -> list[Value]:
    """The inputs to look at before value's own contents can be told."""
    if "_contents" in value.__dict__ or not _may_have_contents(value):
        return []
    return [i for i in value.inputs if i is not None and "_contents" not in i.__dict__]


def _may_have_contents(value: Value) -> bool:
    if not isinstance(value.type, TensorType) or value.op.has_effect:
        return False
    if not (value.op.computes_sizes or value.op.folds):
        return False
    sizes = [s for s in value.shape if isinstance(s, int)]
    return len(sizes) == value.rank and math.prod(sizes) <= MOST_CONTENTS


def _contents(value: Value) -> np.ndarray | None:
    if not _may_have_contents(value):
        return None
    arrays = [None if i is None else i.__dict__["_contents"] for i in value.inputs]
    if any(i is not None and a is None for i, a in zip(value.inputs, arrays)):
        return None
    symbolic = any(a is not None and a.dtype == object for a in arrays)
    if symbolic and not value.op.computes_sizes:
        return None
    try:
        with np.errstate(all="ignore"):
            result = value.op.reference(*arrays)
    except Undecided:
        return None
    return np.asarray(result[value.index] if isinstance(result, tuple) else result)


@dataclass(frozen=True, eq=False)
class Pattern(Arithmetic):
    """Matches a Value whose op has the same class and attributes, and whose inputs match."""

    op: Op
    inputs: tuple[Pattern, ...]


@operator
class Anything(Op):
    """Leaf of a Pattern: matches every Value, and binds it to `name`."""

    name: str


@operator
class Input(Op):
    """A tensor that each run is given."""

    name: str
    type: Type

    def infer(self) -> Type:
        return self.type


@operator
class Weight(Op):
    """A tensor of the model's own, known by name; its bytes are the engine's, not the graph's."""

    name: str
    type: TensorType

    def infer(self) -> Type:
        return self.type


@operator
class Parameter(Op):
    """An input of an inner graph: unique, however alike its type is to another's."""

    token: Token
    type: Type
    name: str = ""

    def infer(self) -> Type:
        return self.type


@operator
class Constant(Op):
    """A small array of the graph's own: read-only, compared by its bytes."""

    data: np.ndarray
    computes_sizes: ClassVar[bool] = True

    def infer(self) -> TensorType:
        return TensorType(dtype_name(self.data.dtype), self.data.shape)

    def reference(self) -> np.ndarray:
        return self.data


def constant(array: Any, dtype: str | None = None) -> Value:
    """A Constant of the array, converted to `dtype` when given."""
    from whet.ir.types import NUMPY_DTYPES

    data = _native(np.array(array, NUMPY_DTYPES[dtype] if dtype else None))
    data.setflags(write=False)
    return make(Constant(data), ())[0]


_interned: WeakValueDictionary[tuple[Any, ...], Value] = WeakValueDictionary()
_lock = threading.RLock()


def make(op: Op, inputs: Sequence[Value | None]) -> tuple[Value, ...]:
    """The Values for (op, inputs), always the same objects: common subexpressions merge as they are
    built."""
    inputs = tuple(inputs)
    key = (op, *map(id, inputs))
    with _lock:
        first = _interned.get((0, *key))
        if first is not None:
            note_guards(first.__dict__["guards"])
            return first.siblings
        needed: list[Guard] = []
        token = _guards.set(needed)
        try:
            types = infer(op, inputs)
        finally:
            _guards.reset(token)
        note_guards(needed)
        values = tuple(Value(op, inputs, t, index) for index, t in enumerate(types))
        is_static, guards = _is_static(op, inputs), tuple(needed)
        for value in values:
            value.__dict__["siblings"] = values
            value.__dict__["guards"] = guards
            value.__dict__["is_static"] = is_static
            _interned[value.index, *key] = value
        return values


def _is_static(op: Op, inputs: Sequence[Value | None]) -> bool:
    if op.has_effect or isinstance(op, Input | Parameter):
        return False
    return all(i is None or i.is_static for i in inputs) and not op.uses_sizes


def infer(op: Op, inputs: Sequence[Value | None]) -> tuple[Type, ...]:
    """The types of op's results; an error says what op was given."""
    try:
        types = op.infer(*(i and i.type for i in inputs))
    except Error as error:
        given = ", ".join("-" if i is None else str(i.type) for i in inputs)
        raise type(error)(f"{op}({given}): {error}") from None
    return types if isinstance(types, tuple) else (types,)


def as_value(x: Any, like: Value | None) -> Value | None:
    if x is None or isinstance(x, Value):
        return x
    if like is None or isinstance(x, np.ndarray):
        return constant(x)
    if "int" in like.dtype and not _is_exactly(x, like.dtype):
        raise TypeMismatch(f"the number {x} is no {like.dtype}; cast the tensor first")
    return constant(x, like.dtype)


def _is_exactly(x: Any, dtype: str) -> bool:
    """Whether an integer dtype has this very number."""
    try:
        return x == int(x) == int(constant(int(x), dtype).op.data)  # type: ignore[attr-defined, no-any-return]
    except (OverflowError, ValueError, TypeError):
        return False


def as_pattern(x: Any) -> Pattern:
    return x if isinstance(x, Pattern) else Pattern(Constant(np.asarray(x)), ())


@dataclass(frozen=True)
class Guard:
    """Two sizes that a node needs equal (or broadcastable: equal, or one of them 1), checked at
    each run."""

    left: Size
    right: Size
    node: str
    broadcast: bool = False

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raises ShapeError where the sizes of this run break the guard."""
        left, right = substitute(self.left, sizes), substitute(self.right, sizes)
        if left == right or (self.broadcast and 1 in (left, right)):
            return
        rule = "must be equal or 1" if self.broadcast else "must be equal"
        sides = (
            str(size) if isinstance(size, int) else f"{size} = {value}"
            for size, value in ((self.left, left), (self.right, right))
        )
        raise ShapeError(
            f'at node "{self.node}": {" and ".join(sides)}, as they are in this run, {rule}'
        )


_guards: ContextVar[list[Guard] | None] = ContextVar("guards", default=None)


@contextmanager
def collect_guards(into: list[Guard]) -> Iterator[None]:
    """Within it, what the Values that are made need of sizes is noted in `into`: each run checks
    it."""
    token = _guards.set(into)
    try:
        yield
    finally:
        _guards.reset(token)


def note_guards(guards: Iterable[Guard]) -> None:
    """Notes guards for who collects them. A Value keeps its own, for it is inferred only once."""
    if (collected := _guards.get()) is not None:
        collected.extend(guards)


class Late(Protocol):
    """The rest of a model, whose ranks or structure depend on data (DESIGN: a late region)."""

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of what it reads: the first stage's outputs after its named ones, in order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the whole model's outputs, in order, from whichever stage they come."""

    def stage(
        self, captured: Mapping[str, Any], weights: Callable[[str], np.ndarray] | None
    ) -> Graph:
        """The graph of the next stage, for captured values as they are now; inputs are among them,
        by name."""


@dataclass(frozen=True, eq=False)
class Graph:
    """What to compute: `outputs` from `inputs`. Values that no output needs are simply not part of
    it."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    output_names: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    origins: Mapping[Value, tuple[str, ...]] = field(default_factory=dict)
    """Which nodes of the user's model a Value came from."""
    definers: Mapping[str, Value] = field(default_factory=dict)
    """Where the sizes that depend on data become known: their names, and Values whose shapes show
    them."""
    late: Late | None = None
    """What can be planned only once this graph has run; the outputs after the named ones are for
    it."""

    def __iter__(self) -> Iterator[Value]:
        """Every Value the outputs need, each after its inputs and after what defines the sizes it
        uses."""
        return topological(self.roots, needs=self.needs if self.definers else None)

    def needs(self, value: Value) -> list[Value]:
        """The Values that define sizes in the attributes of value's operator, besides itself."""
        found = (self.definers.get(name) for name in value.op.symbols)
        return [v for v in found if v is not None and v.siblings[0] is not value.siblings[0]]

    @cached_property
    def roots(self) -> tuple[Value, ...]:
        """The outputs, and the Values that tell sizes which guards are about: each run checks
        those, whether or not an output has them in its shape."""
        if not self.definers:
            return self.outputs
        sides = (side for guard in self.guards for side in (guard.left, guard.right))
        names = sorted({s.name for side in sides if isinstance(side, Expr) for s in side.symbols})
        found = dict.fromkeys(self.definers[name] for name in names if name in self.definers)
        return (*self.outputs, *(v for v in found if v not in self.outputs))

    @cached_property
    def values(self) -> tuple[Value, ...]:
        return tuple(self)

    @cached_property
    def uses(self) -> dict[Value, int]:
        """How often each Value is read, by other Values and as an output."""
        count: dict[Value, int] = dict.fromkeys(self.values, 0)
        for value in _one_per_op(self.values):
            for i in value.inputs:
                if i is not None:
                    count[i] += 1
        for root in self.roots:
            count[root] += 1
        return count

    def map(self, fn: Callable[[Value], Value | Sequence[Value]]) -> Graph:
        """The graph with every Value v replaced by fn(v), inputs first.

        fn gets the first of an operator's results and may return all of them as a sequence.
        """
        new: dict[Value, Value] = {}
        origins: dict[Value, tuple[str, ...]] = {}
        for old in self.values:
            if old in new:
                continue
            inputs = tuple(i and new[i] for i in old.inputs)
            same = all(a is b for a, b in zip(inputs, old.inputs))
            first = old.siblings[0] if same else make(old.op, inputs)[0]
            result = fn(first)
            results = (
                first.siblings
                if result is first
                else (result,)
                if isinstance(result, Value)
                else result
            )
            for a, b in zip(old.siblings, results):
                new[a] = b
                self._inherit(origins, a, b)
        return self.replaced(new, origins)

    def _inherit(self, origins: dict[Value, tuple[str, ...]], old: Value, new: Value) -> None:
        """Gives `new`, and what it newly reads, the origin of the Value it replaces."""
        names = self.origins.get(old, ())
        if not names:
            return
        stack = [new]
        while stack:
            value = stack.pop()
            if value in origins or (value is not new and value in self.origins):
                continue
            origins[value] = names
            stack.extend(i for i in value.inputs if i is not None)

    def replaced(
        self, new: Mapping[Value, Value], origins: Mapping[Value, tuple[str, ...]]
    ) -> Graph:
        """The graph whose outputs, and Values that define sizes, are what `new` has for them."""
        outputs = tuple(new[o] for o in self.outputs)
        definers = {name: new.get(v, v) for name, v in self.definers.items()}
        unchanged = all(a is b for a, b in zip(outputs, self.outputs))
        if unchanged and all(definers[name] is v for name, v in self.definers.items()):
            return self
        origins = {**self.origins, **origins}
        return replace(self, outputs=outputs, origins=origins, definers=definers)

    def substitute(self, changes: Mapping[Value, Value]) -> Graph:
        """The graph in which each key of `changes` is read as its value instead."""
        if not changes:
            return self
        new: dict[Value, Value] = dict(changes)
        origins: dict[Value, tuple[str, ...]] = {}
        for a, b in changes.items():
            self._inherit(origins, a, b)
        for old in topological(self.roots, changes, self.needs if self.definers else None):
            if old in new:
                continue
            inputs = tuple(i and new.get(i, i) for i in old.inputs)
            if all(a is b for a, b in zip(inputs, old.inputs)):
                new[old] = old
                continue
            for a, b in zip(old.siblings, make(old.op, inputs)):
                new.setdefault(a, b)
                self._inherit(origins, a, b)
        return self.replaced(new, origins)

    def bind(self, sizes: Mapping[str, Size]) -> Graph:
        """The graph with named sizes replaced, everywhere."""
        if not sizes:
            return self
        new: dict[Value, Value] = {}
        origins: dict[Value, tuple[str, ...]] = {}
        for old in (*self.inputs, *self.values):
            if old in new:
                continue
            # Operator and inputs change together: half-bound types may contradict each other.
            try:
                bound = make(old.op.bind(sizes), tuple(i and new[i] for i in old.inputs))
            except Error as error:
                raise located(error, self.node(old)) from None
            for a, b in zip(old.siblings, bound):
                new[a] = b
                self._inherit(origins, a, b)
        inputs = tuple(new[v] for v in self.inputs)
        return replace(self.replaced(new, origins), inputs=inputs)

    def node(self, value: Value) -> str:
        """The names of the user's nodes that a Value came from, for messages."""
        return " + ".join(self.origins.get(value, ())) or str(value.op)

    def __str__(self) -> str:
        name: dict[Value, str] = {}
        lines = [f"inputs {', '.join(f'{_leaf(v)}: {v.type}' for v in self.inputs)}"]
        for v in self.values:
            if v in name:
                continue
            if isinstance(v.op, Input | Weight | Parameter):
                name[v] = _leaf(v)
            elif isinstance(v.op, Constant) and v.op.data.size == 1:
                name[v] = str(v.op.data.item())
            else:
                names = [f"%{len(name) + i}" for i in range(len(v.siblings))]
                name.update(zip(v.siblings, names))
                args = ", ".join("-" if i is None else name[i] for i in v.inputs)
                types = ", ".join(str(s.type) for s in v.siblings)
                lines.append(f"{', '.join(names)} = {v.op}({args}) : {types}")
        lines.append("return " + ", ".join(name[o] for o in self.outputs))
        return "\n".join(lines)

    __repr__ = object.__repr__


def map_inner(graph: Graph, fn: Callable[[Graph], Graph]) -> Graph:
    """The graph with every inner graph g of its operators replaced by fn(g), which must keep g's
    inputs.

    fn goes deeper itself: `def tidy(graph): return rewrite(map_inner(graph, tidy), RULES)`.
    """
    if not any(v.op.graphs for v in graph.values):
        return graph
    return graph.map(lambda v: make(v.op.map_graphs(fn), v.inputs) if v.op.graphs else v)


def _leaf(v: Value) -> str:
    match v.op:
        case Weight(name=name):
            return f"weight {name!r}"
        case Parameter(token=token, name=name):
            return f"{name}{token}"
        case Input(name=name):
            return name
    return repr(v)


def topological(
    outputs: Iterable[Value],
    stop: Iterable[Value] = (),
    needs: Callable[[Value], Iterable[Value]] | None = None,
) -> Iterator[Value]:
    """Every Value the outputs need, each after its inputs, never looking behind a Value in `stop`.

    `needs` gives further Values that must come before a Value.
    """
    seen: set[Value] = set()
    opened: set[Value] = set()
    behind = set(stop)
    stack = [(v, False) for v in reversed(tuple(outputs))]
    while stack:
        value, inputs_done = stack.pop()
        if value in seen:
            continue
        if inputs_done or value in behind:
            seen.add(value)
            yield value
            continue
        if value in opened:
            raise RuntimeError(f"what {value.op} needs comes after it: {value}")
        opened.add(value)
        stack.append((value, True))
        before = [*(needs(value) if needs else ()), *(i for i in value.inputs if i is not None)]
        stack.extend((i, False) for i in reversed(before) if i not in seen)


def _one_per_op(values: Iterable[Value]) -> Iterator[Value]:
    seen: set[int] = set()
    for value in values:
        first = id(value.siblings[0])
        if first not in seen:
            seen.add(first)
            yield value
