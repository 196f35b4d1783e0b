"""Values that come from the host and go there: memory on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.ir.graph import Value
from whet.plan.plan import nbytes
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.driver import Context, Stream
from whet.targets.cuda.memory import Heap, Piece, Pinned


class Staging:
    """Memory through which Values pass, made when one first does."""

    def __init__(self, context: Context, heap: Heap) -> None:
        self.context, self.heap = context, heap
        self._kept: dict[Value, tuple[Piece, Pinned]] = {}

    def __getitem__(self, value: Value) -> tuple[int, Pinned]:
        """A Value's address on the device, and its memory on the host."""
        if value not in self._kept:
            size = nbytes(value.tensor)
            self._kept[value] = self.heap.take(size), Pinned(self.context, size)
        piece, pinned = self._kept[value]
        return piece.pointer, pinned

    def bring(self, value: Value, array: Any, stream: Stream, is_busy: bool) -> int:
        """An array's address on the device, after it was copied; with `is_busy`, what the run
        before has staged may not have left yet."""
        pointer, pinned = self[value]
        if isinstance(array, DeviceArray):  # one that no kernel can read where it is
            stream.copy(pointer, array.pointer, array.nbytes)
            return pointer
        array = np.asarray(array)
        if is_busy:
            stream.synchronize()
        size = array.nbytes
        pinned.array[:size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        stream.upload(pointer, pinned.pointer, size)
        return pointer
