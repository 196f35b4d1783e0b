"""ONNX operators on strings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from whet.errors import InvalidModel
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Value
from whet.ops import text

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Reading


@onnx_op
def StringConcat(a: Value, b: Value) -> Value:
    return text.StringConcat()(a, b)


@onnx_op
def StringNormalizer(
    x: Value,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "",
    stopwords: tuple[str, ...] = (),
    node: Reading,
) -> Value:
    if case_change_action not in ("NONE", "LOWER", "UPPER"):
        raise InvalidModel(f"case_change_action {case_change_action!r} is none of NONE LOWER UPPER")
    size = node.fresh_size("count", 1)
    sensitive = bool(is_case_sensitive)
    return text.StringNormalizer(size, stopwords, sensitive, case_change_action)(x)


@onnx_op
def StringSplit(
    x: Value, *, delimiter: str = "", maxsplit: int | None = None, node: Reading
) -> tuple[Value, ...]:
    return text.StringSplit(node.fresh_size("parts"), delimiter, maxsplit)(x)


@onnx_op
def RegexFullMatch(x: Value, *, pattern: str) -> Value:
    try:
        re.compile(text.python_pattern(pattern), re.ASCII)
    except re.error as error:
        raise InvalidModel(f"the pattern {pattern!r} is no regular expression: {error}") from None
    return text.RegexFullMatch(pattern)(x)


@onnx_op
def TfIdfVectorizer(
    x: Value,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: tuple[int, ...],
    ngram_indexes: tuple[int, ...],
    pool_int64s: tuple[int, ...] | None = None,
    pool_strings: tuple[str, ...] | None = None,
    weights: tuple[float, ...] | None = None,
) -> Value:
    if mode not in ("TF", "IDF", "TFIDF"):
        raise InvalidModel(f"mode {mode!r} is none of TF, IDF, TFIDF")
    ngrams = _ngrams(pool_int64s or pool_strings or (), ngram_counts)
    if len(ngrams) != len(ngram_indexes) or len(weights or ngrams) != len(ngrams):
        raise InvalidModel(f"{len(ngrams)} n-grams do not fit {len(ngram_indexes)} indexes")
    if min(ngram_indexes, default=0) < 0:
        raise InvalidModel(f"the index {min(ngram_indexes)} of an n-gram is negative")
    factors = (1.0,) * len(ngrams) if mode == "TF" or weights is None else weights
    lengths = (min_gram_length, max_gram_length)
    return text.CountNgrams(
        ngrams, ngram_indexes, factors, lengths, max_skip_count, once=mode == "IDF"
    )(x)


def _ngrams(pool: tuple[Any, ...], counts: tuple[int, ...]) -> tuple[tuple[Any, ...], ...]:
    """The pool cut into n-grams: counts[n - 1] is where those of length n begin."""
    ngrams = []
    for length, (begin, end) in enumerate(zip(counts, (*counts[1:], len(pool))), start=1):
        if not 0 <= begin <= end <= len(pool) or (end - begin) % length:
            raise InvalidModel(f"the n-grams of length {length} do not fill {begin} to {end}")
        ngrams += [tuple(pool[i : i + length]) for i in range(begin, end, length)]
    return tuple(ngrams)
