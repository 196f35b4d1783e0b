"""The levels of x86 processors that tests hold this one down to."""

from __future__ import annotations

import pytest

from whet.errors import DeviceError
from whet.targets.cpu import host
from whet.targets.cpu.architecture import Architecture

LEVELS = ("avx512", "avx2", "sse2")


def architecture(level: str) -> Architecture:
    """This processor held down to a level; skips the test where it has less."""
    try:
        return host.architecture(level)
    except DeviceError as error:
        pytest.skip(str(error))
