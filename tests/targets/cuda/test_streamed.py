"""Weights that lie with the host and come to a GPU ahead of their kernels, on a GPU that is not
there; and memory for runs that the caller gives."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.models import LAYERS, MEBI, WIDTH, layers
from tests.runtime.test_stream import feeds
from tests.targets.cuda.stub import stubbed
from tests.targets.cuda.stub_driver import Driver
from whet.errors import InvalidSetting, OutOfMemory
from whet.targets.cuda.driver import Context


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as driver:
        yield driver


def opened(engine: whet.Engine, **options: Any) -> whet.Session:
    return engine.session(device="cuda", cache=False, **options)


@pytest.mark.parametrize("budget", ["25%", "50%", 5 * MEBI, "2.5M", "100%", "auto", 0])
def test_the_results_are_the_same(gpu: Driver, budget: int | str) -> None:
    engine = whet.build(layers())
    want = [opened(engine).run(feeds(seed))["y"] for seed in range(3)]
    session = opened(engine, weight_budget=budget)
    for seed in (0, 1, 2, 0):
        np.testing.assert_array_equal(session.run(feeds(seed))["y"], want[seed])


def test_the_budget_bounds_what_is_on_the_device(gpu: Driver) -> None:
    engine = whet.build(layers())
    budget = LAYERS * MEBI // 4
    session = opened(engine, weight_budget=budget)
    for seed in range(3):
        session.run(feeds(seed))
    arena = 4 << 20  # and what inputs and outputs pass through, in whole blocks
    assert session.weight_budget == budget and budget // 2 < gpu.used <= budget + arena
    assert session.memory.weights >= LAYERS * MEBI and session.memory.resident == budget


def test_windows_take_turns_in_two_rooms(gpu: Driver) -> None:
    """Kernels of the window before may still read the other."""
    session = opened(whet.build(layers()), weight_budget="40%")
    session.run(feeds())
    (stage,) = session._runner._compiled
    turns = list(stage.program.pace.number.values())  # type: ignore[attr-defined]
    assert len(turns) >= 4 and all(a != b for a, b in pairwise(turns))


def test_weights_are_exchanged(gpu: Driver) -> None:
    engine = whet.build(layers())
    session = opened(engine, weight_budget="40%")
    session.run(feeds())
    engine.refit(layers(seed=7))
    want = opened(whet.build(layers(seed=7))).run(feeds())["y"]
    for _ in range(2):
        np.testing.assert_array_equal(session.run(feeds())["y"], want)


def test_rows_of_a_table_are_read_where_it_is(gpu: Driver) -> None:
    engine = whet.build(layers(table=2000))
    ids = {"ids": np.array([3, 1999, 0, 3])}
    want = opened(engine).run(ids)["y"]
    session = opened(engine, weight_budget="20%")
    np.testing.assert_array_equal(session.run(ids)["y"], want)


def test_open_sizes_and_threads(gpu: Driver) -> None:
    """Programs of several sizes share the rooms, which grow; runs are asked for one by one."""
    engine = whet.build(layers(rows="n"))
    session, whole = opened(engine, weight_budget="30%"), opened(engine)
    xs = [np.random.default_rng(n).standard_normal((n, WIDTH), np.float32) for n in (1, 4, 2, 1)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: session.run({"x": x})["y"], xs * 3))
    for got, x in zip(found, xs * 3):
        np.testing.assert_array_equal(got, whole.run({"x": x})["y"])
    assert session.memory.resident < session.memory.weights


def test_a_bad_budget_is_refused(gpu: Driver) -> None:
    with pytest.raises(InvalidSetting, match="weight_budget"):
        opened(whet.build(layers()), weight_budget="lots")


class Given:
    """Another library's memory on the device."""

    def __init__(self, gpu: Driver, size: int, offset: int = 0) -> None:
        with Context.of(0):
            _, self.pointer = gpu.cuMemAlloc(size + 256)
        self.pointer, self.nbytes = self.pointer + offset, size

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.pointer, False)}


def test_an_allocator_gives_the_memory_of_runs(gpu: Driver) -> None:
    engine, asked = whet.build(layers()), list[int]()
    want = opened(engine).run(feeds())["y"]

    def allocate(nbytes: int) -> Given:
        asked.append(nbytes)
        return Given(gpu, nbytes)

    session = opened(engine, allocator=allocate)
    np.testing.assert_array_equal(session.run(feeds())["y"], want)
    session.run(feeds())
    assert asked == [session.memory.arena]
    numbers = opened(engine, allocator=lambda nbytes: Given(gpu, nbytes).pointer)
    np.testing.assert_array_equal(numbers.run(feeds())["y"], want)


def test_an_arena_on_the_device(gpu: Driver) -> None:
    engine = whet.build(layers())
    want = opened(engine).run(feeds())["y"]
    arena = whet.Arena(Given(gpu, 1 << 20, offset=64))
    assert arena.size <= 1 << 20
    sessions = [opened(engine, allocator=arena) for _ in range(2)]
    for session in sessions:
        np.testing.assert_array_equal(session.run(feeds())["y"], want)
    assert arena.used == sum(session.memory.arena for session in sessions)
    small = whet.Arena(Given(gpu, 512))
    with pytest.raises(OutOfMemory, match="the arena of"):
        opened(engine, allocator=small).run(feeds())


def test_what_is_no_memory_of_the_device_is_refused(gpu: Driver) -> None:
    engine = whet.build(layers())
    for bad in (lambda n: np.empty(n, np.uint8), lambda n: Given(gpu, n, 8), lambda n: "room"):
        with pytest.raises(InvalidSetting, match="allocator"):
            opened(engine, allocator=bad).run(feeds())
    with pytest.raises(InvalidSetting, match="bytes"):
        opened(engine, allocator=lambda n: Given(gpu, n // 2)).run(feeds())
    with pytest.raises(OutOfMemory):
        opened(engine, allocator=lambda n: None).run(feeds())
