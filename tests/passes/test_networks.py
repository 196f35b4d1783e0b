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
from tests.passes.stand_ins import (
    Network,
    modern_convolutions,
    residual_network,
    shuffling_network,
    squeezing_network,
    transformer,
)
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
