"""Launches in any order that their edges allow leave the same in memory."""

from __future__ import annotations

import numpy as np
import pytest

from whet.targets.cuda.order import Span, Use, predecessors

SIZE = 40


def drawn(rng: np.random.Generator, count: int) -> tuple[Span, ...]:
    found: list[Span] = []
    for _ in range(count):
        start, length = int(rng.integers(SIZE - 8)), int(rng.integers(1, 8))
        found.append(("arena", start, start + length))
    return tuple(found)


@np.errstate(over="ignore")
def after(uses: list[Use], order: list[int]) -> np.ndarray:
    """Memory after launches that each mix what they read into all that they write."""
    memory = np.arange(SIZE, dtype=np.uint64)
    for number in order:
        mixed = np.uint64(number + 1)
        for _, start, end in uses[number].reads:
            for x in memory[start:end]:
                mixed = mixed * np.uint64(0x9E3779B97F4A7C15) ^ x
        for at, (_, start, end) in enumerate(uses[number].writes):
            memory[start:end] = mixed + np.arange(at, at + end - start, dtype=np.uint64)
    return memory


def any_order(rng: np.random.Generator, before: list[tuple[int, ...]]) -> list[int]:
    done: list[int] = []
    while len(done) < len(before):
        ready = [n for n, b in enumerate(before) if n not in done and set(b) <= set(done)]
        done.append(int(rng.choice(ready)))
    return done


@pytest.mark.parametrize("seed", range(20))
def test_any_order_gives_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    uses = [
        Use(drawn(rng, int(rng.integers(3))), drawn(rng, int(rng.integers(1, 3))))
        for _ in range(24)
    ]
    before = predecessors(uses)
    want = after(uses, list(range(len(uses))))
    for _ in range(10):
        assert (after(uses, any_order(rng, before)) == want).all()


def test_branches_are_free_and_edges_few() -> None:
    def at(n: int) -> tuple[Span, ...]:
        return (("arena", n, n + 1),)

    uses = [Use((), at(0)), Use(at(0), at(1)), Use(at(0), at(2)), Use((*at(1), *at(2)), at(3))]
    assert predecessors(uses) == [(), (0,), (0,), (2, 1)]
    reused = [*uses[:2], Use(at(0), at(1)), Use(at(1), at(3))]
    assert predecessors(reused) == [(), (0,), (1,), (2,)], "who writes where another reads waits"
    assert predecessors([Use((), (("scratch", 0, 1),))] * 2) == [(), (0,)]
