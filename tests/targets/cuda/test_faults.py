"""What may be wrong with a GPU, its driver and what is given to it: each is a clear error."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.test_ranges import judged, transformer, words
from tests.targets.cuda import stub_driver
from tests.targets.cuda.needs import needs_triton
from tests.targets.cuda.stub import Tensor, TorchTensor, stubbed
from tests.targets.cuda.stub_driver import Driver, Status
from tests.targets.cuda.test_stubbed import W, check, drawn, model, on_device, open_session
from whet.cli import devices as doctor
from whet.errors import (
    CompileError,
    DeviceError,
    InvalidEngine,
    InvalidInput,
    InvalidSetting,
    OutOfMemory,
)
from whet.ir.sizes import maximum, symbol
from whet.knobs import knobs
from whet.runtime import devices
from whet.runtime.fit import misfit
from whet.targets.cuda import codegen, driver
from whet.targets.cuda import compile as compiling
from whet.targets.cuda.compile import Function, pack, unpack
from whet.targets.cuda.memory import Loan


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as found:
        yield found


@pytest.fixture
def gpus() -> Iterator[Driver]:
    with stubbed(devices=2) as found:
        yield found


def test_no_driver(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(flags: int) -> Any:
        raise RuntimeError("libcuda.so.1 is not found")

    monkeypatch.setattr(gpu, "cuInit", none, raising=False)
    with pytest.raises(DeviceError, match=r"no NVIDIA driver: libcuda\.so\.1 .*run on `cpu`"):
        open_session()


def test_no_binding(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"cuda-bindings .*pip install whet\[cuda\]"):
        open_session()


def test_a_driver_too_old(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.version = 11040
    with pytest.raises(DeviceError, match=r"is for CUDA 11\.4.* 12\.3 or later; update it"):
        open_session()
    monkeypatch.setattr(driver, "is_installed", lambda: True)
    assert devices.open_device("auto").capabilities.name == "cpu"


def test_a_driver_without_a_function(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "cuGetProcAddress", lambda *arguments: (0, 0, 1))
    with pytest.raises(DeviceError, match=r"has no cu\w+; update it"):
        driver.direct()


def test_a_capability_that_code_is_not_made_for(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.capability = (7, 5)
    with pytest.raises(InvalidSetting, match=r"compute capability 7\.5; it must be one of 8\.0"):
        open_session()
    monkeypatch.setattr(driver, "is_installed", lambda: True)
    assert devices.open_device("auto").capabilities.name == "cpu"
    assert "cuda:0 is not used: there are no kernels for compute capability 7.5" in caplog.text
    gpu.capability = (9, 0)
    assert devices.open_device("auto").capabilities.name == "cuda"


def test_auto_is_the_first_gpu_that_can_be_used(
    gpus: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "is_installed", lambda: True)
    opened: Any = devices.open_device("auto")
    assert opened.number == 0
    gpus.capabilities[0] = (7, 5)
    opened = devices.open_device("auto")
    assert opened.number == 1
    check(whet.build(model()).session(cache=False).run(drawn(1)), drawn(1))
    assert len(gpus.contexts) == 1
    with pytest.raises(DeviceError, match="there is no device 'auto:1'; whet runs on auto, cpu,"):
        devices.open_device("auto:1")


def test_code_fits_beside_a_gpu_that_cannot_be_used(
    gpus: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "is_installed", lambda: True)
    gpus.capabilities[0] = (7, 5)
    about = f"cuda {codegen.version()}"
    assert misfit(f"{about} sm90x132") is None
    assert misfit(f"{about} sm80x108") == "for sm80x108, and no such GPU is here"


def test_devices_say_what_is_there(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "is_installed", lambda: True)
    monkeypatch.setattr(compiling, "has_triton", lambda: True)
    (line,) = doctor.gpus()
    assert line.name == "cuda:0" and line.problem is None
    assert line.value == (
        "a stub, compute capability 9.0, 8.0 GiB, driver for CUDA 13.0; code for sm90x132"
    )
    monkeypatch.setattr(compiling, "has_triton", lambda: False)
    _, line = doctor.gpus()
    assert line.value == "Triton is not installed" and "whet[cuda]" in (line.problem or "")
    monkeypatch.setattr(compiling, "has_triton", lambda: True)
    gpu.capability = (7, 5)
    (line,) = doctor.gpus()
    assert line.name == "cuda:0" and line.value.startswith("not used: there are no kernels for")
    gpu.devices = 0
    (line,) = doctor.gpus()
    assert line.value == "the NVIDIA driver is there and sees no GPU"


@pytest.mark.parametrize("found", [None, types.ModuleType("triton")])
def test_no_triton(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    """An empty folder of its name is none either."""
    monkeypatch.setitem(sys.modules, "triton", found)
    assert not compiling.has_triton()
    device: Any = devices.compiler_for("sm90")
    kernels = [step.kernel for step in steps_of(whet.build(model()), device)]
    for compile in (device.compile, lambda kernels: device.object(kernels[0])):
        with pytest.raises(DeviceError, match=r"not here .*pip install whet\[cuda\].*allow_code"):
            compile(kernels)


def test_a_triton_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old: Any = types.ModuleType("triton")
    old.__version__ = "3.2.0"
    monkeypatch.setitem(sys.modules, "triton", old)
    device: Any = devices.compiler_for("sm90")
    (step, *_) = steps_of(whet.build(model()), device)
    with pytest.raises(DeviceError, match=r"Triton 3\.6 or later, and 3\.2\.0 is there; pip"):
        device.object(step.kernel)


@needs_triton
def test_a_triton_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    device: Any = devices.compiler_for("sm90")
    engine = whet.build(model())

    def fails(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no ptxas") from ValueError("it is gone")

    monkeypatch.setattr(compiling._triton(), "compile", fails)
    (step, *_) = steps_of(engine, device)
    with pytest.raises(CompileError, match=r"cannot compile kernel: no ptxas\nit is gone"):
        device.object(step.kernel)


def steps_of(engine: whet.Engine, device: Any) -> Any:
    from whet.runtime.planned import planned

    return planned(engine.graph, device).steps


@pytest.mark.parametrize("kind", [Tensor, TorchTensor])
@pytest.mark.parametrize("stream", [None, 5])
def test_a_kernel_that_fails(gpu: Driver, kind: type[Tensor], stream: int | None) -> None:
    session = open_session()
    session.run(drawn(1))
    gpu.faulty.add(gpu.launched[-1])
    with pytest.raises(DeviceError, match=r"a kernel failed.*WHET_ONE_BY_ONE=1 names it"):
        np.asarray(session.run(on_device(gpu, drawn(1), kind), stream=stream)["z"])
    with pytest.raises(DeviceError, match="cannot use the device any more"):
        open_session()
    assert whet.build(model()).session("cpu", cache=False).run(drawn(1)), "others live on"


def test_a_kernel_that_fails_is_named(gpu: Driver) -> None:
    with knobs.override(one_by_one=True):
        session = open_session()
        for seed in range(3):
            check(session.run(drawn(seed)), drawn(seed))
        assert not gpu.counts["cuGraphInstantiate"]
        gpu.faulty.add(gpu.launched[-1])
        with pytest.raises(DeviceError, match=r"running .* of pick: CUDA_ERROR_ILLEGAL_ADDRESS"):
            session.run(drawn(1))


def test_a_kernel_that_fails_at_once_is_named(gpu: Driver) -> None:
    gpu.faulty.add("pick")
    session = open_session()
    with pytest.raises(DeviceError, match=r"running .* of pick: CUDA_ERROR_ILLEGAL_ADDRESS"):
        session.run(on_device(gpu, drawn(1), TorchTensor), stream=5)


def test_a_device_that_disappears(gpu: Driver) -> None:
    session = open_session()
    check(session.run(drawn(1)), drawn(1))
    gpu.status = Status.CUDA_ERROR_NO_DEVICE
    with pytest.raises(DeviceError, match=r"NO_DEVICE.*the device is lost.*nvidia-smi"):
        session.run(drawn(2))


def test_an_error_that_the_binding_does_not_know(gpu: Driver) -> None:
    assert "error 12345" in str(driver.failure(12345, "asking"))


def test_out_of_memory(gpu: Driver) -> None:
    session = open_session()
    with pytest.raises(
        OutOfMemory, match=r"1,099,511,627,776 bytes on a stub, of which [\d,]+ are"
    ):
        Loan(driver.Context.of(0).stream, 1 << 40)
    with pytest.raises(
        OutOfMemory, match=r"close other sessions, use smaller sizes.*weight_budget"
    ):
        session._runner.device.heap.reserve(1 << 40)  # type: ignore[attr-defined]
    check(session.run(drawn(1)), drawn(1))


@pytest.mark.parametrize("of_the_caller", [False, True])
def test_little_memory_is_enough_for_small_runs(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, of_the_caller: bool
) -> None:
    def allocate(size: int) -> int | None:
        with driver.Context.of(0):
            return gpu.cuMemAlloc(size)[1] if size < 1 << 19 else None

    rng = np.random.default_rng(5)
    engine = whet.build(transformer(rng))
    own: Any = {"allocator": allocate} if of_the_caller else {}
    session = engine.session(device="cuda", cache=False, specialize="none", **own)
    monkeypatch.setattr(stub_driver, "TOTAL", gpu.used + (4 << 20))

    def runs(batch: int, length: int) -> None:
        inputs = words(rng, batch, length)
        got = session.run(inputs)["y"]
        np.testing.assert_allclose(got, judged(engine, inputs), atol=1e-4, rtol=1e-4)

    runs(2, 3)
    runs(2, 80)
    with pytest.raises(OutOfMemory, match=r"allocating [\d,]+ bytes|gives no [\d,]+ bytes"):
        session.run(words(rng, 64, 1024))
    runs(2, 5)


class Elsewhere(Tensor):
    """A tensor on some other device."""

    where = (2, 1)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where


@pytest.mark.parametrize("where", [(2, 1), (10, 0)])
def test_a_tensor_of_another_device(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, where: tuple[int, int]
) -> None:
    session = open_session()
    monkeypatch.setattr(Elsewhere, "where", where)
    with pytest.raises(InvalidInput, match=f"'x'.* lies on device {where[1]}.*kind {where[0]};"):
        session.run({**on_device(gpu, drawn(1)), "x": Elsewhere(gpu, drawn(1)["x"])})
    check(session.run(on_device(gpu, drawn(1))), drawn(1))


def fails(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("it is gone")


@pytest.mark.parametrize(
    "wrong",
    [
        {"__dlpack__": fails},
        {"__dlpack__": lambda *arguments, **named: 42},
        {"__dlpack_device__": fails},
        {"__dlpack_device__": lambda self: "cuda"},
        {"__dlpack_device__": None},
    ],
)
@pytest.mark.parametrize("stream", [None, 5])
def test_a_tensor_that_cannot_be_taken(gpu: Driver, wrong: Any, stream: int | None) -> None:
    session = open_session()
    bad = type("Bad", (Tensor,), wrong)
    with pytest.raises(InvalidInput, match=r"'x', a Bad, cannot be taken through DLPack: .*NumPy"):
        session.run({**on_device(gpu, drawn(1)), "x": bad(gpu, drawn(1)["x"])}, stream=stream)
    check(session.run(on_device(gpu, drawn(1))), drawn(1))


class Named:
    """A stream by cuda.core's protocol."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def __cuda_stream__(self) -> Any:
        return self.said() if callable(self.said) else self.said


