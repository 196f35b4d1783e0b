"""com.microsoft nodes with random inputs, in every form that exporters and optimisers write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Node:
    """One node: its inputs (None where absent), its number of outputs, and how exact they are."""

    name: str
    operator: str
    inputs: tuple[Array | None, ...]
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    steps: int = 0  # by how much integers may differ
    fixed: tuple[int, ...] = ()  # inputs that are initializers
    skipped: tuple[int, ...] = ()  # outputs that are not asked for
    domain: str = "com.microsoft"
    opset: int = 20

    def model(self, named: bool = False) -> onnx.ModelProto:
        """A model of this node alone; its inputs' sizes are fixed, or have names."""
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(self.inputs)]
        outputs = [f"y{i}" if i not in self.skipped else "" for i in range(self.outputs)]
        node = helper.make_node(
            self.operator, names, outputs, self.operator, domain=self.domain, **self.attributes
        )
        given = [(n, x) for n, x in zip(names, self.inputs) if x is not None]
        inputs = [
            helper.make_tensor_value_info(n, element_type(x), sizes(n, x, named))
            for i, (n, x) in enumerate(zip(names, self.inputs))
            if x is not None and i not in self.fixed
        ]
        stored = [numpy_helper.from_array(x, n) for n, x in given if int(n[1:]) in self.fixed]
        results = [onnx.ValueInfoProto(name=o) for o in outputs if o]
        graph = helper.make_graph([node], "contrib", inputs, results, stored)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def feeds(self) -> dict[str, Array]:
        """The arrays of the inputs that are not initializers, by name."""
        return {
            f"x{i}": x for i, x in enumerate(self.inputs) if x is not None and i not in self.fixed
        }


def sizes(name: str, x: Array, named: bool) -> list[str] | list[int]:
    """The array's sizes, or a name for each."""
    return [f"{name}.{axis}" for axis in range(x.ndim)] if named else list(x.shape)


def element_type(x: Array) -> int:
    """ONNX's number for the array's dtype."""
    return helper.np_dtype_to_tensor_dtype(x.dtype)


