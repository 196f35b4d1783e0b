"""What is made once for each key: who waits for whom, and what of it stays."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.models import convolutions
from whet.runtime import program
from whet.runtime.kept import Kept


def test_one_is_made_and_all_wait_for_it_alone() -> None:
    kept: Kept[str, object] = Kept(4)
    begun, go, made = threading.Event(), threading.Event(), []

    def slow() -> object:
        begun.set()
        assert go.wait(30)
        made.append(object())
        return made[-1]

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(kept.made, "slow", slow) for _ in range(3)]
        assert begun.wait(30)
        assert kept.made("other", lambda: 5) == 5, "it needs nothing that is being made"
        go.set()
        found = {id(w.result(30)) for w in waiting}
    assert len(made) == 1 and found == {id(made[0])}


def test_what_failed_is_made_again_and_the_oldest_goes() -> None:
    kept: Kept[int, Any] = Kept(2)

    def fails() -> None:
        raise ValueError("not now")

    with pytest.raises(ValueError, match="not now"):
        kept.made(0, fails)
    for n in (0, 1, 2):
        assert kept.made(n, lambda n=n: kept.made(n + 10, lambda: n) if n == 1 else n) == n  # type: ignore[misc]
    assert list(kept) == [1, 2] and not kept._making


def test_a_run_does_not_wait_for_what_is_compiled_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = whet.build(convolutions(batch="n")).session("cpu", cache=False, specialize="eager")
    begun, go, drafted = threading.Event(), threading.Event(), program.drafted

    def held_up(graph: Any, *rest: Any) -> Any:
        if graph.inputs[0].shape[0] == 3:
            begun.set()
            assert go.wait(60)
        return drafted(graph, *rest)

    monkeypatch.setattr(program, "drafted", held_up)
    with ThreadPoolExecutor(2) as pool:
        try:
            slow = pool.submit(session.run, {"x": np.ones((3, 3, 16, 16), np.float32)})
            assert begun.wait(30)
            other = pool.submit(session.run, {"x": np.ones((2, 3, 16, 16), np.float32)})
            assert other.result(30)["y"].shape == (2, 10)
        finally:
            go.set()
        assert slow.result(30)["y"].shape == (3, 10)
