"""The kernel cache: compiled code on disk, plans that run it and what was measured of it, one file
for each, shared by processes and models.

An entry (`entries.py` has the layout) gets its name once it is whole, so that a reader sees all of
it or nothing, and the last of several writers wins. Cached code is run: a folder that is open to
others is not used. Nothing here needs a lock: what threads or processes disturb for each other is
only the estimate of when to look for old entries.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from whet.engine.atomic import atomic_write
from whet.errors import CacheError, InvalidSetting, WriteError
from whet.knobs import knobs, user_cache_folder
from whet.runtime import entries
from whet.runtime.entries import Entry
from whet.runtime.fit import misfit

SUFFIX = ".bin"
DAY = 24 * 3600

PUTS_PER_LOOK = 64

_KEY = re.compile(r"[0-9a-z][0-9a-z._-]{0,127}")

logger = logging.getLogger("whet.cache")


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds; `problem` says why it is not used, where it is not."""

    folder: Path | None
    entries: int
    bytes: int
    limit: int
    problem: str | None


@dataclass(frozen=True)
class Kept:
    """One entry: its key, its file's bytes, when it was last used, to a day, and what it
    is for: the target, the generator's version, the architecture."""

    key: str
    bytes: int
    used: float
    about: str


@dataclass(frozen=True)
class ImportedEntries:
    """What became of an import: how many entries are here now, and how many are not, by reason."""

    kept: int
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        return f"{self.kept} entries imported" + (f"; skipped: {reasons}" if reasons else "")


_held: ContextVar[dict[tuple[Cache, str], tuple[bytes, str]] | None] = ContextVar(
    "whet held", default=None
)
"""What this thread's work has put into caches, and may still take back."""


@contextmanager
def kept_in_the_end() -> Iterator[None]:
    """Within it, what this thread puts into caches is only kept once all has gone well: work that
    is cancelled leaves nothing behind."""
    held: dict[tuple[Cache, str], tuple[bytes, str]] = {}
    token = _held.set(held)
    try:
        yield
    finally:
        _held.reset(token)
    for (cache, key), entry in held.items():
        cache.put(key, *entry)


