"""The factors of a size that arithmetic does not take apart: named sizes and functions of sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.ir.sizes import Size

MOST_NESTED = 100  # divisions, remainders, minima and maxima within each other
MOST_OPERATORS = 1 << 12  # of them in an expression written out: its text may double at each level


class Undecided(TypeError):
    """A question about a size that only a run can answer, or an expression too large to keep."""


class Atom:
    """A factor that arithmetic does not take apart. Immutable; equal atoms hash alike."""

    __slots__ = ("_hash", "key")

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.key = key
        self._hash = hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Atom) and self.key == other.key)

    def __lt__(self, other: Atom) -> bool:
        return str(self) < str(other)


class Symbol(Atom):
    """A named size or loop index, with the range it is known to lie in (`high` inclusive, or
    None)."""

    __slots__ = ("high", "low", "name")

    def __init__(self, name: str, low: int = 0, high: Size | None = None) -> None:
        super().__init__(("symbol", name, low, high))
        self.name, self.low, self.high = name, low, high

    def __reduce__(self) -> Any:
        return Symbol, (self.name, self.low, self.high)

    def __str__(self) -> str:
        return self.name if self.name.isidentifier() else repr(self.name)


class Call(Atom):
    """`function` of expressions: "//", "%", "min" or "max"."""

    __slots__ = ("_text", "args", "depth", "function", "length")
    depth: int
    length: int

    def __init__(self, function: str, args: tuple[Size, ...]) -> None:
        super().__init__((function, args))
        self.function, self.args = function, args
        atoms = [atom for arg in args for atom in atoms_of(arg) if isinstance(atom, Call)]
        self.depth = 1 + max((atom.depth for atom in atoms), default=0)
        self.length = 1 + sum(atom.length for atom in atoms)
        if self.depth > MOST_NESTED or self.length > MOST_OPERATORS:
            raise Undecided(f"an expression over sizes nests {self.length} operators, too many")
        self._text = ""

    def __reduce__(self) -> Any:
        return Call, (self.function, self.args)

    def __str__(self) -> str:
        # Kept, because terms are sorted by it: without that, sums of nested expressions cost most.
        self._text = self._text or self._print()
        return self._text

    def _print(self) -> str:
        if self.function in ("min", "max"):
            return f"{self.function}({', '.join(map(str, self.args))})"
        return f"({_wrap(self.args[0])}{self.function}{_wrap(self.args[1])})"


def atoms_of(size: Size) -> Iterator[Atom]:
    """The factors of an expression's terms."""
    for mono, _ in getattr(size, "terms", ()):
        yield from mono


def _wrap(size: Size) -> str:
    return str(size) if isinstance(size, int) or size.is_atom else f"({size})"


def symbols_of(atom: Atom) -> Iterator[Symbol]:
    """The named sizes in a factor."""
    if isinstance(atom, Symbol):
        yield atom
    elif isinstance(atom, Call):
        for arg in atom.args:
            yield from getattr(arg, "symbols", ())
