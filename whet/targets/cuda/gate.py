"""Who has the device to itself: runs, or a measurement between two of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar
from weakref import WeakKeyDictionary

from whet.targets.cuda.driver import Context, Event, Stream

PATIENCE = 0.02
"""Seconds that a run waits for a measurement at most: that may be waiting for a long run, and this
for a thread that is about to run something, such as what prepares weights."""
REST = 10 * PATIENCE
"""Seconds until a measurement that a run did not wait for asks for the device again."""


class Gate:
    """Lets a measurement wait for the runs before it, and runs for the measurement, which is short;
    runs do not wait for each other.

    It is up only while something is measured: runs pay nothing for it otherwise. What passes it out
    of turn makes a time longer, and nothing else.
    """

    _all: ClassVar[WeakKeyDictionary[Context, Gate]] = WeakKeyDictionary()
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.is_up = False
        self._measuring = 0
        self._closed_by = 0
        """The thread of a measurement that has the device, or waits for it."""
        self._changed = threading.Condition()
        self._runs: Counter[int] = Counter()
        """How many runs each thread is within: one may be part of another."""
        self._behind: dict[int, Event] = {}
        """Behind the last run that went through on each stream."""

    @classmethod
    def of(cls, context: Context) -> Gate:
        """The one of a GPU, for all that this process does on it."""
        with cls._lock:
            return cls._all.setdefault(context, Gate())

    @contextmanager
    def up(self) -> Iterator[None]:
        """Within it, runs go through."""
        self._measure(1)
        try:
            yield
        finally:
            self._measure(-1)

    def _measure(self, more: int) -> None:
        with self._changed:
            self._measuring += more
            self.is_up = self._measuring > 0

    @contextmanager
    def passing(self) -> Iterator[list[Stream]]:
        """Within it a run is asked for; it says on which stream it is."""
        here, streams = threading.get_ident(), list[Stream]()
        with self._changed:
            if not self._runs[here]:
                self._changed.wait_for(lambda: not self._closed_by, PATIENCE)
                self._open(self._closed_by)
            self._runs[here] += 1
        try:
            yield streams
            for stream in streams:
                if stream.number not in self._behind:
                    self._behind[stream.number] = Event()
                self._behind[stream.number].record(stream)
        finally:
            with self._changed:
                self._runs[here] -= 1
                if not self._runs[here]:
                    del self._runs[here]
                self._changed.notify_all()

    @contextmanager
    def closed(self, until: float = float("inf")) -> Iterator[None]:
        """Within it no run is on the device; raises TimeoutError where one has been at every look
        until some moment."""
        while not self._close(until):
            if time.monotonic() > until:
                raise TimeoutError("runs leave no moment to measure in")
            time.sleep(REST)
        try:
            for event in list(self._behind.values()):
                event.synchronize()
            yield
        finally:
            with self._changed:
                self._open(threading.get_ident())

    def _close(self, until: float) -> bool:
        """Keeps runs out, and says whether none is within now: one may have opened again."""
        here = threading.get_ident()
        with self._changed:
            if self._closed_by:  # another measurement
                return False
            self._closed_by = here
            left = min(max(until - time.monotonic(), 0), threading.TIMEOUT_MAX)
            self._changed.wait_for(lambda: not self._runs or self._closed_by != here, left)
            is_alone = not self._runs and self._closed_by == here
            if not is_alone:
                self._open(here)
            return is_alone

    def _open(self, closed_by: int) -> None:
        """Lets runs go through that a measurement of this thread kept out."""
        if closed_by and self._closed_by == closed_by:
            self._closed_by = 0
            self._changed.notify_all()
