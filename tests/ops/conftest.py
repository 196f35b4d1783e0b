"""Thousands of small networks, each compiled anew: here, and by no other process."""

from collections.abc import Iterator

import pytest

from whet.targets.cpu import workers


@pytest.fixture(autouse=True, scope="module")
def no_processes() -> Iterator[None]:
    """A process that starts takes a second of a processor that another test has use for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "MOST_WORKERS", 0)
        yield
