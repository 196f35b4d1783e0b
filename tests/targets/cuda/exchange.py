"""How sessions on a GPU take inputs and give outputs: checks for a machine that has one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import whet
from whet.engine.weights import ImportedWeights
from whet.errors import DeviceError, Error, InvalidInput
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, Value, make
from whet.ir.types import TensorType
from whet.ops.contract import MatMul
from whet.ops.movement import Broadcast, Gather, reshape
from whet.ops.reduce import Softmax
from whet.runtime.engine import Engine
from whet.targets.cuda import driver
from whet.targets.cuda.order import in_order, predecessors


def engine(*sizes: int) -> Engine:
    """softmax(x @ x) + 1, of 16-bit floats."""
    x = make(Input("x", TensorType("float16", sizes)), ())[0]
    y: Value = Softmax()(MatMul()(x, x)) + 1.0
    return Engine(Graph((x,), (y,), ("y",)), ImportedWeights({}))


def wanted(x: np.ndarray) -> np.ndarray:
    """What it gives."""
    product = (x.astype(np.float64) @ x.astype(np.float64)).astype(np.float16).astype(np.float64)
    e = np.exp(product - product.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) + 1


def close(got: Any, x: np.ndarray) -> None:
    """Asserts that a result is right."""
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted(x), rtol=0, atol=2e-3)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, size=shape).astype(np.float16)


def numpy_arrays() -> None:
    session = engine(64, 64).session(device="cuda", cache=False)
    for seed in range(3):
        x = drawn(seed, 64, 64)
        close(session.run({"x": x})["y"], x)
    out = np.full((64, 64), np.nan, np.float16)
    session.run({"x": x}, out={"y": out})
    close(out, x)


def auto_is_a_gpu() -> None:
    session = engine(32, 32).session(cache=False)
    assert session.architecture.startswith("sm"), session.architecture


def torch_tensors() -> None:
    import torch

    session = engine(64, 64).session(device="cuda", cache=False)
    with torch.cuda.stream(torch.cuda.Stream()):
        for seed in range(4):
            x = drawn(seed, 64, 64)
            y = session.run({"x": torch.from_numpy(x).cuda() * 1})["y"]
            t = torch.from_dlpack(y)
            assert t.is_cuda and t.data_ptr() == y.pointer
            close((t * 1).cpu().numpy(), x)
    kept = [session.run({"x": torch.from_numpy(drawn(s, 64, 64)).cuda()})["y"] for s in range(5)]
    for seed, y in enumerate(kept):
        close(torch.from_dlpack(y).cpu().numpy(), drawn(seed, 64, 64))


def cupy_arrays() -> None:
    import cupy

    session = engine(64, 64).session(device="cuda", cache=False)
    x = drawn(3, 64, 64)
    y = cupy.from_dlpack(session.run({"x": cupy.asarray(x)})["y"])
    close(cupy.asnumpy(y), x)


def unaligned_tensors() -> None:
    import torch

    session = engine(32, 32).session(device="cuda", cache=False)
    x = drawn(5, 32, 32)
    room = torch.empty(32 * 32 + 1, dtype=torch.float16, device="cuda")
    room[1:] = torch.from_numpy(x).cuda().reshape(-1)
    close(torch.from_dlpack(session.run({"x": room[1:].view(32, 32)})["y"]).cpu().numpy(), x)


def host_tensors() -> None:
    import torch

    session = engine(32, 32).session(device="cuda", cache=False)
    x = drawn(6, 32, 32)
    close(session.run({"x": torch.from_numpy(x)})["y"], x)


def strided_tensors_are_refused() -> None:
    import torch

    session = engine(32, 32).session(device="cuda", cache=False)
    x = torch.from_numpy(drawn(7, 32, 32)).cuda().t()
    try:
        session.run({"x": x})
    except InvalidInput as error:
        assert "contiguous" in str(error)
    else:
        raise AssertionError("a strided tensor was taken")


def indices_outside_raise() -> None:
    x = make(Input("x", TensorType("float32", (5, 4))), ())[0]
    i = make(Input("i", TensorType("int64", (3,))), ())[0]
    made = Engine(Graph((x, i), (Gather(0)(x, i),), ("y",)), ImportedWeights({}))
    session = made.session(device="cuda", cache=False)
    a = np.arange(20, dtype=np.float32).reshape(5, 4)
    good = {"x": a, "i": np.array([0, -1, 4])}
    np.testing.assert_array_equal(session.run(good)["y"], a[[0, -1, 4]])
    try:
        session.run({"x": a, "i": np.array([0, 5, 1])})
    except Error as error:
        assert "outside" in str(error)
    else:
        raise AssertionError("an index outside its axis was taken")
    np.testing.assert_array_equal(session.run(good)["y"], a[[0, -1, 4]])


def on_the_callers_stream() -> None:
    import torch

    session = engine(64, 64).session(device="cuda", cache=False)
    stream = torch.cuda.Stream()
    kept = []
    with torch.cuda.stream(stream):
        for seed in range(20):
            x = torch.from_numpy(drawn(seed, 64, 64)).pin_memory().cuda(non_blocking=True)
            y = session.run({"x": x}, stream=stream)["y"]
            kept.append(torch.from_dlpack(y) * 1)
            x.zero_()  # after the run, since it is asked for later
    stream.synchronize()
    for seed, got in enumerate(kept):
        close(got.cpu().numpy(), drawn(seed, 64, 64))
    x = torch.from_numpy(drawn(3, 64, 64)).cuda()
    torch.cuda.synchronize()
    y = session.run({"x": x}, stream=stream.cuda_stream)["y"]
    close(y, drawn(3, 64, 64))
    z = session.run({"x": session.run({"x": x}, stream=stream)["y"]})["y"]
    assert np.isfinite(np.asarray(z)).all()


def indices_outside_are_told_later() -> None:
    import torch

    x = make(Input("x", TensorType("float32", (5, 4))), ())[0]
    i = make(Input("i", TensorType("int64", (3,))), ())[0]
    made = Engine(Graph((x, i), (Gather(0)(x, i),), ("y",)), ImportedWeights({}))
    session = made.session(device="cuda", cache=False)
    a = torch.arange(20, dtype=torch.float32, device="cuda").reshape(5, 4)
    good, bad = (torch.tensor(i, device="cuda") for i in ([0, -1, 4], [0, 5, 1]))
    stream = torch.cuda.current_stream()
    y = session.run({"x": a, "i": bad}, stream=stream)["y"]
    for look in (lambda: np.asarray(y), lambda: session.run({"x": a, "i": good}, stream=stream)):
        try:
            look()
        except Error as error:
            assert "outside" in str(error)
        else:
            raise AssertionError("an index outside its axis was taken")
        session.run({"x": a, "i": bad}, stream=stream)
        torch.cuda.synchronize()
    with contextlib.suppress(Error):
        session.run({"x": a, "i": good}, stream=stream)
    got = session.run({"x": a, "i": good}, stream=stream)["y"]
    np.testing.assert_array_equal(np.asarray(got), a.cpu().numpy()[[0, -1, 4]])


def no_stream_is_refused() -> None:
    import torch

    session = engine(8, 8).session(device="cuda", cache=False)
    try:
        session.run({"x": torch.zeros(8, 8, dtype=torch.float16, device="cuda")}, stream="main")
    except Error as error:
        assert "stream" in str(error)
    else:
        raise AssertionError("a string was taken for a stream")


def engines_for_other_architectures() -> None:
    from dataclasses import replace

    from whet.runtime.ahead import compile_ahead
    from whet.targets.cuda.architecture import Architecture
    from whet.targets.cuda.device import Device

    for architecture, compiles in (("sm80", True), (str(Device().architecture), False)):
        made = engine(64, 64)
        kernels = compile_ahead(made.graph, Device(Architecture.parse(architecture)))
        session = replace(made, kernels=kernels).session(device="cuda", cache=False)
        x = drawn(8, 64, 64)
        close(session.run({"x": x})["y"], x)
        assert bool(session._runner.device.compiled) == compiles, architecture


def too_much_memory_is_said() -> None:
    import torch

    x = make(Input("x", TensorType("float16", (1 << 16,))), ())[0]
    y: Value = Broadcast((1 << 24, 1 << 16))(reshape(x, 1, 1 << 16)) + 1.0  # two terabytes
    try:
        made = Engine(Graph((x,), (y,), ("y",)), ImportedWeights({}))
        made.session(device="cuda", cache=False).run({"x": torch.zeros(1 << 16).half().cuda()})
    except Error as error:
        assert "bytes" in str(error) and "are free" in str(error), error
    else:
        raise AssertionError("two terabytes were found")
    numpy_arrays()  # other sessions go on


def branched(size: int) -> Engine:
    """Four chains of softmax(y @ x) that start with x and meet."""
    x = make(Input("x", TensorType("float16", (size, size))), ())[0]
    ends: list[Value] = []
    for branch in range(4):
        y: Value = x * (0.5 * branch + 0.5)
        for _ in range(3):
            y = Softmax()(MatMul()(y, x)) + 0.25 * branch
        ends.append(y)
    return Engine(Graph((x,), (sum(ends[1:], ends[0]),), ("y",)), ImportedWeights({}))


def branches_that_overlap() -> None:
    """Right in every run, before and after the session has found out what is faster."""
    made = branched(192)
    session = made.session(device="cuda", cache=False, tune=1.0)
    for seed in range(40):
        x = drawn(seed, 192, 192)
        (judge,) = evaluate(made.graph, {made.graph.inputs[0]: x})
        got = session.run({"x": x})["y"]
        np.testing.assert_allclose(got.astype(float), judge.astype(float), rtol=0, atol=8e-3)
    (stage,) = session._runner._stages.values()
    assert stage.program.executable._overlaps.keys() == {0}, "nothing was found out"


def modules(count: int = 3, size: int = 17, channels: int = 192) -> onnx.ModelProto:
    """Inception's modules (Szegedy et al. 2016): four branches of convolutions that meet."""
    rng = np.random.default_rng(6)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}

    def convolution(x: str, inner: int, outer: int, width: int) -> str:
        name = f"c{len(weights)}"
        weight = rng.normal(0, (2 / (inner * width**2)) ** 0.5, (outer, inner, width, width))
        weights[name] = weight.astype(np.float16)
        pads = [width // 2] * 4
        nodes.append(helper.make_node("Conv", [x, name], [name + "y"], pads=pads))
        nodes.append(helper.make_node("Relu", [name + "y"], [name + "r"]))
        return name + "r"

    x, part = "x", channels // 4
    for number in range(count):
        one = convolution(x, channels, part, 1)
        three = convolution(convolution(x, channels, part, 1), part, part, 3)
        five = convolution(convolution(convolution(x, channels, 32, 1), 32, part, 3), part, part, 3)
        pool = {"kernel_shape": [3, 3], "pads": [1] * 4}
        nodes.append(helper.make_node("AveragePool", [x], [f"p{number}"], **pool))
        ends = [one, three, five, convolution(f"p{number}", channels, part, 1)]
        x = f"x{number}" if number + 1 < count else "y"
        nodes.append(helper.make_node("Concat", ends, [x], axis=1))
    shape = [1, channels, size, size]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, shape) for n in "xy"]
    given = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], given))


