"""Small models for the tests of engines and sessions."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


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
