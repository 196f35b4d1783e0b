"""The choices that a kernel leaves open; any of them is right, some are fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How a convolution kernel walks its work."""

    outputs: int
    """Outputs (pixels) of a register tile, at most."""
    vectors: int = 1
    """Vectors of output channels of a register tile, at most."""
    rows: int = 1
    """Rows of outputs in a tile of the lanewise template, walked while a chunk's x is in cache."""
    unroll: int = 1
    """Steps of the innermost sum loop that are written out."""
    teams: int = 1
    """Threads share tiles (1), channel panels (0), or both: so many teams take panels each."""
    block: int = 0
    """Tiles that go through all panels before the next block does (0: all)."""
    prefetch: int = 0
    """Bytes of packed weight fetched ahead of their use (0: none)."""
    winograd: bool = False
    """Whether the Winograd template is used."""
    ahead: bool = False
    """Whether each tile fetches its part of the next panel into the second-level cache."""
    depth: int = 0
    """Products of a sum that all tiles of a block make before any goes on (0: all of them)."""