class Cache:
    """Compiled kernels and their plans in a folder of the user's own, for any number of threads and
    processes.

    A cache never fails a run: where the folder cannot be used, `get` finds nothing and `put` keeps
    nothing, and the log says why, once.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, limit: int | None = None) -> None:
        if folder is not None and not (isinstance(folder, str | os.PathLike) and str(folder)):
            raise InvalidSetting(f"a cache is kept in a folder, which {folder!r} does not name")
        self.folder = None if folder is None else Path(folder).expanduser().absolute()
        self.limit = knobs.cache_size if limit is None else limit
        if not isinstance(self.limit, int) or self.limit < 0:
            raise InvalidSetting(f"limit={limit!r}; a number of bytes from 0 on is needed")
        self.problem: str | None = None
        """Why the cache is not used; None where it is, or has not been asked for anything yet."""
        self._is_ready = False
        self._said: set[str] = set()
        self._bytes = 0  # as far as this process knows: others add theirs
        self._puts = 0

    @classmethod
    def default(cls) -> Cache:
        """The user's cache: in WHET_CACHE_DIR, or the platform's place for caches."""
        return cls(knobs.cache_dir or user_cache_folder())

    def get(self, key: str) -> bytes | None:
        """The bytes under a key, or None where there are none that can be trusted."""
        held = _held.get()
        if held is not None and (self, key) in held:
            return held[self, key][0]
        folder = self._opened()
        if folder is None:
            return None
        path = folder / _file_name(key)
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                content = file.read(status.st_size)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say(f"{path}: {error.strerror}; the kernel is compiled instead")
            return None
        entry = entries.unpack(content)
        if entry is None or entry.key != key:
            self._say(f"{path} is damaged; the kernel is compiled anew")
            return None
        if time.time() - status.st_mtime > DAY:
            # A file's time is that of its last use, to a day: the oldest goes first.
            with suppress(OSError):
                os.utime(path)
        return entry.code

    def put(self, key: str, data: bytes | bytearray | memoryview, about: str = "") -> None:
        """Keeps the bytes under a key in place of what is there; the oldest entries make room.

        `about` says what the code is for: "cpu GENERATOR ARCHITECTURE".
        """
        held = _held.get()
        if held is not None:
            held[self, key] = bytes(data), about
            return
        folder = self._opened()
        name, content = _file_name(key), entries.pack(Entry(key, about, bytes(data)))
        if folder is None or len(content) > self.limit:
            return
        try:
            self._write(folder / name, content)
        except WriteError as error:
            self._is_ready = False  # perhaps the folder is gone, and can be made again
            self._say("kernels are not kept for the next start", str(error))

    def export(self) -> bytes:
        """All whole entries as one blob, for `import_` on another machine or in another folder."""
        contents = []
        for path, _ in sorted(self._files()):
            with suppress(OSError):
                content = path.read_bytes()
                entry = entries.unpack(content)
                if entry is not None and path.name == entry.key + SUFFIX:
                    contents.append(content)
        return entries.join(contents)

    def import_(
        self, blob: bytes | bytearray | memoryview, *, trusted: bool = False
    ) -> ImportedEntries:
        """Adds the entries of an export to those that are here.

        What this machine cannot use is skipped, and said; its kernels are compiled when they are
        needed. Cached kernels are code that is run: only `trusted=True` says that the blob comes
        from where code may come from. Raises CacheError without it, for a damaged blob and for a
        folder that cannot be used, and WriteError where the disk is full.
        """
        if trusted is not True:
            raise CacheError(
                "cached kernels are code that is run: import only what you exported yourself or "
                "trust, with trusted=True"
            )
        folder = self._opened()
        if folder is None:
            raise CacheError(f"nothing can be imported: {self.problem}")
        kept, skipped = 0, Counter[str]()
        found = entries.split(blob)
        if bad := [entry.key for entry in found if not _KEY.fullmatch(entry.key)]:
            raise CacheError(f"{bad[0]!r} is no key of a cache: this export was not made by whet")
        for entry in found:
            content = entries.pack(entry)
            reason = misfit(entry.about)
            if len(content) > self.limit:
                reason = f"larger than the cache's limit of {self.limit} bytes"
            if reason is not None:
                skipped[reason] += 1
                continue
            if self.get(entry.key) is None:
                self._write(folder / _file_name(entry.key), content)
            kept += 1
        result = ImportedEntries(kept, skipped)
        logger.log(logging.WARNING if skipped else logging.INFO, "%s", result)
        return result

    def clear(self) -> int:
        """Removes every entry and what killed processes left; returns how many bytes that frees."""
        self._bytes = 0
        return sum(_remove(path, status) for path, status in self._files())

    def info(self) -> CacheInfo:
        """The folder and what lies in it."""
        sizes = [status.st_size for path, status in self._files() if path.suffix == SUFFIX]
        return CacheInfo(self.folder, len(sizes), sum(sizes), self.limit, self.problem)

    def entries(self) -> list[Kept]:
        """What lies in the folder, the entry used last first."""
        found = [
            Kept(path.stem, status.st_size, status.st_mtime, _about(path))
            for path, status in self._files()
            if path.suffix == SUFFIX
        ]
        return sorted(found, key=lambda entry: -entry.used)

    def _opened(self) -> Path | None:
        """The folder, made where it is missing; None where it must not or cannot be used."""
        if self._is_ready:
            return self.folder
        self.problem = _problem(self.folder)
        self._is_ready = self.problem is None
        if self.problem is not None:
            self._say("the kernel cache is not used", self.problem)
            return None
        return self.folder

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Entries and temporary files with their status."""
        folder = self._opened()
        if folder is None:
            return
        with suppress(OSError), os.scandir(folder) as listing:
            for item in listing:
                with suppress(OSError):
                    if item.name.endswith((SUFFIX, ".tmp")) and item.is_file(follow_symlinks=False):
                        yield Path(item.path), item.stat(follow_symlinks=False)

    def _write(self, path: Path, content: bytes) -> None:
        """A file of the cache, whole or not at all; raises WriteError."""
        with atomic_write(path, sync=False, mode=0o600) as file:
            file.write(content)
        self._make_room(len(content), path.name)

    def _make_room(self, added: int, name: str) -> None:
        """Removes the entries used longest ago until nine tenths of the limit are left."""
        self._bytes += added
        self._puts += 1
        # Now and then the folder is looked at: other processes fill it too.
        if self._bytes <= self.limit and self._puts % PUTS_PER_LOOK != 1:
            return
        files = sorted(self._files(), key=lambda item: item[1].st_mtime)
        self._bytes = sum(status.st_size for _, status in files)
        is_full = self._bytes > self.limit
        for path, status in files:
            is_stale = path.suffix == ".tmp" and time.time() - status.st_mtime > DAY
            is_old = is_full and self._bytes > 0.9 * self.limit and path.suffix == SUFFIX
            if is_stale or (is_old and path.name != name):
                self._bytes -= _remove(path, status)

    def _say(self, what: str, why: str = "") -> None:
        """Logs a warning the first time."""
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s%s", what, f": {why}" if why else "")


def _problem(folder: Path | None) -> str | None:
    """Why a folder cannot be the cache, if it cannot; makes it where it is missing."""
    if folder is None:
        return "there is no home folder; set WHET_CACHE_DIR"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.stat()
    except OSError as error:
        return f"{folder} cannot be made: {error.strerror}; set WHET_CACHE_DIR to another folder"
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is no folder; set WHET_CACHE_DIR to another one"
    if os.name == "nt":
        return None  # the user's own folders are closed to others by their access lists
    if status.st_uid != os.getuid():
        return f"{folder} belongs to another user, and cached kernels are code that is run"
    if status.st_mode & 0o077:
        return f"{folder} is open to others, and cached kernels are code that is run: chmod 700 it"
    return None


def _file_name(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of a cache")
    return key + SUFFIX


def _remove(path: Path, status: os.stat_result) -> int:
    """Removes a file that another process may have removed; returns its size."""
    with suppress(OSError):
        path.unlink()
    return status.st_size


def _about(path: Path) -> str:
    """What an entry's file says that it is for."""
    try:
        with open(path, "rb", buffering=0) as file:
            return entries.about_of(file.read(entries.HEAD_BYTES))
    except OSError:
        return ""
