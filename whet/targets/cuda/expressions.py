"""Expressions as Triton text: values are tiles of two dimensions, x and r, either of them perhaps
of size 1.

Loop indices are places: the text of an index, and the dimensions along which it differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from whet.errors import CompileError
from whet.ir.atoms import Atom, Call, Symbol
from whet.ir.sizes import Expr, Size, bounds
from whet.ops.cast import Cast
from whet.ops.elementwise import (
    Add,
    Ceil,
    Equal,
    Erf,
    Floor,
    Less,
    LessOrEqual,
    Pow,
    Round,
    Sign,
)
from whet.plan.kernel import (
    Apply,
    Expression,
    Hole,
    Index,
    Let,
    Literal,
    Load,
    Range,
    Reduction,
    Select,
    Store,
    walk,
)
from whet.targets.cuda import arithmetic
from whet.targets.cuda.text import Text

Dims = frozenset[str]
NONE: Dims = frozenset()
X: Dims = frozenset("x")
R: Dims = frozenset("r")
BOTH = X | R

STEPS = (Cast, Floor, Ceil, Round, Sign, Less, LessOrEqual, Equal)
"""Where an input must be no more precise than its dtype: results jump there, or the model casts."""


@dataclass(frozen=True)
class Place:
    """Where a loop index stands, and along which dimensions of a tile it differs."""

    text: str
    dims: Dims = NONE


@dataclass(frozen=True)
class Tile:
    """The text of the two sizes of a tile."""

    x: str
    r: str

    def shape(self, dims: Dims) -> str:
        return f"({self.x if 'x' in dims else 1}, {self.r if 'r' in dims else 1})"


@dataclass
class Emitter:
    """Turns expressions into lines of a function."""

    text: Text
    buffers: list[str]
    tile: Tile
    index: str = "tl.int32"
    """The type of offsets."""
    places: dict[str, Place] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    """By dimension: the name of what tells which of its indices are in use."""
    guards: tuple[Place, ...] = ()
    """What else must hold for memory to be touched."""
    hole: Place | None = None
    rough: bool = False
    """Whether functions may be some units in the last place off."""
    values: list[dict[Expression, Place]] = field(default_factory=lambda: [{}])

    @contextmanager
    def scope(self, **changes: object) -> Iterator[None]:
        """Within it, values are remembered apart, and attributes hold other things."""
        before = {name: getattr(self, name) for name in changes}
        for name, value in changes.items():
            setattr(self, name, value)
        self.values.append({})
        yield
        self.values.pop()
        for name, value in before.items():
            setattr(self, name, value)

    def placed(self, places: Mapping[str, Place]) -> dict[str, Place]:
        """All places, with some more."""
        return {**self.places, **places}

    def dims_of(self, symbols: frozenset[str]) -> Dims:
        """The dimensions along which something that depends on these indices differs."""
        return NONE.union(*(self.places[s].dims for s in symbols if s in self.places))

    # Index arithmetic.

    def wide(self, number: str) -> str:
        """A number of 32 bits, of which a multiple may be an offset that has more."""
        return number if self.index == "tl.int32" else f"tl.cast({number}, {self.index})"

    def size(self, size: Size) -> Place:
        """An index expression."""
        if isinstance(size, int):
            return Place(str(size))
        terms: list[str] = []
        dims = NONE
        for mono, factor in self.by_loops(size).items():
            atoms = [self.atom(atom) for atom in mono]
            dims = dims.union(*(a.dims for a in atoms))
            known = [self.text.number(factor)] * (factor != 1 or not atoms)
            terms.append(" * ".join([*(a.text for a in atoms), *known]))
        return Place(terms[0] if len(terms) == 1 else f"({' + '.join(terms)})", dims)

    def by_loops(self, size: Expr) -> dict[tuple[Atom, ...], Size]:
        """The terms of an index expression, and what is known of each before the launch."""
        if not self.text.open:
            return dict(size.terms)
        found: dict[tuple[Atom, ...], Size] = {}
        for mono, factor in size.terms:
            told = tuple(atom for atom in mono if self.text.is_told(atom))
            rest = tuple(atom for atom in mono if atom not in told)
            known: Size = Expr(((told, factor),)) if told else factor
            found[rest] = found.get(rest, 0) + known
        return found

    def atom(self, atom: Atom) -> Place:
        if isinstance(atom, Symbol):
            place = self.places.get(atom.name)
            if place is None:
                raise CompileError(f"the index {atom.name} is not bound")
            return place
        assert isinstance(atom, Call)
        args = [self.size(arg) for arg in atom.args]
        dims = NONE.union(*(a.dims for a in args))
        return Place(self.text.assign(_call(atom, [a.text for a in args]), "i"), dims)

    def unjoin(self, flat: Place, sizes: Mapping[str, Size]) -> dict[str, Place]:
        """The indices of nested loops by the number of a turn of all of them."""
        places: dict[str, Place] = {}
        rest = flat.text
        for name, size in reversed(list(sizes.items())):
            if len(places) + 1 == len(sizes):
                places[name] = Place(rest, flat.dims)
                break
            by = self.text.number(size)
            places[name] = Place(self.text.assign(f"{rest} % {by}", "i"), flat.dims)
            rest = self.text.assign(f"{rest} // {by}", "i")
        return places

    # Memory.

    def mask_of(self, dims: Dims) -> tuple[str, Dims]:
        """What must hold for an access that differs along dims, and along which dims that
        differs."""
        tests = [self.masks[d] for d in sorted(dims) if d in self.masks]
        tests += [g.text for g in self.guards]
        needed = dims.union(*(g.dims for g in self.guards))
        return " & ".join(dict.fromkeys(tests)), needed

    def address(self, buffer: int, offset: Size) -> tuple[str, str, Dims]:
        """A pointer, its mask ("" where none is needed), and the dimensions of both."""
        place = self.size(offset)
        mask, dims = self.mask_of(place.dims)
        at = place.text
        if mask and (dims != place.dims or not dims):
            at = f"tl.broadcast_to(tl.cast({at}, {self.index}), {self.tile.shape(dims)})"
        return f"{self.buffers[buffer]} + {at}", mask, dims if mask else place.dims

    def _load(self, load: Load) -> Place:
        pointer, mask, dims = self.address(load.buffer, load.offset)
        text = f"tl.load({pointer}, mask={mask}, other=0)" if mask else f"tl.load({pointer})"
        loaded = self.text.assign(text)
        wide = arithmetic.to_compute(loaded, load.dtype)
        return Place(loaded if wide == loaded else self.text.assign(wide), dims)

    def store(self, store: Store) -> None:
        """Writes an element to a buffer."""
        result = self.emit(store.value)
        places, guards = dict(self.places), self.guards
        for choice in store.choices:
            at, inside = self.chosen(choice.value, choice.limit)
            places[choice.name] = at
            guards = (*guards, inside)
        with self.scope(places=places, guards=guards):
            self._store(store, result)

    def _store(self, store: Store, result: Place) -> None:
        value = store.value
        pointer, mask, dims = self.address(store.buffer, store.offset)
        if store.combine is not None:
            at = f"{pointer}, mask={mask}, other=0" if mask else pointer
            before = arithmetic.to_compute(f"tl.load({at})", value.dtype)
            before = self.text.fresh_line(before)
            args = [before, result.text]
            both = arithmetic.emit(store.combine, [value.dtype] * 2, value.dtype, args)
            result = Place(self.text.fresh_line(both), dims | result.dims)
        stored = arithmetic.to_storage(result.text, value.dtype)
        if not dims >= result.dims:
            raise CompileError("an element would be stored more than once")
        if dims != result.dims or isinstance(value, Literal):
            stored = f"tl.broadcast_to({stored}, {self.tile.shape(dims)})"
        if not dims:  # a scalar pointer takes a scalar
            stored = f"tl.reshape(tl.broadcast_to({stored}, (1, 1)), (1,))"
            pointer = f"{pointer} + tl.arange(0, 1)"
        self.text.line(f"tl.store({pointer}, {stored}{f', mask={mask}' if mask else ''})")

    # Expressions.

    def emit(self, expression: Expression) -> Place:
        """The name of the expression's value."""
        for scope in reversed(self.values):
            if expression in scope:
                return scope[expression]
        found = self._emit(expression)
        self.values[-1][expression] = found
        return found

    def _emit(self, expression: Expression) -> Place:
        match expression:
            case Literal(value=value, dtype=dtype):
                return Place(self.text.assign(arithmetic.full(value, dtype), "c"))
            case Hole():
                assert self.hole is not None
                return self.hole
            case Load():
                return self._load(expression)
            case Apply():
                return self._apply(expression)
            case Index(size=size):
                place = self.size(size)
                wide = f"tl.cast({place.text}, tl.int64)"
                return Place(
                    self.text.assign(f"{wide} + {arithmetic.full(0, 'int64')}"), place.dims
                )
            case Select():
                return self._select(expression)
            case Let():
                return self._let(expression)
            case Reduction():
                from whet.targets.cuda.reductions import emit_reduction

                return emit_reduction(self, expression)
        raise CompileError(f"cuda cannot emit {type(expression).__name__}")

    def _apply(self, expression: Apply) -> Place:
        if self.rough and (argument := _in_one_and_erf(expression)) is not None:
            x = self.emit(argument)
            return Place(self.text.assign(f"_one_and_erf({x.text})"), x.dims)
        args = [self.emit(a) for a in expression.args]
        dims = NONE.union(*(a.dims for a in args))
        names = [a.text for a in args]
        if isinstance(expression.op, STEPS):
            names = [self._rounded(name, a) for name, a in zip(names, expression.args)]
        dtypes = [a.dtype for a in expression.args]
        text = _simple_power(expression, names) or arithmetic.emit(
            expression.op, dtypes, expression.dtype, names, self.rough
        )
        return Place(text if text in names else self.text.assign(text), dims)

    def _rounded(self, name: str, expression: Expression) -> str:
        text = arithmetic.round_to(name, expression.dtype)
        computed = isinstance(expression, Apply | Hole)
        return self.text.assign(text) if computed and text != name else name

    def _select(self, select: Select) -> Place:
        inside = self.inside(select.ranges)
        dims = inside.dims
        outside = Place(self.text.assign(f"{inside.text} == 0", "m"), dims)
        with self.scope(guards=(*self.guards, inside)):
            a = self.emit(select.inside)
        with self.scope(guards=(*self.guards, outside)):
            b = self.emit(select.outside)
        text = self.text.assign(f"tl.where({inside.text}, {a.text}, {b.text})")
        return Place(text, dims | a.dims | b.dims)

    def inside(self, ranges: tuple[Range, ...]) -> Place:
        """Whether all indices lie within their sizes."""
        tests = [self._within(i, n) for i, n in ranges]
        dims = NONE.union(*(t.dims for t in tests))
        test = " & ".join(t.text for t in tests)
        test = test if dims else f"tl.full((1, 1), 1, tl.int1) & ({test})"
        return Place(self.text.assign(test, "m"), dims)

    def _within(self, i: Size, n: Size) -> Place:
        at, limit = self.size(i), self.size(n)
        tests = [f"({at.text} >= 0)"] * (bounds(i)[0] < 0)
        tests.append(f"({at.text} < {limit.text})")
        return Place(" & ".join(tests), at.dims | limit.dims)

    def _let(self, let: Let) -> Place:
        at, _ = self.chosen(let.value, let.limit)
        with self.scope(places=self.placed({let.name: at})):
            return self.emit(let.body)

    def chosen(self, expression: Expression, size: Size) -> tuple[Place, Place]:
        """An index that is data, counted from the end where negative, and whether it is inside.

        One that is not becomes 0, and raises the error flag.
        """
        value, limit = self.emit(expression), self.size(size)
        scalar = "" if value.dims else " + tl.zeros((1, 1), tl.int64)"
        i = self.text.assign(f"{value.text}.to(tl.int64){scalar}")
        i = self.text.assign(f"tl.where({i} < 0, {i} + {limit.text}, {i})")
        inside = self.text.assign(f"({i} >= 0) & ({i} < {limit.text})", "m")
        mask, dims = self.mask_of(value.dims)
        wrong = f"{inside} == 0" if not mask else f"({inside} == 0) & {mask}"
        zeros = f"tl.zeros({self.tile.shape(dims)}, tl.int32)"
        self.text.line(f"tl.store(error + {zeros}, {zeros} + 1, mask={wrong})")
        at = self.text.assign(f"tl.where({inside}, {i}, 0).to({self.index})", "i")
        return Place(at, value.dims), Place(inside, value.dims)


