"""Where weights lie: in the model that was read, or in an engine file, and how they get there."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Protocol

import numpy as np

from whet.engine.checksum import checksum
from whet.engine.elements import byte_count, pack, unpack
from whet.engine.plain import Plain, a_list, a_number, a_text, entries, from_json, need, record
from whet.errors import Error, InvalidEngine, MissingWeights
from whet.ir.types import NUMPY_DTYPES, TensorType
from whet.progress import phase

CHUNK = 1 << 20  # bytes under one checksum
ALIGNMENT = 64
LARGEST_AXIS = 1 << 48


class Source(Protocol):
    """A tensor somewhere else, whose elements are read when asked for."""

    @property
    def type(self) -> TensorType: ...

    @property
    def read(self) -> Any: ...


class WeightStore(Protocol):
    """Arrays by name, which stay where they are until asked for, from whatever thread."""

    @property
    def types(self) -> Mapping[str, TensorType]:
        """What each weight is."""

    @property
    def missing(self) -> Collection[str]:
        """The weights that are not there yet."""

    def array(self, name: str) -> np.ndarray:
        """The read-only elements of a weight; raises InvalidEngine where they are damaged."""

    def release(self, name: str) -> None:
        """Gives the memory of a weight's pages back to the system, until it is asked for again."""


class ImportedWeights:
    """The weights of a model that has just been read."""

    missing: Collection[str] = ()

    def __init__(self, tensors: Mapping[str, Source]) -> None:
        self._tensors = tensors

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        return {name: tensor.type for name, tensor in self._tensors.items()}

    def array(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def release(self, name: str) -> None:
        """The model keeps what it keeps."""


@dataclass(frozen=True)
class Content:
    """The bytes of one or several equal weights: where they lie, and a checksum for each chunk."""

    start: int
    count: int
    checksums: tuple[int, ...]


class StoredWeights:
    """The weights of an engine: views of the file, checked when they are first used."""

    def __init__(self, data: np.ndarray, index: Plain, pages: mmap.mmap | None = None, at: int = 0):
        self._data = data
        self._pages, self._at = pages, at
        self._contents, self._where = _read_index(index, data.size)
        self._checked: set[int] = set()
        self.types: Mapping[str, TensorType] = {n: kind for n, (kind, _) in self._where.items()}

    @property
    def missing(self) -> tuple[str, ...]:
        """The weights that were left out of the engine."""
        return tuple(name for name, (_, place) in self._where.items() if place is None)

    def array(self, name: str) -> np.ndarray:
        kind, place = self._where[name]
        if place is None:
            raise MissingWeights(self.missing)
        content = self._contents[place]
        if place not in self._checked:
            for number in range(len(content.checksums)):
                self._check(content, number, name)
            self._checked.add(place)
        data = self._data[content.start : content.start + content.count]
        return _loaded(data, kind.dtype, kind.shape)  # type: ignore[arg-type]

    def release(self, name: str) -> None:
        _, place = self._where[name]
        if place is None or self._pages is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        content = self._contents[place]
        # Only whole pages: the ones at the ends are shared with other weights.
        start = -(-(self._at + content.start) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._at + content.start + content.count) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._pages.madvise(mmap.MADV_DONTNEED, start, end - start)

    def verify(self, threads: int = 2) -> None:
        """Checks all weights and the gaps between them; raises InvalidEngine at first damage."""
        names = {place: name for name, (_, place) in reversed(self._where.items())}
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda place: self.array(names[place]), range(len(self._contents))):
                pass
        end = 0
        for content in (*self._contents, Content(self._data.size, 0, ())):
            need(not self._data[end : content.start].any(), "the bytes between weights are not 0")
            end = content.start + content.count

    def _check(self, content: Content, number: int, name: str) -> None:
        start = content.start + number * CHUNK
        chunk = self._data[start : min(start + CHUNK, content.start + content.count)]
        if checksum(chunk) != content.checksums[number]:
            raise InvalidEngine(
                f"the weight {name!r} is damaged: bytes {self._at + start} to "
                f"{self._at + start + chunk.size} of the file do not have their checksum; "
                "build the engine again or fetch another copy"
            )


def write_weights(
    file: BinaryIO, store: WeightStore, names: Iterable[str], without: Collection[str] = ()
) -> Plain:
    """Appends weights to an aligned file, one at a time, equal ones once; returns their index."""
    base = file.tell()
    contents: list[Content] = []
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    rows: list[Plain] = []
    names = list(names)
    with phase("write weights", len(names)) as step:
        for name in names:
            kind = store.types[name]
            place = None
            if name not in without:
                data = _stored(_exactly(store.array(name), kind, name), kind.dtype)
                key = data.size, _checksums(data)
                place = known.get(key)
                if place is None or not _is_there(file, base + contents[place].start, data):
                    place = known[key] = len(contents)
                    contents.append(Content(_append(file, base, data), *key))
                store.release(name)
            rows.append([name, kind.dtype, list(kind.shape), place])
            step()
    return {
        "chunk": CHUNK,
        "contents": [[c.start, c.count, list(c.checksums)] for c in contents],
        "weights": rows,
    }


