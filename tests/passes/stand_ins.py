"""Small networks of the kinds that people run, written as exporters write them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper


class Network:
    """An ONNX graph being written, node by node, with random weights."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.rng = np.random.default_rng(0)
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        name = f"{operator}{len(self.nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        return name

    def tensor(self, array: object) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def number(self, value: float) -> str:
        return self.tensor(np.float32(value))

    def ints(self, *values: int) -> str:
        return self.tensor(np.array(values, np.int64))

    def weight(self, *shape: int) -> str:
        return self.tensor((self.rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32))

    def model(self, output: str) -> onnx.ModelProto:
        ends = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()
        ]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "network", ends, [result], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])

    def convolution(self, x: str, channels: int, out: int, kernel: int = 3, **attributes) -> str:
        """With a batch normalisation behind it."""
        w = self.weight(out, channels // attributes.get("group", 1), kernel, kernel)
        y = self("Conv", x, w, pads=[kernel // 2] * 4, **attributes)
        moments = [self.weight(out), self.weight(out), self.weight(out)]
        variance = self.tensor(np.full(out, 0.9, np.float32))
        return self("BatchNormalization", y, *moments, variance)

    def linear(self, x: str, inner: int, out: int) -> str:
        return self("Add", self("MatMul", x, self.weight(inner, out)), self.weight(out))

    def layer_norm(self, x: str, size: int) -> str:
        """As opsets before 17 have it."""
        d = self("Sub", x, self("ReduceMean", x, axes=[-1]))
        variance = self("ReduceMean", self("Pow", d, self.number(2.0)), axes=[-1])
        root = self("Sqrt", self("Add", variance, self.number(1e-5)))
        return self("Add", self("Mul", self("Div", d, root), self.weight(size)), self.weight(size))

    def gelu(self, x: str) -> str:
        gate = self("Erf", self("Div", x, self.number(2**0.5)))
        product = self("Mul", x, self("Add", gate, self.number(1.0)))
        return self("Mul", product, self.number(0.5))


def residual_network() -> onnx.ModelProto:
    net = Network(x=(1, 3, 24, 24))
    stem = net("Relu", net.convolution("x", 3, 8, strides=[2, 2]))
    pooled = net("MaxPool", stem, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    y = net("Relu", net.convolution(pooled, 8, 8))
    y = net("Relu", net("Add", net.convolution(y, 8, 8), net.convolution(pooled, 8, 8, 1)))
    flat = net("Flatten", net("GlobalAveragePool", y))
    return net.model(net("Gemm", flat, net.weight(10, 8), net.weight(10), transB=1))


def squeezing_network() -> onnx.ModelProto:
    net = Network(x=(1, 4, 6, 6))
    y = net.convolution("x", 4, 8, 1)
    y = net("Mul", y, net("Sigmoid", y))
    y = net.convolution(y, 8, 8, group=8)
    squeezed = net("ReduceMean", y, axes=[2, 3])
    squeezed = net("Relu", net("Conv", squeezed, net.weight(2, 8, 1, 1), net.weight(2)))
    gate = net("Conv", squeezed, net.weight(8, 2, 1, 1), net.weight(8))
    y = net("Mul", y, net("Sigmoid", gate))
    return net.model(net("Flatten", net("GlobalAveragePool", net.convolution(y, 8, 4, 1))))


def shuffling_network() -> onnx.ModelProto:
    net = Network(x=(1, 8, 8, 8))
    y = "x"
    for _ in range(3):
        left = net("Split", y, outputs=2, axis=1)
        right = net("Relu", net.convolution(f"{left}_1", 4, 4))
        y = net("Concat", left, right, axis=1)
        y = net("Reshape", y, net.ints(1, 2, 4, 8, 8))
        y = net("Transpose", y, perm=[0, 2, 1, 3, 4])
        y = net("Reshape", y, net.ints(1, 8, 8, 8))
    return net.model(net("Flatten", net("GlobalMaxPool", net.convolution(y, 8, 4, 1))))


def modern_convolutions() -> onnx.ModelProto:
    """ConvNeXt: permutes around layer normalisation and linear layers."""
    net = Network(x=(1, 3, 12, 12))
    y = net("Conv", "x", net.weight(8, 3, 4, 4), net.weight(8), strides=[4, 4])
    for _ in range(2):
        z = net("Conv", y, net.weight(8, 1, 7, 7), net.weight(8), pads=[3] * 4, group=8)
        z = net.layer_norm(net("Transpose", z, perm=[0, 2, 3, 1]), 8)
        z = net.linear(net.gelu(net.linear(z, 8, 32)), 32, 8)
        z = net("Transpose", net("Mul", z, net.weight(8)), perm=[0, 3, 1, 2])
        y = net("Add", y, z)
    y = net("Flatten", net("GlobalAveragePool", y))
    return net.model(net.linear(net.layer_norm(y, 8), 8, 5))


def transformer() -> onnx.ModelProto:
    """BERT as torch wrote it before opset 17, with a mask."""
    net = Network(x=(2, 6, 16), mask=(2, 6))
    hidden = net("Unsqueeze", "mask", net.ints(1, 2))
    hidden = net("Mul", net("Sub", net.number(1.0), hidden), net.number(-10000.0))
    y = net.layer_norm("x", 16)
    for _ in range(2):
        heads = []
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            split = net("Reshape", net.linear(y, 16, 16), net.ints(0, 0, 4, 4))
            heads.append(net("Transpose", split, perm=order))
        scores = net("Div", net("MatMul", heads[0], heads[1]), net.number(2.0))
        p = net("Softmax", net("Add", scores, hidden), axis=-1)
        z = net("Transpose", net("MatMul", p, heads[2]), perm=[0, 2, 1, 3])
        z = net.linear(net("Reshape", z, net.ints(0, 0, 16)), 16, 16)
        y = net.layer_norm(net("Add", z, y), 16)
        z = net.linear(net.gelu(net.linear(y, 16, 64)), 64, 16)
        y = net.layer_norm(net("Add", z, y), 16)
    return net.model(y)
