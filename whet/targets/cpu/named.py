"""Named sizes as kernels read them: 64-bit numbers at the end of the argument block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.ir.sizes import Size
from whet.targets.cpu.expressions import Emitter, Place
from whet.targets.cpu.llvm import Function, Index


@dataclass(frozen=True)
class NamedSizes:
    """The sizes that a run tells a kernel: `names`, in slots of the argument block from `first`."""

    names: tuple[str, ...] = ()
    first: int = 0
    arguments: str = "%args"

    def places(self, f: Function, wanted: Sequence[str] | None = None) -> dict[str, Place]:
        """Registers that hold them, loaded where the function stands."""
        wanted = self.names if wanted is None else wanted
        slots = {name: 8 * (self.first + slot) for slot, name in enumerate(self.names)}
        return {name: Place(f.load("i64", self.arguments, slots[name])) for name in wanted}

    def index(self, f: Function, size: Size) -> Index:
        """The size as an i64, computed where the function stands."""
        if isinstance(size, int):
            return size
        e = Emitter(f, [], 1)
        e.places = self.places(f, sorted({s.name for s in size.symbols}))
        return e.size(size)
