"""What tests of the target cuda need."""

from __future__ import annotations

import sys

import pytest

needs_triton = pytest.mark.skipif(
    sys.platform != "linux", reason="Triton, which compiles kernels for GPUs, is for Linux alone"
)
