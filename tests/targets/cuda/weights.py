"""Weights that come from the host, memory that the caller gives, code for other GPUs: checks for a
machine that has one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

import whet
from tests.runtime.models import LAYERS, MEBI, WIDTH, layers
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.device import Device

BUDGETS = ("100%", "50%", "25%", "10%")


def drawn(seed: int, rows: int = 4) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)}


def opened(engine: whet.Engine, **options: Any) -> whet.Session:
    return engine.session(device="cuda", cache=False, **options)


def the_same_bits_at_every_budget() -> None:
    import torch

    engine = whet.build(layers())
    plain = opened(engine)
    want = [plain.run(drawn(seed))["y"] for seed in range(4)]
    stream = torch.cuda.Stream()
    for budget in BUDGETS:
        session = opened(engine, weight_budget=budget)
        for turn in range(40):
            np.testing.assert_array_equal(session.run(drawn(turn % 4))["y"], want[turn % 4])
        # Asked for one after the other, with nobody waiting in between.
        with torch.cuda.stream(stream):
            xs = [torch.from_numpy(drawn(n % 4)["x"]).cuda() for n in range(40)]
            ys = [torch.from_dlpack(session.run({"x": x}, stream=stream)["y"]) for x in xs]
        stream.synchronize()
        for turn, y in enumerate(ys):
            np.testing.assert_array_equal(y.cpu().numpy(), want[turn % 4])


def four_times_the_budget() -> None:
    engine = whet.build(layers())
    context = Device().context
    before = context.free_bytes()
    session = opened(engine, weight_budget=LAYERS * MEBI // 4)
    session.run(drawn(0))
    taken = before - context.free_bytes()
    assert taken < LAYERS * MEBI * 3 // 4 + 8 * MEBI, f"{taken:,} bytes of the device are taken"


def weights_are_exchanged_under_way() -> None:
    engine = whet.build(layers())
    session = opened(engine, weight_budget="30%")
    wants = [opened(whet.build(layers(seed=s))).run(drawn(1))["y"] for s in (0, 5)]
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(60):
            y = session.run(drawn(1))["y"]
            if not any(np.array_equal(y, want) for want in wants):
                wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.refit(layers(seed=5))
    for thread in threads:
        thread.join()
    assert not wrong, "a run saw some of the old weights and some of the new"
    np.testing.assert_array_equal(session.run(drawn(1))["y"], wants[1])


def rows_of_a_table() -> None:
    engine = whet.build(layers(table=4000))
    ids = {"ids": np.array([3, 3999, 0, 3])}
    want = opened(engine).run(ids)["y"]
    session = opened(engine, weight_budget="20%")
    np.testing.assert_array_equal(session.run(ids)["y"], want)


def memory_of_the_callers() -> None:
    import torch

    engine = whet.build(layers())
    want = opened(engine).run(drawn(2))["y"]
    asked: list[int] = []

    def allocate(nbytes: int) -> Any:
        asked.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8, device="cuda")

    session = opened(engine, allocator=allocate)
    np.testing.assert_array_equal(session.run(drawn(2))["y"], want)
    assert asked == [session.memory.arena]
    arena = whet.Arena(torch.empty(8 * MEBI, dtype=torch.uint8, device="cuda"))
    for _ in range(2):
        np.testing.assert_array_equal(opened(engine, allocator=arena).run(drawn(2))["y"], want)
    assert arena.used


def code_for_fewer_multiprocessors() -> None:
    here = Device().architecture
    other = Architecture(here.major, here.minor, here.multiprocessors - 18)
    engine = whet.build(layers(), architectures=[str(other)])
    assert engine.kernels
    session = opened(engine)
    assert session.architecture == str(other) and session._runner.device.compiled == 0
    want = opened(whet.build(layers())).run(drawn(3))["y"]
    np.testing.assert_allclose(session.run(drawn(3))["y"], want, rtol=1e-4, atol=1e-4)


ALL = (
    the_same_bits_at_every_budget,
    four_times_the_budget,
    weights_are_exchanged_under_way,
    rows_of_a_table,
    memory_of_the_callers,
    code_for_fewer_multiprocessors,
)
