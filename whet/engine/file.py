"""The engine file: a header, a table of sections, the graph, and weights that are mapped, not read.

    0     64  header: magic, format version, flags, size of the file, bytes of weights,
              architectures of the kernels, number of sections, checksum of their table, checksum
    64    32  for each section: name, offset, length, checksum
    …         the sections, each at a multiple of 64, with zeros between them

All numbers are little-endian. The magic, the format version and the header's checksum stay where
they are in every later version. Nothing in a file is run, and every count is checked before it is
used; kernels, which are machine code, are handed out only to who says `allow_code=True`.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from whet.engine.atomic import atomic_write
from whet.engine.checksum import checksum
from whet.engine.decode import decode
from whet.engine.encode import encode
from whet.engine.header import (
    HEADER_BYTES,
    KERNELS,
    MAGIC,
    REFITTABLE,
    STRIPPED,
    VERSION,
    Header,
    architecture_bits,
    read_header,
)
from whet.engine.plain import (
    Plain,
    a_list,
    a_number,
    a_text,
    entries,
    from_json,
    need,
    to_json,
)
from whet.engine.weights import ALIGNMENT, StoredWeights, WeightStore, write_weights
from whet.errors import InvalidEngine, WriteError
from whet.ir.graph import Graph, Weight
from whet.ir.types import TensorType

if TYPE_CHECKING:
    from whet.frontends.onnx.model import Model

_SECTION = struct.Struct("<8sQQII")
_MOST_SECTIONS = 64
_SECTIONS = {"meta", "graph", "consts", "weights", "index"}
_OPTIONAL = {"kernels", "model"}
MOST_MODEL = 1 << 28
"""Bytes of a model's records as JSON: what is compressed may claim to be anything."""
_CHECKED_IN_CHUNKS = 1  # a section's flag: its index holds the checksums


def write_engine(
    target: str | os.PathLike[str] | BinaryIO,
    graph: Graph,
    weights: WeightStore,
    *,
    metadata: Mapping[str, Any] | None = None,
    kernels: Mapping[str, bytes] | None = None,
    architectures: Collection[str] = (),
    refittable: bool = True,
    without: Collection[str] = (),
    model: Model | None = None,
    more: Collection[str] = (),
) -> None:
    """Writes an engine with the weights that the graph reads, but for those in `without`.

    `metadata` is whatever JSON holds (profiles, options); `kernels` are machine code for the
    `architectures`, by name; `model` are the records that the graph was made of, its tensors under
    their names among the weights, of which `more` are kept besides those of the graph. A path is
    replaced when all is written, and untouched otherwise; raises WriteError where it cannot be. The
    same arguments give the same bytes.
    """
    plain, constants = encode(graph)
    sections = {"meta": to_json(dict(metadata or {})), "graph": to_json(plain), "consts": constants}
    if kernels:
        sections["kernels"] = _pack_kernels(kernels)
    if model is not None:
        sections["model"] = _packed(model)
    bits = architecture_bits(architectures)
    with _opened(target) as file:
        writer = _Writer(file, len(sections) + 2)
        for name, data in sections.items():
            writer.section(name, data)
        index = writer.weights(weights, list(dict.fromkeys((*weight_names(graph), *more))), without)
        stripped = any(row[3] is None for row in index["weights"])
        flags = (KERNELS if kernels else 0) | (STRIPPED if stripped else 0)
        flags |= REFITTABLE if refittable else 0
        writer.head(flags, sum(content[1] for content in index["contents"]), bits)


