"""ELF object files of x86-64: what they define and need, and how they become code in memory.

To load a kernel this way takes no LLVM in the process, which would be most of a warm start's time
and memory. Source: System V ABI, AMD64 supplement 1.0, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QIIq")
_MAGIC, _X86_64 = b"\x7fELF\x02\x01", 62
_SYMBOL_TABLE, _RELOCATIONS, _NO_BITS, _UNWIND = 2, 4, 8, 0x70000001
_WRITE, _ALLOCATE = 1, 2
_ABSOLUTE = 1  # R_X86_64_64
_RELATIVE = {2, 4}  # R_X86_64_PC32, R_X86_64_PLT32
_SLOT_RELATIVE = {9, 41, 42}  # R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX
_PAGE, _LARGEST = 4096, 1 << 30
_OFFSET_TABLE = "_GLOBAL_OFFSET_TABLE_"

# A slot holds a jump through the address in its second half, which is also what code that asks for
# an offset table's entry reads: functions of other libraries may be out of a jump's own reach.
_SLOT_BYTES, _ENTRY = 16, 8
_JUMP = b"\xff\x25\x02\x00\x00\x00\x66\x90"


class Section(NamedTuple):
    """One section's header."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int

    @property
    def loaded(self) -> bool:
        """Whether it is part of the code in memory; tables for unwinding are not."""
        return bool(self.flags & _ALLOCATE) and self.kind != _UNWIND and self.size > 0


class Symbol(NamedTuple):
    """A name, the section it is in (0: somewhere else), and where."""

    name: str
    section: int
    value: int


class Relocation(NamedTuple):
    """A place in a section that must be given a symbol's address."""

    section: int
    offset: int
    kind: int
    symbol: int
    addend: int


