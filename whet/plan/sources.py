"""A digest of parts of whet's own sources: what they made is of use to the same ones only."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def digest(*folders: str) -> str:
    """The digest of all sources in folders of the package, such as "targets/cpu"."""
    found = blake2b(digest_size=8)
    for folder in folders:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()
