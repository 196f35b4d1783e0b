"""Small models for the tests of engines and sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MEBI = 1 << 20
WIDTH, LAYERS = 512, 12
"""Of `layers`: a mebibyte of weights in each."""


def value(
    name: str, shape: list[int | str] | None, dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(w, name) for name, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def layers(seed: int = 0, table: int = 0, rows: int | str = 4) -> onnx.ModelProto:
    """Products one after the other; with `table`, of rows that are chosen from one of that size."""
    rng = np.random.default_rng(seed)
    weights = {
        f"w{i}": (rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        for i in range(LAYERS)
    }
    nodes, last = [], "x"
    if table:
        weights["table"] = rng.standard_normal((table, WIDTH)).astype(np.float32)
        nodes.append(helper.make_node("Gather", ["table", "ids"], ["x"]))
    for i in range(LAYERS):
        nodes += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"a{i}"]),
            helper.make_node("Tanh", [f"a{i}"], [f"b{i}"]),
        ]
        last = f"b{i}"
    given = value("ids", [rows], 7) if table else value("x", [rows, WIDTH])
    nodes[-1].output[0] = "y"
    return model(nodes, [given], [value("y", [rows, WIDTH])], weights)


def convolutions(seed: int = 0, batch: int | str = 1, channels: int = 8) -> onnx.ModelProto:
    """Convolution, activation, pooling, residual, mean, product: x[N, 3, 16, 16] -> y[N, 10]."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "w0": draw(channels, 3, 3, 3),
        "b0": draw(channels),
        "w1": draw(channels, channels, 3, 3),
        "w2": draw(10, channels),
        "b2": draw(10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "w1"], ["d"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "d"], ["e"], name="residual"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], name="mean"),
        helper.make_node("Flatten", ["f"], ["g"], name="flatten"),
        helper.make_node("Gemm", ["g", "w2", "b2"], ["y"], name="classes", transB=1),
    ]
    return model(nodes, [value("x", [batch, 3, 16, 16])], [value("y", [batch, 10])], weights)


def attention(seed: int = 0, length: int | str = 12) -> onnx.ModelProto:
    """One transformer block as exporters write it: x[1, length, 16] -> y[1, length, 16]."""
    rng = np.random.default_rng(seed)
    weights = {
        **{n: (rng.standard_normal((16, 16)) / 4).astype(np.float32) for n in "qkvo"},
        "up": (rng.standard_normal((16, 32)) / 4).astype(np.float32),
        "down": (rng.standard_normal((32, 16)) / 6).astype(np.float32),
        "scale": np.array(0.5, np.float32),
        "heads": np.array([1, -1, 2, 8]),
        "joined": np.array([1, -1, 16]),
        "half": np.array(0.5, np.float32),
        "one": np.array(1.0, np.float32),
        "root": np.array(np.sqrt(0.5), np.float32),
        "gamma": rng.standard_normal(16).astype(np.float32),
        "beta": rng.standard_normal(16).astype(np.float32),
    }
    node = helper.make_node
    nodes = [node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm")]
    for n in "qkv":
        order = [0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]
        nodes += [
            node("MatMul", ["n", n], [f"{n}0"], name=f"project_{n}"),
            node("Reshape", [f"{n}0", "heads"], [f"{n}1"]),
            node("Transpose", [f"{n}1"], [f"{n}2"], perm=order),
        ]
    nodes += [
        node("MatMul", ["q2", "k2"], ["s0"], name="scores"),
        node("Mul", ["s0", "scale"], ["s1"]),
        node("Softmax", ["s1"], ["s2"], axis=-1),
        node("MatMul", ["s2", "v2"], ["a0"], name="mix"),
        node("Transpose", ["a0"], ["a1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["a1", "joined"], ["a2"]),
        node("MatMul", ["a2", "o"], ["a3"], name="project_o"),
        node("Add", ["x", "a3"], ["r"], name="residual"),
        node("MatMul", ["r", "up"], ["u"], name="up"),
        node("Mul", ["u", "root"], ["g0"]),
        node("Erf", ["g0"], ["g1"]),
        node("Add", ["g1", "one"], ["g2"]),
        node("Mul", ["u", "g2"], ["g3"]),
        node("Mul", ["g3", "half"], ["g4"]),
        node("MatMul", ["g4", "down"], ["d"], name="down"),
        node("Add", ["r", "d"], ["y"], name="out"),
    ]
    shape: list[int | str] = [1, length, 16]
    return model(nodes, [value("x", shape)], [value("y", shape)], weights)


MODELS = {"convolutions": convolutions, "attention": attention}


def save_all(folder: str) -> None:
    """Writes every model into a folder, for scripts/replay."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, make in MODELS.items():
        onnx.save(make(), path / f"{name}.onnx")
