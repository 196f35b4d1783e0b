"""LLVM text to object bytes, and object bytes to code in this process."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from whet.errors import CompileError, DeviceError, Error
from whet.targets.cpu import elf, host
from whet.targets.cpu.architecture import Architecture

# LLVM turns copies and fills into calls of these; every C library has them.
MEMORY_FUNCTIONS = frozenset({"memcpy", "memmove", "memset"})


class Code:
    """Machine code in memory, there for as long as this object is."""

    def __init__(self, addresses: Mapping[str, int], keep: Any = None) -> None:
        self._addresses, self._keep = dict(addresses), keep

    def address(self, symbol: str) -> int:
        """Where a function begins."""
        return self._addresses[symbol]


def to_object(text: str, architecture: Architecture, imports: Sequence[str] = ()) -> bytes:
    """Machine code for LLVM text, as the bytes of an object file.

    Raises CompileError, with the kernel's name, if LLVM refuses the text, or if the code would
    call a function that is neither in the text nor among `imports`, such as `expf`.
    """
    llvm = _llvm()
    try:
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

    Each object is a library of its own: the same names in two objects don't meet. Raises
    CompileError for damaged bytes and for functions that are not there.
    """
    try:
        if code[:4] != _ELF:
            return _load_by_llvm(code, symbols, imports or {})
        source = elf.Object(code)
        if not source.loadable or host.system() == "windows":
            return _load_by_llvm(code, symbols, imports or {})
        return _map(source, symbols, imports or {})
    except Error:
        raise
    except (RuntimeError, ValueError) as error:
        raise CompileError(f"cannot load code for {', '.join(symbols)}: {error}") from error


def _map(source: elf.Object, symbols: Sequence[str], imports: Mapping[str, int]) -> Code:
    def resolve(name: str) -> int:
        if name in imports:
            return imports[name]
        if name not in MEMORY_FUNCTIONS:
            raise ValueError(f"it calls {name}")
        return ctypes.cast(getattr(host.libc(), name), ctypes.c_void_p).value or 0

    offsets = {name: source.offset(name) for name in symbols}
    base = host.reserve_code(source.size)
    code = Code({name: base + offset for name, offset in offsets.items()})
    # Not at exit: threads may still be running it while the interpreter ends.
    weakref.finalize(code, host.release_code, base, source.size).atexit = False
    host.publish_code(base, source.image(base, resolve))
    return code


def _load_by_llvm(code: bytes, symbols: Sequence[str], imports: Mapping[str, int]) -> Code:
    """The general way, for other formats, processors, and objects with variables."""
    builder = _llvm().JITLibraryBuilder().add_object_img(code)
    for symbol in symbols:
        builder.export_symbol(symbol)
    for name, address in imports.items():
        builder.import_symbol(name, address)
    tracker = builder.link(_linker(), f"code{next(_numbers)}")
    _trackers.add(tracker)
    return Code({name: int(tracker[name]) for name in symbols}, keep=tracker)


def kernel_name(text: str) -> str:
    """The first function that a text defines for others to call."""
    found = re.search(r"^define (?!internal|private)[^@]*@\"?([\w.$-]+)", text, re.MULTILINE)
    return found[1] if found else "?"


def undefined_symbols(code: bytes) -> set[str]:
    """Names that an ELF object leaves to others; none for other formats, which LLVM links.

    Raises CompileError for a damaged one.
    """
    try:
        return elf.Object(code).undefined if code[:4] == _ELF else set()
    except ValueError as error:
        raise CompileError(f"the code is damaged: {error}") from error


_ELF = b"\x7fELF"
_numbers = itertools.count()
_trackers: weakref.WeakSet[Any] = weakref.WeakSet()


@cache
def _llvm() -> Any:
    """LLVM, loaded when a target is opened, and held still while the process forks."""
    try:
        import llvmlite.binding as llvm
        from llvmlite.binding import ffi
    except ImportError as error:
        raise DeviceError(
            f"a kernel has to be compiled, and there is no compiler here ({error}): `pip install "
            "llvmlite`, or bring the kernels along in a cache (`whet cache export`) or an engine "
            "(`whet build --architectures`)"
        ) from None

    # A child that inherits LLVM's lock while another thread holds it could never compile.
    lock = getattr(ffi.lib, "_lock", None)
    if lock is not None and hasattr(os, "register_at_fork"):
        release = partial(lock.__exit__, None, None, None)
        os.register_at_fork(before=lock.__enter__, after_in_parent=release, after_in_child=release)
    return llvm


@cache
def _target_machine(architecture: Architecture) -> Any:
    return architecture.target_machine()


@cache
def _linker() -> Any:
    """The process's ORC linker; JITLink keeps an object's sections within reach of each other."""
    machine = host.architecture().target_machine()
    linker = _llvm().create_lljit_compiler(machine, use_jit_link=True, suppress_errors=True)
    atexit.register(_leak, linker)
    return linker


def _leak(linker: Any) -> None:
    """Leave LLVM's code where it is, too."""
    for tracker in list(_trackers):
        tracker.detach()
    linker.detach()
