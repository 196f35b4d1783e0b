"""What is left of whole networks: transposes, normalisation, attention, activations, as counts.

The exported networks are read where `python -m benchmarks.networks` put them, or WHET_TEST_NETWORKS
says; small networks of the same kinds, made here, always run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import networks
from tests.passes.graphs import count
from whet.frontends.onnx import from_onnx
from whet.frontends.onnx.importer import Imported
from whet.ir.graph import Graph
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Gelu, Mul, Silu
from whet.ops.movement import Transpose
from whet.ops.reduce import LayerNorm, Softmax
from whet.passes.check import same_meaning
from whet.passes.pipeline import PASSES, optimise
from whet.passes.recognise import Numbers

FOLDER = Path(os.environ.get("WHET_TEST_NETWORKS", networks.FOLDER))


def read(source: onnx.ModelProto | Path) -> tuple[Imported, Graph]:
    """A model, and what the optimiser makes of its graph."""
    imported = from_onnx(source)
    return imported, optimise(imported.graph, numbers=Numbers(weights_of(imported)))


def weights_of(imported: Imported) -> Callable[[str], np.ndarray]:
    return lambda name: imported.weights[name].read()


# Transposes: one at the input of a network of convolutions; in a transformer four for each
# attention (queries, keys, values, result), in MLP-Mixer two for each mixing of tokens, in Swin two
# for each partition into windows.
EXPORTED = {
    #                      Transpose Attention LayerNorm Gelu Silu Softmax
    "resnet18": (1, 0, 0, 0, 0, 0),
    "resnet50": (1, 0, 0, 0, 0, 0),
    "resnet50_dyn": (1, 0, 0, 0, 0, 0),
    "mobilenetv3_large_100": (1, 0, 0, 0, 0, 0),
    "efficientnet_b0": (1, 0, 0, 0, 49, 0),
    "densenet121": (1, 0, 0, 0, 0, 0),
    "inception_v3": (1, 0, 0, 0, 0, 0),
    "regnety_008": (1, 0, 0, 0, 0, 0),
    "resnext50_32x4d": (1, 0, 0, 0, 0, 0),
    "vgg16": (1, 0, 0, 0, 0, 0),
    "convnext_tiny": (1, 0, 23, 18, 0, 0),
    "vit_base_patch16_224": (4 * 12 + 1, 12, 25, 12, 0, 0),
    "bert_base": (4 * 12, 12, 25, 12, 0, 0),
    "bert_base_dyn": (4 * 12, 12, 25, 12, 0, 0),
    "gpt2_small": (4 * 12, 12, 25, 12, 0, 0),
    "mixer_b16_224": (2 * 12 + 1, 0, 25, 24, 0, 0),
    "swin_tiny_patch4_window7_224": (4 * 12 + 2 * 10 + 3 + 1, 12, 29, 12, 0, 0),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported(name):
    path = FOLDER / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there; `python -m benchmarks.networks {name}` exports it")
    _, after = read(path)
    kinds = (Transpose, Attention, LayerNorm, Gelu, Silu, Softmax)
    assert tuple(count(after, kind) for kind in kinds) == EXPORTED[name]


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


STAND_INS = {
    # Transpose Attention LayerNorm Gelu Silu Mul
    residual_network: (1, 0, 0, 0, 0, 0),
    squeezing_network: (1, 0, 0, 0, 1, 1),
    shuffling_network: (2, 0, 0, 0, 0, 0),  # the halves of the input
    modern_convolutions: (1, 0, 3, 2, 0, 0),
    transformer: (8, 2, 5, 2, 0, 1),
}


@pytest.mark.parametrize("build", STAND_INS)
def test_stand_in(build):
    imported, after = read(build())
    kinds = (Transpose, Attention, LayerNorm, Gelu, Silu, Mul)
    assert tuple(count(after, kind) for kind in kinds) == STAND_INS[build], str(after)
    assert count(after, Convolution) == count(imported.graph, Convolution)
    assert same_meaning(imported.graph, after, weights_of(imported)) == 1


def test_every_pass_is_seen():
    seen: list[str] = []
    imported = from_onnx(transformer())
    optimise(imported.graph, lambda name, graph: seen.append(name))
    assert seen == [run.__name__ for run in PASSES]


def test_names_of_the_model_survive():
    imported = from_onnx(residual_network())
    after = optimise(imported.graph)
    named = [v for v in after.values if isinstance(v.op, Convolution | MatMul)]
    assert all(after.origins.get(v) for v in named)


def test_a_deep_transformer_takes_well_under_a_second():
    """Counted work: what is tried grows with the graph, not faster."""
    net = Network(x=(1, 6, 16))
    y = "x"
    for _ in range(60):
        y = net("Add", net.linear(net.gelu(net.linear(net.layer_norm(y, 16), 16, 32)), 32, 16), y)
    imported = from_onnx(net.model(y))
    start = time.perf_counter()
    after = optimise(imported.graph, numbers=Numbers(weights_of(imported)))
    took = time.perf_counter() - start
    assert count(after, LayerNorm) == count(after, Gelu) == 60
    assert took < 10, f"{len(imported.graph.values)} values took {took:.1f} s"


def test_the_bodies_of_control_flow_are_optimised():
    branches = []
    for factor in (1.0, 2.0):
        net = Network()
        y = net("Mul", net.gelu("x"), net.number(factor))
        result = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        branches.append(helper.make_graph(net.nodes, "branch", [], [result], net.tensors))
    outer = Network(x=(2, 3))
    total = outer("ReduceSum", "x", keepdims=0)
    positive = outer("Greater", total, outer.number(0.0))
    chosen = outer("If", positive, then_branch=branches[0], else_branch=branches[1])
    imported, after = read(outer.model(chosen))
    bodies = [body for v in after.values for body in v.op.graphs]
    assert [count(body, Gelu) for body in bodies] == [1, 1]
    assert same_meaning(imported.graph, after, weights_of(imported)) == 1
