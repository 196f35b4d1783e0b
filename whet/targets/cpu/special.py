"""Kernels for the very sizes that runs come back with, made from those that serve every size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.plan.bind import adds_up, bound
from whet.plan.kernel import Kernel, Loops
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.templates import templates_for


@dataclass(frozen=True)
class Special:
    """A kernel at known sizes, not chosen yet: weighing schedules takes so long that the process
    which compiles the kernel does it, and runs are left alone meanwhile."""

    kernel: Kernel
    sizes: tuple[tuple[str, int], ...]
    ordered: bool
    threads: int
    """How many the schedule is chosen for."""

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes)
        order = ", in the same order" * self.ordered
        return f"{self.kernel}\nat {sizes}{order}, on {self.threads} threads"

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.name

    def chosen(self, architecture: Architecture) -> Kernel:
        """The kernel, with the best schedule that reads the same weights."""
        kernel = bound(self.kernel, dict(self.sizes))
        if isinstance(kernel, Loops):
            return kernel
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
