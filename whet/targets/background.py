"""Kernels for later runs, compiled where nobody else wants the processor."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

from whet.errors import Error
from whet.plan.kernel import Kernel
from whet.targets.special import Special

logger = logging.getLogger("whet")


class Device(Protocol):
    """What compiles kernels."""

    def compile(self, kernels: Any, idle: bool = False) -> None: ...


Kernels = Sequence[Kernel | Special]
Wanted = Kernels | Callable[[], Kernels]
Task = tuple[Wanted, Callable[[], None]]

PAUSE = 0.01
"""Seconds between two pieces of work that hold the interpreter, which runs need as well."""

LINGER = 2.0
"""Seconds after which the thread ends when there is nothing to do."""


@cache
def _turn(process: int) -> threading.Lock:
    """One session's kernels at a time in a process, and a new lock in one that was forked."""
    return threading.Lock()


def give_way() -> None:
    """Lets runs on other threads go on, between two pieces of work."""
    time.sleep(PAUSE)


class Background:
    """Compiles kernels for a device in one idle process, a request after the other."""

    def __init__(self, device: Device) -> None:
        self._device = weakref.ref(device)
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open = 0
        """How much of what was asked for is not done yet."""

    @property
    def is_busy(self) -> bool:
        """Whether something is being done, or waits."""
        return self._open > 0

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in the background."""
        return self._thread is threading.current_thread()

    def compile(self, kernels: Wanted, then: Callable[[], None]) -> None:
        """Makes sure of the kernels' code, then calls `then`, both on another thread; there the
        kernels are asked for, too, where they are given as a function.

        What goes wrong is logged: whoever asked goes on without.
        """
        with self._lock:
            self._open += 1
            self._tasks.put((kernels, then))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="whet later", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            try:
                kernels, then = self._tasks.get(timeout=LINGER)
            except queue.Empty:
                with self._lock:
                    if not self._tasks.empty():
                        continue
                    self._thread = None
                    return
            device = self._device()
            if device is None:
                return
            try:
                with _turn(os.getpid()):
                    device.compile(kernels() if callable(kernels) else kernels, idle=True)
                then()
            except Exception as error:  # whatever it is, runs go on without, and so do tasks
                cause = None if isinstance(error, Error) else error
                # As text: a record that is kept would hold what the error's frames hold.
                said = "kernels for later runs are not there: %s"
                logger.warning(said, str(error), exc_info=cause)
            finally:
                del device, kernels, then  # who waits until all is done finds nothing held
                with self._lock:
                    self._open -= 1
