"""Whether an engine can be used here, and why not: from its first 64 bytes, or from all of it."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from whet.engine.file import EngineFile
from whet.engine.header import HEADER_BYTES, STRIPPED, Header, level, read_header
from whet.errors import InvalidEngine

Kind = Literal["damage", "version", "architecture", "memory", "weights"]


@dataclass(frozen=True)
class Finding:
    """One thing about an engine that its user should know."""

    kind: Kind
    reason: str
    is_fatal: bool


@dataclass(frozen=True)
class Validity:
    """What was found: `is_valid` engines load and run, `is_optimal` ones as fast as they can."""

    findings: tuple[Finding, ...] = ()

    @property
    def is_valid(self) -> bool:
        return not any(f.is_fatal for f in self.findings)

    @property
    def is_optimal(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        return "\n".join(f"{f.kind}: {f.reason}" for f in self.findings) or "valid"


def check_header(
    data: bytes, *, architecture: str | None = None, memory: int | None = None
) -> Validity:
    """What the first 64 bytes of an engine tell; the rest need not be there.

    `architecture` is the device's (`avx512+vnni`, `sm90`), `memory` the bytes that it has free.
    """
    try:
        header = read_header(data[:HEADER_BYTES])
    except InvalidEngine as error:
        kind: Kind = "version" if "format is version" in str(error) else "damage"
        return Validity((Finding(kind, str(error), True),))
    return Validity(tuple(_findings(header, architecture, memory)))


def check_file(
    source: str | os.PathLike[str] | bytes,
    *,
    architecture: str | None = None,
    memory: int | None = None,
) -> Validity:
    """What the whole engine tells, every byte of which is read; `whet check --file`.

    Raises OSError where the file cannot be opened.
    """
    if isinstance(source, bytes):
        data = source[:HEADER_BYTES]
    else:
        with open(source, "rb") as file:
            data = file.read(HEADER_BYTES)
    found = check_header(data, architecture=architecture, memory=memory)
    if any(f.kind in ("damage", "version") for f in found.findings):
        return found
    try:
        engine = EngineFile.open(source)
        engine.verify()
    except InvalidEngine as error:
        return Validity((*found.findings, Finding("damage", str(error), True)))
    built = architectures_of(engine)
    # Files of the first days have levels only, which the header has told.
    is_level = architecture is not None and level(architecture) in built
    known = not built or architecture is None or architecture in built or is_level
    if known or any(f.kind == "architecture" for f in found.findings):
        return found
    return Validity((*found.findings, _other_kernels(built, architecture)))


def architectures_of(engine: EngineFile) -> tuple[str, ...]:
    """What its kernels are for: whole names, of which the header has the levels."""
    names = engine.metadata.get("architectures", engine.header.architectures)
    return tuple(str(name) for name in names)


def _other_kernels(built: Collection[str], architecture: str | None) -> Finding:
    names = ", ".join(built)
    said = f"on {architecture} the first start uses those that run there, or compiles its own"
    reason = f"its kernels are for {names}; {said}"
    return Finding("architecture", reason, False)


def _findings(header: Header, architecture: str | None, memory: int | None) -> list[Finding]:
    found = []
    built = header.architectures
    if architecture is not None and built and level(architecture) not in built:
        found.append(_other_kernels(built, architecture))
    if memory is not None and header.weight_bytes > memory:
        reason = f"its weights take {header.weight_bytes:,} bytes, there are {memory:,}"
        found.append(Finding("memory", reason, True))
    if header.flags & STRIPPED:
        reason = "it was built without some of its weights; give it them before it runs"
        found.append(Finding("weights", reason, False))
    return found
