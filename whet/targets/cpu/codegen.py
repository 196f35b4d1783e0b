"""Kernels to LLVM text."""

from __future__ import annotations

import re

from whet.ir.sizes import symbol
from whet.plan.kernel import Kernel, Loops
from whet.plan.sources import digest
from whet.targets.bound import Slot
from whet.targets.cpu import half, loops
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.functions import LIBRARY
from whet.targets.cpu.templates import TEMPLATES

ENTRY = "kernel"


def version() -> str:
    """Part of every cache key: any change of the sources that make kernels may give other code."""
    return digest("targets/cpu")


def to_llvm(kernel: Kernel, architecture: Architecture) -> str:
    """A module whose function ENTRY runs the kernel: `void (ptr args, i64 thread, i64 threads)`."""
    text = _generate(kernel, architecture)
    if architecture.half_conversion or " half" not in text:
        return text
    return text + half.TEXT


def _generate(kernel: Kernel, architecture: Architecture) -> str:
    if isinstance(kernel, Loops):
        return loops.generate(kernel, architecture, ENTRY).text()
    module = TEMPLATES[type(kernel.op)].generate(kernel, architecture, ENTRY)
    return module if isinstance(module, str) else module.text()


def slots(kernel: Kernel) -> list[Slot]:
    """What the eight-byte arguments of a kernel hold: buffers, and how many bytes further, "error"
    for the address of the error word; the sizes that a run tells come last."""
    return [*_pointers(kernel), *map(symbol, kernel.sizes)]


def _pointers(kernel: Kernel) -> list[Slot]:
    if not isinstance(kernel, Loops):
        template = TEMPLATES[type(kernel.op)]
        if hasattr(template, "slots"):
            return list(template.slots(kernel))
    return ["error", *((buffer, 0) for buffer in range(len(kernel.buffers)))]


def imports(text: str) -> list[str]:
    """The C library's functions that a module calls."""
    return sorted(LIBRARY & set(re.findall(r"^declare [^@]*@(\w+)\(", text, re.MULTILINE)))
