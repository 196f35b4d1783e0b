"""Kernels for the very sizes that runs come back with, on a CPU: which schedule they get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.plan.bind import adds_up
from whet.plan.kernel import Kernel, Loops
from whet.targets import special
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.templates import templates_for


@dataclass(frozen=True)
class Special(special.Special):
    """One with a schedule for so many threads, which may have to keep the order of sums."""

    ordered: bool
    threads: int

    def __str__(self) -> str:
        order = ", in the same order" * self.ordered
        return f"{super().__str__()}{order}, on {self.threads} threads"

    def chosen(self, architecture: Architecture) -> Kernel:
        """The kernel, with the best schedule that reads the same weights; the one of every size
        where there are no elements, of which no schedule can be better."""
        kernel = self.known
        if isinstance(kernel, Loops):
            return kernel
        if any(i is not None and 0 in i.shape for i in kernel.inputs):
            return self.kernel
        make = _chooser(kernel, self.threads)
        found: Kernel = kernel if make is None else make(kernel, architecture, self.ordered)
        return found


def specialised(
    kernel: Kernel, sizes: Mapping[str, int], ordered: bool, threads: int
) -> Kernel | Special:
    """The kernel for the very sizes; itself where it must add up in the same order, and its code
    for these sizes might not."""
    if not kernel.sizes:
        return kernel
    if ordered and not _keeps_order(kernel):
        return kernel
    return Special(kernel, tuple(sorted(sizes.items())), ordered, threads)


def _keeps_order(kernel: Kernel) -> bool:
    """Whether the kernel for known sizes can add up as the one that is told them."""
    if isinstance(kernel, Loops):
        return not adds_up(kernel)
    template: Any = templates_for(1)[type(kernel.op)]
    return hasattr(template, "specialised") and not template.has_borders(kernel)


def _chooser(kernel: Any, threads: int) -> Any:
    """What chooses a template's schedule for known sizes; None where there is nothing to choose."""
    return getattr(templates_for(threads)[type(kernel.op)], "specialised", None)
