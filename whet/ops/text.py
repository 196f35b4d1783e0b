"""Operators on strings. Targets have none of them: the host runs the references."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, is_less, product
from whet.ir.types import INTEGERS, TensorType
from whet.ops.elementwise import And, Array, Cast, Equal, Min, broadcast, need
from whet.ops.gather import ScatterElements
from whet.ops.movement import Concat, broadcast_to, reshape, slice_axis, unsqueeze
from whet.ops.reduce import Reduce

STRING = frozenset({"string"})


def _texts(items: Sequence[Any], shape: tuple[int, ...]) -> Array:
    """An object array of strings; NumPy would take a list of lists apart."""
    out = np.empty(len(items), object)
    out[:] = items
    return out.reshape(shape)


@operator
class StringConcat(Op):
    """a followed by b; the shapes broadcast."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        for x in (a, b):
            need(x.dtype, STRING, "strings")
        return TensorType("string", broadcast(a.shape, b.shape))

    def reference(self, a: Array, b: Array) -> Array:
        return np.asarray(a + b, object)


@operator
class StringNormalizer(Op):
    """The strings that are no stop words, `size` of them, changed to "UPPER" or "LOWER" case.

    Where none is left, one empty string.
    """

    size: Size
    stopwords: tuple[str, ...] = ()
    case_sensitive: bool = False
    case_change: Annotated[str, Literal["NONE", "LOWER", "UPPER"]] = "NONE"

    def infer(self, x: TensorType) -> TensorType:
        need(x.dtype, STRING, "strings")
        if x.rank not in (1, 2) or (x.rank == 2 and x.shape[0] != 1):
            raise ShapeError(f"strings are normalised in a row, as [n] or [1, n], not {x}")
        return x.with_shape(*x.shape[:-1], self.size)

    def reference(self, x: Array) -> Array:
        stop = {s if self.case_sensitive else s.lower() for s in self.stopwords}
        kept = [s for s in x.ravel() if (s if self.case_sensitive else s.lower()) not in stop]
        if self.case_change != "NONE":
            kept = [s.upper() if self.case_change == "UPPER" else s.lower() for s in kept]
        kept = kept or [""]
        return _texts(kept, (*x.shape[:-1], len(kept)))


@operator
class StringSplit(Op):
    """Each string's parts along a new last axis of `size`, filled up with "", and how many.

    Without a delimiter, whitespace separates the parts. At most `most` splits, from the left.
    """

    size: Size
    delimiter: str = ""
    most: int | None = None

    def infer(self, x: TensorType) -> tuple[TensorType, TensorType]:
        need(x.dtype, STRING, "strings")
        return x.with_shape(*x.shape, self.size), x.with_dtype("int64")

    def reference(self, x: Array) -> tuple[Array, Array]:
        most = -1 if self.most is None else self.most
        parts = [s.split(self.delimiter or None, most) for s in x.ravel()]
        widest = max(map(len, parts), default=0)
        filled = [part for row in parts for part in row + [""] * (widest - len(row))]
        counts = np.array([len(row) for row in parts], np.int64)
        return _texts(filled, (*x.shape, widest)), counts.reshape(x.shape)


@operator
class RegexFullMatch(Op):
    """Whether the whole string matches the pattern."""

    pattern: str

    def infer(self, x: TensorType) -> TensorType:
        need(x.dtype, STRING, "strings")
        return x.with_dtype("bool")

    def reference(self, x: Array) -> Array:
        full = re.compile(python_pattern(self.pattern), re.ASCII).fullmatch
        return np.array([full(s) is not None for s in x.ravel()], bool).reshape(x.shape)


_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


def python_pattern(pattern: str) -> str:
    r"""An RE2 pattern as Python's `re` writes it: POSIX classes spelt out, \z as \Z."""
    spelt = re.sub(r"\[:(\w+):\]", lambda m: _POSIX.get(m[1], m[0]), pattern)
    return re.sub(r"\\(.)", lambda m: r"\Z" if m[1] == "z" else m[0], spelt)


MOST_CELLS = 1 << 26
"""Comparisons of a token with an n-gram that cost less than to look them up one by one."""


