"""NVIDIA's libraries as ways to run kernels: what they can be asked for, and how they take part."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tests.targets.cuda.contractions import Problem, problem, small
from tests.targets.cuda.stub import StubDevice, stubbed
from tests.targets.cuda.stub_driver import Driver
from whet.engine.weights import ImportedWeights
from whet.errors import DeviceError
from whet.ir.graph import Graph
from whet.ops.contract import MatMul
from whet.ops.elementwise import Max
from whet.plan.kernel import Template
from whet.plan.legalize import legal
from whet.plan.plan import Step, make_plan
from whet.runtime.cache import Cache
from whet.runtime.program import Runner
from whet.targets.cuda import cublas, cudnn, library, tactics
from whet.targets.cuda import device as devices
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.compile import Function, pack, unpack
from whet.targets.cuda.cublas import Matmul
from whet.targets.cuda.device import Device, _is_foreign
from whet.targets.cuda.driver import Context
from whet.targets.special import Special

SM90 = Architecture.parse("sm90")


def template(made: Problem) -> Template:
    """The one kernel of a problem that is no loop nest."""
    device = Device(SM90)
    plan = make_plan(legal(made.graph, device), device.capabilities)
    (kernel,) = (s.kernel for s in plan.steps if isinstance(s.kernel, Template))
    return kernel


def called(name: str) -> Problem:
    return next(p for p in small() if p.name == name)


def test_products_that_cublas_can_be_asked_for() -> None:
    plain, slots = cublas.matched(template(called("plain-float16")))  # type: ignore[misc]
    assert plain == Matmul(
        "float16", 70, 40, 50, (50, False), (40, False), 40, (1, 0, 0, 0), (0, 0, 0)
    )
    assert slots == (0, 1, 2)
    turned, _ = cublas.matched(template(called("transposed")))  # type: ignore[misc]
    assert turned.right == (64, True) and turned.left == (64, False)
    shared, _ = cublas.matched(template(called("shared")))  # type: ignore[misc]
    assert shared.rows == 120 and shared.batch[0] == 1
    batched, _ = cublas.matched(template(called("batched")))  # type: ignore[misc]
    assert batched.batch == (6, 320, 384, 480)
    biased, slots = cublas.matched(template(called("residual")))  # type: ignore[misc]
    assert biased.bias and biased.residual == 50 and len(slots) == 5
    assert cublas.matched(template(called("heads"))) is None, "two axes of a batch"
    assert cublas.matched(template(called("conv3x3"))) is None


def test_what_an_epilogue_may_be() -> None:
    shapes = ((64, 128), (128, 256), (256,), (64, 256))
    for more in (
        lambda a, b, c, r: Max()(MatMul()(a, b) + c, 0.0),  # the library's relu makes 0 of NaN
        lambda a, b, c, r: MatMul()(a, b) * c,
        lambda a, b, c, r: MatMul()(a, b) + c + c * 2.0,
        lambda a, b, c, r: Max()(MatMul()(a, b), 1.0) + r,
    ):
        assert cublas.matched(template(problem("more", more, *shapes))) is None


def test_alignments_that_cublas_is_told() -> None:
    sliced, _ = cublas.matched(template(called("sliced")))  # type: ignore[misc]
    assert sliced.offsets == (3, 0, 0) and sliced.alignments == (2, 16, 16)
    batched, _ = cublas.matched(template(called("batched")))  # type: ignore[misc]
    assert batched.alignments == (16, 16, 16)
    odd = problem("odd", MatMul(), (3, 6, 10), (3, 10, 7))
    assert cublas.matched(template(odd))[0].alignments == (8, 4, 4)  # type: ignore[index]


def test_convolutions_that_cudnn_can_be_asked_for() -> None:
    found, slots = cudnn.matched(template(called("conv3x3-stride")))  # type: ignore[misc]
    assert found.x == (2, 32, 9, 11) and found.w == (40, 32, 3, 3) and found.relu
    assert found.strides == (2, 2) and found.pad == (1, 1) and len(slots) == 4
    assert found.x_strides == (9 * 11 * 32, 1, 11 * 32, 32)
    grouped, _ = cudnn.matched(template(called("conv-grouped")))  # type: ignore[misc]
    assert grouped.groups == 2
    assert cudnn.matched(template(called("plain-float16"))) is None
    assert cudnn.matched(template(called("conv-channels-first"))) is None
    assert cudnn.matched(template(called("conv3d"))) is None


class NumpyWay:
    """A library that is NumPy, on a stub's memory."""

    stub: Driver
    kernels = 1

    def __init__(self, context: Any, version: int, how: dict[str, Any]) -> None:
        self.m = Matmul(**{k: tuple(v) if isinstance(v, list) else v for k, v in how.items()})

    def run(self, addresses: Iterable[int], stream: int) -> None:
        left, right, out, *_ = addresses
        m = self.m

        def launch() -> None:
            a, b, y = (
                np.frombuffer((ctypes.c_char * (2 * r * c)).from_address(at), np.float16)
                for at, r, c in (
                    (left, m.rows, m.depth),
                    (right, m.depth, m.columns),
                    (out, m.rows, m.columns),
                )
            )
            product = a.reshape(m.rows, m.depth).astype(np.float32) @ b.reshape(m.depth, -1)
            y.reshape(m.rows, m.columns)[...] = product

        for _ in range(self.kernels):
            self.stub.note(launch)


