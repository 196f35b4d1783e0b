"""Weights that stay in the host's memory: they are copied ahead of the kernels that read them.

What is prepared from weights lies in pinned memory. A budget bounds how much of it is on the
device: some weights stay there, spread evenly over the plan; the others are copied window by
window, on a stream of their own, into two rooms that take turns, each while the kernels of the
window before run. Of a table of which data says what is read, kernels read the rows over the bus.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan.plan import nbytes
from whet.plan.windows import Budget, Schedule, is_streamed, schedule, total
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.device import Device, holds, numbers
from whet.targets.cuda.driver import Event, Stream
from whet.targets.cuda.memory import Piece, Pinned, aligned
from whet.targets.cuda.segments import Place, Segment

ROOMS = 2
"""Windows on the device at a time: one is read while the next comes in."""


class Inflow(Budget):
    """The memory of one set of prepared weights, of which a part is on the device at a time."""

    def __init__(self, budget: int | str, device: Device) -> None:
        super().__init__(budget, device.context.free_bytes)
        self.device = device
        self.running = threading.RLock()
        """Held while a run is asked for: two at once would mix their windows up."""
        self.copies = Stream(device.context)
        with device.context:
            self.arrived = [Event() for _ in range(ROOMS)]
            self.used = [Event() for _ in range(ROOMS)]
        """When a room's weights are there, and when its kernels are done."""
        self.rooms: list[Piece] = []
        self.room = 0
        """The bytes of each."""
        self._there: dict[Value, tuple[np.ndarray, DeviceArray]] = {}

    def arrays(self, kinds: Sequence[TensorType]) -> list[Any]:
        """Room for tensors: the large ones in pinned memory."""
        return [self._pinned(k) if comes_in(k) else self.device.arrays([k])[0] for k in kinds]

    def copy(self, array: np.ndarray, kind: TensorType) -> Any:
        """A weight that kernels read as it is, in pinned memory where it is large."""
        if not comes_in(kind):
            return self.device.given(array)
        room = self._pinned(kind)
        room[...] = array
        return room

    def _pinned(self, kind: TensorType) -> np.ndarray:
        memory = Pinned(self.device.context, nbytes(kind))
        return _Kept(memory.array.view(kind.numpy).reshape(numbers(kind)), memory)

    def let_go(self, arrays: Iterable[Any]) -> None:
        """Nothing of them is on the device."""

    def paced(self, executable: Any, given: Sequence[Value]) -> Pace:
        """Cuts an executable's segments so that its weights come in."""
        made = schedule(executable.plan, executable.segments, given, self)
        executable.segments = list(made.segments)
        largest = max(map(total, made.windows), default=0)
        small = sum(nbytes(v.tensor) for v in given if not is_streamed(v.tensor))
        if largest:
            self.needed = max(self.needed, total(self.resident) + ROOMS * largest + small)
        self.room = max(self.room, largest)
        executable.pace = Pace(made, self)
        return executable.pace

    def make_rooms(self) -> list[Piece]:
        """The rooms on the device, as large as any plan so far needs them."""
        if self.room and not (self.rooms and self.rooms[0].size >= self.room):
            self.rooms = [self.device.heap.take(self.room) for _ in range(ROOMS)]
        return self.rooms

    def on_device(self, value: Value, array: np.ndarray) -> DeviceArray:
        """A weight that stays on the device, copied there when it is first read."""
        before, found = self._there.get(value, (None, None))
        if found is None or before is not array:
            found = self.device.given(np.asarray(array))
            self._there[value] = array, found
        return found


class _Kept(np.ndarray):
    """An array that keeps the memory it lies in."""

    memory: Any

    def __new__(cls, array: np.ndarray, memory: Pinned) -> _Kept:
        made = array.view(cls)
        made.memory = memory
        return made

    def __array_finalize__(self, base: Any) -> None:
        self.memory = getattr(base, "memory", None)


def comes_in(kind: TensorType) -> bool:
    """Whether a weight may lie with the host, as far as kernels read it at all."""
    return is_streamed(kind) and holds(kind)


class Pace:
    """One plan's way through the weights: a run is asked for within it, segment by segment."""

    def __init__(self, schedule: Schedule, inflow: Inflow) -> None:
        self.schedule, self.inflow = schedule, inflow
        filled = [n for n, window in enumerate(schedule.windows) if window]
        self.number = {segment: turn % ROOMS for turn, segment in enumerate(filled)}
        """Which room a segment's weights are brought to."""
        self.offsets = [_offsets(window) for window in schedule.windows]
        self.coming = {v for window in schedule.windows for v in window}

    @property
    def rooms(self) -> list[Piece]:
        """Where weights come to; another list once they are larger."""
        return self.inflow.rooms

    def __enter__(self) -> None:
        self.inflow.running.acquire()

    def __exit__(self, *error: object) -> None:
        self.inflow.running.release()

    def settle(
        self, given: Mapping[Value, Any], places: Mapping[Value, Place], segments: list[Segment]
    ) -> dict[Value, Any]:
        """Lets launches know where weights will be; gives those that are on the device for good."""
        rooms = self.inflow.make_rooms()
        for segment, room in self.number.items():
            for value, offset in self.offsets[segment].items():
                if value in places:
                    places[value].move(rooms[room].pointer + offset, segments[segment].changed)
        there: dict[Value, Any] = {}
        for value, array in given.items():
            if not isinstance(array, _Kept):
                there[value] = array
            elif value in self.inflow.resident:
                there[value] = self.inflow.on_device(value, array)
            elif value in places and value not in self.coming:
                places[value].move(array.ctypes.data)  # a table: read where it is
        return there

    def bring(self, segment: int, given: Mapping[Value, Any], stream: Stream) -> None:
        """Copies a segment's weights to the device, before what comes next on a stream."""
        room = self.number.get(segment)
        if room is None:
            return
        inflow = self.inflow
        inflow.copies.wait_for(inflow.used[room])
        base = inflow.rooms[room].pointer
        for value, offset in self.offsets[segment].items():
            array = given[value]
            inflow.copies.upload(base + offset, array.ctypes.data, array.nbytes)
        inflow.arrived[room].record(inflow.copies)
        stream.wait_for(inflow.arrived[room])

    def leave(self, segment: int, stream: Stream) -> None:
        """Lets others have the room once all that was asked of the stream is done."""
        room = self.number.get(segment)
        if room is not None:
            self.inflow.used[room].record(stream)


def _offsets(window: Sequence[Value]) -> dict[Value, int]:
    """Where the weights of a window lie in a room."""
    offsets, end = {}, 0
    for value in window:
        offsets[value] = end
        end += aligned(nbytes(value.tensor))
    return offsets
