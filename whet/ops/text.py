"""Operators on strings. Targets have none of them: the host runs the references."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, operator
from whet.ir.sizes import Size
from whet.ir.types import TensorType
from whet.ops.elementwise import Array, broadcast, need

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
    case_change: str = "NONE"

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

    def _occurrences(self, tokens: list[Any]) -> Iterator[tuple[Any, ...]]:
        least, most = self.lengths
        for distance in range(1, self.skips + 2):
            for length in range(least, most + 1):
                if length == 1 and distance > 1:
                    continue  # a single token has no distance: it is counted once
                for start in range(len(tokens) - (length - 1) * distance):
                    yield tuple(tokens[start + i * distance] for i in range(length))
