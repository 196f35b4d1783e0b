"""Plain data (what JSON holds) that may be anything: each access says what must stand there."""

from __future__ import annotations

import json
from typing import Any

from whet.errors import InvalidEngine

Plain = Any  # None, bool, int, float, str, and lists and string-keyed dicts of them

LARGEST = 2**64  # the largest number that may stand anywhere


def need(condition: bool, what: str) -> None:
    """Raises InvalidEngine unless the condition holds."""
    if not condition:
        raise InvalidEngine(what)


def record(plain: Plain, *keys: str) -> list[Any]:
    """The entries of an object that must have exactly these keys."""
    if not isinstance(plain, dict) or set(plain) != set(keys):
        raise InvalidEngine(f"a record of {', '.join(keys)} is needed, got {short(plain)}")
    return [plain[key] for key in keys]


def a_list(plain: Plain, what: str) -> list[Any]:
    if type(plain) is not list:
        raise InvalidEngine(f"{what} must be a list, got {short(plain)}")
    return plain


def entries(plain: Plain, count: int, what: str) -> list[Any]:
    """The entries of a list that must have exactly so many."""
    if type(plain) is not list or len(plain) != count:
        raise InvalidEngine(f"{what} is a list of {count}, got {short(plain)}")
    return plain


def a_text(plain: Plain, what: str) -> str:
    if type(plain) is not str:
        raise InvalidEngine(f"{what} must be text, got {short(plain)}")
    return plain


def an_index(plain: Plain, count: int, what: str) -> int:
    """A number of something that exists: 0 to count - 1."""
    if type(plain) is not int or not 0 <= plain < count:
        raise InvalidEngine(f"{what} {short(plain)} does not exist, there are {count}")
    return plain


def a_number(plain: Plain, low: int, high: int, what: str) -> int:
    if type(plain) is not int or not low <= plain <= high:
        raise InvalidEngine(f"{what} must be an integer from {low} to {high}, got {short(plain)}")
    return plain


def short(plain: Plain) -> str:
    text = repr(plain)
    return text if len(text) <= 80 else f"{text[:77]}..."


def to_json(plain: Plain, sort: bool = True) -> bytes:
    """Compact and always the same, unless the order of what has names matters; text is ASCII."""
    return json.dumps(plain, separators=(",", ":"), sort_keys=sort, allow_nan=False).encode()


def from_json(data: bytes, what: str) -> Plain:
    """The plain data of a section; raises InvalidEngine where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidEngine(f"{what} is not readable: {error}") from None
