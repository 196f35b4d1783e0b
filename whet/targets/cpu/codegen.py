"""Kernels to LLVM text."""

from __future__ import annotations

from whet.plan.kernel import Kernel, Loops
from whet.targets.cpu import loops
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.arithmetic import LIBRARY
from whet.targets.cpu.llvm import Module

VERSION = 1
"""Part of every cache key: raised when the same kernel gives other code."""

ENTRY = "kernel"


def to_llvm(kernel: Kernel, architecture: Architecture) -> Module:
    """A module whose function ENTRY runs the kernel: `void (ptr args, i64 thread, i64 threads)`.

    The arguments are eight bytes each: the error word's address, then the buffers'.
    """
    if isinstance(kernel, Loops):
        return loops.generate(kernel, architecture, ENTRY)
    from whet.targets.cpu.templates import TEMPLATES

    return TEMPLATES[type(kernel.op)].generate(kernel, architecture, ENTRY)


def imports(module: Module) -> list[str]:
    """The C library's functions that a module calls."""
    return sorted(LIBRARY & set(module.declarations))
