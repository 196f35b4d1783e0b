"""Who has the device to itself: runs, or a measurement between two of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from whet.targets.cuda.driver import Event, Stream


class Gate:
    """Lets a measurement wait for the run before it, and runs for the measurement, which is short.

    It is up only while something is measured: runs pay nothing for it otherwise.
    """

    def __init__(self) -> None:
        self.is_up = False
        self._lock = threading.RLock()  # a run may be part of another
        self._last: Event | None = None
        """Behind the last run that went through."""

    @contextmanager
    def up(self) -> Iterator[None]:
        """Within it, runs go through."""
        self._last, self.is_up = None, True
        try:
            yield
        finally:
            self.is_up = False

    @contextmanager
    def passing(self) -> Iterator[list[Stream]]:
        """Within it a run is asked for; it says on which stream it is."""
        streams: list[Stream] = []
        with self._lock:
            yield streams
            for stream in streams:
                self._last = self._last or Event()
                self._last.record(stream)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Within it no run is on the device."""
        with self._lock:
            if self._last is not None:
                self._last.synchronize()
            yield
