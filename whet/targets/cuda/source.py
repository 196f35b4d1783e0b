"""What code generation hands to the compiler: Triton text, and how its functions are launched."""

from __future__ import annotations

from dataclasses import dataclass

Slot = int | str
"""An argument: the number of a buffer, "error", "counters" or "scratch"."""

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One function of the text: its blocks, its arguments, and what the compiler should assume."""

    function: str
    grid: Grid
    slots: tuple[Slot, ...]
    types: tuple[str, ...]
    """Of the arguments, as Triton writes them: *fp16, *i8."""
    warps: int = 4
    stages: int = 3
    counters: int = 0
    """Words that the function needs to find zero, and leaves zero."""
    scratch: int = 0
    """Bytes that it may write as it likes; the next launch of the same source finds them there.
    Where no slot says so, they are Triton's: descriptors of what each block reads."""
    spread: bool = False
    """Whether its blocks are to lie evenly over the multiprocessors, whatever else runs there."""


@dataclass(frozen=True)
class Source:
    """A module of Triton functions and its launches, which run one after the other."""

    text: str
    launches: tuple[Launch, ...]

    @property
    def is_gluon(self) -> bool:
        """Whether some of it is Gluon, Triton's language of explicit layouts."""
        return "triton.experimental" in self.text


HEADER = """\
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, libdevice

"""

WAIT = "gdc_wait()"
"""Where a function waits for the one before it, which may still run."""
