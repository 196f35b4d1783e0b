"""Values that come from the host and go there: memory on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.ir.graph import Value
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.driver import Context, Stream
from whet.targets.cuda.memory import Heap, Piece, Pinned


class Staging:
    """Memory through which Values pass, made when one first does."""

    def __init__(self, context: Context, heap: Heap) -> None:
        self.context, self.heap = context, heap
        self.guests: dict[Value, int] = {}
        """Addresses in the arena of those that have room there: see `Plan.guests`."""
        self._kept: dict[Value, tuple[int, Pinned, Piece | None]] = {}
        self._brought: dict[Value, int] = {}
        """The bytes of what came from the host last."""

    def of(self, value: Value, size: int) -> tuple[int, Pinned]:
        """A Value's address on the device, and its memory on the host, for so many bytes."""
        if value not in self._kept or self._kept[value][1].array.nbytes < size:
            # Where a run tells sizes, the next one may be a little larger.
            size = size if value.tensor.is_static else 1 << (size - 1).bit_length()
            piece = None if value in self.guests else self.heap.take(size)
            pointer = self.guests[value] if piece is None else piece.pointer
            self._kept[value] = pointer, Pinned(self.context, size), piece
        pointer, pinned, _ = self._kept[value]
        return pointer, pinned

    def bring(self, value: Value, array: Any, stream: Stream, is_busy: bool) -> int:
        """An array's address on the device, after it was copied; with `is_busy`, what the run
        before has staged may not have left yet."""
        pointer, pinned = self.of(value, array.nbytes)
        if isinstance(array, DeviceArray):  # one that no kernel can read where it is
            self._brought.pop(value, None)
            stream.copy(pointer, array.pointer, array.nbytes)
            return pointer
        array = np.asarray(array)
        if is_busy:
            stream.synchronize()
        self._brought[value] = size = array.nbytes
        pinned.array[:size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        stream.upload(pointer, pinned.pointer, size)
        return pointer

    def bring_again(self, stream: Stream) -> None:
        """Copies what came from the host last once more: a run writes over its inputs."""
        for value, size in self._brought.items():
            pointer, pinned, _ = self._kept[value]
            stream.upload(pointer, pinned.pointer, size)
