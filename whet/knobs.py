"""Every environment variable that whet reads: typed, read when asked, and overridable in a `with`.

from whet.knobs import knobs
knobs.cache_size                              # from WHET_CACHE_SIZE, or the default
with knobs.override(cache_size=2**20): ...    # for the whole process, until the block ends
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from whet.errors import InvalidSetting

T = TypeVar("T")


def user_cache_folder() -> Path | None:
    """The platform's place for our caches; None where there is no home folder."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base, "whet", "cache") if base else None
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "whet"
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else home / ".cache") / "whet"


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def a_flag(text: str) -> bool:
    """1, true, yes, on, or their opposites."""
    word = text.lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("one of 0 and 1 is needed")


def a_size(text: str) -> int:
    """A number of bytes, perhaps with a unit: 500M, 2 GB, 1.5GiB; a K is 1,024."""
    word = text.upper().removesuffix("IB").removesuffix("B").strip()
    unit = word[-1:] if word[-1:] in _UNITS else ""
    try:
        size = int(float(word.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise ValueError("a number of bytes such as 500M or 2G is needed")
    return size


def a_count(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a number from 1 on is needed")
    return int(text)


def a_time(text: str) -> float:
    """A number of seconds."""
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError("a number of seconds is needed")
    return seconds


class Knob(Generic[T]):
    """One environment variable: its name is WHET_ and the attribute's."""

    def __init__(self, default: T, parse: Callable[[str], T], about: str) -> None:
        self.default, self.parse, self.about = default, parse, about

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.variable = name, f"WHET_{name.upper()}"

    @overload
    def __get__(self, knobs: None, owner: type) -> Knob[T]: ...
    @overload
    def __get__(self, knobs: Knobs, owner: type) -> T: ...
    def __get__(self, knobs: Knobs | None, owner: type) -> Knob[T] | T:
        if knobs is None:
            return self
        if self.name in knobs.overrides:
            return knobs.overrides[self.name]
        text = os.environ.get(self.variable)
        if not text:  # an empty variable is none, as for most programs
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise InvalidSetting(f"{self.variable}={text!r}: {error}") from None

    def __set__(self, knobs: Knobs, value: T) -> None:
        raise AttributeError(f"use `with knobs.override({self.name}=...)` to set it for a while")


class Knobs:
    """The settings that have no argument, and the defaults of some that have."""

    cache_dir = Knob[Path | None](None, Path, "folder of the kernel cache")
    cache_size = Knob(2 * 2**30, a_size, "how large it may get")
    threads = Knob[int | None](None, a_count, "how many threads a session uses")
    tune = Knob(7.0, a_time, "seconds of compiling in which a GPU measures other kernels as well")
    compile_workers = Knob[int | None](None, a_count, "how many processes compile for a GPU")
    dump = Knob[Path | None](None, Path, "folder for every stage of every kernel")
    debug = Knob(False, a_flag, "the command line shows where errors come from")
    check = Knob(False, a_flag, "check the graph after each pass")
    one_by_one = Knob(False, a_flag, "a GPU waits for each kernel, so that one that fails is named")

    def __init__(self) -> None:
        self.overrides: dict[str, Any] = {}

    @contextmanager
    def override(self, **values: Any) -> Iterator[None]:
        """Within it, the given knobs have these values, whatever the environment says."""
        unknown = set(values) - {k for k, v in vars(Knobs).items() if isinstance(v, Knob)}
        if unknown:
            raise AttributeError(f"there is no knob {', '.join(sorted(unknown))}")
        before = self.overrides
        self.overrides = {**before, **values}
        try:
            yield
        finally:
            self.overrides = before


knobs = Knobs()
