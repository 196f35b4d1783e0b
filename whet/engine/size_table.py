"""The table of sizes that an engine's graphs share: names, and expressions over earlier entries."""

from __future__ import annotations

from typing import Any

from whet.engine.plain import (
    LARGEST,
    Plain,
    a_list,
    a_number,
    a_text,
    an_index,
    need,
    record,
    short,
)
from whet.errors import InvalidEngine
from whet.ir.atoms import Atom, Call, Symbol, Undecided
from whet.ir.sizes import Expr, Size, symbol

MOST_PARTS = 1 << 16
"""Names, functions and numbers in one size with everything it refers to written out. A grid over
the sizes that a few crops and paddings leave has 15,000."""


class SizeWriter:
    """Numbers sizes in the order in which they are first met."""

    def __init__(self) -> None:
        self.table: list[Plain] = []
        self.index: dict[Expr | Atom, int] = {}

    def plain(self, size: Size | None) -> Plain:
        """The size as it stands in a record."""
        return {"s": self.number(size)} if isinstance(size, Expr) else size

    def number(self, size: Expr) -> int:
        """The place in the table of a size that is no plain integer."""
        if size.is_atom:
            return self.atom(size.terms[0][0][0])
        if size not in self.index:
            terms = [[factor, *(self.atom(a) for a in atoms)] for atoms, factor in size.terms]
            self.add(size, ["+", *terms])
        return self.index[size]

    def atom(self, atom: Atom) -> int:
        if atom not in self.index:
            if isinstance(atom, Symbol):
                self.add(atom, ["symbol", atom.name, atom.low, self.plain(atom.high)])
            else:
                assert isinstance(atom, Call)
                self.add(atom, [atom.function, *(self.plain(a) for a in atom.args)])
        return self.index[atom]

    def add(self, size: Expr | Atom, plain: Plain) -> None:
        self.index[size] = len(self.table)
        self.table.append(plain)


class SizeReader:
    """The sizes of a table, each checked against those before it."""

    def __init__(self) -> None:
        self.table: list[Expr] = []
        self.parts: list[int] = []

    def add(self, entry: list[Any]) -> None:
        """Reads one more entry; raises InvalidEngine for what `SizeWriter` would not write."""
        match entry:
            case ["symbol", name, low, high]:
                self.parts.append(1 + self.count_parts(high))
                least = a_number(low, -LARGEST, LARGEST, "a symbol's least value")
                greatest = None if high is None else self.size(high)
                size = symbol(a_text(name, "a symbol's name"), least, greatest)
            case ["//" | "%" | "min" | "max" as function, *args]:
                self.parts.append(1 + sum(map(self.count_parts, args)))
                self.bound_parts()
                size = self.call(function, tuple(map(self.size, args)))
            case ["+", *terms]:
                size = self.polynomial([a_list(term, "a term") for term in terms])
            case _:
                raise InvalidEngine(f"{short(entry)} is no size")
        self.bound_parts()
        self.table.append(size)

    def count_parts(self, plain: Plain) -> int:
        """How long a size is once written out: nested references would make it exponential."""
        if type(plain) is dict and len(plain) == 1 and "s" in plain:
            self.entry(plain["s"])
            return self.parts[plain["s"]]
        return 1

    def bound_parts(self) -> None:
        need(self.parts[-1] <= MOST_PARTS, f"a size has more than {MOST_PARTS} parts")

    def call(self, function: str, args: tuple[Size, ...]) -> Expr:
        binary = function in ("//", "%")
        need(len(args) == 2 if binary else len(args) >= 2, f"{function} of {len(args)} sizes")
        need(any(isinstance(a, Expr) for a in args), f"{function} of known sizes only")
        need(not binary or args[1] != 0, f"a size {function} 0")
        try:
            return Expr((((Call(function, args),), 1),))
        except Undecided as error:  # it would not have been made
            raise InvalidEngine(str(error)) from None

    def polynomial(self, terms: list[list[Any]]) -> Expr:
        """A sum of products exactly as it was, in its order: arithmetic might put it otherwise."""
        self.parts.append(0)
        made: dict[tuple[Atom, ...], int] = {}
        for factor, *places in (term or [None] for term in terms):
            atoms = tuple([self.atom(place) for place in places])
            self.parts[-1] += 1
            self.bound_parts()
            need(factor != 0 and atoms not in made, "a term that is zero or stands twice")
            made[atoms] = a_number(factor, -LARGEST, LARGEST, "a factor")
        need(any(made), "a size that is a plain number must be written as one")
        return Expr(tuple(made.items()))

    def atom(self, place: Plain) -> Atom:
        size = self.entry(place)
        need(size.is_atom, "a factor of a term must be a name or a function")
        self.parts[-1] += self.parts[place]
        self.bound_parts()
        return size.terms[0][0][0]

    def size(self, plain: Plain) -> Size:
        """The size that stands in a record: a number, or an entry of the table."""
        if type(plain) is int:
            return a_number(plain, -LARGEST, LARGEST, "a size")
        (place,) = record(plain, "s")
        return self.entry(place)

    def entry(self, place: Plain) -> Expr:
        return self.table[an_index(place, len(self.table), "the size")]
