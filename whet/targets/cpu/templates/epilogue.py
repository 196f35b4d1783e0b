"""The hole at the end of a kernel: what happens to a result vector before it is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from whet.ir.sizes import Size
from whet.targets.cpu.llvm import Function, Index, element_bytes, vector
from whet.targets.cpu.named import NamedSizes
from whet.targets.cpu.templates.specification import Extent


@dataclass(frozen=True)
class Origin:
    """The first element of a tile of y: its indices, known or in registers, once per tile."""

    arguments: str
    """The register with the kernel's argument block."""
    indices: tuple[Index, ...]
    """(batch, *spatial, channel) of the convolution that the kernel was generated for."""

    def offset(self, f: Function, strides: tuple[Index, ...]) -> Index:
        """Where the origin lies in a tensor with these strides, in the strides' unit."""
        total: Index = 0
        for index, stride in zip(self.indices, strides, strict=True):
            total = f.add(total, f.mul(index, stride))
        return total


@dataclass(frozen=True)
class Position:
    """Where one vector of results belongs: `lanes` channels from origin + deltas on."""

    origin: Origin
    deltas: tuple[int, ...]
    lanes: int
    context: Any
    """What the epilogue's `begin` returned for this tile."""

    def offset(self, strides: tuple[Extent, ...]) -> int:
        """The distance from the origin in a tensor with these strides."""
        moved = zip(self.deltas, strides, strict=True)
        return sum(delta * stride for delta, stride in moved if delta)


def _nothing(f: Function, origin: Origin) -> None:
    return None


def _identity(f: Function, value: str, position: Position) -> str:
    return value


@dataclass(frozen=True)
class Epilogue:
    """Code for the end of each tile.

    `begin(f, origin)` runs once per tile: hoist base addresses there and return what `apply` needs.
    `apply(f, value, position)` gets a <lanes x float> and returns the <lanes x `element`> that goes
    to y, or "" when it stored the result itself. Its `buffers` pointers lie in the argument block
    between bias and y, from slot FIRST_BUFFER on.
    """

    apply: Callable[[Function, str, Position], str] = _identity
    begin: Callable[[Function, Origin], Any] = _nothing
    buffers: int = 0
    element: str = "float"
    sizes: tuple[str, ...] = ()
    """Sizes that a run tells the kernel: after y in the argument block."""

    def size(self, f: Function, size: Size) -> Index:
        """A size as a register of the kernel's function, or of one of its tiles."""
        return self.named.index(f, size)

    @property
    def named(self) -> NamedSizes:
        """Where those sizes are."""
        return NamedSizes(self.sizes, FIRST_BUFFER + self.buffers + 1, "%arguments")


X, WEIGHT, BIAS, FIRST_BUFFER = 0, 1, 2, 3
"""Slots of the argument block; y comes after the epilogue's buffers."""


def finish(
    f: Function,
    hole: Epilogue,
    origin: Origin,
    y_strides: tuple[Extent, ...],
    results: Iterable[tuple[tuple[int, ...], int, str]],
) -> None:
    """Passes (deltas, lanes, value) of a tile through the epilogue and stores them to y."""
    bytes = element_bytes(hole.element)
    context = hole.begin(f, origin)
    slot = f.load("ptr", origin.arguments, 8 * (FIRST_BUFFER + hole.buffers))
    told = tuple(hole.size(f, stride) for stride in y_strides)
    y = f.address(slot, f.mul(origin.offset(f, told), bytes))
    for deltas, lanes, value in results:
        position = Position(origin, deltas, lanes, context)
        value = hole.apply(f, value, position)
        if value:
            f.store(vector(hole.element, lanes), value, y, bytes * position.offset(y_strides))
