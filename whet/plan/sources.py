"""A digest of parts of whet's own sources: what they made is of use to the same ones only."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

SHARED = ("ir", "ops", "plan")
"""What plans and kernels of every target are made with: a kernel's text says what it computes, and
not all of how, such as the arithmetic of a recurrent step."""


@cache
def digest(target: str) -> str:
    """The digest of all sources that plans and kernels are made with, of a target's folder in the
    package, such as "targets/cpu", and of what targets share."""
    found = blake2b(digest_size=8)
    for folder in (*SHARED, target):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()
