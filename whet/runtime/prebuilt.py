"""Code that an engine brings along for another processor or GPU than the one at hand.

What was made for less runs on more, in plans of its own. On a CPU it is only what a session begins
with: once it has run a few times, kernels for the processor itself are made in the background, and
take over between two runs; the next start finds these in the cache.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

from whet.errors import Error
from whet.plan.target import Device, RangeDevice

if TYPE_CHECKING:
    from whet.runtime.program import Runner
    from whet.runtime.session import Session

logger = logging.getLogger("whet")

RUNS = 2
"""Runs after which better kernels are made: whoever runs an engine once has no use for them."""


def nearest(names: Iterable[str], here: Any, parse: Callable[[str], Any]) -> Any:
    """Of the architectures that code is there for, the one to be used on a device: its own, or else
    the best of those whose code it runs; None where there is none."""
    found = []
    for name in names:
        try:
            architecture = parse(name)
        except Error:
            continue  # of another target, or of a later version of whet
        if architecture == here:
            return here
        if here.runs(architecture):
            found.append(architecture)
    return max(found, key=lambda architecture: architecture.likeness, default=None)


def mark(device: Device, kernels: Collection[str]) -> str:
    """What a device's cache knows by that its own kernels took the place of such prebuilt ones."""
    digest = blake2b("\n".join(sorted(kernels)).encode(), digest_size=20).hexdigest()
    return device.key(f"in the place of prebuilt kernels\n{digest}")  # type: ignore[arg-type]


def can_compile() -> bool:
    """Whether there is a compiler for the processor."""
    try:
        return importlib.util.find_spec("llvmlite") is not None
    except ValueError:  # what stands in its place has no origin
        return False


class Better:
    """What takes over from a session's first runner, made when the session has run a few times."""

    def __init__(
        self, device: Device, make: Callable[[], Runner], kernels: Collection[str]
    ) -> None:
        self._device, self._make, self._kernels = cast(RangeDevice, device), make, kernels
        self._runs, self._lock = 0, threading.Lock()

    def note_run(self, session: Session) -> None:
        """Is told of each run."""
        with self._lock:
            self._runs += 1
            is_due = self._runs == RUNS
        if is_due:
            reference = weakref.ref(session)  # one that is dropped meanwhile wants no kernels
            self._device.later(lambda: self._take_over(reference))

    def _take_over(self, reference: weakref.ref[Session]) -> None:
        session = reference()
        if session is None:
            return
        before = session._runner
        del session
        device, runner = self._device, self._make()
        if device.cache is not None:
            device.cache.put(mark(device, self._kernels), b"1", device.about)
        if (session := reference()) is not None:
            session.use(runner, before)
            logger.info("kernels for %s took over from prebuilt ones", device.architecture)