class LibraryDevice(StubDevice):
    """A stub whose products a library runs, also where buffers move."""

    def compile(self, kernels: Any, idle: bool = False, moving: Any = ()) -> None:
        super().compile(kernels, idle)

    def _made(self, step: Step) -> bytes:
        assert isinstance(step.kernel, Template)
        matmul, slots = cublas.matched(step.kernel)  # type: ignore[misc]
        how = dict(vars(matmul))
        return library.packed("numpy", 1, (*slots, "scratch"), how)


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as driver:
        yield driver


@pytest.mark.parametrize("kernels", [1, 2])
def test_a_library_takes_part_in_a_graph(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, kernels: int
) -> None:
    monkeypatch.setattr(NumpyWay, "kernels", kernels)
    monkeypatch.setattr(NumpyWay, "stub", gpu, raising=False)
    monkeypatch.setitem(library.MAKERS, "numpy", NumpyWay)
    made = problem("twice", lambda a, b: MatMul()(MatMul()(a, b), b), (24, 32), (32, 32))
    runner = Runner(LibraryDevice(SM90), ImportedWeights({}), 1)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        arrays = [rng.normal(size=a.shape).astype(np.float16) for a in made.arrays]
        inputs = [runner.device.given(a) for a in arrays]
        (got,) = runner.execute(made.graph, inputs)
        a, b = (x.astype(np.float32) for x in arrays)
        want = (a @ b).astype(np.float16).astype(np.float32) @ b
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2e-3, atol=2e-2)
    assert gpu.counts["cuGraphInstantiate"] == 1
    assert gpu.counts["updates of libraries"] > 0
    (plan,) = runner.plans
    tactics = runner.device.tactics(plan.steps[0].kernel)  # type: ignore[arg-type]
    assert tactics[0].name == "numpy" and tactics[0].by == "a measurement"
    assert isinstance(made.graph, Graph)