def is_rough(values: Iterable[Expression]) -> bool:
    """Whether functions may be less precise than float32 is: only 16-bit floats come out, and
    nothing jumps on the way."""
    values = list(values)
    narrow = all(v.dtype in arithmetic.NARROW for v in values)
    return narrow and not any(_is_exact(node) for v in values for node in walk(v))


def _is_exact(node: Expression) -> bool:
    if not isinstance(node, Apply):
        return isinstance(node, Let)
    return isinstance(node.op, arithmetic.EXACT) or not arithmetic.is_float(node.dtype)


def _in_one_and_erf(expression: Apply) -> Expression | None:
    """x where the expression is 1 + erf(x)."""
    if not isinstance(expression.op, Add) or expression.dtype == "float64":
        return None
    one, other = sorted(expression.args, key=lambda a: not isinstance(a, Literal))
    is_one = isinstance(one, Literal) and one.value == 1
    is_erf = isinstance(other, Apply) and isinstance(other.op, Erf)
    return other.args[0] if is_one and is_erf else None  # type: ignore[attr-defined]


def _simple_power(expression: Apply, names: list[str]) -> str | None:
    exponent = expression.args[1] if isinstance(expression.op, Pow) else None
    if not isinstance(exponent, Literal):
        return None
    return arithmetic.power_of(float(exponent.value), expression.dtype, names[0])


