"""Whether a Value has a Pattern's form, and what the pattern's names then stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.ir.graph import OPERATORS, Anything, Constant, Op, Pattern, Value, Weight, attribute_key
from whet.ir.graph import operator as operator_class

Bound = dict[str, Any]
ReadNumber = Callable[[str], Any]

TOLERANCE = {"float64": 1e-6, "float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""How far a number in a model may be from the one in a pattern: exporters round, or compute it."""


def no_number(name: str) -> None:
    """No weight's value may be looked at."""
    return


@operator_class
class Number(Op):
    """Leaf of a Pattern: one number that is known now, bound as such."""

    name: str


@operator_class
class Such(Op):
    """Leaf of a Pattern: a Value of which the predicate holds."""

    name: str
    predicate: Callable[[Value], bool]


@operator_class
class Called(Op):
    """Around a Pattern: the Value is bound to `name` as well."""

    name: str


@operator_class
class Once(Op):
    """Around a Pattern: the Value has one reader."""


@dataclass(frozen=True)
class Product:
    """Factors above and below the fraction bar, and the numbers among them multiplied."""

    above: tuple[Any, ...] = ()
    below: tuple[Any, ...] = ()
    scale: float = 1
    has_number: bool = False

    def times(self, other: Product) -> Product:
        return Product(
            self.above + other.above,
            self.below + other.below,
            self.scale * other.scale,
            self.has_number or other.has_number,
        )

    @property
    def inverse(self) -> Product:
        scale = self.scale if self.scale in (1, 0) else 1 / self.scale
        return Product(self.below, self.above, scale, self.has_number)


def scaling_operators() -> frozenset[type[Op]]:
    """Multiplication and division: what products are made of."""
    return frozenset({OPERATORS["*"], OPERATORS["/"]})  # type: ignore[arg-type]