@pytest.mark.parametrize("wrong", ["", "factor", "NaN"])
def test_a_library_must_agree_with_ours(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    class Other(NumpyWay):
        def run(self, addresses: Iterable[int], stream: int) -> None:
            addresses = list(addresses)
            super().run(addresses, stream)
            size = self.m.rows * self.m.columns
            y = np.frombuffer((ctypes.c_char * (2 * size)).from_address(addresses[2]), np.float16)
            if wrong == "factor":
                self.stub.note(lambda: np.multiply(y, np.float16(1.05), out=y))
            if wrong == "NaN":
                self.stub.note(lambda: np.copyto(y, np.nan_to_num(y)))

    monkeypatch.setattr(NumpyWay, "stub", gpu, raising=False)
    monkeypatch.setitem(library.MAKERS, "numpy", NumpyWay)
    monkeypatch.setitem(library.MAKERS, "other", Other)
    kernel = template(called("plain-float16"))
    matmul, slots = cublas.matched(kernel)  # type: ignore[misc]
    codes = [library.packed(n, 1, (*slots, "scratch"), vars(matmul)) for n in ("numpy", "other")]
    with Context.of(0) as context:
        assert tactics.Bench(context).agrees(kernel, *codes) == (wrong == "")


class Refusing:
    """A cublasLt that is there, and can run nothing."""

    def __getattr__(self, name: str) -> Any:
        status = 15 if name == "cublasLtMatmulAlgoCheck" else 0
        return lambda *arguments: status


def test_what_a_library_refuses_is_known_before_a_run(
    gpu: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "opened", lambda name: Refusing())
    monkeypatch.setattr(cublas, "version", lambda: 7)
    monkeypatch.setattr(cublas, "_handle", lambda number: None)
    kernel = template(called("sliced"))
    matmul, slots = cublas.matched(kernel)  # type: ignore[misc]
    how = {"matmul": asdict(matmul), "algorithm": [0] * 8, "workspace": 64}
    code = library.packed("cublasLt", 7, (*slots, "scratch"), how)
    with pytest.raises(DeviceError, match="preparing a product by cublasLt: status 15"):
        tactics.load(Context.of(0), code)

    ours = pack([Function("ours", b"ours", (1, 1, 1), slots, 32, 0, 0, 0, 0, False, True, False)])
    monkeypatch.setattr(devices, "to_object", lambda source, architecture: ours)
    device = StubDevice(SM90)
    device._objects[kernel] = code
    ((function, _),) = device.code(kernel)
    assert function.name == "ours" and not device.library_of(kernel)


def test_a_library_is_refused_where_buffers_move(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launch would be captured anew in each run; other plans keep it."""
    ours = pack([Function("ours", b"ours", (1, 1, 1), (), 32, 0, 0, 0, 0, False, True, False)])
    compiled: list[Any] = []

    def compile_all(jobs: Any, *_: Any, **__: Any) -> None:
        for job in jobs:
            job.code = ours
            compiled.append(job.kernel)

    monkeypatch.setattr(cublas, "version", lambda: 7)
    monkeypatch.setattr(devices, "compile_all", compile_all)
    kernel, cache = template(called("plain-float16")), Cache(tmp_path)
    theirs = library.packed("cublasLt", 7, (0, 1, 2, "scratch"), {"workspace": 512})
    key = Device(SM90).key(kernel)
    cache.put(key, theirs, Device(SM90).about)
    for moves in (True, False, True):
        moving = {kernel} if moves else set()
        assert Device(SM90, cache).objects([kernel], moving)[kernel] == (ours if moves else theirs)
        assert cache.get(key) == theirs and compiled == [kernel]
    both = Device(SM90, cache)
    assert both.objects([kernel])[kernel] == theirs
    assert both.objects([kernel], {kernel})[kernel] == ours
    assert both._found_known(Special(kernel, ())) is None


def test_what_another_version_chose_is_made_anew(tmp_path: Any, monkeypatch: Any) -> None:
    kernel = template(called("plain-float16"))
    device = Device(SM90, Cache(tmp_path))
    code = library.packed("cublasLt", 7, (0, 1, 2, "scratch"), {"workspace": 512})
    assert unpack(code)[0].scratch == 512 and library.is_library(unpack(code)[0].cubin)
    device.cache.put(device.key(kernel), code, device.about)  # type: ignore[union-attr]
    for version, found in ((7, code), (8, None), (0, None)):
        monkeypatch.setattr(cublas, "version", lambda version=version: version)
        assert device._found(device.key(kernel)) == found
    assert _is_foreign(code) and not _is_foreign(b"whet cubins 3\n[]\n")
