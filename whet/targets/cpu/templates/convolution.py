"""Convolutions and products with a constant weight: the entry to this folder.

    schedule = candidates(convolution, architecture, threads)[0]
    text = generate(convolution, schedule, architecture, Epilogue(), "name")
    packed = packing(convolution, schedule, architecture).apply(weight)

The kernel is `void name(ptr arguments, i64 thread, i64 threads)`. The argument block holds pointers
to x, the packed weight (64-byte aligned), bias, the epilogue's buffers, and y.
"""

from __future__ import annotations

from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.templates import costs, dense, lanewise, winograd
from whet.targets.cpu.templates.epilogue import Epilogue
from whet.targets.cpu.templates.packing import Packing
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution


def candidates(
    convolution: Convolution, architecture: Architecture, threads: int, transforms: bool = False
) -> list[Schedule]:
    """Schedules worth measuring, the best guess first.

    With `transforms`, also those whose Packing has matrices (Winograd), which the caller follows.
    """
    return costs.candidates(convolution, architecture, threads, transforms)


def alike(
    convolution: Convolution,
    schedule: Schedule,
    architecture: Architecture,
    threads: int,
    most: int,
) -> list[Schedule]:
    """Other schedules that may be faster, and give the same bits from the same packed weight."""
    return costs.alike(convolution, schedule, architecture, threads, most)


def packing(convolution: Convolution, schedule: Schedule, architecture: Architecture) -> Packing:
    """How the kernel wants its weight laid out."""
    if schedule.winograd:
        return winograd.packing(convolution, schedule, architecture)
    if lanewise.fits(convolution, architecture):
        return lanewise.packing(convolution, schedule, architecture)
    return dense.packing(convolution, schedule, architecture)


def generate(
    convolution: Convolution,
    schedule: Schedule,
    architecture: Architecture,
    epilogue: Epilogue,
    name: str,
) -> str:
    """The kernel as LLVM assembly."""
    if schedule.winograd:
        return winograd.Winograd(convolution, schedule, architecture, epilogue, name).generate()
    if lanewise.fits(convolution, architecture):
        return lanewise.Lanewise(convolution, schedule, architecture, epilogue, name).generate()
    return dense.Dense(convolution, schedule, architecture, epilogue, name).generate()
