"""What code generation hands to the compiler: Triton text, and how its functions are launched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from whet.ir.sizes import Expr, Size

Slot = int | str | Expr
"""An argument: the number of a buffer, "error", "counters" or "scratch", or a size that a run
tells."""

Grid = tuple[Size, Size, Size]


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
    counters: Size = 0
    """Words that the function needs to find zero, and leaves zero."""
    scratch: Size = 0
    """Bytes that it may write as it likes; the next launch of the same source finds them there.
    Where no slot says so, they are Triton's: descriptors of what each block reads."""
    spread: bool = False
    """Whether its blocks are to lie evenly over the multiprocessors, whatever else runs there."""
    reach: tuple[Size, ...] = ()
    """Where sizes are open: what must be less than 2^31 for its indices to be right."""
    until: tuple[Size, int] | None = None
    """Where several ways serve a range: this one does up to a number of results, in their order."""


@dataclass(frozen=True)
class Source:
    """A module of Triton functions and its launches, which run one after the other."""

    text: str
    launches: tuple[Launch, ...]

    @property
    def is_gluon(self) -> bool:
        """Whether some of it is Gluon, Triton's language of explicit layouts."""
        return "triton.experimental" in self.text

    @classmethod
    def of_ways(cls, ways: Iterable[tuple[Source, tuple[Size, int] | None]]) -> Source:
        """Several ways to run a kernel, each up to a number of results."""
        found = list(ways)
        launches = (replace(call, until=until) for way, until in found for call in way.launches)
        return cls("\n\n".join(way.text for way, _ in found), tuple(launches))


HEADER = """\
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, libdevice

"""

WAIT = "gdc_wait()"
"""Where a function waits for the one before it, which may still run."""
