"""The first 64 bytes of an engine: enough to say whether it can be used, and on what."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

from whet.engine.checksum import checksum
from whet.engine.plain import need
from whet.errors import Error, InvalidEngine

MAGIC = b"\x93whet\r\n\x1a"  # as PNG's: shows when a transfer changed line ends or cut eighth bits
VERSION = 2
HEADER_BYTES = 64

ARCHITECTURES = (
    *("sse2", "avx2", "avx512", "neon"),
    *("sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121"),
)
"""What prebuilt kernels may be for, by the number of the bit in the header. Only append."""

KERNELS, STRIPPED, REFITTABLE = 1, 2, 4  # flags

_LAYOUT = struct.Struct("<8sIIQQQII12xI")


@dataclass(frozen=True)
class Header:
    """The first 64 bytes of an engine."""

    version: int
    flags: int
    file_bytes: int
    weight_bytes: int
    architecture_bits: int
    section_count: int
    table_checksum: int

    @property
    def architectures(self) -> tuple[str, ...]:
        """What it holds prebuilt kernels for; without any it runs everywhere."""
        bits = self.architecture_bits
        return tuple(
            ARCHITECTURES[i] if i < len(ARCHITECTURES) else f"unknown {i}"
            for i in range(bits.bit_length())
            if bits >> i & 1
        )

    def pack(self) -> bytes:
        """The 64 bytes."""
        fields = [self.version, self.flags, self.file_bytes, self.weight_bytes]
        fields += [self.architecture_bits, self.section_count, self.table_checksum]
        data = _LAYOUT.pack(MAGIC, *fields, 0)
        return data[:-4] + struct.pack("<I", checksum(data[:-4]))


def read_header(data: bytes | memoryview) -> Header:
    """The header of an engine, from its first 64 bytes; raises InvalidEngine with what is wrong."""
    if len(data) < HEADER_BYTES:
        raise InvalidEngine(f"it has {len(data)} bytes, less than the {HEADER_BYTES} of a header")
    magic, version, *fields, check = _LAYOUT.unpack(data[:HEADER_BYTES])
    if magic != MAGIC:
        raise InvalidEngine(
            "it is no whet engine: it does not start as one; whet.build makes one of an ONNX model"
        )
    if check != checksum(bytes(data[: HEADER_BYTES - 4])):
        raise InvalidEngine("its header is damaged; build it again or fetch another copy")
    if version > VERSION:
        raise InvalidEngine(
            f"its format is version {version}, this whet reads up to {VERSION}; update whet"
        )
    need(version > 0, "its format version is 0, which never was")
    unknown = fields[0] & ~(KERNELS | STRIPPED | REFITTABLE)
    need(not unknown, f"it has flags that this version does not know: {unknown:#x}")
    return Header(version, *fields)


def level(architecture: str) -> str:
    """What the header can say of an architecture: `avx512` of `x86_64-linux-avx512+amx+vnni`, and
    `sm90` of `sm90x132`."""
    name = architecture.rpartition("-")[2].partition("+")[0]
    return name.partition("x")[0] if name.startswith("sm") else name


def architecture_bits(architectures: Collection[str]) -> int:
    """The header's bits for architectures; raises Error for one that is not known."""
    levels = {level(a) for a in architectures}
    unknown = sorted(levels - set(ARCHITECTURES))
    if unknown:
        raise Error(f"{unknown} are no architectures; choose among {', '.join(ARCHITECTURES)}")
    return sum(1 << ARCHITECTURES.index(name) for name in levels)
