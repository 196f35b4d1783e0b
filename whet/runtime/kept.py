"""What takes long to make, made once for each key and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kept(dict[K, V]):
    """So many things by their keys; the oldest goes first.

    Who needs one that another thread is making waits for it, and for no other: what is compiled in
    the background, where nobody hurries, must not hold up a run that needs something else.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._making: dict[K, threading.RLock] = {}
        self._lock = threading.Lock()

    def made(self, key: K, make: Callable[[], V]) -> V:
        """The one under a key, made now where there is none."""
        with self._lock:
            if key in self:
                return self[key]
            turn = self._making.setdefault(key, threading.RLock())
        with turn:
            with self._lock:
                if key in self:  # another thread was sooner
                    return self[key]
            try:
                found = make()
                with self._lock:
                    self[key] = found
                    while len(self) > self.most:
                        del self[next(iter(self))]
            finally:
                self._making.pop(key, None)
            return found