def branches_of_modules() -> None:
    """The same bits in order and with branches that overlap, and those that a CPU gives."""
    made = whet.build(modules())
    judge = made.session("cpu", cache=False)
    session = made.session(device="cuda", cache=False, tune=1.0)
    draw = [{"x": drawn(seed, 1, 192, 17, 17)} for seed in range(8)]
    for inputs in draw[:2]:  # the second run finds out what is faster
        session.run(inputs)
    executable = next(iter(session._runner._stages.values())).program.executable
    assert executable._overlaps.keys() == {0}, "nothing was found out"
    results = []
    for overlap in (False, True):
        executable._overlaps[0] = overlap
        executable._free.clear()
        results.append([session.run(inputs)["y"] for inputs in draw for _ in range(5)])
        (context,) = executable._free
        edges = predecessors(context.launches.segments[0].uses)
        assert edges != in_order(len(edges)), "there are no branches"
    for plain, branched in zip(*results):
        np.testing.assert_array_equal(plain.view("u2"), branched.view("u2"))
    for inputs, got in zip(draw, results[1][::5]):
        want = judge.run(inputs)["y"].astype(float)
        np.testing.assert_allclose(got.astype(float), want, rtol=0, atol=2e-3 * np.abs(want).max())


def current_is_the_gpu() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "m.onnx"), Path(folder, "m.whet")
        onnx.save(modules(1), source)
        command = [sys.executable, "-m", "whet", "build", str(source), "-o", str(target)]
        subprocess.run([*command, "--architectures", "current"], check=True, capture_output=True)
        made = whet.load(target, allow_code=True)
        assert made.architectures == (str(driver.find(0).architecture),)
        session = made.session(device="cuda", cache=False)
        x = {"x": drawn(1, 1, 192, 17, 17)}
        y = session.run(x)["y"]
        assert session._runner.device.compiled == 0, "code for this GPU was not used"
        want = whet.build(source).session("cpu", cache=False).run(x)["y"].astype(float)
        np.testing.assert_allclose(y.astype(float), want, rtol=0, atol=2e-3 * np.abs(want).max())


def many_threads() -> None:
    session = engine(64, 64).session(device="cuda", cache=False)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(20):
                x = drawn(100 * seed + turn, 64, 64)
                close(session.run({"x": x})["y"], x)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def a_missing_device_is_named() -> None:
    try:
        engine(8, 8).session(device="cuda:77")
    except DeviceError as error:
        assert "cuda:77; there are: cuda:0" in str(error)
    else:
        raise AssertionError("cuda:77 was opened")


ALL = (
    numpy_arrays,
    auto_is_a_gpu,
    torch_tensors,
    cupy_arrays,
    unaligned_tensors,
    host_tensors,
    strided_tensors_are_refused,
    indices_outside_raise,
    on_the_callers_stream,
    indices_outside_are_told_later,
    no_stream_is_refused,
    engines_for_other_architectures,
    too_much_memory_is_said,
    branches_that_overlap,
    branches_of_modules,
    current_is_the_gpu,
    many_threads,
    a_missing_device_is_named,
)