@pytest.mark.parametrize("stream", [5, np.int64(5), Named((0, 5))])
def test_what_is_a_stream(stream: Any) -> None:
    assert driver.handle_of(stream) == 5


NO_STREAMS = ["main", 1.5, object(), True, -1, 1 << 64, Named(5), Named((0, "x")), Named(fails)]


@pytest.mark.parametrize("stream", NO_STREAMS)
def test_what_is_no_stream(gpu: Driver, stream: Any) -> None:
    session = open_session()
    with pytest.raises(InvalidSetting, match="is no CUDA stream"):
        session.run(on_device(gpu, drawn(1)), stream=stream)
    check(session.run(on_device(gpu, drawn(1)), stream=5), drawn(1))


GOOD = pack([Function("k", b"code", (1, 1, 1), (0, "error"), 32, 0, 0, 0, 0, False, True, False)])


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        GOOD[1:],
        GOOD[:-1],
        GOOD + b"more",
        GOOD.replace(b'"grid"', b'"gird"'),
        GOOD.replace(b"[{", b"[["),
        GOOD.replace(b'"bytes":4', b'"bytes":"4"'),
        GOOD.split(b"}")[0],
    ],
)
def test_code_that_was_tampered_with(bad: bytes) -> None:
    assert unpack(GOOD)[0].cubin == b"code"
    with pytest.raises(CompileError, match="is damaged"):
        unpack(bad)