@operator
class CountNgrams(Op):
    """How often each n-gram of a vocabulary occurs in each row: float32[..., size].

    `ngrams[i]` counts, times `weights[i]`, at `places[i]`. The tokens of an n-gram may lie up to
    `skips` + 1 apart, all at the same distance. `once` counts any number of occurrences as one.
    """

    ngrams: tuple[tuple[Any, ...], ...]
    places: tuple[int, ...]
    weights: tuple[float, ...]
    lengths: tuple[int, int]
    skips: int = 0
    once: bool = False

    def infer(self, x: TensorType) -> TensorType:
        if x.rank not in (1, 2):
            raise ShapeError(f"n-grams are counted in one row or a batch of them, not {x}")
        return TensorType("float32", (*x.shape[:-1], max(self.places, default=-1) + 1))

    def reference(self, x: Array) -> Array:
        rows = x.reshape(len(x) if x.ndim == 2 else 1, x.shape[-1])
        size = max(self.places, default=-1) + 1
        out = np.zeros((len(rows), size), np.float32)
        vocabulary = {n: (p, w) for n, p, w in zip(self.ngrams, self.places, self.weights)}
        for row, tokens in zip(out, rows.tolist()):
            for ngram, count in Counter(self._occurrences(tokens)).items():
                place, weight = vocabulary.get(ngram, (0, 0.0))
                row[place] += weight * (min(count, 1) if self.once else count)
        return out.reshape(*x.shape[:-1], size)

    def lower(self, x: Value) -> Value:
        """Tokens that are numbers are compared with all n-grams at once."""
        vocabulary = {n: (p, w) for n, p, w in zip(self.ngrams, self.places, self.weights)}
        size = max(self.places, default=-1) + 1
        cells = product(x.shape) * len(vocabulary)
        if x.dtype not in INTEGERS or not isinstance(cells, int) or not 0 < cells <= MOST_CELLS:
            return self(x)
        rows = reshape(x, product(x.shape[:-1]), x.shape[-1])
        least, most = self.lengths
        kept = sorted((n for n in vocabulary if least <= len(n) <= most), key=len)
        alike = [list(group) for _, group in itertools.groupby(kept, len)]
        found = [self._count(rows, np.array(ngrams)) for ngrams in alike]
        room = broadcast_to(constant(0.0, "float32"), rows.shape[0], size)
        if not found:
            return reshape(room, *x.shape[:-1], size)
        count = Concat(1)(*found) if len(found) > 1 else found[0]
        count = Min()(count, constant(1.0, "float32")) if self.once else count
        weights = constant(np.array([vocabulary[n][1] for n in kept]), "float32")
        places = constant(np.array([[vocabulary[n][0] for n in kept]]), "int64")
        places = broadcast_to(places, *count.shape)
        return reshape(
            ScatterElements(1, "sum")(room, places, count * weights), *x.shape[:-1], size
        )

    def _count(self, rows: Value, ngrams: Array) -> Value:
        """How often each of some n-grams of one length occurs in each row."""
        count, length = ngrams.shape
        total: Value = broadcast_to(constant(0.0, "float32"), rows.shape[0], count)
        for distance in range(1, self.skips + 2 if length > 1 else 2):
            starts = rows.shape[1] - (length - 1) * distance
            if is_less(0, starts):
                total = total + _matches(rows, ngrams, distance, starts)
        return total

    def _occurrences(self, tokens: list[Any]) -> Iterator[tuple[Any, ...]]:
        least, most = self.lengths
        for distance in range(1, self.skips + 2):
            for length in range(least, most + 1):
                if length == 1 and distance > 1:
                    continue  # a single token has no distance: it is counted once
                for start in range(len(tokens) - (length - 1) * distance):
                    yield tuple(tokens[start + i * distance] for i in range(length))


def _matches(rows: Value, ngrams: Array, distance: int, starts: Size) -> Value:
    """How often tokens `distance` apart are those of each n-gram: float32[rows, n-grams]."""
    windows = [
        unsqueeze(slice_axis(rows, 1, i * distance, starts), 1) for i in range(ngrams.shape[1])
    ]
    tokens = [constant(column.reshape(1, -1, 1), rows.dtype) for column in ngrams.T]
    same = functools.reduce(And(), map(Equal(), windows, tokens))
    return reshape(Reduce("sum", (2,))(Cast("float32")(same)), rows.shape[0], len(ngrams))
