"""Operators and Values: an Op applied to Values makes Values. Nothing here is ever mutated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform
from weakref import WeakValueDictionary

import numpy as np

from whet.errors import Error, TypeMismatch
from whet.ir.attributes import (
    Keyed,
    Nested,
    Token,
    attribute_key,
    bind,
    native,
    short,
    symbols,
    uses_sizes,
)
from whet.ir.contents import contents
from whet.ir.guards import Guard, collect_guards, note_guards
from whet.ir.sizes import Size
from whet.ir.types import TensorType, Type, dtype_name

if TYPE_CHECKING:
    from whet.ir.graph import Graph

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True)
def operator(cls: Class) -> Class:
    """Makes an operator: a frozen dataclass whose equality is by the type and the bits of its
    attributes.

    Op has the methods that dataclass would write for each class: compiling those of 150 operators
    is a tenth of the time until a first result.
    """
    made: Any = dataclass(init=False, eq=False, repr=False)(cls)
    made.names = tuple(f.name for f in fields(made))
    made.defaults = {f.name: f.default for f in fields(made) if f.default is not MISSING}
    if made.has_effect is True and not any("Token" in str(f.type) for f in fields(made)):
        raise TypeError(f"{cls.__name__} has an effect and needs a Token among its attributes")
    return made  # type: ignore[no-any-return]


class Op(Keyed):
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

    names: ClassVar[tuple[str, ...]] = ()
    """Those of the attributes, in order."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    """The attributes that need not be given."""

    def __init__(self, *values: Any, **named: Any) -> None:
        given = {**self.defaults, **dict(zip(self.names, values)), **named}
        twice = named.keys() & self.names[: len(values)]
        if twice or len(values) > len(self.names) or given.keys() != set(self.names):
            raise TypeError(
                f"{type(self).__name__} has the attributes ({', '.join(self.names)}); given were "
                f"{len(values)} of them, and ({', '.join(named)}) by name"
            )
        self.__dict__.update((name, given[name]) for name in self.names)
        self.__post_init__()

    def __post_init__(self) -> None:
        """What an operator does once its attributes are there."""

    def accepts_all(self, *kinds: Any) -> bool:
        """Input types -> whether `infer` is proved to raise for none of the numbers that sizes in
        them and in the attributes may be: then no run has to ask."""
        return False

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    @property
    def attributes(self) -> dict[str, Any]:
        """Their values by name, in order."""
        return {name: getattr(self, name) for name in self.names}

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
        return type(self), *map(attribute_key, self.attributes.values())

    @cached_property
    def _hash(self) -> int:
        return hash(self.key)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        # What is cached stays behind: another process hashes text in another way.
        return type(self), tuple(self.attributes.values())

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.key == other.key)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={short(value)}" for name, value in self.attributes.items())
        return f"{type(self).__name__}({shown})"

    @cached_property
    def uses_sizes(self) -> bool:
        """Whether an attribute is an expression over named sizes."""
        return any(map(uses_sizes, self.attributes.values()))

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The named sizes in the attributes, those of inner graphs among them."""
        return frozenset[str]().union(*map(symbols, self.attributes.values()))

    @property
    def is_primitive(self) -> bool:
        return not hasattr(self, "lower")

    def bind(self, sizes: Mapping[str, Size], inner: bool = True) -> Op:
        """The operator with the named sizes in its attributes replaced, in inner graphs unless told
        not to."""
        return self._changed(lambda x: bind(x, sizes) if inner or not isinstance(x, Nested) else x)

    def map_graphs(self, fn: Callable[[Graph], Graph]) -> Op:
        """The operator with each of its inner graphs g replaced by fn(g), which has the same
        inputs."""
        return self._changed(lambda x: fn(x) if isinstance(x, Nested) else x)  # type: ignore[arg-type]

    def _changed(self, fn: Callable[[Any], Any]) -> Op:
        changes = {name: fn(value) for name, value in self.attributes.items()}
        if all(changes[name] is getattr(self, name) for name in changes):
            return self
        return type(self)(**changes)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The inner graphs among the attributes: a branch, the body of a loop."""
        return tuple(x for x in self.attributes.values() if isinstance(x, Nested))  # type: ignore[misc]


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
        return contents(self)


@dataclass(frozen=True, eq=False)
class Pattern(Arithmetic, Keyed):
    """Matches a Value whose op has the same class and attributes, and whose inputs match."""

    op: Op
    inputs: tuple[Pattern, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        return Pattern, id(self)


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

    data = native(np.array(array, NUMPY_DTYPES[dtype] if dtype else None))
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
        with collect_guards(needed):
            types = infer(op, inputs)
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
