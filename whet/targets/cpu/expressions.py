"""Expressions as LLVM instructions: scalars where no lane matters, vectors along one loop index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from whet.errors import CompileError
from whet.ir.atoms import Atom, Call, Symbol
from whet.ir.graph import Op
from whet.ir.sizes import Expr, Size, bounds, coefficient
from whet.ops.elementwise import Add, Cast, Ceil, Equal, Floor, Less, LessOrEqual, Mul, Round, Sign
from whet.plan.kernel import (
    Apply,
    Expression,
    Hole,
    Index,
    Let,
    Literal,
    Load,
    Reduction,
    Select,
    walk,
)
from whet.targets.cpu import arithmetic
from whet.targets.cpu.arithmetic import compute_type, storage_type
from whet.targets.cpu.llvm import Function, array_literal, element_bytes, literal, vector


@dataclass
class Place:
    """Where a loop index stands: a register or number, plus a number known when the code is
    made."""

    base: str | int
    delta: int = 0


@dataclass
class Scope:
    """What is already computed at one loop level."""

    values: dict[Expression, tuple[str, int]] = field(default_factory=dict)
    sizes: dict[Size, str | int] = field(default_factory=dict)


class Emitter:
    """Turns expressions into instructions of one function.

    `vector` is the loop index along which neighbouring elements are lanes; `mask` names the lanes
    in use.
    A value is (register, lanes): one lane where it is the same for all.
    """

    def __init__(
        self, f: Function, buffers: list[str], lanes: int, error: str | None = None
    ) -> None:
        self.f = f
        self.buffers = buffers
        self.full_lanes = lanes
        self.lanes = 1
        self.vector: str | None = None
        self.mask: str | None = None
        self.places: dict[str, Place] = {}
        self.wide: dict[str, str] = {}
        """Loop indices that differ by lane otherwise than by counting up."""
        self.scopes: list[Scope] = [Scope()]
        self.hole: tuple[str, int] | None = None
        self.error = error

    # Scopes.

    @contextmanager
    def scope(self, **changes: object) -> Iterator[None]:
        """Within it, results are remembered apart, and attributes hold other values."""
        before = {name: getattr(self, name) for name in changes}
        for name, value in changes.items():
            setattr(self, name, value)
        self.scopes.append(Scope())
        yield
        self.scopes.pop()
        for name, value in before.items():
            setattr(self, name, value)

    def find(self, expression: Expression) -> tuple[str, int] | None:
        for scope in reversed(self.scopes):
            if expression in scope.values:
                return scope.values[expression]
        return None

    def varies(self, symbols: frozenset[str]) -> bool:
        """Whether something that depends on these indices differs from lane to lane."""
        return self.lanes > 1 and (self.vector in symbols or not symbols.isdisjoint(self.wide))

    def hoist(self, expression: Expression, known: frozenset[str]) -> None:
        """Computes, here, the largest parts that depend on nothing but `known` indices."""
        if isinstance(expression, Literal | Hole):
            return
        if expression.symbols <= known and not _contains_hole(expression):
            self.emit(expression)
            return
        if isinstance(expression, Select):
            return  # what it guards must not run where the guard does not hold
        if isinstance(expression, Reduction):
            return  # its body runs in its own loops
        if isinstance(expression, Let):
            self.hoist(expression.value, known)
            return
        for child in expression.children:
            self.hoist(child, known)

    # Index arithmetic.

    def size(self, size: Size) -> str | int:
        """An index expression as an i64, the same in every lane."""
        if isinstance(size, int):
            return size
        for scope in reversed(self.scopes):
            if size in scope.sizes:
                return scope.sizes[size]
        total: str | int = 0
        for mono, factor in size.terms:
            term: str | int = factor
            for atom in mono:
                term = self.f.mul(self.atom(atom), term)
            total = self.f.add(total, term)
        self.scopes[-1].sizes[size] = total
        return total

    def atom(self, atom: Atom) -> str | int:
        if isinstance(atom, Symbol):
            place = self.places.get(atom.name)
            if place is None:
                raise CompileError(f"the index {atom.name} is not bound")
            return self.f.add(place.base, place.delta)
        assert isinstance(atom, Call)
        total = self.size(atom.args[0])
        if atom.function in ("//", "%"):
            floor, rest = self.divide(total, self.divisor(atom.args[1]), atom.args[0])
            return floor() if atom.function == "//" else rest()
        combine = self.f.min if atom.function == "min" else self.f.max
        for arg in atom.args[1:]:
            total = combine(total, self.size(arg))
        return total

    def divisor(self, size: Size) -> str | int:
        """What is divided by: at least 1, since a loop that has no turns may stand behind."""
        b = self.size(size)
        return b if bounds(size)[0] > 0 else self.f.max(b, 1)

    def divide(
        self, a: str | int, b: str | int, size: Size
    ) -> tuple[Callable[[], str | int], Callable[[], str | int]]:
        """Floor division and remainder; without the correction where the dividend is not
        negative."""
        f = self.f
        if bounds(size)[0] >= 0:
            return (lambda: f.div(a, b)), (lambda: f.rem(a, b))

        def remainder() -> str:
            rest = f.op(f"srem i64 {a}, {b}")
            negative = f.op(f"icmp slt i64 {rest}, 0")
            return f.op(f"select i1 {negative}, i64 {f.add(rest, b)}, i64 {rest}")

        return (lambda: f.op(f"sdiv i64 {f.sub(a, remainder())}, {b}")), remainder

    def offset(self, size: Size) -> tuple[str | int, int]:
        """An index expression as a register and a number, so that near offsets share the
        register."""
        if isinstance(size, int):
            return 0, size
        delta = 0
        base = size
        for s in size.symbols:
            place = self.places.get(s.name)
            if place is None or not place.delta:
                continue
            step = coefficient(base, s.name)
            if not isinstance(step, int):
                return self.size(size), 0
            delta += step * place.delta
        if not delta:
            return self.size(size), 0
        bare = {name: Place(p.base) for name, p in self.places.items()}
        key = ("bare", size)
        scope = self.scopes[-1]
        if key not in scope.sizes:
            kept, self.places = self.places, bare
            memo, self.scopes = self.scopes, [Scope()]
            scope.sizes[key] = self.size(size)  # type: ignore[index]
            self.places, self.scopes = kept, memo
        return scope.sizes[key], delta  # type: ignore[index]

    def lanes_of(self, size: Size) -> str:
        """An index expression as one i64 per lane."""
        kind = vector("i64", self.lanes)
        if isinstance(size, int):
            return literal(kind, size)
        if not self.varies(frozenset(s.name for s in size.symbols)):
            return self.splat("i64", str(self.size(size)))
        total = ""
        for mono, factor in size.terms:
            term = literal(kind, factor)
            for atom in mono:
                other = self.lanes_of_atom(atom)
                term = (
                    other if term == literal(kind, 1) else self.f.binary("mul", kind, other, term)
                )
            total = self.f.binary("add", kind, total, term) if total else term
        return total

    def lanes_of_atom(self, atom: Atom) -> str:
        kind = vector("i64", self.lanes)
        if isinstance(atom, Symbol):
            if atom.name in self.wide:
                return self.wide[atom.name]
            start = self.splat("i64", str(self.atom(atom)))
            if atom.name != self.vector:
                return start
            return self.f.binary("add", kind, start, array_literal(kind, range(self.lanes)))
        assert isinstance(atom, Call)
        args = [self.lanes_of(arg) for arg in atom.args]
        if atom.function in ("//", "%") and bounds(atom.args[1])[0] <= 0:
            args[1] = self.f.intrinsic("llvm.smax", kind, args[1], literal(kind, 1))
        if atom.function in ("min", "max"):
            total = args[0]
            for arg in args[1:]:
                total = self.f.intrinsic(f"llvm.s{atom.function}", kind, total, arg)
            return total
        return self._divide_lanes(atom, kind, *args)

    def _divide_lanes(self, atom: Call, kind: str, a: str, b: str) -> str:
        f, dividend = self.f, atom.args[0]
        if bounds(dividend)[0] >= 0:
            return f.binary("udiv" if atom.function == "//" else "urem", kind, a, b)
        rest = f.binary("srem", kind, a, b)
        negative = f.compare("slt", kind, rest, literal(kind, 0))
        rest = f.select(negative, kind, f.binary("add", kind, rest, b), rest)
        return (
            rest
            if atom.function == "%"
            else f.binary("sdiv", kind, f.binary("sub", kind, a, rest), b)
        )

    def splat(self, element: str, scalar: str) -> str:
        if self.lanes == 1:
            return scalar
        if not scalar.startswith("%"):
            return f"splat ({element} {scalar})"
        return self.f.splat(vector(element, self.lanes), scalar)

    # Expressions.

    def emit(self, expression: Expression) -> tuple[str, int]:
        """The expression's value and its lanes."""
        if isinstance(expression, Literal):
            return literal(arithmetic.COMPUTE[expression.dtype], expression.value), 1
        if isinstance(expression, Hole):
            assert self.hole is not None
            return self.hole
        found = self.find(expression)
        if found is None:
            found = self._emit(expression)
            self.scopes[-1].values[expression] = found
        return found

    def _emit(self, expression: Expression) -> tuple[str, int]:
        match expression:
            case Load():
                return self._load(expression)
            case Apply():
                return self._apply(expression)
            case Index(size=size):
                if self.varies(expression.symbols):
                    return self.lanes_of(size), self.lanes
                return str(self.size(size)), 1
            case Select():
                return self._select(expression)
            case Let():
                return self._let(expression)
            case Reduction():
                from whet.targets.cpu.reductions import emit_reduction

                return emit_reduction(self, expression)
        raise CompileError(f"cpu cannot emit {type(expression).__name__}")

    def widened(self, expression: Expression) -> str:
        """The expression's value in every lane."""
        value, lanes = self.emit(expression)
        if lanes == self.lanes:
            return value
        return self.splat(arithmetic.COMPUTE[expression.dtype], value)

    def _apply(self, expression: Apply) -> tuple[str, int]:
        pairs = [self.emit(a) for a in expression.args]
        lanes = max(n for _, n in pairs)
        values = [
            v if n == lanes else self.splat(arithmetic.COMPUTE[a.dtype], v)
            for (v, n), a in zip(pairs, expression.args)
        ]
        dtypes = [a.dtype for a in expression.args]
        if _steps(expression.op):
            values = [
                arithmetic.round_to(self.f, v, a.dtype, lanes) if isinstance(a, Apply) else v
                for v, a in zip(values, expression.args)
            ]
        if isinstance(expression.op, Add) and expression.dtype in ("float32", "float64"):
            fused = self._multiply_add(expression, lanes)
            if fused is not None:
                return fused, lanes
        return arithmetic.emit(
            self.f, expression.op, dtypes, expression.dtype, values, lanes
        ), lanes

    def _multiply_add(self, expression: Apply, lanes: int) -> str | None:
        """a*b + c with one rounding, where one side is a product of this expression's own."""
        for product, other in (expression.args, expression.args[::-1]):
            if isinstance(product, Apply) and isinstance(product.op, Mul):
                kind = compute_type(expression.dtype, lanes)
                a, b, c = (self._at(e, lanes) for e in (*product.args, other))
                return self.f.fma(kind, a, b, c)
        return None

    def _at(self, expression: Expression, lanes: int) -> str:
        value, have = self.emit(expression)
        return value if have == lanes else self.splat(arithmetic.COMPUTE[expression.dtype], value)

    def _load(self, load: Load) -> tuple[str, int]:
        base = self.buffers[load.buffer]
        if not self.varies(load.symbols):
            value = self.load_from(load.dtype, 1, base, load.offset)
            return arithmetic.to_compute(self.f, value, load.dtype, 1), 1
        step = self.step(load.offset)
        if step == 1:
            value = self.load_from(load.dtype, self.lanes, base, load.offset)
        else:
            value = self._gather(load, base, step)
        return arithmetic.to_compute(self.f, value, load.dtype, self.lanes), self.lanes

    def step(self, offset: Size) -> int | None:
        """How far apart the elements of neighbouring lanes lie, or None where that is not
        constant."""
        if any(name in self.wide for name in _names(offset)):
            return None
        step = coefficient(offset, self.vector or "")
        return step if isinstance(step, int) else None

    def load_from(self, dtype: str, lanes: int, base: str, offset: Size) -> str:
        kind = storage_type(dtype, lanes)
        at, delta = self._address(dtype, base, offset)
        if lanes > 1 and self.mask is not None:
            return self.f.masked_load(kind, self.mask, at, delta)
        return self.f.load(kind, at, delta)

    def _address(self, dtype: str, base: str, offset: Size) -> tuple[str, int]:
        size = element_bytes(arithmetic.STORAGE[dtype])
        start, delta = self.offset(offset)
        return self.f.address(base, self.f.mul(start, size)), delta * size

    def _gather(self, load: Load, base: str, step: int | None) -> str:
        """Elements that do not lie side by side, one by one; lanes that are masked out are not
        touched."""
        f, kind = self.f, storage_type(load.dtype, self.lanes)
        element, size = (
            arithmetic.STORAGE[load.dtype],
            element_bytes(arithmetic.STORAGE[load.dtype]),
        )
        if step is not None and self.mask is None:
            at, delta = self._address(load.dtype, base, load.offset)
            value = "poison"
            for lane in range(self.lanes):
                value = f.insert(kind, value, f.load(element, at, delta + lane * step * size), lane)
            return value
        offsets = self.lanes_of(load.offset * size)
        pointers = f.op(f"getelementptr i8, ptr {base}, {vector('i64', self.lanes)} {offsets}")
        mask = self.mask or "splat (i1 true)"
        name = f"llvm.masked.gather.{_suffix(kind)}.v{self.lanes}p0"
        return f.call(
            kind,
            name,
            [
                (f"{vector('ptr', self.lanes)} align {size}", pointers),
                (vector("i1", self.lanes), mask),
                (kind, "zeroinitializer"),
            ],
        )

    def _select(self, select: Select) -> tuple[str, int]:
        ranges = list(select.ranges)
        by_lane = [r for r in ranges if self.varies(frozenset(_names(r[0]) | _names(r[1])))]
        uniform = [r for r in ranges if r not in by_lane]
        lanes = self.lanes if self.varies(select.symbols) else 1
        kind = compute_type(select.dtype, lanes)
        if by_lane:
            inner = lambda: self._select_lanes(select, by_lane)  # noqa: E731
        else:
            inner = lambda: self._side(select.inside, lanes)  # noqa: E731
        if not uniform:
            return inner(), lanes
        condition = self._all([self._in_range(i, n) for i, n in uniform])
        (value,) = self.f.when(
            condition, lambda: [inner()], lambda: [self._side(select.outside, lanes)], [kind]
        )
        return value, lanes

    def _side(self, expression: Expression, lanes: int) -> str:
        with self.scope():
            value, have = self.emit(expression)
            return (
                value if have == lanes else self.splat(arithmetic.COMPUTE[expression.dtype], value)
            )

    def _in_range(self, i: Size, n: Size) -> str:
        # One unsigned comparison also refuses negative indices.
        return self.f.op(f"icmp ult i64 {self.size(i)}, {self.size(n)}")

    def _all(self, conditions: list[str], kind: str = "i1") -> str:
        total = conditions[0]
        for c in conditions[1:]:
            total = self.f.binary("and", kind, total, c)
        return total

    def _select_lanes(self, select: Select, ranges: list[tuple[Size, Size]]) -> str:
        f, kind, mask = self.f, vector("i64", self.lanes), vector("i1", self.lanes)
        tests = [f.compare("ult", kind, self.lanes_of(i), self.lanes_of(n)) for i, n in ranges]
        inside = self._all(tests, mask)
        outside = f.binary("xor", mask, inside, "splat (i1 true)")
        if self.mask is not None:
            inside = f.binary("and", mask, inside, self.mask)
            outside = f.binary("and", mask, outside, self.mask)
        with self.scope(mask=inside):
            a = self.widened(select.inside)
        with self.scope(mask=outside):
            b = self.widened(select.outside)
        return f.select(inside, compute_type(select.dtype, self.lanes), a, b)

    def _let(self, let: Let) -> tuple[str, int]:
        value, lanes = self.emit(let.value)
        dtype = let.value.dtype
        if lanes == 1:
            i = self.clamped(self.as_index(value, dtype, 1), str(self.size(let.limit)), 1)
            with self.scope(places={**self.places, let.name: Place(i)}):
                return self.emit(let.body)
        limit = self.splat("i64", str(self.size(let.limit)))
        i = self.clamped(self.as_index(value, dtype, lanes), limit, lanes)
        with self.scope(wide={**self.wide, let.name: i}):
            return self.emit(let.body)

    def as_index(self, value: str, dtype: str, lanes: int) -> str:
        source, kind = compute_type(dtype, lanes), vector("i64", lanes)
        if source == kind:
            return value
        return self.f.convert("zext" if dtype[0] == "u" else "sext", value, source, kind)

    def clamped(self, i: str, limit: str, lanes: int) -> str:
        """A data-dependent index, counted from the end where negative; one outside raises the error
        flag, and is 0."""
        kind = vector("i64", lanes)
        i, inside = self.checked(i, limit, lanes)
        return self.f.select(inside, kind, i, literal(kind, 0))

    def checked(self, i: str, limit: str, lanes: int) -> tuple[str, str]:
        """A data-dependent index, counted from the end where negative, and whether it lies inside;
        one outside raises the error flag."""
        f, kind = self.f, vector("i64", lanes)
        negative = f.compare("slt", kind, i, literal(kind, 0))
        i = f.select(negative, kind, f.binary("add", kind, i, limit), i)
        inside = f.compare("ult", kind, i, limit)
        if self.error is not None:
            wrong = f.binary("xor", vector("i1", lanes), inside, literal(vector("i1", lanes), True))
            if self.mask is not None and lanes > 1:
                wrong = f.binary("and", vector("i1", lanes), wrong, self.mask)
            some = (
                wrong
                if lanes == 1
                else f.call("i1", f"llvm.vector.reduce.or.v{lanes}i1", [(f"<{lanes} x i1>", wrong)])
            )
            f.when(some, lambda: f.store("i64", "1", self.error or ""))
        return i, inside


def _steps(op: Op) -> bool:
    """Whether an input must be no more precise than its dtype: where a result jumps, or the model
    casts."""
    return isinstance(op, Cast | Floor | Ceil | Round | Sign | Less | LessOrEqual | Equal)


def _names(size: Size) -> set[str]:
    return {s.name for s in size.symbols} if isinstance(size, Expr) else set()


def _suffix(kind: str) -> str:
    from whet.targets.cpu.llvm import suffix

    return suffix(kind)


def _contains_hole(expression: Expression) -> bool:
    return any(isinstance(node, Hole) for node in walk(expression))
