"""Integer expressions over named sizes: shapes, index maps and buffer offsets.

An expression is a polynomial with integer coefficients over atoms; an atom is a named size, or
`//`, `%`, `min` or `max` of expressions. Equal polynomials are equal expressions: `2*n - n == n`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any, Union

from whet.ir.atoms import Atom, Call, Symbol, Undecided, symbols_of

Size = Union[int, "Expr"]

MOST_TERMS = 1 << 14  # of a product before equal terms are added; models have a handful

Monomial = tuple[Atom, ...]


class Expr:
    """A polynomial over atoms: immutable, hashable, and an operand of + - * // % like an int."""

    __slots__ = ("__dict__", "_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __reduce__(self) -> Any:
        return Expr, (self.terms,)  # another process hashes text in another way

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expr) and self.terms == other.terms)

    def __add__(self, other: Size) -> Size:
        return _sum([(self, 1), (other, 1)])

    def __sub__(self, other: Size) -> Size:
        return _sum([(self, 1), (other, -1)])

    def __rsub__(self, other: int) -> Size:
        return _sum([(other, 1), (self, -1)])

    def __neg__(self) -> Size:
        return _sum([(self, -1)])

    def __mul__(self, other: Size) -> Size:
        return _product(self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, other: Size) -> Size:
        return floor_divide(self, other)

    def __rfloordiv__(self, other: int) -> Size:
        return floor_divide(other, self)

    def __mod__(self, other: Size) -> Size:
        return modulo(self, other)

    def __rmod__(self, other: int) -> Size:
        return modulo(other, self)

    @property
    def is_atom(self) -> bool:
        return len(self.terms) == 1 and len(self.terms[0][0]) == 1 and self.terms[0][1] == 1

    @cached_property
    def symbols(self) -> frozenset[Symbol]:
        return frozenset(
            symbol for mono, _ in self.terms for atom in mono for symbol in symbols_of(atom)
        )

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value, from the ranges of the symbols; infinite where
        unknown."""
        low = high = 0.0
        for mono, factor in self.terms:
            a, b = _monomial_bounds(mono)
            a, b = (a * factor, b * factor) if factor > 0 else (b * factor, a * factor)
            low, high = low + a, high + b
        return low, high

    def __str__(self) -> str:
        text = ""
        for mono, factor in self.terms:
            body = "*".join(str(atom) for atom in mono)
            size = abs(factor)
            piece = body if size == 1 and body else f"{size}*{body}" if body else str(size)
            text += ("-" if factor < 0 else "+" if text else "") + piece
        return text

    def __repr__(self) -> str:
        return f"Size({self})"

    def __bool__(self) -> bool:
        raise Undecided(f"the size {self} is not known here; compare it with is_equal or is_less")

    def __index__(self) -> int:
        raise Undecided(f"the size {self} is not known here; substitute its symbols first")


def symbol(name: str, low: int = 0, high: Size | None = None) -> Expr:
    """The size called `name`."""
    return _atom(Symbol(name, low, high))


def _atom(atom: Atom) -> Expr:
    return Expr((((atom,), 1),))


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    if isinstance(size, Expr):
        return size.terms
    return (((), int(size)),) if size else ()


def _from_terms(terms: dict[Monomial, int]) -> Size:
    kept = [(mono, factor) for mono, factor in terms.items() if factor]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    # The constant comes last, so that text reads "n + 1".
    kept.sort(key=lambda term: (not term[0], tuple(str(atom) for atom in term[0])))
    return Expr(tuple(kept))


def _sum(parts: Iterable[tuple[Size, int]]) -> Size:
    total: dict[Monomial, int] = {}
    for size, sign in parts:
        for mono, factor in _terms(size):
            total[mono] = total.get(mono, 0) + sign * factor
    return _from_terms(total)


def _product(a: Size, b: Size) -> Size:
    if isinstance(a, Expr) and isinstance(b, Expr) and len(a.terms) * len(b.terms) > MOST_TERMS:
        raise Undecided(f"an expression over sizes has more than {MOST_TERMS} terms")
    total: dict[Monomial, int] = {}
    for mono_a, factor_a in _terms(a):
        for mono_b, factor_b in _terms(b):
            mono = tuple(sorted(mono_a + mono_b)) if mono_a and mono_b else mono_a or mono_b
            total[mono] = total.get(mono, 0) + factor_a * factor_b
    return _from_terms(total)


def _monomial_bounds(mono: Monomial) -> tuple[float, float]:
    low = high = 1.0
    for atom in mono:
        a, b = _atom_bounds(atom)
        corners = [_times(x, y) for x in (low, high) for y in (a, b)]
        low, high = min(corners), max(corners)
    return low, high


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _atom_bounds(atom: Atom) -> tuple[float, float]:
    if isinstance(atom, Symbol):
        return atom.low, math.inf if atom.high is None else bounds(atom.high)[1]
    assert isinstance(atom, Call)
    ranges = [bounds(arg) for arg in atom.args]
    if atom.function == "min":
        return min(r[0] for r in ranges), min(r[1] for r in ranges)
    if atom.function == "max":
        return max(r[0] for r in ranges), max(r[1] for r in ranges)
    (low, high), (d_low, d_high) = ranges
    if atom.function == "%":
        return (
            (0.0, min(high, d_high - 1) if low >= 0 else d_high - 1)
            if d_low > 0
            else (-math.inf, math.inf)
        )
    if d_low <= 0:
        return -math.inf, math.inf
    corners = [_quotient(n, d) for n in (low, high) for d in (d_low, d_high)]
    return min(corners), max(corners)


def _quotient(n: float, d: float) -> float:
    if math.isinf(d):
        return -1.0 if n < 0 else 0.0
    return n if math.isinf(n) else float(n // d)


def bounds(size: Size) -> tuple[float, float]:
    """The least and the greatest value of a size."""
    return size.bounds if isinstance(size, Expr) else (size, size)


def floor_divide(a: Size, b: Size) -> Size:
    """a // b, rounded down; a factor that divides exactly is taken out."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1 or a == 0:
        return a
    quotient, rest = _divide_terms(a, b)
    if rest == 0 or _lies_within(rest, b):
        return quotient
    if isinstance(b, int):
        rest, b = _cancel_gcd(rest, b)
        inner, both = _merge_division(rest, b)
        if both != b:
            return quotient + floor_divide(inner, both)  # (2 * n) // 3 // 2 is n // 3
    return quotient + _atom(Call("//", (rest, b)))


