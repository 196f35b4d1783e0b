"""Kernels for the very sizes that runs come back with, made from those that serve every size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whet.plan.bind import bound
from whet.plan.kernel import Kernel


@dataclass(frozen=True)
class Special:
    """A kernel at known sizes, not chosen yet: weighing schedules takes so long that the process
    which compiles the kernel does it, and runs are left alone meanwhile."""

    kernel: Kernel
    sizes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes)
        return f"{self.kernel}\nat {sizes}"

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.name

    @property
    def known(self) -> Kernel:
        """The kernel with its sizes as numbers."""
        return bound(self.kernel, dict(self.sizes))


def special_of(kernel: Kernel, sizes: Mapping[str, int]) -> Special:
    """The kernel at the sizes of a run, of which it is told some."""
    return Special(kernel, tuple((name, sizes[name]) for name in kernel.sizes))
