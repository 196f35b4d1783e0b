"""LLVM text to object bytes, and object bytes to code in this process."""

from __future__ import annotations

import atexit
import itertools
import os
import re
import struct
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from whet.errors import CompileError
from whet.targets.cpu.architecture import Architecture

# LLVM turns copies and fills into calls of these; every C library has them.
MEMORY_FUNCTIONS = frozenset({"memcpy", "memmove", "memset"})


class Code:
    """Machine code in memory, there for as long as this object is."""

    def __init__(self, tracker: Any, symbols: Sequence[str]) -> None:
        self._tracker = tracker
        self._addresses = {name: int(tracker[name]) for name in symbols}
        _loaded.add(self)

    def address(self, symbol: str) -> int:
        """Where a function begins."""
        return self._addresses[symbol]

    def leak(self) -> None:
        """Leave the code in memory for good."""
        self._tracker.detach()

    def __del__(self) -> None:
        with _lock():
            self._tracker.close()


def to_object(text: str, architecture: Architecture, imports: Sequence[str] = ()) -> bytes:
    """Machine code for LLVM text, as the bytes of an object file.

    Raises CompileError, with the kernel's name, if LLVM refuses the text, or if the code would
    call a function that is neither in the text nor among `imports`, such as `expf`.
    """
    llvm = _llvm()
    try:
        with _lock():
            module = llvm.parse_assembly(text)
            module.verify()
            code: bytes = _target_machine(architecture).emit_object(module)
    except RuntimeError as error:
        raise CompileError(f"kernel {kernel_name(text)!r} on {architecture}: {error}") from error
    foreign = undefined_symbols(code) - MEMORY_FUNCTIONS - set(imports)
    if foreign:
        raise CompileError(
            f"kernel {kernel_name(text)!r} on {architecture} would call the C library's"
            f" {', '.join(sorted(foreign))}; emit it from instructions that the architecture has"
        )
    return code


def load(code: bytes, symbols: Sequence[str], imports: Mapping[str, int] | None = None) -> Code:
    """Map an object's code into this process; `symbols` are the functions wanted from it.

    Each object is a library of its own: the same names in two objects don't meet.
    """
    builder = _llvm().JITLibraryBuilder().add_object_img(code)
    for symbol in symbols:
        builder.export_symbol(symbol)
    for name, address in (imports or {}).items():
        builder.import_symbol(name, address)
    try:
        with _lock():
            tracker = builder.link(_linker(), f"code{next(_numbers)}")
    except RuntimeError as error:
        raise CompileError(f"cannot load code for {', '.join(symbols)}: {error}") from error
    return Code(tracker, symbols)


def kernel_name(text: str) -> str:
    """The first function that a text defines for others to call."""
    found = re.search(r"^define (?!internal|private)[^@]*@\"?([\w.$-]+)", text, re.MULTILINE)
    return found[1] if found else "?"


def undefined_symbols(code: bytes) -> set[str]:
    """Names that an ELF object leaves to the linker; empty for other formats."""
    if code[:5] != b"\x7fELF\x02":
        return set()
    sections = list(_elf_sections(code))
    names: set[str] = set()
    for kind, offset, size, link in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = sections[link][1]
        for at in range(offset + 24, offset + size, 24):
            name, _, _, section = struct.unpack_from("<IBBH", code, at)
            if section == 0:
                start = strings + name
                names.add(code[start : code.index(b"\0", start)].decode())
    return names - {"_GLOBAL_OFFSET_TABLE_"}


def _elf_sections(code: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, offset, size, link) of each section."""
    (table,) = struct.unpack_from("<Q", code, 0x28)
    size, count = struct.unpack_from("<HH", code, 0x3A)
    for index in range(count):
        _, kind, _, _, offset, length, link = struct.unpack_from(
            "<IIQQQQI", code, table + index * size
        )
        yield kind, offset, length, link


_numbers = itertools.count()
_loaded: weakref.WeakSet[Code] = weakref.WeakSet()


@cache
def _llvm() -> Any:
    # Loaded when a target is opened, not on import.
    import llvmlite.binding

    return llvmlite.binding


@cache
def _lock() -> Any:
    """Held while LLVM works and while the process forks: a child must not inherit LLVM's own lock.

    It can be taken twice by a thread, as the garbage collector may drop code in the middle.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


@cache
def _target_machine(architecture: Architecture) -> Any:
    return architecture.target_machine()


@cache
def _linker() -> Any:
    """The process's ORC linker; JITLink keeps an object's sections within reach of each other."""
    from whet.targets.cpu import host

    llvm = _llvm()
    machine = host.architecture().target_machine()
    linker = llvm.create_lljit_compiler(machine, use_jit_link=True, suppress_errors=True)
    atexit.register(_leak, linker)
    return linker


def _leak(linker: Any) -> None:
    """Leave all code where it is: threads may still run it while the interpreter ends."""
    for code in list(_loaded):
        code.leak()
    linker.detach()
