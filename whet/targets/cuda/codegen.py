"""Kernels to Triton text."""

from __future__ import annotations

from typing import Any

from whet.plan.kernel import Kernel, Loops
from whet.plan.sources import digest
from whet.targets.cuda import loops
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import Source
from whet.targets.cuda.templates import TEMPLATES


def version() -> str:
    """Part of every cache key: any change of this folder's sources may give other code."""
    return digest("targets/cuda")


def to_triton(kernel: Kernel, architecture: Architecture, tile: Any = None) -> Source:
    """The Triton functions that run a kernel, and how they are launched; with a tile of `tiles`, or
    the one that is likely to be fastest."""
    if isinstance(kernel, Loops):
        return loops.generate(kernel, architecture)
    template = TEMPLATES[type(kernel.op)]
    chosen = template.tiles(kernel, architecture)[0] if tile is None else tile
    source: Source = template.generate(kernel, architecture, chosen)
    return source


def tiles(kernel: Kernel, architecture: Architecture) -> list[Any]:
    """The ways to cut a kernel up, the most promising first; none where there is one way only."""
    if isinstance(kernel, Loops):
        return []
    found: list[Any] = TEMPLATES[type(kernel.op)].tiles(kernel, architecture)
    return found
