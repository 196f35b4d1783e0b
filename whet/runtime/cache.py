"""The kernel cache: compiled code on disk, one file for each entry, shared by processes and models.

An entry is the bytes under a key, with a checksum and the key itself before them. It gets its name
once it is whole, so that a reader sees all of it or nothing, and the last of several writers wins.
Cached code is run: a folder that is open to others is not used. Nothing here needs a lock: what
threads or processes disturb for each other is only the estimate of when to look for old entries.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from whet.engine.atomic import atomic_write
from whet.knobs import knobs, user_cache_folder

MAGIC = b"\x93whetk\x1a\x01"  # the last byte is the version of the entries' layout
SUFFIX = ".bin"
DAY = 24 * 3600

PUTS_PER_LOOK = 64

_HEAD = struct.Struct("<8sIIQ")  # magic, checksum, bytes of the key, bytes of the data
_KEY = re.compile(r"[0-9a-z][0-9a-z._-]{0,127}")

logger = logging.getLogger("whet.cache")


def cache_key(text: str | bytes, architecture: str, generator: int | str) -> str:
    """The key of a kernel's code: what was compiled, for what, by which version of our generator.

    The version of the compiler is not in it: a warm cache also serves where none is installed.
    """
    digest = blake2b(digest_size=20)
    for part in (text, architecture, str(generator)):
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<Q", len(data)) + data)
    return digest.hexdigest()


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds; `problem` says why it is not used, where it is not."""

    folder: Path | None
    entries: int
    bytes: int
    limit: int
    problem: str | None


@dataclass(frozen=True)
class Entry:
    """One compiled kernel: its key, its file's bytes, and when it was last used, to a day."""

    key: str
    bytes: int
    used: float


class Cache:
    """Compiled kernels in a folder of the user's own, for any number of threads and processes.

    A cache never fails a run: where the folder cannot be used, `get` finds nothing and `put` keeps
    nothing, and the log says why, once.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, limit: int | None = None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser().absolute()
        self.limit = knobs.cache_size if limit is None else limit
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
        data = _unpack(content, key)
        if data is None:
            self._say(f"{path} is damaged; the kernel is compiled anew")
        elif time.time() - status.st_mtime > DAY:
            # A file's time is that of its last use, to a day: the oldest goes first.
            with suppress(OSError):
                os.utime(path)
        return data

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Keeps the bytes under a key in place of what is there; the oldest entries make room."""
        folder = self._opened()
        content = _pack(key, bytes(data))
        if folder is None or len(content) > self.limit:
            return
        try:
            with atomic_write(folder / _file_name(key), sync=False, mode=0o600) as file:
                file.write(content)
        except OSError as error:
            self._is_ready = False  # perhaps the folder is gone, and can be made again
            self._say("kernels are not kept for the next start", str(error))
            return
        self._make_room(len(content), key)

    def clear(self) -> int:
        """Removes every entry and what killed processes left; returns how many bytes that frees."""
        self._bytes = 0
        return sum(_remove(path, status) for path, status in self._files())

    def info(self) -> CacheInfo:
        """The folder and what lies in it."""
        sizes = [status.st_size for path, status in self._files() if path.suffix == SUFFIX]
        return CacheInfo(self.folder, len(sizes), sum(sizes), self.limit, self.problem)

    def entries(self) -> list[Entry]:
        """What lies in the folder, the entry used last first."""
        found = [
            Entry(path.stem, status.st_size, status.st_mtime)
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

    def _make_room(self, added: int, key: str) -> None:
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
            if is_stale or (is_old and path.name != _file_name(key)):
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
        raise ValueError(f"{key!r} is no key of a cache: use cache_key()")
    return key + SUFFIX


def _remove(path: Path, status: os.stat_result) -> int:
    """Removes a file that another process may have removed; returns its size."""
    with suppress(OSError):
        path.unlink()
    return status.st_size


def _pack(key: str, data: bytes) -> bytes:
    name = key.encode()
    check = zlib.crc32(data, zlib.crc32(name))
    return b"".join([_HEAD.pack(MAGIC, check, len(name), len(data)), name, data])


def _unpack(content: bytes, key: str) -> bytes | None:
    """The data of an entry, or None where it is not the whole entry for this key."""
    name = key.encode()
    start = _HEAD.size + len(name)
    if len(content) < start:
        return None
    magic, check, name_length, length = _HEAD.unpack_from(content)
    if (magic, name_length, length) != (MAGIC, len(name), len(content) - start):
        return None
    if content[_HEAD.size : start] != name:
        return None
    data = content[start:]
    return data if zlib.crc32(data, zlib.crc32(name)) == check else None
