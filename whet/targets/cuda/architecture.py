"""NVIDIA GPUs by compute capability: what one multiprocessor has, and what code may use."""

from __future__ import annotations

import re
from dataclasses import dataclass

from whet.errors import InvalidSetting


@dataclass(frozen=True)
class Architecture:
    """A compute capability, and how many multiprocessors schedules are made for."""

    major: int
    minor: int
    multiprocessors: int

    def __str__(self) -> str:
        return f"{self.name}x{self.multiprocessors}"

    @property
    def name(self) -> str:
        return f"sm{self.capability}"

    @property
    def capability(self) -> int:
        """Ten times the compute capability: 80, 90, 120."""
        return 10 * self.major + self.minor

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one block may have (CUDA C++ Programming Guide, table of limits)."""
        return SHARED_KIB[self.capability] << 10

    @property
    def has_warp_groups(self) -> bool:
        """Whether four warps work on one matrix instruction: large tiles pay then."""
        return self.major in (9, 10)

    @property
    def has_dependent_launch(self) -> bool:
        """Whether a kernel may start before the one that it waits for has ended."""
        return self.major >= 9

    @property
    def has_tensor_memory_access(self) -> bool:
        """Whether one thread asks for a whole tile, by a descriptor of the tensor that it is in."""
        return self.major >= 9

    def runs(self, other: Architecture) -> bool:
        """Whether a device of this architecture runs machine code that was made for another: of the
        same capability, whatever the number of multiprocessors, or of an earlier one of its
        generation. From 9.0 on code is for one capability alone, and Orin is apart (CUDA C++
        Programming Guide, Binary Compatibility)."""
        if self.capability == other.capability:
            return True
        both = self.major == other.major == 8 and 87 not in (self.capability, other.capability)
        return both and other.minor < self.minor

    @property
    def likeness(self) -> tuple[int, int]:
        """How much of a device code for it makes use of."""
        return self.capability, self.multiprocessors

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """sm90, sm_90 or sm90x132: with the number of multiprocessors, else a usual one."""
        found = re.fullmatch(r"sm_?(\d+)(\d)a?(?:x(\d+))?", text)
        if found is None:
            raise InvalidSetting(f"{text!r} is no NVIDIA architecture; one is written {names()}")
        major, minor = int(found[1]), int(found[2])
        return of_capability(major, minor, int(found[3] or 0))


SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""By capability."""

USUAL_MULTIPROCESSORS = {
    80: 108,
    86: 82,
    87: 16,
    89: 128,
    90: 132,
    100: 148,
    103: 148,
    120: 170,
    121: 48,
}
"""Those of the best-known board: A100, RTX 3090, Orin, RTX 4090, H100, B200, B300, RTX 5090,
GB10."""


def names() -> str:
    """The architectures that code is made for."""
    return ", ".join(f"sm{capability}" for capability in SHARED_KIB)


def of_capability(major: int, minor: int, multiprocessors: int = 0) -> Architecture:
    """The architecture of a device; raises InvalidSetting for one that code is not made for."""
    capability = 10 * major + minor
    if capability not in SHARED_KIB:
        raise InvalidSetting(
            f"there are no kernels for compute capability {major}.{minor}; it must be one of "
            f"{', '.join(f'{c // 10}.{c % 10}' for c in SHARED_KIB)}"
        )
    return Architecture(major, minor, multiprocessors or USUAL_MULTIPROCESSORS[capability])
