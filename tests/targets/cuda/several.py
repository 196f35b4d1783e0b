"""Several GPUs in one process: checks for a machine that has at least two.

`python -m tests.targets.cuda.several NAME` runs one of those that spoil a GPU for its process.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

import whet
from tests.targets.cuda import libraries
from tests.targets.cuda.exchange import close, drawn, engine, modules
from tests.targets.cuda.faults import apart, said, session_with_a_fault
from whet.errors import InvalidInput, InvalidSetting
from whet.ir.sizes import symbol
from whet.targets.cuda import driver
from whet.targets.cuda.driver import Context

SLACK = 4 << 20
"""Bytes that the driver may take or give back by itself."""

SHAPE = 1, 192, 17, 17
"""Of what `modules` takes."""


def missing() -> str:
    """Why nothing can be checked here; "" where it can."""
    there = driver.count()
    return "" if there > 1 else f"these take two GPUs, and there are {there}"


def opened(made: whet.Engine, number: int, **options: Any) -> whet.Session:
    return made.session(device=f"cuda:{number}", cache=False, **options)


def other() -> Any:
    """PyTorch, whose current device is the first one, and stays that."""
    import torch

    assert torch.cuda.current_device() == 0, "PyTorch's current device has changed"
    return torch


def pointer_of(session: whet.Session) -> int:
    """Where the last run of a session found its first input."""
    (stage,) = session._runner._compiled
    return int(stage.program.executable._free[-1].inputs[0].pointer)  # type: ignore[attr-defined]


def bits(result: Any) -> np.ndarray:
    return np.asarray(result["y"]).view("u2")


def the_second_and_auto() -> None:
    made, x = engine(64, 64), drawn(1, 64, 64)
    for name, number in (("cuda:1", 1), ("auto", 0), ("cuda", 0), ("cuda:0", 0)):
        session = made.session(device=name, cache=False)
        assert session._runner.device.number == number  # type: ignore[attr-defined]
        close(session.run({"x": x})["y"], x)
        close(session.run({"x": other().from_numpy(x).to(f"cuda:{number}")})["y"], x)
        other()


def at_the_same_time() -> None:
    """The bits of one run after the other, from several threads on both GPUs."""
    made = whet.build(modules())
    sessions = [opened(made, n, tune=0) for n in (0, 1)]
    draws = [{"x": drawn(seed, *SHAPE)} for seed in range(10)]
    want = [[bits(s.run(x)) for x in draws] for s in sessions]
    for first, second in zip(*want):
        np.testing.assert_array_equal(first, second, "the same kernels on two GPUs")
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                for x, expected in zip(draws, want[number]):
                    np.testing.assert_array_equal(bits(sessions[number].run(x)), expected)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def by_turns_on_one_thread() -> None:
    made = whet.build(modules())
    sessions = [opened(made, n) for n in (0, 1)]
    want = [bits(s.run({"x": drawn(1, *SHAPE)})) for s in sessions]
    for _ in range(20):
        for session, expected in zip(sessions, want):
            np.testing.assert_array_equal(bits(session.run({"x": drawn(1, *SHAPE)})), expected)
    other()


def tensors_are_taken_as_they_are() -> None:
    torch = other()
    session = opened(engine(64, 64), 1)
    for seed in range(5):
        x = drawn(seed, 64, 64)
        tensor = torch.from_numpy(x).to("cuda:1") * 1
        y = session.run({"x": tensor})["y"]
        assert pointer_of(session) == tensor.data_ptr(), "the input was copied"
        got = torch.from_dlpack(y)
        assert got.device.index == 1 and got.data_ptr() == y.pointer
        close((got * 1).cpu().numpy(), x)
        other()


def tensors_of_the_wrong_gpu_are_refused() -> None:
    torch = other()
    made, x = engine(64, 64), drawn(1, 64, 64)
    sessions = [opened(made, n) for n in (0, 1)]
    results = [
        s.run({"x": torch.from_numpy(x).to(f"cuda:{n}")})["y"] for n, s in enumerate(sessions)
    ]
    for number, session in enumerate(sessions):
        wrong = torch.from_numpy(x).to(f"cuda:{1 - number}")
        for tensor in (wrong, results[1 - number]):
            try:
                session.run({"x": tensor})
            except InvalidInput as error:
                assert f"runs on cuda:{number}: copy it there" in str(error), error
            else:
                raise AssertionError("a tensor of another GPU was taken")
        close(session.run({"x": wrong.cpu()})["y"], x)
    other()


def on_a_callers_stream_of_the_second() -> None:
    torch = other()
    session, kept = opened(engine(64, 64), 1), []
    stream = torch.cuda.Stream(device=1)
    with torch.cuda.stream(stream):
        for seed in range(20):
            x = torch.from_numpy(drawn(seed, 64, 64)).pin_memory().to("cuda:1", non_blocking=True)
            y = session.run({"x": x}, stream=stream)["y"]
            assert pointer_of(session) == x.data_ptr(), "the input was copied"
            kept.append(torch.from_dlpack(y) * 1)
            x.zero_()  # after the run, since it is asked for later
    stream.synchronize()
    for seed, got in enumerate(kept):
        close(got.cpu().numpy(), drawn(seed, 64, 64))
    x = torch.from_numpy(drawn(3, 64, 64)).to("cuda:1")
    torch.cuda.synchronize(1)
    # Asked for while the first one is PyTorch's current device.
    for theirs in (stream, torch.cuda.default_stream(1), stream.cuda_stream):
        y = session.run({"x": x}, stream=theirs)["y"]
        close(torch.from_dlpack(y).cpu().numpy(), drawn(3, 64, 64))
        close(session.run({"x": x}, stream=theirs)["y"], drawn(3, 64, 64))
        z = session.run({"x": session.run({"x": x}, stream=theirs)["y"]})["y"]
        assert np.isfinite(np.asarray(z)).all()
        other()


def streams_of_the_wrong_gpu_are_refused() -> None:
    torch = other()
    session = opened(engine(64, 64), 1)
    x = torch.from_numpy(drawn(3, 64, 64)).to("cuda:1")
    torch.cuda.synchronize(1)
    try:
        session.run({"x": x}, stream=torch.cuda.Stream(device=0))
    except InvalidSetting as error:
        assert "is not one of cuda:1" in str(error), error
    else:
        raise AssertionError("a stream of another GPU was taken")
    close(session.run({"x": x})["y"], drawn(3, 64, 64))


def what_pytorch_has_asked_for_is_waited_for() -> None:
    """The second GPU's default stream, and not that of PyTorch's current device."""
    torch = other()
    session = opened(engine(64, 64), 1)
    x = torch.from_numpy(drawn(2, 64, 64)).to("cuda:1")
    session.run({"x": x})
    large = torch.randn(8192, 8192, device="cuda:1")
    for _ in range(5):
        late = torch.zeros_like(x)
        for _ in range(4):
            large @ large
        late += x
        close(session.run({"x": late})["y"], drawn(2, 64, 64))


def memory_of_the_other_is_untouched() -> None:
    contexts = [Context.of(n) for n in (0, 1)]
    for _ in range(3):  # another process may have begun or ended on the first meanwhile
        before = [c.free_bytes() for c in contexts]
        sessions = [opened(engine(4096, 4096), 1) for _ in range(2)]
        for session in sessions:
            session.run({"x": drawn(1, 4096, 4096)})
        after = [c.free_bytes() for c in contexts]
        if abs(before[0] - after[0]) < SLACK:
            break
    assert abs(before[0] - after[0]) < SLACK, f"{before[0] - after[0]} bytes of the first are gone"
    assert before[1] - after[1] > 2 * 4096 * 4096, "nothing was taken of the second"


def memory_comes_back() -> None:
    context = Context.of(1)

    def use() -> None:
        made = whet.build(modules(channels=384))
        sessions = [opened(made, 1), opened(made, 1, weight_budget="50%"), opened(made, 0)]
        for session in sessions:
            session.run({"x": drawn(1, 1, 384, 17, 17)})

    use()  # what a first session leaves is the driver's
    gc.collect()
    before = context.free_bytes()
    for _ in range(3):
        use()
        gc.collect()
    assert before - context.free_bytes() < SLACK, f"{before - context.free_bytes()} bytes are gone"


def weights_of_each() -> None:
    """A refit is one of the engine, and so of its sessions on all GPUs, and of no other engine."""
    made, apart_from_it = whet.build(modules(1)), whet.build(modules(1))
    sessions = [opened(made, 0, tune=0), opened(made, 1, tune=0)]
    alone = opened(apart_from_it, 1, tune=0)
    x = {"x": drawn(1, *SHAPE)}
    first = [bits(s.run(x)) for s in (*sessions, alone)]
    for found in first:
        np.testing.assert_array_equal(found, first[0])
    weights = {name: made.weights.array(name) for name in made.refittable_weights}
    halves = {
        name: (array * np.float16(0.5)).astype(array.dtype) for name, array in weights.items()
    }
    made.refit(halves)
    second = [bits(s.run(x)) for s in sessions]
    np.testing.assert_array_equal(second[0], second[1])
    assert (second[0] != first[0]).any(), "the refit changed nothing"
    np.testing.assert_array_equal(bits(alone.run(x)), first[0])
    del sessions[0]
    gc.collect()
    np.testing.assert_array_equal(bits(sessions[0].run(x)), second[0])


def weights_that_come_in() -> None:
    made, x = whet.build(modules()), {"x": drawn(1, *SHAPE)}
    want = bits(opened(made, 1, tune=0).run(x))
    session = opened(made, 1, tune=0, weight_budget="30%")
    for _ in range(3):
        np.testing.assert_array_equal(bits(session.run(x)), want)


def sizes_that_runs_tell() -> None:
    torch = other()
    n = symbol("n", 1)
    session = opened(engine(n, n), 1)  # type: ignore[arg-type]
    for turn in range(4):
        for size in (24, 64, 40):
            x = drawn(turn, size, size)
            close(session.run({"x": x})["y"], x)
            tensor = torch.from_numpy(x).to("cuda:1")
            torch.cuda.synchronize(1)
            stream = torch.cuda.default_stream(1)
            y = session.run({"x": tensor}, stream=stream)["y"]
            close(torch.from_dlpack(y).cpu().numpy(), x)
        while session._runner.device.background.is_busy:  # type: ignore[attr-defined]
            time.sleep(0.05)
    assert len(session.plans) == 1
    other()


def branches_that_overlap() -> None:
    made = whet.build(modules())
    judge = made.session("cpu", cache=False)
    session = opened(made, 1, tune=1.0)
    for seed in range(8):
        x = {"x": drawn(seed, *SHAPE)}
        want = judge.run(x)["y"].astype(float)
        got = session.run(x)["y"].astype(float)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-3 * np.abs(want).max())


def libraries_of_nvidia() -> None:
    """cuBLASLt and cuDNN, where they are, have a state of their own for each GPU."""
    for made in islice(libraries.problems(), 12):
        for number in (1, 0, 1):
            wrong, _ = libraries.check(made, 0, number)
            assert not wrong, f"{made.name} on cuda:{number}: {wrong}"


def a_session_that_ends_within_a_run_on_the_other() -> None:
    made, x = whet.build(modules()), {"x": drawn(1, *SHAPE)}
    others, session = [opened(made, 0, tune=0)], opened(made, 1, tune=0)
    want = bits(session.run(x))
    others[0].run(x)

    def look(*seen: Any) -> None:
        others.clear()
        gc.collect()

    session.trace(x, look)
    assert not others
    np.testing.assert_array_equal(bits(session.run(x)), want)
    other()


def a_fault_on(number: int) -> None:
    """Kernels of the other GPU go on, in sessions that were there and in new ones."""
    x = drawn(1, 64, 64)
    there = opened(engine(64, 64), 1 - number)
    close(there.run({"x": x})["y"], x)
    text = said(session_with_a_fault(f"cuda:{number}"))
    assert "a kernel failed" in text, text
    for session in (there, opened(engine(48, 48), 1 - number)):
        (shape,) = (kind.shape for kind in session.inputs.values())  # type: ignore[union-attr]
        for seed in range(5):
            x = drawn(seed, *map(int, shape))
            close(session.run({"x": x})["y"], x)


def a_fault_on_the_first() -> None:
    a_fault_on(0)


def a_fault_on_the_second() -> None:
    a_fault_on(1)


SPOILING = (a_fault_on_the_first, a_fault_on_the_second)

ALL: tuple[Callable[[], None], ...] = (
    the_second_and_auto,
    at_the_same_time,
    by_turns_on_one_thread,
    tensors_are_taken_as_they_are,
    tensors_of_the_wrong_gpu_are_refused,
    on_a_callers_stream_of_the_second,
    streams_of_the_wrong_gpu_are_refused,
    what_pytorch_has_asked_for_is_waited_for,
    memory_of_the_other_is_untouched,
    memory_comes_back,
    weights_of_each,
    weights_that_come_in,
    sizes_that_runs_tell,
    branches_that_overlap,
    libraries_of_nvidia,
    a_session_that_ends_within_a_run_on_the_other,
    *(apart(check, "tests.targets.cuda.several") for check in SPOILING),
)

if __name__ == "__main__":
    {check.__name__: check for check in SPOILING}[sys.argv[1]]()
