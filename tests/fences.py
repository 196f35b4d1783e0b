"""Arrays that end where memory does: a kernel that reads beyond one ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.targets.cpu import host

NO_ACCESS = 0


def fenced(array: NDArray[Any]) -> NDArray[Any]:
    """A copy in front of a page that nobody may touch; text stays as it is."""
    if array.dtype.hasobject:
        return array
    end = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, end + mmap.PAGESIZE), np.uint8)
    fence = ctypes.c_void_p(memory.ctypes.data + end)
    assert host.libc().mprotect(fence, ctypes.c_size_t(mmap.PAGESIZE), NO_ACCESS) == 0
    copy = memory[end - array.nbytes : end].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