def test_long_sizes_are_read_as_they_were_written() -> None:
    """Those that crops and paddings of a few axes leave: a grid is their product."""
    sides = [symbol(name) for name in "abc"]
    cropped = [maximum(n - maximum(n // 2 - k, 0), maximum(k - n, 0)) for k, n in enumerate(sides)]
    first, *others = (sum((n // k + maximum(n - k, 0) for k in range(2, 6)), n) for n in cropped)
    grid = first
    for other in others:
        grid = grid * other
    (made,) = unpack(GOOD)
    long = replace(made, grid=(grid, 1, 1))
    assert len(str(grid)) > 50_000
    assert unpack(pack([long])) == [long]


def test_a_prebuilt_section_that_was_tampered_with(tmp_path: Any) -> None:
    import dataclasses

    path = tmp_path / "m.whet"
    made = dataclasses.replace(whet.build(model()), kernels={"k": GOOD})
    made.save(path)
    assert whet.load(path, allow_code=True).kernels == {"k": GOOD}
    data = bytearray(path.read_bytes())
    data[data.index(b"code")] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidEngine):
        whet.load(path, allow_code=True)


def test_a_gpu_that_is_not_there(gpu: Driver) -> None:
    with pytest.raises(DeviceError, match=r"no device cuda:1; there are: cuda:0$"):
        whet.build(model()).session(device="cuda:1", cache=False)
    for name in ("cuda:one", "cuda:-1", "cuda:\u0661"):
        with pytest.raises(DeviceError, match="GPUs are written cuda:0"):
            whet.build(model()).session(device=name, cache=False)


def test_several_gpus_in_one_process(gpus: Driver) -> None:
    """Nothing of one is ever used on the other: the stub asserts it at each launch and copy."""
    engine = whet.build(model())
    sessions = [engine.session(device=f"cuda:{n}", cache=False) for n in (0, 1, 0)]
    for seed in range(3):
        for session in sessions:
            check(session.run(drawn(seed)), drawn(seed))
    errors: list[BaseException] = []

    def work(session: whet.Session) -> None:
        try:
            for seed in range(10):
                check(session.run(drawn(seed)), drawn(seed))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in sessions * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(gpus.contexts) == 2
    taken = {gpus.owner[at] for at in gpus.memory}
    assert taken == set(gpus.contexts), "weights and arenas lie on both"


@pytest.mark.parametrize("budget", [None, "50%"])
def test_streams_and_tensors_of_several_gpus(gpus: Driver, budget: str | None) -> None:
    engine = whet.build(model())
    sessions = [
        engine.session(device=f"cuda:{n}", cache=False, weight_budget=budget) for n in (0, 1)
    ]
    given = [
        {name: s._runner.device.given(array) for name, array in drawn(n).items()}  # type: ignore[attr-defined]
        for n, s in enumerate(sessions)
    ]
    streams = [[gpus.new() for _ in range(8)] for _ in sessions]
    for context, made in zip(gpus.contexts, streams):
        gpus.owner |= dict.fromkeys(made, context)
    for turn in range(3):
        got = [s.run(x, stream=own[turn]) for s, x, own in zip(sessions, given, streams)]
        for n in (1, 0):
            check(got[n], drawn(n))
        # Asked for on one stream, and taken over by others.
        ys = [s.run(x, stream=own[3 + turn])["y"] for s, x, own in zip(sessions, given, streams)]
        for n in (0, 1):
            ys[n].__dlpack__(stream=streams[n][6])
            again = sessions[n].run({**given[n], "x": ys[n]}, stream=streams[n][7])
            x = {"x": np.maximum(drawn(n)["x"] + 2 * W, 0), "i": drawn(n)["i"]}
            check(again, x)
            np.testing.assert_array_equal(np.asarray(ys[n].copy()), x["x"])
    with pytest.raises(InvalidInput, match=r"lies on cuda:1; .* runs on cuda:0: copy it"):
        sessions[0].run(given[1])