class Draw:
    """Random arrays from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: Any = np.float32) -> Array:
        return (self.rng.standard_normal(shape) * scale).astype(dtype)

    def ints(self, low: int, high: int, *shape: int, dtype: Any = np.int32) -> Array:
        return self.rng.integers(low, high, shape).astype(dtype)

    def codes(self, *shape: int, dtype: Any = np.uint8) -> Array:
        info = np.iinfo(dtype)
        return self.rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)

    def weights(self, *shape: int) -> Array:
        """Integers of 7 bits: without VNNI, ONNX Runtime adds pairs of products in 16 bits, which
        those of 8 bits overflow."""
        return self.rng.integers(-64, 63, shape, endpoint=True).astype(np.int8)

    def scale(self, *shape: int) -> Array:
        return self.rng.uniform(0.01, 0.05, shape).astype(np.float32)


def u8(x: int) -> Array:
    return np.array(x, np.uint8)


def i8(x: int) -> Array:
    return np.array(x, np.int8)


def f32(x: float) -> Array:
    return np.array(x, np.float32)


def activations(d: Draw) -> Iterator[Node]:
    x, bias = d(2, 3, 8, scale=2), d(8)
    yield Node("gelu", "Gelu", (x,))
    yield Node("bias-gelu", "BiasGelu", (x, bias))
    yield Node("fast-gelu", "FastGelu", (x,))
    yield Node("fast-gelu-bias", "FastGelu", (x, bias))
    yield Node("quick-gelu", "QuickGelu", (x,), attributes={"alpha": 1.5})
    yield Node("scaled-silu", "ScaledSiLU", (x,), attributes={"alpha": 0.7})


def normalisation(d: Draw) -> Iterator[Node]:
    x, skip, gamma, beta, bias = d(2, 3, 16), d(2, 3, 16), d(16), d(16), d(16)
    yield Node("layer-norm", "LayerNormalization", (x, gamma, beta), 3, domain="")
    yield Node("simplified", "SimplifiedLayerNormalization", (x, gamma), 2, domain="")
    for name, inputs in {
        "skip": (x, skip, gamma),
        "skip-beta": (x, skip, gamma, beta),
        "skip-bias": (x, skip, gamma, beta, bias),
        "skip-broadcast": (x, d(3, 16), gamma, beta),
        "skip-one": (x, d(1, 3, 16), gamma, None, bias),
    }.items():
        attributes = {"epsilon": 1e-5}
        yield Node(name, "SkipLayerNormalization", inputs, 4, attributes, skipped=(1, 2))
    for name, inputs in {
        "rms-skip": (x, skip, gamma),
        "rms-skip-bias": (x, skip, gamma, bias),
    }.items():
        attributes = {"epsilon": 1e-5}
        yield Node(name, "SkipSimplifiedLayerNormalization", inputs, 4, attributes, skipped=(1, 2))
    ids, segments = d.ints(0, 10, 2, 5), d.ints(0, 2, 2, 5)
    tables = d(10, 16), d(8, 16), d(2, 16)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    yield Node("embed", "EmbedLayerNormalization", (ids, segments, *tables, gamma, beta, mask), 2)
    yield Node(
        "embed-sum",
        "EmbedLayerNormalization",
        (ids, None, tables[0], tables[1], None, gamma, beta),
        3,
    )
    places = d.ints(0, 8, 2, 5)
    inputs = (ids, segments, *tables, gamma, beta, mask, places)
    yield Node("embed-places", "EmbedLayerNormalization", inputs, 2)


def products(d: Draw) -> Iterator[Node]:
    a, b = d(2, 3, 4), d(2, 4, 5)
    yield Node("matmul", "FusedMatMul", (a, b), attributes={"alpha": 0.5})
    yield Node("matmul-a", "FusedMatMul", (d(2, 4, 3), b), attributes={"transA": 1})
    yield Node("matmul-b", "FusedMatMul", (a, d(2, 5, 4)), attributes={"transB": 1})
    batch = {"transBatchA": 1, "transBatchB": 1}
    yield Node("matmul-batch", "FusedMatMul", (d(3, 2, 4), d(4, 2, 5)), attributes=batch)
    both = {**batch, "transA": 1, "transB": 1}
    yield Node("matmul-batch-ab", "FusedMatMul", (d(4, 2, 3), d(5, 2, 4)), attributes=both)
    gemm = (d(3, 4), d(5, 4), d(5))
    for name in ("Relu", "Sigmoid", "Tanh"):
        attributes = {"activation": name, "transB": 1, "alpha": 0.5}
        yield Node(f"gemm-{name}", "FusedGemm", gemm, attributes=attributes)
    attributes = {"activation": "LeakyRelu", "activation_alpha": 0.2, "transB": 1}
    yield Node("gemm-leaky", "FusedGemm", gemm, attributes=attributes)
    yield Node("cdist", "CDist", (d(3, 4), d(5, 4)), attributes={"metric": "euclidean"})
    yield Node("cdist-square", "CDist", (d(3, 4), d(5, 4)), attributes={"metric": "sqeuclidean"})
    x, w, bias, z = d(1, 4, 7, 7), d(6, 4, 3, 3), d(6), d(1, 6, 5, 5)
    attributes = {"activation": "Relu"}
    yield Node("conv-relu", "FusedConv", (x, w, bias), attributes=attributes, tolerance=1e-4)
    yield Node("conv-add", "FusedConv", (x, w, bias, z), attributes=attributes, tolerance=1e-4)
    attributes = {"activation": "Clip", "activation_params": [0.0, 1.0], "pads": [1, 1, 1, 1]}
    yield Node("conv-clip", "FusedConv", (x, w, bias), attributes=attributes, tolerance=1e-4)
    attributes = {"activation": "HardSigmoid", "activation_params": [0.2, 0.5], "strides": [2, 2]}
    yield Node("conv-hard", "FusedConv", (x, w), attributes=attributes, tolerance=1e-4)
    yield Node("inverse", "Inverse", (d(2, 4, 4) + 4 * np.eye(4, dtype=np.float32),))


def movement(d: Draw) -> Iterator[Node]:
    x = d(2, 3, 5, 6)
    yield Node("expand", "ExpandDims", (x, np.array([-2], np.int32)), fixed=(1,))
    yield Node("trilu", "Trilu", (d(4, 5), np.array(1, np.int64)), attributes={"upper": 0})
    yield Node("unique", "Unique", (d.ints(0, 5, 12, dtype=np.float32),), 3)
    yield Node("gather", "GatherND", (d(3, 4, 5), np.array([[0, 1], [2, 3]], np.int64)))
    yield Node("range", "Range", (f32(1), f32(5), f32(0.5)), fixed=(0, 1, 2))
    yield Node("pad", "Pad", (d(2, 3), np.array([0, 1, 2, 0], np.int64), f32(7)), fixed=(1,))
    grid = d.rng.uniform(-1.2, 1.2, (2, 4, 3, 2)).astype(np.float32)
    for mode in ("bilinear", "nearest", "bicubic"):
        for padding in ("zeros", "border", "reflection"):
            attributes = {"mode": mode, "padding_mode": padding, "align_corners": 1}
            yield Node(f"grid-{mode}-{padding}", "GridSample", (x, grid), 1, attributes, 1e-4)
    boxes = np.array([[0.1, 0.2, 0.8, 0.9], [-0.2, 0, 1.2, 1]], np.float32)
    which, size = np.array([0, 1], np.int32), np.array([3, 4], np.int32)
    for mode in ("bilinear", "nearest"):
        attributes = {"mode": mode, "extrapolation_value": 2.0}
        inputs = (x, boxes, which, size)
        yield Node(f"crop-{mode}", "CropAndResize", inputs, 1, attributes, 1e-4, fixed=(3,))
    codes = d.codes(1, 6, 7, 3)
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    yield Node("pool", "NhwcMaxPool", (codes,), attributes=attributes)


def rotary(d: Draw) -> Iterator[Node]:
    cosine, sine = d(12, 4), d(12, 4)
    at, start = d.ints(0, 12, 2, 5, dtype=np.int64), np.array([3], np.int64)
    forms = {"flat": (d(2, 5, 24), at), "start": (d(2, 5, 24), start), "heads": (d(2, 3, 5, 8), at)}
    for name, (x, places) in forms.items():
        for woven in (0, 1):
            inputs, attributes = (x, places, cosine, sine), {"interleaved": woven}
            yield Node(f"{name}-{woven}", "RotaryEmbedding", inputs, 1, attributes)
    attributes = {"num_heads": 2, "rotary_embedding_dim": 8}
    yield Node("partial", "RotaryEmbedding", (d(2, 5, 24), at, cosine, sine), 1, attributes)


def attention(d: Draw) -> Iterator[Node]:
    x, w, b = d(2, 5, 12), d(12, 36, scale=0.3), d(36)
    heads = {"num_heads": 3}
    yield Node("plain", "Attention", (x, w, b), attributes=heads)
    yield Node("causal", "Attention", (x, w, b), attributes={**heads, "unidirectional": 1})
    yield Node("scale", "Attention", (x, w, b), attributes={**heads, "scale": 0.3})
    masks = {
        "ends": np.array([3, 5], np.int32),
        "ends-starts": np.array([4, 5, 1, 0], np.int32),
        "keys": d.ints(0, 2, 2, 5) | np.eye(5, dtype=np.int32)[:2],
        "pairs": d.ints(0, 2, 2, 5, 5) | np.eye(5, dtype=np.int32),
    }
    for name, mask in masks.items():
        yield Node(f"mask-{name}", "Attention", (x, w, b, mask), attributes=heads)
        causal = {**heads, "unidirectional": 1}
        yield Node(f"mask-{name}-causal", "Attention", (x, w, b, mask), attributes=causal)
    past = d(2, 2, 3, 4, 4)
    yield Node("past", "Attention", (x, w, b, None, past), 2, {**heads, "unidirectional": 1})
    mask = np.ones((2, 9), np.int32)
    mask[1, :2] = 0
    yield Node("past-mask", "Attention", (x, w, b, mask, past), 2, {**heads, "unidirectional": 1})
    bias = d(1, 3, 5, 5)
    yield Node("bias", "Attention", (x, w, b, None, None, bias), attributes=heads)
    sizes = {**heads, "qkv_hidden_sizes": [12, 12, 6]}
    yield Node("sizes", "Attention", (x, d(12, 30, scale=0.3), d(30)), attributes=sizes)


def multi_head(d: Draw) -> Iterator[Node]:
    q, k, v, bias = d(2, 4, 12), d(2, 6, 12), d(2, 6, 12), d(36)
    heads = {"num_heads": 3}
    name = "MultiHeadAttention"
    yield Node("plain", name, (q, k, v), attributes=heads)
    yield Node("bias", name, (q, k, v, bias), attributes=heads)
    yield Node("cross", name, (q, d(2, 3, 6, 4), d(2, 3, 6, 4)), attributes=heads)
    ends = np.array([3, 6], np.int32)
    yield Node("ends", name, (q, k, v, None, ends), attributes=heads)
    padding = d.ints(0, 2, 2, 6)
    padding[:, 0] = 1
    yield Node("padding", name, (q, k, v, bias, padding), attributes=heads)
    yield Node("score-bias", name, (q, k, v, None, None, d(2, 3, 4, 6)), attributes=heads)
    own = d(2, 4, 12), d(2, 4, 12), d(2, 4, 12)
    past = d(2, 3, 5, 4), d(2, 3, 5, 4)
    causal = {**heads, "unidirectional": 1}
    yield Node("past", name, (*own, None, None, None, *past), 3, heads)
    yield Node("past-causal", name, (*own, None, None, None, *past), 3, causal)
    yield Node("causal", name, own, attributes=causal)
    yield Node("present", name, own, 3, {**heads, "scale": 0.2})


def grouped(d: Draw) -> Iterator[Node]:
    name, heads = "GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 2}
    cosine, sine = d(16, 8), d(16, 8)

    def inputs(length: int, past: int, ends: list[int], total: int, *rest: Any) -> tuple[Any, ...]:
        batch = len(ends)
        cache = d(batch, 2, past, 16), d(batch, 2, past, 16)
        q, k, v = d(batch, length, 64), d(batch, length, 32), d(batch, length, 32)
        counts = np.array(ends, np.int32), np.array(total, np.int32)
        return (q, k, v, *cache, *counts, *rest)

    def node(case: str, given: tuple[Any, ...], **attributes: Any) -> Node:
        return Node(case, name, given, 3, {**heads, **attributes}, fixed=(6,))

    prompt, step = (5, 0, [4, 4], 5), (1, 6, [6, 6], 7)
    yield node("prompt", inputs(*prompt))
    yield node("step", inputs(*step))
    yield node("ragged-step", inputs(1, 6, [6, 3], 7))
    yield node("longer-cache", inputs(1, 9, [6, 6], 7))
    yield node("chunk", inputs(3, 4, [6], 7))
    for woven in (0, 1):
        how = {"do_rotary": 1, "rotary_interleaved": woven}
        yield node(f"rotary-{woven}", inputs(*prompt, cosine, sine), **how)
        yield node(f"rotary-step-{woven}", inputs(*step, cosine, sine), **how)
    yield node("local", inputs(6, 0, [5, 5], 6), local_window_size=3)
    yield node("local-step", inputs(*step), local_window_size=3)
    yield node("softcap", inputs(*prompt), softcap=2.0)
    yield node("scale", inputs(*prompt), scale=0.1)
    yield node("smooth", inputs(*prompt), smooth_softmax=1)
    yield node("sink", inputs(*prompt, None, None, None, None, d(4)))
    yield node("score-bias", inputs(*prompt, None, None, None, d(1, 4, 5, 5)))
    rest = inputs(*prompt)[3:]
    yield node("packed", (d(2, 5, 128), None, None, *rest))
    yield node("packed-rotary", (d(2, 5, 128), None, None, *rest, cosine, sine), do_rotary=1)


def quantised(d: Draw) -> Iterator[Node]:
    for dtype, zero in ((np.uint8, u8), (np.int8, i8)):
        kind = np.dtype(dtype).name
        z = 120 if dtype == np.uint8 else -3
        a, b = d.codes(2, 3, 5, dtype=dtype), d.codes(3, 5, dtype=dtype)
        pair = (a, f32(0.03), zero(z), b, f32(0.02), zero(z + 1), f32(0.05), zero(z - 2))
        yield Node(f"add-{kind}", "QLinearAdd", pair, steps=1)
        pair = (a, f32(0.03), zero(z), b, f32(0.02), zero(z + 1), f32(0.09), zero(z - 2))
        yield Node(f"mul-{kind}", "QLinearMul", pair, steps=1)
        own = (a, f32(0.05), zero(z))
        low = 0 if dtype == np.uint8 else -128
        fixed = (1, 2, 3, 4)
        to = f32(1 / 256), zero(low)
        yield Node(f"sigmoid-{kind}", "QLinearSigmoid", (*own, *to), steps=1, fixed=fixed)
        leaky = (*own, f32(0.04), zero(z + 2))
        yield Node(
            f"leaky-{kind}", "QLinearLeakyRelu", leaky, 1, {"alpha": 0.2}, steps=1, fixed=fixed
        )
        attributes = {"opset": 13, "axis": -1}
        yield Node(
            f"softmax-{kind}", "QLinearSoftmax", (*own, *to), 1, attributes, steps=1, fixed=fixed
        )
        image = d.codes(2, 3, 6, 7, dtype=dtype)
        pool = (image, f32(0.05), zero(z), f32(0.04), zero(z + 2))
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
        yield Node(f"pool-{kind}", "QLinearAveragePool", pool, 1, attributes, steps=1)
        counted = {**attributes, "count_include_pad": 1}
        yield Node(f"pool-counted-{kind}", "QLinearAveragePool", pool, 1, counted, steps=1)
        yield Node(f"global-{kind}", "QLinearGlobalAveragePool", pool, steps=1)
        last = {"channels_last": 1}
        yield Node(f"global-last-{kind}", "QLinearGlobalAveragePool", pool, 1, last, steps=1)
        parts = (f32(0.05), zero(z), a, f32(0.04), zero(z), a, f32(0.06), zero(z + 1))
        fixed = (0, 1, 3, 4, 6, 7)
        yield Node(f"concat-{kind}", "QLinearConcat", parts, 1, {"axis": 1}, steps=1, fixed=fixed)
        chosen = (d.ints(0, 2, 2, 3, 5).astype(bool), a, f32(0.05), zero(z), a, f32(0.02), zero(z))
        inputs = (*chosen, f32(0.04), zero(z + 1))
        yield Node(f"where-{kind}", "QLinearWhere", inputs, steps=1, fixed=(2, 3, 5, 6, 7, 8))
    yield from quantised_products(d)


def quantised_products(d: Draw) -> Iterator[Node]:
    a, b = d.codes(3, 8), d.weights(8, 5)
    zeros = u8(120), i8(3)
    scales = f32(0.02), d.scale(5)
    fixed = (1, 2, 3, 4, 5, 7, 8)
    c = d.ints(-500, 500, 5)
    columns = np.zeros(5, np.int8)
    gemm = (a, scales[0], zeros[0], b, scales[1], columns, c)
    yield Node("gemm-real", "QGemm", gemm, tolerance=1e-4, fixed=fixed)
    yield Node("gemm", "QGemm", (*gemm, f32(0.1), u8(100)), steps=1, fixed=fixed)
    turned = (a, scales[0], zeros[0], b.T.copy(), scales[1], columns, c, f32(0.1), u8(100))
    yield Node("gemm-turned", "QGemm", turned, 1, {"transB": 1}, steps=1, fixed=fixed)
    real = (a, b, scales[0], scales[1], zeros[0], columns, d(5))
    yield Node("integer-to-float", "MatMulIntegerToFloat", real, tolerance=1e-4)
    dynamic = (d(3, 8), b, scales[1], columns, d(5))
    yield Node("dynamic", "DynamicQuantizeMatMul", dynamic, tolerance=1e-4, fixed=(1, 2, 3, 4))
    x, w, bias = d.codes(2, 4, 12), d.weights(12, 36), d(36)
    inputs = (x, w, bias, f32(0.02), f32(0.01), None, u8(120), i8(0))
    yield Node("attention", "QAttention", inputs, 1, {"num_heads": 3}, 1e-4, fixed=(1,))
    image, kernel = d.codes(1, 6, 6, 4), d.weights(5, 4, 3, 3)
    conv = (image, f32(0.05), u8(120), kernel, d.scale(5), np.zeros(5, np.int8), f32(0.3), u8(110))
    fixed = (1, 2, 3, 4, 5, 6, 7, 8)
    bias = d.ints(-300, 300, 5)
    last = {"channels_last": 1, "pads": [1, 1, 1, 1]}
    yield Node("conv-last", "QLinearConv", (*conv, bias), 1, last, steps=1, fixed=fixed)
    x = d(2, 3, 4)
    yield Node("quantize", "QuantizeLinear", (x, f32(0.05), u8(120)))
    yield Node("quantize-axis", "QuantizeLinear", (x, d.scale(3), d.codes(3)), 1, {"axis": 1})
    yield Node("dequantize", "DequantizeLinear", (d.codes(2, 3), f32(0.05), u8(120)))
    wide = d.ints(-99, 99, 3, 4, dtype=np.int16), d.ints(-99, 99, 4, 5, dtype=np.int16)
    yield Node("wide", "MatMulInteger16", wide)


def quantised_layers(d: Draw) -> Iterator[Node]:
    ids, segments = d.ints(0, 10, 2, 5), d.ints(0, 2, 2, 5)
    tables = [d.codes(n, 16) for n in (10, 8, 2)]
    codes = [*tables, d.codes(16), d.codes(16)]
    scales, zeros = [f32(x) for x in d.scale(5)], [u8(int(z)) for z in d.ints(100, 140, 5)]
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    inputs = (ids, segments, *codes, mask, *scales, *zeros)
    yield Node("embed", "QEmbedLayerNormalization", inputs, 2, tolerance=1e-4)
    for direction, count in (("forward", 1), ("bidirectional", 2)):
        w, r = d.weights(count, 3, 16), d.weights(count, 4, 16)
        scale, zero = np.full(count, 0.004, np.float32), np.zeros(count, np.int8)
        states = None, d(count, 2, 4), d(count, 2, 4)
        inputs = (d(5, 2, 3), w, r, d(count, 32), *states, None, scale, zero, scale, zero)
        attributes = {"direction": direction, "hidden_size": 4}
        name = f"lstm-{direction}"
        # ONNX Runtime rounds each step's inputs and states to 8 bits.
        common = {"tolerance": 0.05, "fixed": (1, 2, 8, 9, 10, 11)}
        yield Node(name, "DynamicQuantizeLSTM", inputs, 3, attributes, **common)


def few_bits(d: Draw) -> Iterator[Node]:
    for bits, block, inner in ((4, 16, 40), (4, 32, 64), (8, 32, 64), (2, 32, 64)):
        blocks = -(-inner // block)
        codes = d.codes(6, blocks, block * bits // 8)
        scales = d.scale(6, blocks)
        attributes = {"K": inner, "N": 6, "bits": bits, "block_size": block}
        a, fixed = d(2, 3, inner), (1, 2, 3)
        name = f"{bits}-{block}-{inner}"
        common = {"attributes": attributes, "tolerance": 1e-4, "fixed": fixed}
        yield Node(f"plain-{name}", "MatMulNBits", (a, codes, scales), **common)
        zeros = d.codes(6, -(-blocks * bits // 8))
        yield Node(f"zeros-{name}", "MatMulNBits", (a, codes, scales, zeros), **common)
        bias = (a, codes, scales, None, None, d(6))
        yield Node(f"bias-{name}", "MatMulNBits", bias, **{**common, "fixed": (1, 2, 5)})
    for kind in (0, 1):
        codes, largest = d.codes(6 * 32 // 2), d.scale(6 * 32 // 16)
        attributes = {"K": 32, "N": 6, "block_size": 16, "quant_type": kind}
        yield Node(
            f"bnb-{kind}",
            "MatMulBnb4",
            (d(3, 32), codes, largest),
            1,
            attributes,
            1e-4,
            fixed=(1, 2),
        )
    rows, scales = d.codes(9, 16), d.scale(9, 2)
    which = np.array([[0, 8], [3, 3]], np.int64)
    attributes = {"block_size": 16, "bits": 4, "quantize_axis": 1, "gather_axis": 0}
    yield Node("gather", "GatherBlockQuantized", (rows, which, scales), 1, attributes, fixed=(0, 2))
    inputs = (rows, which, scales, d.codes(9, 1))
    yield Node("gather-zeros", "GatherBlockQuantized", inputs, 1, attributes, fixed=(0, 2, 3))


GROUPS = {
    "activations": activations,
    "normalisation": normalisation,
    "products": products,
    "movement": movement,
    "rotary": rotary,
    "attention": attention,
    "multi_head": multi_head,
    "grouped": grouped,
    "quantised": quantised,
    "quantised_layers": quantised_layers,
    "few_bits": few_bits,
}


def nodes(seed: int) -> Iterator[Node]:
    """All nodes; equal seeds give equal inputs."""
    for group in GROUPS.values():
        yield from group(Draw(seed))
