"""Ways to run a kernel at sizes that came back, besides the one that is likely to be fastest."""

from __future__ import annotations

from dataclasses import dataclass

from whet.errors import CompileError
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import Source
from whet.targets.special import Special


@dataclass(frozen=True)
class Way(Special):
    """A kernel at known sizes, cut as the tile of a rank says: that of rank 0 is the likely
    fastest. The process that compiles it weighs the tiles."""

    rank: int = 0

    def text(self, architecture: Architecture) -> Source:
        """What Triton is given; raises CompileError where there are not so many tiles."""
        known = self.known
        tiles = codegen.tiles(known, architecture)
        if self.rank >= len(tiles):
            raise CompileError(f"{self.name} has {len(tiles)} tiles")
        return codegen.to_triton(known, architecture, tiles[self.rank])