def _call(atom: Call, args: list[str]) -> str:
    """An integer function; Triton rounds quotients toward zero, these round down."""
    if atom.function in ("min", "max"):
        name = "tl.minimum" if atom.function == "min" else "tl.maximum"
        text = args[0]
        for arg in args[1:]:
            text = f"{name}({text}, {arg})"
        return text
    a, b = args
    if bounds(atom.args[0])[0] >= 0:
        return f"{a} {atom.function} {b}"
    rest = f"({a} % {b} + {b}) % {b}"
    return rest if atom.function == "%" else f"({a} - {rest}) // {b}"


def size_bound(sizes: Iterator[Size]) -> float:
    """The largest number that may appear while the index expressions are computed."""
    most = 0.0
    for size in sizes:
        if isinstance(size, Expr):
            parts = [abs(f) * _monomial_bound(mono) for mono, f in size.terms]
            most = max(most, sum(parts))
        else:
            most = max(most, abs(size))
    return most


def _monomial_bound(mono: tuple[Atom, ...]) -> float:
    total = 1.0
    for atom in mono:
        low, high = bounds(Expr((((atom,), 1),)))
        total *= max(abs(low), abs(high))
        if isinstance(atom, Call):
            total = max(total, size_bound(iter(atom.args)))
    return total
