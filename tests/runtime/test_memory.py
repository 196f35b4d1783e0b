"""Memory of sessions: known beforehand, and the caller's where it wants that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.models import convolutions
from tests.runtime.test_refit import inputs_of
from whet.errors import InvalidSetting, OutOfMemory
from whet.runtime.ahead import plan_ahead


def aligned(nbytes: int) -> np.ndarray:
    memory = np.full(nbytes + 64, 0xA5, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:nbytes]


@pytest.fixture(scope="module")
def engine() -> whet.Engine:
    return whet.build(convolutions())


def test_an_allocator_is_asked_for_what_was_planned(engine: whet.Engine) -> None:
    asked = []

    def allocate(nbytes: int) -> np.ndarray:
        asked.append(nbytes)
        return aligned(nbytes)

    options: dict[str, Any] = {"device": "cpu", "cache": False}
    session, plain = engine.session(**options, allocator=allocate), engine.session(**options)
    assert asked == [], "planned and compiled, but not run"
    planned = plan_ahead(engine.graph, session._runner.device)
    assert session.memory.arenas == (planned.arena,) and planned.arena > 0
    feeds = inputs_of(engine)
    for _ in range(3):
        np.testing.assert_array_equal(session.run(feeds)["y"], plain.run(feeds)["y"])
    assert asked == [planned.arena]
    assert session.memory.weights == session.memory.resident > 0


def test_two_sessions_take_turns_in_one_arena(engine: whet.Engine) -> None:
    other = whet.build(convolutions(seed=3, channels=16))
    engines, options = (engine, other), {"device": "cpu", "cache": False}
    need = max(e.session(**options).memory.arena for e in engines)  # type: ignore[arg-type]
    arena = whet.Arena(aligned(need))
    assert arena.size == need
    for e in engines:
        session = e.session(**options, allocator=arena)  # type: ignore[arg-type]
        feeds = inputs_of(e)
        want = e.session(**options).run(feeds)["y"]  # type: ignore[arg-type]
        np.testing.assert_array_equal(session.run(feeds)["y"], want)
        assert 0 < arena.used <= need
        arena.reset()


def test_an_arena_that_is_too_small(engine: whet.Engine) -> None:
    need = engine.session(device="cpu", cache=False).memory.arena
    session = engine.session(device="cpu", cache=False, allocator=whet.Arena(need // 2))
    with pytest.raises(OutOfMemory, match=f"a run needs {need:,}"):
        session.run(inputs_of(engine))


def test_a_run_after_one_that_got_no_memory(engine: whet.Engine) -> None:
    asked: list[int] = []

    def allocate(nbytes: int) -> np.ndarray | None:
        asked.append(nbytes)
        return None if len(asked) == 1 else aligned(nbytes)

    session = engine.session(device="cpu", cache=False, allocator=allocate)
    feeds = inputs_of(engine)
    with pytest.raises(OutOfMemory):
        session.run(feeds)
    # It must ask again before a kernel runs: it would write to where no memory is.
    executable: Any = session._runner.stage(session.graph, {}).program.executable
    assert executable._free[-1].bound is None
    want = engine.session(device="cpu", cache=False).run(feeds)
    np.testing.assert_array_equal(session.run(feeds)["y"], want["y"])
    assert len(asked) == 2


def test_runs_at_once_have_pieces_of_their_own(engine: whet.Engine) -> None:
    need = engine.session(device="cpu", cache=False).memory.arena
    arena = whet.Arena(aligned(4 * need))
    session = engine.session(device="cpu", cache=False, allocator=arena)
    feeds = [inputs_of(engine, seed) for seed in range(40)]
    want = [session.run(f)["y"] for f in feeds]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda f: session.run(f)["y"], feeds), want):
            np.testing.assert_array_equal(got, expected)
    assert arena.used <= 4 * need


@pytest.mark.parametrize(
    "give, error",
    [
        (lambda n: None, OutOfMemory),
        (lambda n: aligned(n - 64), InvalidSetting),
        (lambda n: aligned(n + 64)[1 : n + 1], InvalidSetting),
        (lambda n: bytes(n), InvalidSetting),
        (lambda n: "memory", InvalidSetting),
    ],
)
def test_what_is_no_memory_is_refused(engine: whet.Engine, give: Any, error: type) -> None:
    session = engine.session(device="cpu", cache=False, allocator=give)
    with pytest.raises(error):
        session.run(inputs_of(engine))


def test_a_profile_tells_how_much_all_of_its_sizes_take() -> None:
    shapes = ({"x": (n, 3, 16, 16)} for n in (1, 2, 8))
    engine = whet.build(convolutions(batch="batch"), profiles=whet.Profile(*shapes))
    options: dict[str, Any] = {"device": "cpu", "cache": False, "specialize": "none"}
    foreseen = engine.session(**options).memory.arena
    arena = whet.Arena(foreseen + 64)  # for memory that does not begin at a multiple of 64
    session = engine.session(**options, allocator=arena)
    for batch in (1, 2, 4, 8, 1):
        session.run({"x": np.ones((batch, 3, 16, 16), np.float32)})
    assert 0 < foreseen == session.memory.arena == arena.used

    small = whet.Arena(foreseen // 2)  # enough for small sizes
    session = engine.session(**options, allocator=small)
    session.run({"x": np.ones((1, 3, 16, 16), np.float32)})
    with pytest.raises(OutOfMemory):
        session.run({"x": np.ones((8, 3, 16, 16), np.float32)})


def test_without_a_profile_memory_is_what_runs_took() -> None:
    session = whet.build(convolutions(batch="batch")).session("cpu", cache=False)
    assert session.memory.arena == 0
    session.run({"x": np.ones((4, 3, 16, 16), np.float32)})
    assert session.memory.arena > 0
