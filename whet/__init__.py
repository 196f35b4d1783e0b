"""whet makes a trained network run as fast as the machine it lands on allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whet.errors import Cancelled, Error
from whet.progress import ProgressMonitor

if TYPE_CHECKING:
    from whet.engine.validity import Validity
    from whet.runtime.build import build
    from whet.runtime.cache import Cache
    from whet.runtime.engine import Engine, engine_validity, load, session
    from whet.runtime.memory import Arena
    from whet.runtime.profile import Profile
    from whet.runtime.session import Session

__all__ = [
    "Arena",
    "Cache",
    "Cancelled",
    "Engine",
    "Error",
    "Profile",
    "ProgressMonitor",
    "Session",
    "Validity",
    "build",
    "engine_validity",
    "load",
    "session",
]

_PLACES = {
    "Arena": "memory",
    "Cache": "cache",
    "Engine": "engine",
    "Profile": "profile",
    "Session": "session",
    "Validity": "engine",
    "build": "build",
    "engine_validity": "engine",
    "load": "engine",
    "session": "engine",
}


def __getattr__(name: str) -> Any:
    # Loaded when first asked for, so that `import whet` costs next to nothing.
    if name not in _PLACES:
        raise AttributeError(f"module 'whet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"whet.runtime.{_PLACES[name]}"), name)