def _opened(target: str | os.PathLike[str] | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(target, str | os.PathLike):
        return atomic_write(target)
    if not hasattr(target, "write"):
        raise WriteError(
            f"an engine is written to a path or a file, not to a {type(target).__name__}"
        )
    return nullcontext(target)


def weight_names(graph: Graph) -> list[str]:
    """The weights that a graph and its inner graphs read, in the order of their first use."""
    names: dict[str, None] = {}
    for value in graph.values:
        if isinstance(value.op, Weight):
            names[value.op.name] = None
        for inner in value.op.graphs:
            names.update(dict.fromkeys(weight_names(inner)))
    names.update(dict.fromkeys(sorted(late_tensors(graph))))
    return list(names)


def late_tensors(graph: Graph) -> dict[str, TensorType]:
    """The weights that a graph's late region reads, with their types."""
    late: Any = graph.late
    return {} if late is None else {name: tensor.type for name, tensor in late.tensors.items()}


class _Writer:
    """A file under way: sections one after the other, the table and the header last."""

    def __init__(self, file: BinaryIO, section_count: int) -> None:
        self.file = file
        self.table: list[tuple[str, int, int, int, int]] = []
        file.write(bytes(HEADER_BYTES + _SECTION.size * section_count))

    def align(self) -> int:
        """Goes on to the next multiple of 64, and says where that is."""
        end = self.file.seek(0, 2)
        self.file.write(bytes(-end % ALIGNMENT))
        return self.file.tell()

    def section(self, name: str, data: bytes) -> None:
        self.table.append((name, self.align(), len(data), checksum(data), 0))
        self.file.write(data)

    def weights(self, store: WeightStore, names: list[str], without: Collection[str]) -> Plain:
        """Writes the weights and their index, and returns the index."""
        start = self.align()
        index = write_weights(self.file, store, names, without)
        end = self.file.seek(0, 2)
        self.table.append(("weights", start, end - start, 0, _CHECKED_IN_CHUNKS))
        self.section("index", to_json(index))
        return index

    def head(self, flags: int, weight_bytes: int, architectures: int) -> None:
        size = self.align()
        table = b"".join(_SECTION.pack(name.encode(), *rest) for name, *rest in self.table)
        header = Header(
            VERSION, flags, size, weight_bytes, architectures, len(self.table), checksum(table)
        )
        self.file.seek(0)
        self.file.write(header.pack() + table)
        self.file.seek(0, 2)


def _pack_kernels(kernels: Mapping[str, bytes]) -> bytes:
    index = to_json([[name, len(kernels[name])] for name in sorted(kernels)])
    return struct.pack("<Q", len(index)) + index + b"".join(kernels[n] for n in sorted(kernels))


def _unpack_kernels(data: bytes) -> dict[str, bytes]:
    need(len(data) >= 8, "the kernels have no index")
    (length,) = struct.unpack("<Q", data[:8])
    need(length <= len(data) - 8, "the index of the kernels is longer than they are")
    place = 8 + length
    kernels = {}
    for entry in a_list(from_json(data[8:place], "the index of the kernels"), "an index"):
        name, count = entries(entry, 2, "a kernel")
        a_number(count, 0, len(data) - place, "a kernel's bytes")
        kernels[a_text(name, "a kernel's name")] = data[place : place + count]
        place += count
    need(place == len(data), "bytes that belong to no kernel")
    return kernels


def _packed(model: Model) -> bytes:
    from whet.frontends.onnx.plain import model_to_plain

    return zlib.compress(to_json(model_to_plain(model), sort=False))


def _unpacked(data: np.ndarray) -> bytes:
    """What was compressed; raises InvalidEngine for anything else, and where it is too much."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data.tobytes(), MOST_MODEL)
    except zlib.error as error:
        raise InvalidEngine(f"its section 'model' is damaged: {error}") from None
    need(unpacker.eof and not unpacker.unused_data, "its section 'model' is no whole one")
    return found


UPGRADES: Mapping[int, Callable[[str, Plain], Plain]] = {1: lambda section, plain: plain}
"""For each earlier format version, what turns a section's plain data into that of the next one."""


def upgrade(section: str, plain: Plain, version: int) -> Plain:
    """The plain data of a section as the newest format version has it."""
    for earlier in range(version, VERSION):
        plain = UPGRADES[earlier](section, plain)
    return plain


class EngineFile:
    """An engine opened for reading: its tables checked, its weights still in the file."""

    def __init__(self, data: memoryview | mmap.mmap, where: str, allow_code: bool = False) -> None:
        self.where = where
        self.allow_code = allow_code
        self._pages = data if isinstance(data, mmap.mmap) else None
        self._data = np.frombuffer(data, np.uint8)
        with self._naming():
            self.header = read_header(self._data[:HEADER_BYTES].tobytes())
            self._sections = self._read_table()
            self.metadata: Mapping[str, Any] = self._plain("meta")
            need(isinstance(self.metadata, dict), "its metadata is no record")
            self.weights = self._read_weights()

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | bytes | bytearray | memoryview,
        allow_code: bool = False,
    ) -> EngineFile:
        """Opens a file (mapped: do not write to it while it is in use, replace it) or its bytes.

        Raises InvalidEngine with what is wrong. The graph and the weights are checked when used, or
        by `verify`.
        """
        if isinstance(source, bytes | bytearray | memoryview):
            return cls(memoryview(source).cast("B"), "the given engine", allow_code)
        if not isinstance(source, str | os.PathLike):
            kind = type(source).__name__
            raise InvalidEngine(f"an engine is given as a path or its bytes, not as a {kind}")
        where = repr(os.fspath(source))
        try:
            with open(source, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise InvalidEngine(f"{where} is no whet engine, nor a file")
                if status.st_size < HEADER_BYTES:
                    raise InvalidEngine(
                        f"{where} is no whet engine, or only a part of one: it has "
                        f"{status.st_size} bytes, less than the {HEADER_BYTES} of a header"
                    )
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            if isinstance(error, InvalidEngine):
                raise
            raise InvalidEngine(f"{where} cannot be read: {error}") from None
        return cls(pages, where, allow_code)

    @cached_property
    def graph(self) -> Graph:
        """The graph; every operator is checked and every type inferred anew."""
        with self._naming():
            constants = self._section("consts").data
            graph = decode(self._plain("graph"), constants, self.weights.array)
            self._check_weights(graph)
            return graph

    @cached_property
    def kernels(self) -> Mapping[str, bytes]:
        """The prebuilt kernels by name: none unless they may be used."""
        if not self.allow_code or "kernels" not in self._sections:
            return {}
        with self._naming():
            return _unpack_kernels(self._section("kernels").tobytes())

    @property
    def has_model(self) -> bool:
        """Whether it keeps the records that the graph was made of."""
        return "model" in self._sections

    @cached_property
    def model(self) -> Model | None:
        """These records, whose tensors are read from the weights; None where they were not kept."""
        if not self.has_model:
            return None
        # What reads models takes long to load, and only who debugs or refits needs it.
        from whet.frontends.onnx.plain import model_from_plain

        with self._naming():
            plain = from_json(_unpacked(self._section("model")), "its section 'model'")
            plain = upgrade("model", plain, self.header.version)
            return model_from_plain(plain, self.weights.array)

    def verify(self) -> None:
        """Checks everything, down to the last byte of the weights; raises InvalidEngine."""
        _ = self.graph, self.model
        with self._naming():
            if "kernels" in self._sections:
                _unpack_kernels(self._section("kernels").tobytes())
            self.weights.verify()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except InvalidEngine as error:
            raise InvalidEngine(f"{self.where} cannot be loaded: {error}") from None

    def _read_table(self) -> dict[str, tuple[int, int, int]]:
        """Offset, length and checksum of each section; none leaves the file or overlaps another."""
        header, size = self.header, self._data.size
        if header.file_bytes != size:
            change = "cut short" if size < header.file_bytes else "longer than it was"
            raise InvalidEngine(
                f"it is {change}: {size} bytes of {header.file_bytes}; fetch another copy"
            )
        need(header.section_count <= _MOST_SECTIONS, f"it claims {header.section_count} sections")
        end = HEADER_BYTES + _SECTION.size * header.section_count
        need(end <= size, "its table of sections is cut short")
        table = self._data[HEADER_BYTES:end].tobytes()
        need(checksum(table) == header.table_checksum, "its table of sections is damaged")
        sections: dict[str, tuple[int, int, int]] = {}
        for raw, start, length, check, flags in _SECTION.iter_unpack(table):
            name = raw.rstrip(b"\0").decode("ascii", "replace")
            need(name not in sections, f"it has two sections {name!r}")
            need(start % ALIGNMENT == 0 and start >= end, f"section {name!r} overlaps another")
            need(length <= size - start, f"section {name!r} ends after the file does")
            need(flags == (_CHECKED_IN_CHUNKS if name == "weights" else 0), f"section {name!r}")
            need(not self._data[end:start].any(), f"the bytes before section {name!r} are not 0")
            sections[name] = start, length, check
            end = start + length
        need(not self._data[end:].any(), "the bytes after the last section are not 0")
        need(size - end < ALIGNMENT, "it has bytes that belong to no section")
        missing, unknown = sorted(_SECTIONS - set(sections)), set(sections) - _SECTIONS - _OPTIONAL
        need(not missing, f"it has no section {', '.join(missing)}")
        need(not unknown, f"it has sections that this version does not know: {sorted(unknown)}")
        return sections

    def _section(self, name: str) -> np.ndarray:
        """The bytes of a section that has one checksum."""
        start, length, check = self._sections[name]
        data = self._data[start : start + length]
        need(checksum(data) == check, f"its section {name!r} is damaged; fetch another copy")
        return data

    def _plain(self, name: str) -> Plain:
        plain = from_json(self._section(name).tobytes(), f"its section {name!r}")
        return upgrade(name, plain, self.header.version)

    def _read_weights(self) -> StoredWeights:
        index = self._plain("index")
        start, length, _ = self._sections["weights"]
        return StoredWeights(self._data[start : start + length], index, self._pages, start)

    def _check_weights(self, graph: Graph) -> None:
        """What the graph says of a weight must be what is stored."""
        wanted = late_tensors(graph)
        for value in graph.values:
            if isinstance(value.op, Weight):
                wanted[value.op.name] = value.op.type
            for inner in value.op.graphs:
                self._check_weights(inner)
        for name, kind in wanted.items():
            stored = self.weights.types.get(name)
            need(stored is not None, f"its graph reads a weight {name!r} that it does not have")
            need(stored == kind, f"the weight {name!r} is {stored}, not {kind}")


def is_engine(source: Any) -> bool:
    """Whether a file or bytes begin as an engine does."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source[: len(MAGIC)]) == MAGIC
    # What is no regular file could not be read a second time.
    if not isinstance(source, str | os.PathLike) or not os.path.isfile(source):
        return False
    with suppress(OSError), open(source, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
    return False


def engine_bytes(graph: Graph, weights: WeightStore, **options: Any) -> bytes:
    """What `write_engine` would write."""
    file = io.BytesIO()
    write_engine(file, graph, weights, **options)
    return file.getvalue()