def _stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of an array; strings are a list in JSON."""
    if dtype != "string":
        return pack(array, dtype)
    texts = [x if isinstance(x, str) else str(x) for x in array.reshape(-1).tolist()]
    return np.frombuffer(json.dumps(texts, separators=(",", ":")).encode(), np.uint8)


def _loaded(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype != "string":
        return unpack(data, dtype, shape)
    texts = from_json(data.tobytes(), "a weight of strings")
    if type(texts) is not list or not all(type(x) is str for x in texts):
        raise InvalidEngine("a weight of strings holds something else")
    need(len(texts) == math.prod(shape), f"{len(texts)} strings are not {list(shape)}")
    array = np.array(texts, object).reshape(shape)
    array.setflags(write=False)
    return array


def _exactly(array: np.ndarray, kind: TensorType, name: str) -> np.ndarray:
    """The array, which must be what the weight's type says."""
    if array.dtype != kind.numpy or array.shape != kind.shape:
        raise Error(f"the weight {name!r} is {kind}, its array {array.dtype}{list(array.shape)}")
    return array


def _checksums(data: np.ndarray) -> tuple[int, ...]:
    return tuple(checksum(data[i : i + CHUNK]) for i in range(0, data.size, CHUNK))


def _append(file: BinaryIO, base: int, data: np.ndarray) -> int:
    """Writes the bytes at the file's end, aligned; returns where, from the section's start."""
    start = file.seek(0, 2)
    file.write(bytes(-start % ALIGNMENT))
    file.write(data.data)
    return start + -start % ALIGNMENT - base


def _is_there(file: BinaryIO, start: int, data: np.ndarray) -> bool:
    """Whether these very bytes already lie in the file: equal checksums alone prove nothing."""
    for i in range(0, data.size, CHUNK):
        file.seek(start + i)
        chunk = data[i : i + CHUNK]
        if file.read(chunk.size) != chunk.data:
            return False
    return True


def _read_index(
    index: Plain, room: int
) -> tuple[list[Content], dict[str, tuple[TensorType, int | None]]]:
    """Contents, and each weight's type and content; raises InvalidEngine for what cannot be."""
    chunk, contents, rows = record(index, "chunk", "contents", "weights")
    need(chunk == CHUNK, f"weights are checked in chunks of {CHUNK} bytes, not of {chunk}")
    made: list[Content] = []
    end = 0
    for entry in a_list(contents, "the contents"):
        start, count, checksums = entries(entry, 3, "a content")
        a_number(start, end, room, "where a weight starts")
        a_number(count, 0, room - start, "a weight's bytes")
        need(start % ALIGNMENT == 0, f"a weight starts at {start}, which is not aligned")
        sums = [a_number(c, 0, 2**32 - 1, "a checksum") for c in a_list(checksums, "checksums")]
        need(len(sums) == -(-count // CHUNK), f"{count} bytes have {len(sums)} checksums")
        made.append(Content(start, count, tuple(sums)))
        end = start + count
    where: dict[str, tuple[TensorType, int | None]] = {}
    for entry in a_list(rows, "the weights"):
        name, kind, place = _read_row(entry, made)
        need(name not in where, f"the weight {name!r} stands twice")
        where[name] = kind, place
    used = {place for _, place in where.values()} - {None}
    need(len(used) == len(made), "bytes that belong to no weight")
    return made, where


def _read_row(entry: Plain, contents: list[Content]) -> tuple[str, TensorType, int | None]:
    name, dtype, sizes, place = entries(entry, 4, "a weight")
    a_text(name, "a weight's name")
    need(
        type(dtype) is str and dtype in NUMPY_DTYPES,
        f"the weight {name!r} has no dtype",
    )
    shape = tuple(a_number(s, 0, LARGEST_AXIS, "a size") for s in a_list(sizes, "a shape"))
    need(len(shape) <= 64, f"the weight {name!r} has {len(shape)} axes")
    if place is not None:
        a_number(place, 0, len(contents) - 1, "the place of a weight's bytes")
        held = contents[place].count
        wanted = held if dtype == "string" else byte_count(dtype, shape)
        need(held == wanted, f"the weight {name!r} needs {wanted} bytes and has {held}")
    return name, TensorType(dtype, shape), place
