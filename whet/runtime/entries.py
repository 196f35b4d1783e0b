"""Entries of the kernel cache as bytes: one alone as a file, many together as a blob.

An entry is code under a key, with a line about what it was compiled for, and a checksum of all.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from whet.errors import CacheError

MAGIC = b"\x93whetk\x1a\x02"  # the last byte is the version of the layout
BLOB_MAGIC = b"\x93whetK\x1a\x01"

_HEAD = struct.Struct("<8sIIIQ")  # magic, checksum, bytes of the key, of the line, of the code
_BLOB = struct.Struct("<8sIQ")  # magic, number of entries, bytes of them all
HEAD_BYTES = _HEAD.size + 512
"""Enough of a file to read an entry's key and line."""


@dataclass(frozen=True)
class Entry:
    """Compiled code: its key, what it is for ("cpu GENERATOR ARCHITECTURE"), and the code."""

    key: str
    about: str
    code: bytes


def pack(entry: Entry) -> bytes:
    """An entry as the bytes of its file."""
    key, about = entry.key.encode(), entry.about.encode()
    check = _checksum(key, about, entry.code)
    head = _HEAD.pack(MAGIC, check, len(key), len(about), len(entry.code))
    return b"".join([head, key, about, entry.code])


def unpack(content: bytes | memoryview) -> Entry | None:
    """The entry that the bytes are, or None where they are not exactly a whole one."""
    length = _length(content)
    if length is None or length != len(content):
        return None
    _, check, key_bytes, about_bytes, _ = _HEAD.unpack_from(content)
    middle = _HEAD.size + key_bytes
    key, about, code = (
        bytes(content[_HEAD.size : middle]),
        bytes(content[middle : middle + about_bytes]),
        bytes(content[middle + about_bytes :]),
    )
    if _checksum(key, about, code) != check:
        return None
    return Entry(key.decode("ascii", "replace"), about.decode("utf-8", "replace"), code)


def about_of(head: bytes) -> str:
    """The line in the first HEAD_BYTES of an entry's file; empty where they are none."""
    if _length(head) is None:
        return ""
    _, _, key_bytes, about_bytes, _ = _HEAD.unpack_from(head)
    start = _HEAD.size + key_bytes
    return head[start : start + about_bytes].decode("utf-8", "replace")


def join(contents: Sequence[bytes]) -> bytes:
    """Packed entries as one blob."""
    return b"".join([_BLOB.pack(BLOB_MAGIC, len(contents), sum(map(len, contents))), *contents])


def split(blob: bytes | bytearray | memoryview) -> list[Entry]:
    """The entries of a blob; raises CacheError where a single byte of it is not as it was made."""
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise CacheError(f"an export of a kernel cache is bytes, not a {type(blob).__name__}")
    rest = memoryview(blob).cast("B")
    if len(rest) < _BLOB.size or rest[:8] != BLOB_MAGIC:
        raise CacheError("this is no export of a kernel cache; `whet cache export FILE` writes one")
    _, count, size = _BLOB.unpack_from(rest)
    rest = rest[_BLOB.size :]
    found: list[Entry] = []
    while rest and len(found) < count and len(rest) <= size:
        length = _length(rest)
        entry = None if length is None else unpack(rest[:length])
        if length is None or entry is None:
            break
        found.append(entry)
        rest = rest[length:]
    if rest or len(found) != count or sum(len(pack(entry)) for entry in found) != size:
        raise CacheError(
            f"the export of a kernel cache is damaged after {len(found)} of {count} entries; "
            "nothing of it is taken: export it again"
        )
    return found


def _length(content: bytes | memoryview) -> int | None:
    """How many bytes the entry takes that begins here, as its head has it."""
    if len(content) < _HEAD.size:
        return None
    magic, _, *lengths = _HEAD.unpack_from(content)
    return _HEAD.size + sum(lengths) if magic == MAGIC else None


def _checksum(key: bytes, about: bytes, code: bytes) -> int:
    lengths = struct.pack("<II", len(key), len(about))
    return zlib.crc32(code, zlib.crc32(about, zlib.crc32(key, zlib.crc32(lengths))))