class Matcher:
    """Matches patterns; `uses` says how often a Value is read, `read` what number a weight is."""

    def __init__(
        self,
        uses: Mapping[Value, int],
        read: ReadNumber = no_number,
        reasons: list[tuple[int, str]] | None = None,
    ) -> None:
        self.uses = uses
        self.read = read
        self.reasons = reasons
        self.depth = 0
        self.numbers_read: dict[str, None] = {}
        self.products: dict[Pattern, Product] = {}

        self.multiply: type[Op] = OPERATORS["*"]  # type: ignore[assignment]
        self.scaling = tuple(scaling_operators())

    def note(self, reason: str, *args: Any) -> None:
        """Remembers why something did not match, when somebody asks."""
        if self.reasons is not None:
            self.reasons.append((self.depth, reason.format(*args)))

    def matches(self, pattern: Pattern, value: Value | None, bound: Bound) -> Iterator[Bound]:
        """Every way in which the Value has the pattern's form, as what the names stand for."""
        if value is None:
            self.note("an input is absent")
            return
        match pattern.op:
            case Anything(name=name):
                yield from self._bind(name, value, bound)
            case Number(name=name):
                known = self.number(value)
                if known is None:
                    self.note("{} is no number known here", value)
                else:
                    yield from self._bind(name, known, bound)
            case Such(name=name, predicate=predicate):
                if predicate(value):
                    yield from self._bind(name, value, bound)
                else:
                    self.note("{} is not {}", value, predicate.__name__)
            case Constant():
                if self._is_number(pattern, value):
                    yield bound
            case Called(name=name):
                for inner in self.matches(pattern.inputs[0], value, bound):
                    yield from self._bind(name, value, inner)
            case Once():
                if self.uses.get(value, 1) > 1:
                    self.note("{} has {} readers", value, self.uses[value])
                else:
                    yield from self.matches(pattern.inputs[0], value, bound)
            case _:
                self.depth += 1
                yield from self._operator(pattern, value, bound)
                self.depth -= 1

    def _bind(self, name: str, what: Any, bound: Bound) -> Iterator[Bound]:
        if name not in bound:
            yield {**bound, name: what}
        elif bound[name] is what or (
            not isinstance(what, Value) and attribute_key(bound[name]) == attribute_key(what)
        ):
            yield bound
        else:
            self.note("{} would be two different Values", name)

    def _operator(self, pattern: Pattern, value: Value, bound: Bound) -> Iterator[Bound]:
        if isinstance(pattern.op, self.scaling):
            if not isinstance(value.op, self.scaling):
                self.note("{} is no product", value)
                return
            if "float" in value.dtype:
                yield from self._product(pattern, value, bound)
                return
        if type(pattern.op) is not type(value.op) or value.index:
            self.note("{} is not {}", value, type(pattern.op).__name__)
            return
        if len(pattern.inputs) != len(value.inputs):
            self.note("{} has not {} inputs", value, len(pattern.inputs))
            return
        for with_attributes in self._attributes(pattern.op, value.op, bound):
            yield from self._inputs(pattern.inputs, value.inputs, with_attributes)
            if value.op.is_commutative and value.inputs[0] is not value.inputs[1]:
                yield from self._inputs(pattern.inputs, value.inputs[::-1], with_attributes)

    def _attributes(self, pattern: Op, op: Op, bound: Bound) -> Iterator[Bound]:
        for name, want in pattern.attributes.items():
            got = getattr(op, name)
            if isinstance(want, Pattern) and isinstance(want.op, Anything):
                if want.op.name not in bound:
                    bound = {**bound, want.op.name: got}
                    continue
                want = bound[want.op.name]
            if want is not got and attribute_key(want) != attribute_key(got):
                self.note("{} has another {} than {}", op, name, want)
                return
        yield bound

    def _inputs(
        self, patterns: Sequence[Pattern], values: Sequence[Value | None], bound: Bound
    ) -> Iterator[Bound]:
        if not patterns:
            yield bound
            return
        for with_first in self.matches(patterns[0], values[0], bound):
            yield from self._inputs(patterns[1:], values[1:], with_first)

    def number(self, value: Value) -> Any:
        """The number that every element of a Value is, where it is known; else None."""
        if isinstance(value.op, Constant):
            data = value.op.data
            if data.size > 1 and data.dtype != object and (data == data.flat[0]).all():
                data = data.flat[:1]
            return data.item() if data.size == 1 and data.dtype.kind in "biuf" else _narrow(data)
        if isinstance(value.op, Weight) and all(size == 1 for size in value.op.type.shape):
            return self._read(value.op.name)
        return None

    def look(self, name: str) -> Any:
        """A weight's elements where rules may look at them; what was seen is remembered."""
        data = self.read(name)
        if data is not None:
            self.numbers_read[name] = None
        return data

    def _read(self, name: str) -> Any:
        data = self.look(name)
        if data is None:
            return None
        return data.item() if data.dtype.kind in "biuf" else _narrow(data)

    def _is_number(self, pattern: Pattern, value: Value) -> bool:
        got = self.number(value)
        assert isinstance(pattern.op, Constant)
        if got is not None and _is_near(pattern.op.data.item(), got, value.tensor.dtype):
            return True
        self.note("{} is not {}", value if got is None else got, pattern.op.data)
        return False

    def _product(self, pattern: Pattern, value: Value, bound: Bound) -> Iterator[Bound]:
        """Factors in any order and nesting; the numbers among them are compared as one."""
        want = self._wanted(pattern)
        hole = next((p for p in want.above if isinstance(p.op, Number)), None)
        above = [p for p in want.above if p is not hole]
        most = len(above) + len(want.below)
        for got in self._cuts(value, most) if most > 1 else self._scaled(value):
            if (len(got.above), len(got.below)) != (len(above), len(want.below)):
                self.note("{} has other factors", value)
                continue
            if hole is not None and not got.has_number:
                self.note("{} has no number among its factors", value)
            elif hole is not None:
                assert isinstance(hole.op, Number)
                for with_number in self._bind(hole.op.name, got.scale / want.scale, bound):
                    yield from self._factors(above, want.below, got, with_number)
            elif _is_near(want.scale, got.scale, value.tensor.dtype, exact=not want.has_number):
                yield from self._factors(above, want.below, got, bound)
            else:
                self.note("{} multiplies by {}, not {}", value, got.scale, want.scale)

    def _factors(
        self, above: Sequence[Pattern], below: Sequence[Pattern], got: Product, bound: Bound
    ) -> Iterator[Bound]:
        for with_above in self._in_any_order(above, got.above, bound):
            yield from self._in_any_order(below, got.below, with_above)

    def _in_any_order(
        self, patterns: Sequence[Pattern], values: tuple[Value, ...], bound: Bound
    ) -> Iterator[Bound]:
        if not patterns:
            yield bound
            return
        for i, value in enumerate(values):
            for with_first in self.matches(patterns[0], value, bound):
                yield from self._in_any_order(
                    patterns[1:], values[:i] + values[i + 1 :], with_first
                )

    def _wanted(self, pattern: Pattern) -> Product:
        """The factors of a pattern, those with an operator first: they fail sooner."""
        if pattern not in self.products:
            flat = self._flat(pattern)
            by_form = lambda p: isinstance(p.op, Anything | Such)  # noqa: E731
            self.products[pattern] = Product(
                tuple(sorted(flat.above, key=by_form)),
                tuple(sorted(flat.below, key=by_form)),
                flat.scale,
                flat.has_number,
            )
        return self.products[pattern]

    def _flat(self, pattern: Pattern) -> Product:
        if isinstance(pattern.op, Constant):
            return Product(scale=pattern.op.data.item(), has_number=True)
        if isinstance(pattern.op, self.scaling):
            a, b = map(self._flat, pattern.inputs)
            return a.times(b if isinstance(pattern.op, self.multiply) else b.inverse)
        return Product((pattern,))

    def _cuts(self, value: Value, most: int) -> Iterator[Product]:
        """The ways to write a product as one of at most `most` factors besides numbers."""
        first, second = value.inputs
        for a in self._parts(first, most):
            for b in self._parts(second, most - len(a.above) - len(a.below)):
                if isinstance(value.op, self.multiply):
                    yield a.times(b)
                elif not (b.has_number and b.scale == 0):
                    yield a.times(b.inverse)

    def _parts(self, value: Value | None, most: int) -> Iterator[Product]:
        """A factor: a number, itself, or if it is a product what that is made of."""
        assert value is not None
        known = self.number(value)
        if known is not None:
            yield Product(scale=known, has_number=True)
            return
        if most:
            yield Product((value,))
        if isinstance(value.op, self.scaling):
            yield from self._cuts(value, most)

    def _scaled(self, value: Value) -> Iterator[Product]:
        """A product with a number, as that number and the other factor whole."""
        for a, b in (value.inputs, value.inputs[::-1]):
            assert a is not None
            assert b is not None
            known = self.number(b)
            if known is None:
                continue
            by = Product(scale=known, has_number=True)
            if isinstance(value.op, self.multiply):
                yield Product((a,)).times(by)
            elif b is value.inputs[0]:
                yield by.times(Product((a,)).inverse)
            elif known:
                yield Product((a,)).times(by.inverse)


def _narrow(data: Any) -> float | None:
    """The number in an array of a dtype that NumPy does not know by itself, such as bfloat16."""
    if data.size != 1 or data.dtype.kind in "OSUM":
        return None
    return float(data.reshape(())) if data.dtype.kind != "c" else None


def _is_near(want: float, got: float, dtype: str, exact: bool = False) -> bool:
    """Whole numbers are meant exactly, others as well as the dtype and the exporter had them."""
    if want == got or exact or isinstance(want, int) or math.isinf(want):
        return want == got
    return abs(got - want) <= TOLERANCE.get(dtype, 1e-6) * abs(want)
