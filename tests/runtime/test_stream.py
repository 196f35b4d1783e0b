"""Weights that stay in a file: the same results, and no more in memory than the budget."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.models import LAYERS, MEBI, WIDTH, layers
from whet.errors import IndexOutOfRange, InvalidSetting, OutOfMemory
from whet.targets.cpu import host

FAULT_AROUND = 64 << 10
"""Bytes around a page that Linux brings in with it where they are in its page cache."""

pytestmark = pytest.mark.skipif(host.system() != "linux", reason="looks into /proc")


def resident() -> int:
    """Bytes of streamed weights that are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            ours = "/whet-weights-" in line or "(deleted)" in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def feeds(seed: int = 1) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((4, WIDTH)).astype(np.float32)}


class Watch:
    """Looks at the memory while a block runs."""

    def __enter__(self) -> Watch:
        gc.collect()
        self.most, self.before, self._stop = 0, resident(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.is_set():
            self.most = max(self.most, resident() - self.before)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("budget", ["25%", "50%", 5 * MEBI, "2.5M", "100%", "auto"])
def test_the_results_are_the_same(budget: int | str, tmp_path: Path) -> None:
    whet.build(layers()).save(tmp_path / "m.whet")
    engine = whet.load(tmp_path / "m.whet")
    options: dict[str, Any] = {"device": "cpu", "cache": False}
    want = engine.session(**options).run(feeds())["y"]
    session = engine.session(**options, weight_budget=budget)
    for _ in range(3):
        np.testing.assert_array_equal(session.run(feeds())["y"], want)


def test_runs_wait_for_each_other_only_where_weights_come_and_go() -> None:
    engine = whet.build(layers())
    for budget, waits in (("100%", False), ("40%", True)):
        session = engine.session(device="cpu", cache=False, weight_budget=budget)
        session.run(feeds())
        lock = session._runner.prepared.stream.running
        with lock, ThreadPoolExecutor(1) as pool:
            run = pool.submit(session.run, feeds())
            if waits:
                with pytest.raises(TimeoutError):
                    run.result(timeout=0.5)
                lock.release()
                run.result(timeout=60)
                lock.acquire()
            else:
                run.result(timeout=60)


def test_a_network_of_four_times_the_budget() -> None:
    engine = whet.build(layers())
    budget = LAYERS * MEBI // 4
    with Watch() as made:
        session = engine.session(device="cpu", cache=False, weight_budget=budget)
    with Watch() as watch:
        for seed in range(20):
            session.run(feeds(seed))
    # At its edges a weight may bring its neighbours in, which /proc counts until they are let go.
    assert 0 < watch.most <= budget + LAYERS * FAULT_AROUND
    assert made.most <= 17 * MEBI
    assert session.weight_budget == budget


def test_a_kernel_that_reads_more_than_the_budget_still_runs() -> None:
    engine = whet.build(layers())
    session = engine.session(device="cpu", cache=False, weight_budget=MEBI // 2)
    with Watch() as watch:
        session.run(feeds())
    assert session.weight_budget is not None and MEBI <= session.weight_budget < 1.2 * MEBI
    assert watch.most <= session.weight_budget + FAULT_AROUND


def test_rows_of_a_table_are_all_that_comes_in() -> None:
    engine = whet.build(layers(table=1 << 14))
    session = engine.session(device="cpu", cache=False, weight_budget=4 * MEBI)
    ids = {"ids": np.array([0, 5, 1000, 16000])}
    want = engine.session(device="cpu", cache=False).run(ids)["y"]
    with Watch() as watch:
        np.testing.assert_array_equal(session.run(ids)["y"], want)
    assert watch.most <= 4 * MEBI + (512 << 10)


def test_open_sizes_traces_and_errors() -> None:
    engine = whet.build(layers(table=1 << 12, rows="n"))
    options: dict[str, Any] = {"device": "cpu", "cache": False, "specialize": "none"}
    session, plain = engine.session(**options, weight_budget=4 * MEBI), engine.session(**options)
    rng = np.random.default_rng(0)
    with Watch() as watch:
        for n in (4, 1, 9, 4):
            ids = {"ids": rng.integers(0, 1 << 12, n)}
            np.testing.assert_array_equal(session.run(ids)["y"], plain.run(ids)["y"])
            session.trace(ids)
            with pytest.raises(IndexOutOfRange):
                session.run({"ids": np.array([1 << 12])})
    assert watch.most <= 5 * MEBI


def test_refit_and_many_callers() -> None:
    engine, other = whet.build(layers()), layers(seed=2)
    session = engine.session(device="cpu", cache=False, weight_budget="30%")
    plain = engine.session(device="cpu", cache=False)
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            for seed, y in zip(range(8), pool.map(lambda s: session.run(feeds(s))["y"], range(8))):
                np.testing.assert_array_equal(y, plain.run(feeds(seed))["y"])
        engine.refit(other)


@pytest.mark.parametrize("budget", ["much", "120%", -1, "-5M"])
def test_budgets_that_are_none(budget: int | str) -> None:
    with pytest.raises(InvalidSetting, match="weight_budget"):
        whet.build(layers()).session(device="cpu", cache=False, weight_budget=budget)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutOfMemory, match="left for weights"):
        whet.build(layers()).session(device="cpu", cache=False, weight_budget="50%")
