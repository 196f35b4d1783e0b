"""Likely sizes: what a schedule is chosen for where one kernel serves every size in a range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from whet.ir.sizes import Expr, Size, substitute

UNKNOWN = 16
"""The value of a size that nobody said anything about."""

_likely: ContextVar[Mapping[str, int] | None] = ContextVar("likely", default=None)


@contextmanager
def likely(sizes: Mapping[str, int]) -> Iterator[None]:
    """Within it, schedules are chosen for these values of named sizes."""
    token = _likely.set(sizes)
    try:
        yield
    finally:
        _likely.reset(token)


def likely_values() -> Mapping[str, int]:
    """The values that schedules are chosen for just now."""
    return _likely.get() or {}


def likely_value(size: Size) -> int:
    """A size's most likely value; the size itself where it is known."""
    if not isinstance(size, Expr):
        return size
    values = likely_values()
    found = substitute(size, {s.name: values.get(s.name, UNKNOWN) for s in size.symbols})
    assert isinstance(found, int)
    return max(found, 1)