class Object:
    """An object file taken apart and laid out as one piece of memory. Damage raises ValueError."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != _MAGIC or len(data) < _HEADER.size:
            raise ValueError("no 64-bit ELF object")
        header = _HEADER.unpack_from(data)
        self._data, self.machine = data, header[2]
        self.sections = [Section(*row) for row in self._rows(_SECTION, header[6], header[12])]
        try:
            self._section_names = self.sections[header[13]].offset
            self.symbols = list(self._read_symbols())
            self.relocations = list(self._read_relocations())
        except IndexError:
            raise ValueError("a section refers to one that is not there") from None
        self._lay_out()

    @property
    def undefined(self) -> set[str]:
        """Names that others must provide."""
        return {symbol.name for symbol in self.symbols if not symbol.section} - {"", _OFFSET_TABLE}

    @property
    def loadable(self) -> bool:
        """Whether `image` can do it: x86-64, no variables, and no rare kinds of relocation."""
        kinds = {relocation.kind for relocation in self.relocations}
        return (
            self.machine == _X86_64
            and not any(self._is_variable(section) for section in self.sections)
            and kinds <= {_ABSOLUTE} | _RELATIVE | _SLOT_RELATIVE
        )

    def _is_variable(self, section: Section) -> bool:
        """Whether code may write to it; constants that hold addresses are written only here."""
        return (
            section.loaded
            and bool(section.flags & _WRITE)
            and not self._string(self._section_names + section.name).startswith(".data.rel.ro")
        )

    def offset(self, name: str) -> int:
        """Where a function begins in the image."""
        for symbol in self.symbols:
            if symbol.name == name and symbol.section in self._starts:
                return self._place(symbol)
        raise ValueError(f"it has no function {name}")

    def image(self, base: int, resolve: Callable[[str], int]) -> bytearray:
        """The memory's contents at address `base`; `resolve` finds the undefined names."""
        image = bytearray(self.size)
        for index, start in self._starts.items():
            section = self.sections[index]
            image[start : start + section.size] = self._part(section.offset, section.size)
        targets = {
            index: self._target(self.symbols[index], base, resolve)
            for index in {relocation.symbol for relocation in self.relocations}
        }
        for index, slot in self._slots.items():
            image[slot : slot + _SLOT_BYTES] = _JUMP + targets[index].to_bytes(8, "little")
        for relocation in self.relocations:
            self._fix(image, base, relocation, targets[relocation.symbol])
        return image

    def _fix(self, image: bytearray, base: int, relocation: Relocation, target: int) -> None:
        width = 8 if relocation.kind == _ABSOLUTE else 4
        if relocation.offset + width > self.sections[relocation.section].size:
            raise ValueError("a relocation lies outside its section")
        place = self._starts[relocation.section] + relocation.offset
        if relocation.kind == _ABSOLUTE:
            struct.pack_into("<Q", image, place, target + relocation.addend)
            return
        if relocation.symbol in self._slots:
            entry = _ENTRY if relocation.kind in _SLOT_RELATIVE else 0
            target = base + self._slots[relocation.symbol] + entry
        try:
            struct.pack_into("<i", image, place, target + relocation.addend - (base + place))
        except struct.error:
            raise ValueError("a jump is out of reach") from None

    def _target(self, symbol: Symbol, base: int, resolve: Callable[[str], int]) -> int:
        if not symbol.section:
            return resolve(symbol.name)
        if symbol.section not in self._starts:
            raise ValueError(f"{symbol.name or 'a symbol'} is in no section of the code")
        return base + self._place(symbol)

    def _place(self, symbol: Symbol) -> int:
        if symbol.value > self.sections[symbol.section].size:
            raise ValueError(f"{symbol.name} lies outside its section")
        return self._starts[symbol.section] + symbol.value

    def _lay_out(self) -> None:
        """Give each loaded section its place, then each symbol that needs one its slot."""
        self._starts: dict[int, int] = {}
        end = 0
        for index, section in enumerate(self.sections):
            if section.loaded:
                self._check(section)
                self._starts[index] = end = _aligned(end, section.alignment)
                end += section.size
        self._slots: dict[int, int] = {}
        self.size = _aligned(end, _SLOT_BYTES)
        for relocation in self.relocations:
            elsewhere = not self.symbols[relocation.symbol].section
            through = relocation.kind in _SLOT_RELATIVE or (
                elsewhere and relocation.kind in _RELATIVE
            )
            if through and relocation.symbol not in self._slots:
                self._slots[relocation.symbol] = self.size
                self.size += _SLOT_BYTES

    def _check(self, section: Section) -> None:
        if section.kind != _NO_BITS and section.offset + section.size > len(self._data):
            raise ValueError("a section goes on after the file's end")
        if section.size > _LARGEST or section.alignment > _PAGE:
            raise ValueError("a section is too large for code")

    def _read_symbols(self) -> Iterator[Symbol]:
        for table in self.sections:
            if table.kind != _SYMBOL_TABLE:
                continue
            names = self.sections[table.link].offset
            rows = self._rows(_SYMBOL, table.offset, table.size // _SYMBOL.size)
            for name, _, _, section, value, _ in rows:
                yield Symbol(self._string(names + name), section, value)

    def _read_relocations(self) -> Iterator[Relocation]:
        for section in self.sections:
            if section.kind == _RELOCATIONS and self.sections[section.info].loaded:
                count = section.size // _RELOCATION.size
                for offset, kind, symbol, addend in self._rows(_RELOCATION, section.offset, count):
                    self.symbols[symbol]
                    yield Relocation(section.info, offset, kind, symbol, addend)

    def _rows(self, row: struct.Struct, offset: int, count: int) -> Iterator[tuple[int, ...]]:
        return row.iter_unpack(self._part(offset, row.size * count))

    def _string(self, start: int) -> str:
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _part(self, offset: int, size: int) -> bytes:
        if offset + size > len(self._data):
            raise ValueError("a table goes on after the file's end")
        return self._data[offset : offset + size]


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // max(alignment, 1)) * max(alignment, 1)
