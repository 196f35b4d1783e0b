"""What graphs need of sizes and cannot prove: checked at each run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from whet.errors import ShapeError
from whet.ir.sizes import Size, substitute


@dataclass(frozen=True)
class Guard:
    """Two sizes that a node needs equal (or broadcastable: equal, or one of them 1), checked at
    each run."""

    left: Size
    right: Size
    node: str
    broadcast: bool = False

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raises ShapeError where the sizes of this run break the guard."""
        left, right = substitute(self.left, sizes), substitute(self.right, sizes)
        if left == right or (self.broadcast and 1 in (left, right)):
            return
        rule = "must be equal or 1" if self.broadcast else "must be equal"
        sides = (
            str(size) if isinstance(size, int) else f"{size} = {value}"
            for size, value in ((self.left, left), (self.right, right))
        )
        raise ShapeError(
            f'at node "{self.node}": {" and ".join(sides)}, as they are in this run, {rule}'
        )


_guards: ContextVar[list[Guard] | None] = ContextVar("guards", default=None)


@contextmanager
def collect_guards(into: list[Guard]) -> Iterator[None]:
    """Within it, what the Values that are made need of sizes is noted in `into`: each run checks
    it."""
    token = _guards.set(into)
    try:
        yield
    finally:
        _guards.reset(token)


def note_guards(guards: Iterable[Guard]) -> None:
    """Notes guards for who collects them. A Value keeps its own, for it is inferred only once."""
    if (collected := _guards.get()) is not None:
        collected.extend(guards)