def modulo(a: Size, b: Size) -> Size:
    """a % b with the sign of b; multiples of b in a are dropped."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 1 or a == 0:
        return 0
    _, rest = _divide_terms(a, b)
    if rest == 0 or _lies_within(rest, b):
        return rest
    if isinstance(rest, int) and isinstance(b, int):
        return rest % b
    return _atom(Call("%", (rest, b)))


def _divide_terms(a: Size, b: Size) -> tuple[Size, Size]:
    """q and r with a == q*b + r, where q collects the terms of a that b divides exactly."""
    if b == 0:
        raise ZeroDivisionError(f"{a} is divided by 0")
    divisor = tuple(_terms(b))
    if len(divisor) != 1:
        return (1, 0) if is_equal(a, b) else _divide_by_polynomial(a, b)
    (by, factor) = divisor[0]
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for mono, count in _terms(a):
        left = _without(mono, by)
        if left is None or count // factor == 0:
            rest[mono] = rest.get(mono, 0) + count
            continue
        quotient[left] = quotient.get(left, 0) + count // factor
        if count % factor:
            rest[mono] = rest.get(mono, 0) + count % factor
    return _from_terms(quotient), _from_terms(rest)


def _divide_by_polynomial(a: Size, b: Size) -> tuple[Size, Size]:
    """Long division by the divisor's leading term, kept only where nothing remains."""
    lead, lead_factor = next(iter(_terms(b)))
    quotient: Size = 0
    rest = a
    for _ in range(8):
        if rest == 0:
            return quotient, 0
        for mono, count in _terms(rest):
            left = _without(mono, lead)
            if left is not None and count % lead_factor == 0:
                step = _from_terms({left: count // lead_factor})
                quotient, rest = quotient + step, rest - step * b
                break
        else:
            break
    return 0, a


def _without(mono: Monomial, by: Monomial) -> Monomial | None:
    left = list(mono)
    for atom in by:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _lies_within(rest: Size, b: Size) -> bool:
    return is_less(-1, rest) and is_less(rest, b)


def _cancel_gcd(a: Size, b: int) -> tuple[Size, int]:
    common = math.gcd(b, *(factor for _, factor in _terms(a)))
    if common <= 1:
        return a, b
    return _from_terms({mono: factor // common for mono, factor in _terms(a)}), b // common


def _merge_division(a: Size, b: int) -> tuple[Size, int]:
    """(x // c) // b is x // (c * b)."""
    if isinstance(a, Expr) and a.is_atom:
        atom = a.terms[0][0][0]
        if isinstance(atom, Call) and atom.function == "//" and isinstance(atom.args[1], int):
            return atom.args[0], atom.args[1] * b
    return a, b


LONGEST = 1 << 31
"""No axis is worth a thought that is longer: 64 bits hold the product of two such."""


def ceil_divide(a: Size, b: Size) -> Size:
    """a / b, rounded up."""
    if isinstance(a, Expr) and isinstance(b, int) and b >= LONGEST:
        return minimum(maximum(a, 0), 1)  # kernels would have to multiply a by nearly b
    return -floor_divide(-a, b)


def minimum(*sizes: Size) -> Size:
    """The least of the sizes."""
    return _extreme("min", min, sizes)


def maximum(*sizes: Size) -> Size:
    """The greatest of the sizes."""
    return _extreme("max", max, sizes)


def _extreme(name: str, pick: Callable[..., int], sizes: tuple[Size, ...]) -> Size:
    sizes = tuple(part for size in sizes for part in (_arguments(size, name) or (size,)))
    known = [size for size in sizes if isinstance(size, int)]
    kept: list[Size] = [pick(known)] if known else []
    for size in dict.fromkeys(size for size in sizes if isinstance(size, Expr)):
        if any(_dominates(name, other, size) for other in kept):
            continue
        kept = [other for other in kept if not _dominates(name, size, other)] + [size]
    if len(kept) == 1:
        return kept[0]
    return _atom(Call(name, tuple(sorted(kept, key=str))))


def _arguments(size: Size, name: str) -> tuple[Size, ...]:
    """What a size is the "min" or "max" of; nothing where it is something else."""
    atom = size.terms[0][0][0] if isinstance(size, Expr) and size.is_atom else None
    return atom.args if isinstance(atom, Call) and atom.function == name else ()


def _dominates(name: str, a: Size, b: Size) -> bool:
    """Whether b never matters beside a."""
    if a in _arguments(b, "min" if name == "max" else "max"):
        return True
    return is_less(a, b + 1) if name == "min" else is_less(b, a + 1)


def is_equal(a: Size, b: Size) -> bool:
    """Whether the two are proved equal."""
    return a == b


def is_different(a: Size, b: Size) -> bool:
    """Whether the two are proved different."""
    low, high = bounds(a - b)
    return low > 0 or high < 0


def is_less(a: Size, b: Size) -> bool:
    """Whether a < b is proved."""
    difference = b - a
    for _ in range(4):
        if bounds(difference)[0] > 0:
            return True
        tightened = _use_symbolic_highs(difference)
        if tightened is difference:
            return False
        difference = tightened
    return False


def is_at_most(a: Size, b: Size) -> bool:
    """Whether a <= b is proved."""
    return is_less(a, b + 1)


def _use_symbolic_highs(size: Size) -> Size:
    """A lower bound of `size`: symbols that count negatively are set to their symbolic upper
    bound."""
    if not isinstance(size, Expr):
        return size
    for mono, factor in size.terms:
        for atom in mono:
            if factor < 0 and isinstance(atom, Symbol) and isinstance(atom.high, Expr):
                other = {m for m, f in size.terms if f > 0 and atom in m}
                if not other and all(_atom_bounds(a)[0] >= 0 for a in mono):
                    return substitute(size, {atom.name: atom.high})
    return size


def substitute(size: Size, values: Mapping[str, Size]) -> Size:
    """The expression with the named sizes replaced; an integer once all of them are."""
    if not isinstance(size, Expr) or not any(s.name in values for s in size.symbols):
        return size
    return _substitute_cached(
        size, tuple(sorted((k, v) for k, v in values.items() if _uses(size, k)))
    )


def _uses(size: Expr, name: str) -> bool:
    return any(s.name == name for s in size.symbols)


@lru_cache(maxsize=65536)
def _substitute_cached(size: Expr, values: tuple[tuple[str, Size], ...]) -> Size:
    table = dict(values)
    total: Size = 0
    for mono, factor in size.terms:
        term: Size = factor
        for atom in mono:
            term = term * _substitute_atom(atom, table)
        total = total + term
    return total


def _substitute_atom(atom: Atom, table: Mapping[str, Size]) -> Size:
    if isinstance(atom, Symbol):
        return table.get(atom.name, _atom(atom))
    assert isinstance(atom, Call)
    return FUNCTIONS[atom.function](*(substitute(arg, table) for arg in atom.args))


FUNCTIONS: dict[str, Callable[..., Size]] = {
    "//": floor_divide,
    "%": modulo,
    "min": minimum,
    "max": maximum,
}


def product(sizes: Iterable[Size]) -> Size:
    """The product of the sizes; 1 for none."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def coefficient(size: Size, name: str) -> Size | None:
    """c where size == c*name + rest and neither c nor rest uses name; None where it is not linear
    in name."""
    if not isinstance(size, Expr) or not _uses(size, name):
        return 0
    total: Size = 0
    for mono, factor in size.terms:
        held = [atom for atom in mono if any(s.name == name for s in symbols_of(atom))]
        if not held:
            continue
        if len(held) > 1 or not isinstance(held[0], Symbol):
            return None
        left = _without(mono, (held[0],))
        assert left is not None
        total = total + _from_terms({left: factor})
    return total
