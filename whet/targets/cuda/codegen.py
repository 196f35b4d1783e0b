"""Kernels to Triton text."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path

from whet.plan.kernel import Kernel, Loops
from whet.targets.cuda import loops
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import Source
from whet.targets.cuda.templates import TEMPLATES


@cache
def version() -> str:
    """Part of every cache key: a digest of this folder's sources, since any change may give other
    code."""
    digest = blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def to_triton(kernel: Kernel, architecture: Architecture) -> Source:
    """The Triton functions that run a kernel, and how they are launched."""
    if isinstance(kernel, Loops):
        return loops.generate(kernel, architecture)
    source: Source = TEMPLATES[type(kernel.op)].generate(kernel, architecture)
    return source
