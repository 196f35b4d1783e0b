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
"""Seconds that runs and a measurement wait for each other at most: what is under way may wait in
its turn for a thread that is about to run something, such as what prepares weights."""
REST = 10 * PATIENCE
"""Seconds until a measurement that did not get the device asks for it again."""


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
        self._is_closed = False
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
                self._changed.wait_for(lambda: not self._is_closed, PATIENCE)
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
        while not self._close():
            if time.monotonic() > until:
                raise TimeoutError("runs leave no moment to measure in")
            time.sleep(REST)
        try:
            for event in list(self._behind.values()):
                event.synchronize()
            yield
        finally:
            self._open()

    def _close(self) -> bool:
        """Whether nobody is within any more: those who come meanwhile wait."""
        with self._changed:
            if self._is_closed:  # by another measurement
                return False
            self._is_closed = True
            if self._changed.wait_for(lambda: not self._runs, PATIENCE):
                return True
        self._open()
        return False

    def _open(self) -> None:
        with self._changed:
            self._is_closed = False
            self._changed.notify_all()
