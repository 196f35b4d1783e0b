"""Ctrl-C: raised in whet's own code, never in the middle of a module that is being imported, nor
where an object ends.

Native modules run Python while they start and few of them expect it to fail: an interrupt there may
end in a fault, in another error, or in nothing at all. What `__del__` raises is only printed.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

AGAIN = 0.02
"""Seconds until an interrupt that came at such a moment is raised again."""
IMPORTERS = ("importlib._bootstrap", "_frozen_importlib")


def just_end() -> None:
    """From now on Ctrl-C ends the process at once: for as long as there is nothing to undo."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else nobody wants it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt on the main thread, or soon, where that is at
    something that must not be interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _must_go_on(frame):
        raise KeyboardInterrupt
    later = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()


def _must_go_on(frame: FrameType | None) -> bool:
    while frame is not None:
        is_import = frame.f_globals.get("__name__") in IMPORTERS
        if is_import or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
