"""Kernels to Triton text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from whet.ir.atoms import Symbol
from whet.ir.sizes import Size, product
from whet.plan.bind import bound
from whet.plan.kernel import Kernel, Loops, Template, View
from whet.plan.sources import digest
from whet.targets.cuda import loops
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import HEADER, Source
from whet.targets.cuda.templates import TEMPLATES
from whet.targets.cuda.templates.flash import FlashAttention
from whet.targets.cuda.templates.persistent import Persistent
from whet.targets.cuda.templates.tiling import STREAM
from whet.targets.cuda.templates.warp_groups import Groups, runs


def may_be_gluon(kernel: Kernel, architecture: Architecture) -> bool:
    """Whether some way to run a kernel is Gluon, Triton's language of explicit layouts."""
    if not isinstance(kernel, Template) or not isinstance(kernel.op, FlashAttention):
        return False
    return not kernel.sizes and runs(kernel, architecture)


def version() -> str:
    """Part of every cache key: any change of this folder's sources may give other code."""
    return digest("targets/cuda")


def to_triton(kernel: Kernel, architecture: Architecture, tile: Any = None) -> Source:
    """The Triton functions that run a kernel, and how they are launched; with a tile of `tiles`, or
    the one that is likely to be fastest."""
    if isinstance(kernel, Loops):
        return loops.generate(kernel, architecture)
    if _is_empty(kernel):
        return Source(HEADER, ())
    template = TEMPLATES[type(kernel.op)]
    if kernel.sizes and tile is None:
        return Source.of_ways(
            (template.generate(kernel, architecture, way, f"kernel{n}"), until)
            for n, (way, until) in enumerate(ways(kernel, architecture))
        )
    chosen = template.tiles(kernel, architecture)[0] if tile is None else tile
    source: Source = template.generate(kernel, architecture, chosen)
    return source


def _is_empty(kernel: Template) -> bool:
    """Whether there is nothing to compute."""
    is_alone = kernel.output.buffer == len(kernel.buffers) - 1
    return is_alone and any(axis.size == 0 for axis in kernel.axes)


def tiles(kernel: Kernel, architecture: Architecture) -> list[Any]:
    """The ways to cut a kernel up, the most promising first; none where there is one way only."""
    if isinstance(kernel, Loops) or _is_empty(kernel):
        return []
    if kernel.sizes:
        return [tile for tile, _ in ways(kernel, architecture)]
    found: list[Any] = TEMPLATES[type(kernel.op)].tiles(kernel, architecture)
    return found


SAMPLES = tuple(1 << n for n in range(17))
"""Values of sizes that a run tells, which ways are chosen for."""

APART = 4
"""How many times as many results the next sample has at least."""

MOST_ROWS = 1 << 16
"""Rows of a result beyond which the same tile is best."""

ALIKE = 1.25
"""Tiles that the cost model tells apart by less serve each other's samples: each way takes time to
compile before the first run, and sizes that come back get tiles of their own."""

Until = tuple[Size, int] | None


def takes_sizes(tile: Any) -> bool:
    """Whether code for a tile can be told sizes: not where blocks share them out by numbers."""
    return getattr(tile, "split", 1) != STREAM and not isinstance(tile, Groups | Persistent)


def ways(kernel: Template, architecture: Architecture) -> list[tuple[Any, Until]]:
    """For a range of sizes a few tiles, each with how many results it is best up to: as few as
    serve all samples about as well as the best of each. The samples are of one batch, where
    anything else is open, too: then rows are as long as they get."""
    chosen: list[tuple[list[Any], int]] = []
    for known, count in _samples(kernel):
        good = _good(known, architecture)
        both = [tile for tile in chosen[-1][0] if tile in good] if chosen else []
        if both:
            chosen[-1] = both, count
        else:
            chosen.append((good, count))
    # Between two samples the middle of their ratio divides.
    limits = [math.isqrt(a * b) for (_, a), (_, b) in pairwise(chosen)]
    results = product(a.size for a in kernel.axes)
    untils: list[Until] = [*((results, limit) for limit in limits), None]
    return [(tiles[0], until) for (tiles, _), until in zip(chosen, untils)]


def _samples(kernel: Template) -> Iterator[tuple[Template, int]]:
    """The kernel at sizes further and further apart, with how many results it has."""
    symbols: list[frozenset[Symbol]]
    symbols = [getattr(axis.size, "symbols", frozenset()) for axis in kernel.axes]
    lows = {s.name: max(s.low, 1) for found in symbols for s in found}
    batch = {s.name for s in symbols[0]} if any(symbols[1:]) else set()
    last = 0
    for sample in SAMPLES:
        values = {n: 1 if n in batch else sample for n in kernel.sizes}
        sizes = {name: max(value, lows.get(name, 1)) for name, value in values.items()}
        known = _of_some(bound(kernel, sizes))
        count = int(product(a.size for a in known.axes))
        if last and count < APART * last:
            continue
        last = count
        yield known, count
        if count > MOST_ROWS * int(known.axes[-1].size):
            break


def _of_some(known: Kernel) -> Template:
    """A kernel for choosing tiles: where sizes leave no results, as a convolution's may, or nothing
    to read, there is one."""
    assert isinstance(known, Template)

    def some(view: View) -> View:
        return replace(view, shape=tuple(max(n, 1) for n in view.shape))  # type: ignore[type-var]

    axes = tuple(replace(a, size=max(a.size, 1)) for a in known.axes)  # type: ignore[type-var]
    inputs = tuple(view and some(view) for view in known.inputs)
    return replace(known, axes=axes, inputs=inputs, output=some(known.output))


def _good(known: Template, architecture: Architecture) -> list[Any]:
    """Tiles that serve a sample about as well as the best, which is the first."""
    template: Any = TEMPLATES[type(known.op)]
    if hasattr(template, "close"):
        good = [t for t in template.close(known, architecture, ALIKE) if takes_sizes(t)]
        if good:
            return good
    return [next(t for t in template.tiles(known, architecture) if takes_sizes(t))]
