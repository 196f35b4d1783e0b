"""Sizes at the edges of what operators take, most of them told by a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

import whet
from tests.fences import fenced
from tests.levels import LEVELS, architecture
from tests.runtime.models import model, value
from tests.targets.cpu.kernels import expected, tensor
from whet.engine.weights import ImportedWeights
from whet.errors import ShapeError
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Value, constant
from whet.ir.sizes import symbol
from whet.ops.attention import Attention
from whet.ops.block_quantized import BlockQuantizedMatMul
from whet.ops.contract import Convolution, MatMul
from whet.ops.movement import reshape, slice_axis, transpose
from whet.runtime.program import Runner
from whet.targets.cpu.device import Device

RNG = np.random.default_rng(1)


def one_node(shape: list[Any], operator: str, *stored: Any, **attributes: Any) -> whet.Session:
    """A session for one operator on x, and on further inputs that the model holds."""
    weights = {f"w{i}": np.asarray(w) for i, w in enumerate(stored)}
    node = helper.make_node(operator, ["x", *weights], ["y"], **attributes)
    proto = model([node], [value("x", shape)], [value("y", None)], weights)
    return whet.build(proto).session("cpu", cache=False, specialize="none")


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("groups", [1, 16])
def test_windows_longer_than_likely_sizes(groups: int, dtype: str) -> None:
    """As those of a spectrum over samples, whose number a run tells."""
    w = RNG.integers(-9, 9, (16, 1000, 16 // groups)).astype("int8" if dtype == "uint8" else dtype)
    x = tensor("x", dtype, symbol("n"), symbol("length"), 16)  # type: ignore[arg-type]
    whole = "int32" if dtype == "uint8" else None
    y = Convolution((3,), (1,), (0,), (0,), groups, whole)(x, constant(w))
    runner = Runner(Device(architecture("sse2")), ImportedWeights({}), 2, "none")
    graph = Graph((x,), (y,))
    for length in (1000, 1007):
        given = RNG.integers(0, 9, (2, length, 16)).astype(dtype)
        (got,), (want,) = runner.execute(graph, [given]), evaluate(graph, {x: given})
        np.testing.assert_array_equal(got, want)
    assert not runner.reference_ops and len(runner.plans) == 1


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_padding_by_what_hardly_is_there(mode: str) -> None:
    session = one_node(["n", "m"], "Pad", np.array([0, 2, 0, 1]), mode=mode)
    for shape in ((2, 3), (2, 1), (0, 3)):
        x = floats(*shape)
        want = np.pad(x, ((0, 0), (2, 1)), mode)  # type: ignore[call-overload]
        np.testing.assert_array_equal(session.run({"x": x})["y"], want)
    with pytest.raises(ShapeError, match="no elements cannot be padded"):
        session.run({"x": floats(3, 0)})
    beside = one_node([3, 0], "Pad", np.array([1, 0, 0, 0]), mode=mode)
    assert beside.run({"x": floats(3, 0)})["y"].shape == (4, 0)


def test_a_step_beyond_every_axis() -> None:
    """Its product with a size does not fit into 64 bits: nothing is written behind the result."""
    session = one_node(["n"], "Slice", *([i] for i in (0, 99, 0, 1 << 62)))
    for n in (1, 5, 26):
        memory = np.zeros(64, np.float32)
        session.run({"x": np.arange(7, n + 7, dtype=np.float32)}, out={"y": memory[:1]})
        assert memory[0] == 7 and not memory[1:].any()


@pytest.mark.parametrize("size", ["n", None], ids=["told", "known"])
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_windows_that_hang_over_the_end(operator: str, size: str | None) -> None:
    def run(n: int, kernel: int, stride: int) -> np.ndarray:
        window = {"kernel_shape": [kernel], "strides": [stride], "ceil_mode": 1}
        return one_node([1, 1, size or n], operator, **window).run({"x": np.ones((1, 1, n), "f")})[
            "y"
        ]

    assert run(2, 3, 2).tolist() == [[[1]]]
    assert run(2, 3, 1).shape == run(1, 5, 3).shape == (1, 1, 0)
    for n, kernel in ((2, 4), (0, 2)):
        with pytest.raises(ShapeError, match="larger than the padded axes"):
            run(n, kernel, 1)


def of_some(name: str) -> tuple[Value, Value]:
    """x, and what one kind of kernel makes of all of it but the first row."""
    n = symbol("n")
    shapes = {"image": (n, 9, 9, 32), "heads": (1, 2, n, 8)}
    x = tensor("x", "float32", *shapes.get(name.split()[0], (n, 32)))  # type: ignore[arg-type]
    rest = slice_axis(x, x.shape.index(n), 1, n - 1)
    same: Any = ((1, 1),) * 4
    codes = constant(RNG.integers(0, 255, (40, 1, 16), dtype=np.uint8))
    turned = reshape(transpose(rest, *reversed(range(x.rank))), (n - 1) * 32)
    return x, {
        "product": lambda: MatMul()(rest, constant(floats(32, 300))),
        "few bits": lambda: BlockQuantizedMatMul(32, 4, 32)(rest, codes, constant(floats(40, 1))),
        "loops": lambda: turned + 1.0,
        "image": lambda: Convolution(*same)(rest, constant(floats(300, 3, 3, 32))),
        "image by channel": lambda: Convolution(*same, 32)(rest, constant(floats(32, 3, 3, 1))),
        "heads queries": lambda: Attention(0.3)(rest, x, x),
        "heads keys": lambda: Attention(0.3)(x, rest, rest),
    }[name]()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "name",
    [
        *("product", "few bits", "loops", "image", "image by channel"),
        *("heads queries", "heads keys"),
    ],
)
def test_none_are_left(name: str, level: str) -> None:
    """Kernels for every size, at sizes that leave them nothing: no number is divided by 0."""
    x, y = of_some(name)
    graph = Graph((x,), (y,))
    runner = Runner(Device(architecture(level)), ImportedWeights({}), 2, "none")
    for rows in (1, 2, 1):
        given = floats(*(size if isinstance(size, int) else rows for size in x.shape))
        (got,), (want,) = runner.execute(graph, [given]), evaluate(graph, {x: given})
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert not runner.reference_ops and len(runner.plans) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_keys_of_one_element(level: str) -> None:
    """Those of the last head end where memory does."""
    n = symbol("keys")
    q, k, v = (tensor(x, "float32", 1, 2, rows, 1) for x, rows in (("q", 3), ("k", n), ("v", n)))
    graph = Graph((q, k, v), (Attention(0.5)(q, k, v),))
    runner = Runner(Device(architecture(level)), ImportedWeights({}), 1, "none")
    for keys in (1, 5, 20):
        feeds = {q: floats(1, 2, 3, 1), k: floats(1, 2, keys, 1), v: floats(1, 2, keys, 1)}
        (got,) = runner.execute(graph, [fenced(array) for array in feeds.values()])
        np.testing.assert_allclose(got, expected(graph.outputs, feeds)[0], atol=1e-6)
    assert len(runner.plans) == 1
